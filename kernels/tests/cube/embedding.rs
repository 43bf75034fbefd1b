//! The gradient to a table of vectors.

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use kernels::dense::embedding::{Embedding, reference};
use kernels::embedding;

use crate::support::*;

struct Case {
    b: usize,
    l: usize,
    v: usize,
    d: usize,
    /// Ids are below this: the fewer, the more often each.
    different: usize,
    sliced: bool,
    /// Whether the ids lie in memory by columns.
    transposed: bool,
    dtype: DType,
}

fn tensor<B: Backend>(of: &[i64], shape: [usize; 2]) -> Tensor<B, 2, Int> {
    Tensor::from_data(TensorData::new(of.to_vec(), shape), &Default::default())
}

impl Case {
    fn random(random: &mut Random) -> Self {
        let v = random.of(&[1, 5, 40, 900]);
        Self {
            b: random.size(1, 3),
            l: random.of(&[1, 2, 31, 300, 1025]),
            v,
            d: random.of(&[1, 3, 16, 48, 130, 257]),
            different: random.size(1, v),
            sliced: random.flag(),
            transposed: random.flag(),
            dtype: random.of(&dtypes()),
        }
    }

    fn check(&self, random: &mut Random) {
        let Self { b, l, v, d, .. } = *self;
        let ids: Vec<i64> = (0..b * l)
            .map(|_| random.size(0, self.different - 1) as i64)
            .collect();
        let dy = random.values([b, l, d], 1.0, self.dtype);
        let exact = reference::gradient(tensor(&ids, [b, l]), dy.exact(), v);
        let run = || {
            let ids = if self.transposed {
                let columns: Vec<i64> = (0..b * l).map(|i| ids[i % b * l + i / b]).collect();
                tensor::<Cube>(&columns, [l, b]).swap_dims(0, 1)
            } else {
                tensor(&ids, [b, l])
            };
            let dy = if self.sliced { dy.sliced() } else { dy.cube() };
            poison();
            let gradient = Cube::embedding_gradient(ids, dy, v);
            assert_eq!(gradient.dtype(), self.dtype);
            vec![output("gradient", gradient)]
        };
        let name = format!(
            "embedding b{b} l{l} v{v} d{d}, {} different, sliced {}, transposed {}, {:?}",
            self.different, self.sliced, self.transposed, self.dtype
        );
        check(
            &name,
            tolerance(self.dtype),
            vec![output("gradient", exact)],
            run,
        );
    }
}

#[test]
fn embedding_gradient_is_right() {
    with_device(|| {
        for dtype in dtypes() {
            for (b, l, v, d, different, sliced, transposed) in [
                (1, 1, 1, 1, 1, false, false),
                (2, 3, 7, 5, 7, true, true),
                // More ids than are looked through at a time, most of them the same few.
                (1, 5000, 11, 3, 2, false, false),
                (2, 2500, 600, 8, 500, false, true),
                // More columns than a cube has.
                (1, 40, 20, 1100, 9, false, false),
            ] {
                let case = Case {
                    b,
                    l,
                    v,
                    d,
                    different,
                    sliced,
                    transposed,
                    dtype,
                };
                case.check(&mut Random::new(l as u64));
            }
        }
    });
}

#[test]
fn embedding_gradient_is_right_on_random_shapes() {
    with_device(|| {
        for mut random in random_cases() {
            Case::random(&mut random).check(&mut random);
        }
    });
}

/// The op's gradient on the graph is Burn's own of the same rows.
#[test]
fn embedding_differentiates() {
    type B = Autodiff<Exact>;
    let mut random = Random::new(3);
    let (b, l, v, d) = (2, 9, 6, 4);
    let table = random.values([v, d], 1.0, DType::F64).exact();
    let ids: Vec<i64> = (0..b * l).map(|_| random.size(0, v - 2) as i64).collect();
    let weights = random.values([b, l, d], 1.0, DType::F64).exact();
    let gradient = |of: fn(Tensor<B, 2>, Tensor<B, 2, Int>) -> Tensor<B, 3>| {
        let table = Tensor::<B, 2>::from_inner(table.clone()).require_grad();
        let y = of(table.clone(), tensor(&ids, [b, l]));
        let loss = (y * Tensor::from_inner(weights.clone())).sum();
        let mut gradients = loss.backward();
        table
            .grad_remove(&mut gradients)
            .expect("a gradient")
            .into_data()
    };
    let own = gradient(embedding);
    let composed = gradient(reference::forward);
    assert!(composed.iter::<f64>().any(|g| g != 0.0));
    assert!(distance(&composed, &own) < 1e-14);
}
