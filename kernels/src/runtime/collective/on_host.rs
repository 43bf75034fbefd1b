//! A [`Collective`] for any backend, through the memory of the host.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};

use super::{Collective, InFlight, Place};

/// An exchange of numbers between the ranks through the memory of the host. Sums are added in the order of the ranks,
/// so that their bits depend on nothing else.
pub trait Exchange: Send + Sync {
    /// Which of the ranks this is.
    fn place(&self) -> Place;

    /// What carries the numbers.
    fn name(&self) -> String;

    /// This rank's part of the sum over all ranks of `x`, whose length the world divides.
    fn reduce_scatter(&self, x: &[f32]) -> Vec<f32>;

    /// The `x` of all ranks, one behind the other.
    fn all_gather(&self, x: &[f32]) -> Vec<f32>;

    /// Overwrites `x` with the `x` of rank 0.
    fn broadcast(&self, x: &mut [f32]);
}

/// Sums the parts in `all`, one of `length` for each rank, in their order.
pub(super) fn sum<'a>(length: usize, mut parts: impl Iterator<Item = &'a [f32]>) -> Vec<f32> {
    let mut sum = parts.next().map_or(vec![0.0; length], <[f32]>::to_vec);
    for part in parts {
        for (sum, x) in sum.iter_mut().zip(part) {
            *sum += x;
        }
    }
    sum
}

/// [`Exchange`] as a [`Collective`]: the tensors of an operation are exchanged as one.
pub struct OnHost<E>(pub E);

/// The tensors of an operation, in the memory of the host.
struct Values(Vec<Vec<f32>>);

impl Values {
    /// Those of `xs`.
    ///
    /// # Panics
    /// If they are not f32.
    fn of<B: Backend>(xs: Vec<Tensor<B, 1>>) -> Self {
        let values = xs.into_iter().map(|x| {
            let data = x.into_data();
            assert_eq!(data.dtype, DType::F32, "a collective's tensors are f32");
            let values = data.into_vec();
            values.unwrap_or_else(|error| panic!("the values of a tensor: {error:?}"))
        });
        Self(values.collect())
    }

    fn lengths(&self) -> Vec<usize> {
        self.0.iter().map(Vec::len).collect()
    }

    /// A `world`th of each length.
    ///
    /// # Panics
    /// If `world` does not divide them.
    fn parts(&self, world: usize) -> Vec<usize> {
        let part = |length: usize| {
            let divides = length.is_multiple_of(world);
            assert!(divides, "the number of ranks divides what they share");
            length / world
        };
        self.lengths().into_iter().map(part).collect()
    }

    /// The part of each that is `rank`'s, one behind the other.
    fn of_rank(&self, rank: usize, parts: &[usize]) -> Vec<f32> {
        let own = self.0.iter().zip(parts);
        let own = own.flat_map(|(values, part)| &values[rank * part..(rank + 1) * part]);
        own.copied().collect()
    }

    /// What lies in `all` one behind the other, with these lengths.
    fn split(all: &[f32], lengths: &[usize]) -> Self {
        let mut rest = all;
        let mut next = |length: &usize| {
            let (own, others) = rest.split_at(*length);
            rest = others;
            own.to_vec()
        };
        Self(lengths.iter().map(&mut next).collect())
    }

    /// The parts that each rank has [one behind the other](Self::of_rank), as the whole of each tensor.
    fn join(all: &[f32], parts: &[usize]) -> Self {
        let of_rank: usize = parts.iter().sum();
        let mut start = 0;
        let mut next = |part: &usize| {
            let range = start..start + part;
            start = range.end;
            let ranks = all.chunks(of_rank.max(1));
            ranks
                .flat_map(|rank| &rank[range.clone()])
                .copied()
                .collect()
        };
        Self(parts.iter().map(&mut next).collect())
    }

    fn arrived<B: Backend>(self, device: Option<B::Device>) -> InFlight<B> {
        let tensors = self.0.into_iter().zip(device.iter().cycle());
        let tensors = tensors.map(|(values, device)| {
            let shape = [values.len()];
            Tensor::from_data(TensorData::new(values, shape), device)
        });
        InFlight::done(tensors.collect())
    }
}

fn device<B: Backend>(xs: &[Tensor<B, 1>]) -> Option<B::Device> {
    xs.first().map(Tensor::device)
}

impl<B: Backend, E: Exchange> Collective<B> for OnHost<E> {
    fn place(&self) -> Place {
        self.0.place()
    }

    fn name(&self) -> String {
        self.0.name()
    }

    fn all_reduce(&self, xs: Vec<Tensor<B, 1>>) -> InFlight<B> {
        let (device, xs) = (device(&xs), Values::of(xs));
        let lengths = xs.lengths();
        let mut all = xs.0.concat();
        let length = all.len().next_multiple_of(self.0.place().world);
        all.resize(length, 0.0);
        let all = self.0.all_gather(&self.0.reduce_scatter(&all));
        Values::split(&all, &lengths).arrived(device)
    }

    fn reduce_scatter(&self, xs: Vec<Tensor<B, 1>>) -> InFlight<B> {
        let (device, xs) = (device(&xs), Values::of(xs));
        let world = self.0.place().world;
        let parts = xs.parts(world);
        let all = (0..world).flat_map(|rank| xs.of_rank(rank, &parts));
        let own = self.0.reduce_scatter(&all.collect::<Vec<_>>());
        Values::split(&own, &parts).arrived(device)
    }

    fn all_gather(&self, xs: Vec<Tensor<B, 1>>) -> InFlight<B> {
        let (device, xs) = (device(&xs), Values::of(xs));
        let all = self.0.all_gather(&xs.0.concat());
        Values::join(&all, &xs.lengths()).arrived(device)
    }

    fn gather_parts(&self, xs: Vec<Tensor<B, 1>>) -> InFlight<B> {
        let (device, xs) = (device(&xs), Values::of(xs));
        let Place { rank, world } = self.0.place();
        let parts = xs.parts(world);
        let all = self.0.all_gather(&xs.of_rank(rank, &parts));
        Values::join(&all, &parts).arrived(device)
    }

    fn broadcast(&self, xs: Vec<Tensor<B, 1>>) -> InFlight<B> {
        let (device, xs) = (device(&xs), Values::of(xs));
        let mut all = xs.0.concat();
        self.0.broadcast(&mut all);
        Values::split(&all, &xs.lengths()).arrived(device)
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use std::thread;

    use burn_flex::Flex;

    use super::super::Threads;
    use super::*;

    /// What `act` returns on each of `world` ranks.
    fn on_each<T: Send>(world: usize, act: impl Fn(OnHost<Threads>) -> T + Sync) -> Vec<T> {
        thread::scope(|scope| {
            let act = &act;
            let ranks = Threads::new(world).into_iter();
            let threads: Vec<_> = ranks
                .map(|rank| scope.spawn(move || act(OnHost(rank))))
                .collect();
            let results = threads.into_iter().map(|thread| thread.join().unwrap());
            results.collect()
        })
    }

    /// Tensors go together, and each comes back as what an operation on it alone would give.
    #[test]
    fn lists_are_exchanged_tensor_by_tensor() {
        let tensor = |values: Vec<f32>| {
            let shape = [values.len()];
            Tensor::<Flex, 1>::from_data(TensorData::new(values, shape), &Default::default())
        };
        let found = on_each(2, |ranks| {
            let own = [1.0, 100.0][Collective::<Flex>::place(&ranks).rank];
            let lists = |lengths: &[usize]| -> Vec<_> {
                let values = |n: &usize| (0..*n).map(|i| own * (i + n) as f32).collect();
                lengths.iter().map(|n| tensor(values(n))).collect()
            };
            let results = [
                ranks.all_reduce(lists(&[3, 0, 2])),
                ranks.reduce_scatter(lists(&[4, 2])),
                ranks.all_gather(lists(&[1, 2])),
                ranks.gather_parts(lists(&[4, 2])),
                ranks.broadcast(lists(&[2, 1])),
                ranks.all_gather(vec![]),
            ];
            let values = |x: Tensor<Flex, 1>| x.into_data().iter::<f32>().collect::<Vec<_>>();
            results.map(|all| all.wait().into_iter().map(values).collect::<Vec<_>>())
        });
        let parts = [
            [vec![404.0, 505.0], vec![202.0]],
            [vec![606.0, 707.0], vec![303.0]],
        ];
        for (found, parts) in found.into_iter().zip(parts) {
            let [sums, own, all, whole, first, none] = found;
            assert_eq!(
                sums,
                [vec![303.0, 404.0, 505.0], vec![], vec![202.0, 303.0]]
            );
            assert_eq!(own, parts);
            assert_eq!(all, [vec![1.0, 100.0], vec![2.0, 3.0, 200.0, 300.0]]);
            assert_eq!(whole, [vec![4.0, 5.0, 600.0, 700.0], vec![2.0, 300.0]]);
            assert_eq!(first, [vec![2.0, 3.0], vec![1.0]]);
            assert!(none.is_empty());
        }
    }
}
