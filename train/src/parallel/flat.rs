//! Parameters in one flat order, and buckets of them.
//!
//! The order is that of the published names, by which checkpoints file them: ids of modules differ from process to
//! process. In a bucket that is scattered, all that is rank 0's comes first, then all that is rank 1's, and so on: with
//! parts of `c_i` elements of parameter `i`, the bucket is a matrix of `[world, sum of c_i]` whose columns are those of
//! the parameters, each filled up with zeros to a matrix of `[world, c_i]`.

use burn::module::ParamId;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels::KernelBackend;
use kernels::runtime::collective::Place;
use model::{CausalLm, Layout, named_parameters};

use super::share::{part, share};

/// A parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its id in this process.
    pub id: ParamId,
    /// Its elements.
    pub elements: usize,
}

/// All parameters of a student, in the order of their published names.
#[derive(Debug, Clone)]
pub struct FlatOrder(Vec<Entry>);

impl FlatOrder {
    /// That of `student`.
    pub fn of<B: Backend>(student: &CausalLm<B>, layout: Layout) -> Self {
        let mut named = named_parameters(student, layout);
        named.sort_by(|one, other| one.name.cmp(&other.name));
        let entry = |parameter: &model::NamedParameter| Entry {
            id: parameter.id,
            elements: parameter.shape.iter().product(),
        };
        Self(named.iter().map(entry).collect())
    }

    /// All of them.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// Those that are `wanted`, in buckets of at most so many elements; a parameter that is larger has one to itself.
    pub fn buckets(&self, wanted: impl Fn(ParamId) -> bool, most: usize) -> Vec<Bucket> {
        let mut buckets: Vec<Bucket> = vec![];
        for entry in self.0.iter().filter(|entry| wanted(entry.id)) {
            match buckets.last_mut() {
                Some(last) if last.elements() + entry.elements <= most => last.0.push(*entry),
                _ => buckets.push(Bucket(vec![*entry])),
            }
        }
        buckets
    }
}

/// Parameters that are exchanged together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket(pub Vec<Entry>);

impl Bucket {
    /// The elements of all its parameters.
    pub fn elements(&self) -> usize {
        self.0.iter().map(|entry| entry.elements).sum()
    }

    /// The elements that are a rank's, with those that fill it up.
    pub fn part(&self, world: usize) -> usize {
        self.0.iter().map(|entry| part(entry.elements, world)).sum()
    }

    /// The flat `values` of its parameters, one behind the other.
    pub(crate) fn join<B: Backend>(values: Vec<Tensor<B, 1>>) -> Tensor<B, 1> {
        Tensor::cat(values, 0)
    }

    /// What [`join`](Self::join) made, as the parameters' own again.
    pub(crate) fn split<B: Backend>(&self, all: Tensor<B, 1>) -> Vec<Tensor<B, 1>> {
        let mut start = 0;
        let mut next = |entry: &Entry| {
            let range = start..start + entry.elements;
            start = range.end;
            all.clone().slice([range])
        };
        self.0.iter().map(&mut next).collect()
    }

    /// The flat `values` of its parameters by ranks, `[world * part]`.
    pub(crate) fn pack<B: Backend>(&self, values: Vec<Tensor<B, 1>>, world: usize) -> Tensor<B, 1> {
        if world == 1 {
            return Self::join(values);
        }
        let columns = self.0.iter().zip(values).map(|(entry, value)| {
            let part = part(entry.elements, world);
            filled(value, part * world).reshape([world, part])
        });
        let rows: Tensor<B, 2> = Tensor::cat(columns.collect(), 1);
        rows.reshape([world * self.part(world)])
    }

    /// What [`pack`](Self::pack) made, as the parameters' own again.
    pub(crate) fn unpack<B: Backend>(&self, all: Tensor<B, 1>, world: usize) -> Vec<Tensor<B, 1>> {
        if world == 1 {
            return self.split(all);
        }
        let rows = all.reshape([world, self.part(world)]);
        let mut start = 0;
        let mut next = |entry: &Entry| {
            let part = part(entry.elements, world);
            let columns = rows.clone().slice([0..world, start..start + part]);
            start += part;
            let value = columns.reshape([world * part]);
            if world * part == entry.elements {
                value
            } else {
                value.narrow(0, 0, entry.elements)
            }
        };
        self.0.iter().map(&mut next).collect()
    }

    /// The rank's share of each parameter, from its part of a bucket; `None` where it is empty.
    pub(crate) fn cut<B: Backend>(
        &self,
        own: Tensor<B, 1>,
        place: Place,
    ) -> Vec<Option<Tensor<B, 1>>> {
        let mut start = 0;
        let mut next = |entry: &Entry| {
            let length = share(entry.elements, place).len();
            let range = start..start + length;
            start += part(entry.elements, place.world);
            (length > 0).then(|| own.clone().slice([range]))
        };
        self.0.iter().map(&mut next).collect()
    }

    /// The rank's part of a bucket, from its share of each parameter.
    pub(crate) fn fill<B: Backend>(
        &self,
        shares: Vec<Option<Tensor<B, 1>>>,
        place: Place,
        device: &B::Device,
    ) -> Tensor<B, 1> {
        let parts = self.0.iter().zip(shares).map(|(entry, share)| {
            let part = part(entry.elements, place.world);
            match share {
                Some(share) => filled(share, part),
                None => Tensor::zeros([part], device),
            }
        });
        Tensor::cat(parts.collect(), 0)
    }
}

/// `x` with memory of its own, on a CPU: there a view of a part of another tensor is copied whenever it is read. On a GPU
/// a view is as good.
pub(super) fn of_its_own<B: KernelBackend>(x: Tensor<B, 1>) -> Tensor<B, 1> {
    if B::queues() {
        return x;
    }
    let (device, dtype) = (x.device(), x.dtype());
    Tensor::from_data(x.into_data(), (&device, dtype))
}

/// `x`, with zeros up to `length`.
fn filled<B: Backend>(x: Tensor<B, 1>, length: usize) -> Tensor<B, 1> {
    let [n] = x.dims();
    if n == length {
        return x;
    }
    let zeros = Tensor::<B, 1>::zeros([length - n], &x.device()).cast(x.dtype());
    Tensor::cat(vec![x, zeros], 0)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::Int;
    use kernels::runtime::Flex;

    use super::*;

    fn bucket(elements: &[usize]) -> Bucket {
        let entry = |elements: &usize| Entry {
            id: ParamId::new(),
            elements: *elements,
        };
        Bucket(elements.iter().map(entry).collect())
    }

    fn values(x: Tensor<Flex, 1>) -> Vec<f32> {
        x.into_data().iter::<f32>().collect()
    }

    /// Parameters of 5, 1 and 4 elements: 0 to 4, 10, 20 to 23.
    fn three() -> (Bucket, Vec<Tensor<Flex, 1>>) {
        let range = |start: i64, n: i64| {
            let whole = Tensor::<Flex, 1, Int>::arange(start..start + n, &Default::default());
            whole.float()
        };
        (
            bucket(&[5, 1, 4]),
            vec![range(0, 5), range(10, 1), range(20, 4)],
        )
    }

    #[test]
    fn a_bucket_goes_by_ranks() {
        let (bucket, parameters) = three();
        // Parts of 3, 1 and 2.
        assert_eq!(bucket.part(2), 6);
        let packed = bucket.pack(parameters, 2);
        assert_eq!(
            values(packed.clone()),
            [0., 1., 2., 10., 20., 21., 3., 4., 0., 0., 22., 23.]
        );
        let whole: Vec<_> = bucket.unpack(packed, 2).into_iter().map(values).collect();
        assert_eq!(
            whole,
            [
                vec![0., 1., 2., 3., 4.],
                vec![10.],
                vec![20., 21., 22., 23.]
            ]
        );
    }

    #[test]
    fn shares_come_back() {
        let device = Default::default();
        for world in [1, 2, 3, 4, 7] {
            let (bucket, parameters) = three();
            let part = bucket.part(world);
            let packed = bucket.pack(parameters.clone(), world);
            let mut parts = vec![];
            for rank in 0..world {
                let place = Place { rank, world };
                let own = packed.clone().narrow(0, rank * part, part);
                let shares = bucket.cut(own, place);
                for ((share, entry), parameter) in shares.iter().zip(&bucket.0).zip(&parameters) {
                    let range = super::share(entry.elements, place);
                    let expected = values(parameter.clone())[range].to_vec();
                    let found = share.clone().map(values).unwrap_or_default();
                    assert_eq!(found, expected, "rank {rank} of {world}");
                }
                parts.push(bucket.fill(shares, place, &device));
            }
            let whole = bucket.unpack(Tensor::cat(parts, 0), world);
            for (whole, parameter) in whole.into_iter().zip(parameters) {
                assert_eq!(values(whole), values(parameter), "world {world}");
            }
        }
    }

    #[test]
    fn buckets_are_of_few_elements() {
        let Bucket(entries) = bucket(&[5, 3, 100, 2, 8, 1]);
        let left_out = entries[3].id;
        let order = FlatOrder(entries);
        let buckets = order.buckets(|id| id != left_out, 10);
        let sizes = |bucket: &Bucket| -> Vec<usize> {
            bucket.0.iter().map(|entry| entry.elements).collect()
        };
        let sizes: Vec<_> = buckets.iter().map(sizes).collect();
        assert_eq!(sizes, [vec![5, 3], vec![100], vec![8, 1]]);
    }
}
