//! Stage 2's loss and its gradient.

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use kernels::losses::hidden_states::{HiddenStates, reference};
use kernels::rows_distance;

use crate::support::*;

struct Case {
    n: usize,
    d: usize,
    dtypes: [DType; 2],
    sliced: bool,
}

fn outputs<B: Backend>((loss, gradient): (Tensor<B, 1>, Tensor<B, 2>)) -> Outputs {
    vec![output("loss", loss), output("gradient", gradient)]
}

impl Case {
    fn random(random: &mut Random) -> Self {
        Self {
            n: random.of(&[1, 2, 33, 300, 1000]),
            d: random.of(&[1, 5, 16, 130, 257, 1024, 2047]),
            dtypes: [random.of(&dtypes()), random.of(&dtypes())],
            sliced: random.flag(),
        }
    }

    fn check(&self, random: &mut Random) {
        let Self { n, d, dtypes, .. } = *self;
        let a = random.values([n, d], 2.0, dtypes[0]);
        let b = random.values([n, d], 2.0, dtypes[1]);
        let exact = outputs(reference::with_gradient(a.exact(), b.exact()));
        let name = format!(
            "rows distance {n} x {d}, {dtypes:?}, sliced {}",
            self.sliced
        );
        let run = || {
            let (a, b) = if self.sliced {
                (a.sliced(), b.sliced())
            } else {
                (a.cube(), b.cube())
            };
            let alone = Cube::rows_distance_forward(a.clone(), b.clone());
            let (loss, gradient) = Cube::rows_distance_with_gradient(a, b);
            assert_eq!([loss.dtype(), alone.dtype()], [DType::F32; 2], "{name}");
            assert_eq!(gradient.dtype(), dtypes[0], "{name}");
            let alone = alone.into_data();
            assert!(alone.as_bytes() == loss.to_data().as_bytes(), "{name}");
            outputs((loss, gradient))
        };
        check(&name, tolerance(dtypes[0]), exact, run);
    }
}

#[test]
fn rows_distance_is_right() {
    with_device(|| {
        for dtype in dtypes() {
            for (n, d, sliced) in [
                (1, 1, false),
                (3, 5, true),
                (70, 2048, false),
                (9, 8200, false),
                (2, 20_000, false),
                // More rows than cubes along one dimension.
                (70_001, 2, false),
            ] {
                let case = Case {
                    n,
                    d,
                    dtypes: [dtype; 2],
                    sliced,
                };
                case.check(&mut Random::new(d as u64));
            }
        }
    });
}

#[test]
fn rows_distance_is_right_on_random_shapes() {
    with_device(|| {
        for mut random in random_cases() {
            Case::random(&mut random).check(&mut random);
        }
    });
}

/// Two rows of three, of which the middle one is met.
fn met<B: Backend>(dtype: DType) -> [Tensor<B, 2>; 2] {
    let device = Default::default();
    [
        Tensor::<B, 2>::from_data([[3.0, 4.0], [7.0, -1.0], [0.0, 2.0]], &device).cast(dtype),
        Tensor::<B, 2>::from_data([[0.0, 0.0], [7.0, -1.0], [0.0, 0.0]], &device).cast(dtype),
    ]
}

/// Through the graph, with a loss that is scaled after the op.
#[test]
fn a_row_that_is_met_has_no_gradient() {
    with_device(|| {
        for dtype in dtypes() {
            let [a, b] = met::<Autodiff<Cube>>(dtype);
            let a = a.detach().require_grad();
            let loss = rows_distance(a.clone(), b) * 6.0;
            let gradient = a.grad(&loss.backward()).expect("a gradient");
            assert_eq!(gradient.dtype(), dtype);
            let found: Vec<f64> = gradient.into_data().iter::<f64>().collect();
            let expected = [1.2, 1.6, 0.0, 0.0, 0.0, 2.0];
            for (found, expected) in found.iter().zip(expected) {
                let allowed = if dtype == DType::F32 { 1e-6 } else { 2e-2 };
                assert!(
                    (found - expected).abs() <= allowed,
                    "{found:?} for {expected}"
                );
            }
            assert_eq!(found[2..4], [0.0; 2]);
            let loss: f64 = loss.into_data().iter::<f64>().sum();
            assert!((loss - 14.0).abs() < 1e-5, "{loss}");
        }
    });
}

/// The op's gradient on the graph is that of its definition, composed.
#[test]
fn rows_distance_differentiates() {
    type B = Autodiff<Exact>;
    let mut random = Random::new(9);
    let a = random.values([7, 5], 1.0, DType::F64).exact();
    let b = random.values([7, 5], 1.0, DType::F64).exact();
    let b = Tensor::cat(vec![b.narrow(0, 0, 6), a.clone().narrow(0, 6, 1)], 0);
    let gradient = |of: fn(Tensor<B, 2>, Tensor<B, 2>) -> Tensor<B, 1>| {
        let a = Tensor::<B, 2>::from_inner(a.clone()).require_grad();
        let loss = of(a.clone(), Tensor::from_inner(b.clone())) * 3.0;
        let mut gradients = loss.backward();
        a.grad_remove(&mut gradients)
            .expect("a gradient")
            .into_data()
    };
    let own = gradient(rows_distance);
    let composed = gradient(reference::forward);
    assert!(composed.iter::<f64>().any(|g| g != 0.0));
    assert!(distance(&composed, &own) < 1e-13);
}
