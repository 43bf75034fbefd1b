//! Stage 3's loss from a teacher's likeliest ids and its gradient, and the choice of these ids.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use kernels::losses::divergence::likeliest::reference as choice;
use kernels::losses::divergence::top_classes::reference;
use kernels::{
    DistillationWeights, Divergence, TopClasses, TopClassesInputs, likeliest, top_classes_block,
};

use crate::support::*;

struct Case {
    t: usize,
    v: usize,
    k: usize,
    dtype: DType,
    divergence: Divergence,
    weights: DistillationWeights,
    /// Logits lie between plus and minus this.
    range: f64,
    sliced: bool,
}

fn ints<B: Backend, const D: usize>(of: &[i64], shape: [usize; D]) -> Tensor<B, D, Int> {
    Tensor::from_data(TensorData::new(of.to_vec(), shape), &Default::default())
}

fn outputs<B: Backend>((loss, gradient): (Tensor<B, 1>, Tensor<B, 2>)) -> Outputs {
    vec![output("loss", loss), output("gradient", gradient)]
}

impl Case {
    fn random(random: &mut Random) -> Self {
        let v = random.of(&[2, 33, 1000, 4099]);
        Self {
            t: random.of(&[1, 3, 17]),
            v,
            k: random.of(&[1, 2, 16, 65, v]).min(v),
            dtype: random.of(&dtypes()),
            divergence: random.of(&[Divergence::ForwardKl, Divergence::ReverseKl]),
            weights: DistillationWeights {
                temperature: random.of(&[1.0, 0.5, 3.0]),
                hard: random.of(&[0.0, 0.3, 1.0]),
            },
            range: random.of(&[0.1, 8.0, 100.0]),
            sliced: random.flag(),
        }
    }

    fn check(&self, random: &mut Random) {
        let Self {
            t, v, k, weights, ..
        } = *self;
        let student = random.values([t, v], self.range, self.dtype);
        let labels: Vec<i64> = (0..t).map(|_| random.size(0, v - 1) as i64).collect();
        // Each of a token's ids once, in no order: a step that shares no factor with their number.
        let ids: Vec<i64> = (0..t)
            .flat_map(|_| {
                let (first, step) = (random.size(0, v - 1), coprime(v, random));
                (0..k).map(move |i| ((first + i * step) % v) as i64)
            })
            .collect();
        // A teacher's logarithms: of k + 1 probabilities that sum to one.
        let mut log_q = vec![];
        let mut log_rest = vec![];
        for _ in 0..t {
            let weights: Vec<f64> = (0..=k).map(|_| random.size(1, 1000) as f64).collect();
            let all: f64 = weights.iter().sum();
            log_q.extend(weights[..k].iter().map(|weight| (weight / all).ln()));
            log_rest.push((weights[k] / all).ln());
        }
        let log_q = Values::new(log_q, [t, k], DType::F32);
        let log_rest = Values::new(log_rest, [t, 1], DType::F32);
        let exact = reference::block(
            TopClassesInputs {
                student: student.exact(),
                teacher: TopClasses {
                    ids: ints(&ids, [t, k]),
                    log_q: log_q.exact(),
                    log_rest: log_rest.exact(),
                },
                labels: Some(ints(&labels, [t])),
                weights,
                divergence: self.divergence,
            },
            2 * t,
        );
        let name = format!(
            "{k} of {v} ids, {t} tokens, {:?}, {weights:?}, {:?}, within {}, sliced {}",
            self.divergence, self.dtype, self.range, self.sliced
        );
        let run = || {
            let inputs = TopClassesInputs {
                student: if self.sliced {
                    student.sliced()
                } else {
                    student.cube()
                },
                teacher: TopClasses {
                    ids: ints(&ids, [t, k]),
                    log_q: log_q.cube(),
                    log_rest: log_rest.cube(),
                },
                labels: Some(ints(&labels, [t])),
                weights,
                divergence: self.divergence,
            };
            let (loss, gradient) = top_classes_block::<Cube>(inputs, 2 * t);
            assert_eq!(loss.dtype(), DType::F32, "{name}");
            assert_eq!(gradient.dtype(), self.dtype, "{name}");
            outputs((loss, gradient))
        };
        check(&name, tolerance(self.dtype), outputs(exact), run);
    }
}

/// A number below `v`, or 1, that shares no factor with it.
fn coprime(v: usize, random: &mut Random) -> usize {
    let common = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let first = random.size(1, v);
    (first..2 * v)
        .find(|step| common(*step, v) == 1)
        .unwrap_or(1)
}

#[test]
fn the_loss_from_a_cache_is_right() {
    with_device(|| {
        for dtype in dtypes() {
            for (t, v, k, divergence, hard, sliced) in [
                (2, 1, 1, Divergence::ForwardKl, 0.0, false),
                (3, 51, 50, Divergence::ReverseKl, 0.25, true),
                (3, 5000, 64, Divergence::ForwardKl, 0.5, false),
                (2, 51_200, 256, Divergence::ForwardKl, 0.0, false),
            ] {
                let weights = DistillationWeights {
                    temperature: 1.5,
                    hard,
                };
                let case = Case {
                    t,
                    v,
                    k,
                    dtype,
                    divergence,
                    weights,
                    range: 6.0,
                    sliced,
                };
                case.check(&mut Random::new(v as u64));
            }
        }
    });
}

#[test]
fn the_loss_from_a_cache_is_right_on_random_shapes() {
    with_device(|| {
        for mut random in random_cases() {
            Case::random(&mut random).check(&mut random);
        }
    });
}

/// An id or a label outside the vocabulary makes the loss NaN, and a student that gives all probability to the top ids
/// has a finite loss.
#[test]
fn what_cannot_be_is_noticed() {
    with_device(|| {
        let loss = |id: i64, label: i64, hard: f64| {
            let student =
                Tensor::<Cube, 2>::from_data([[90.0, -90.0, -200.0]], &Default::default());
            let log = |values: [f32; 1]| Tensor::from_data([values], &Default::default());
            let inputs = TopClassesInputs {
                student,
                teacher: TopClasses {
                    ids: ints(&[id], [1, 1]),
                    log_q: log([0.5f32.ln()]),
                    log_rest: log([0.5f32.ln()]),
                },
                labels: Some(ints(&[label], [1])),
                weights: DistillationWeights {
                    temperature: 1.0,
                    hard,
                },
                divergence: Divergence::ForwardKl,
            };
            let (loss, gradient) = top_classes_block(inputs, 1);
            let gradient = gradient.into_data();
            (loss.into_data().iter::<f64>().sum::<f64>(), gradient)
        };
        let (value, gradient) = loss(0, 0, 0.0);
        assert!(value > 40.0 && value.is_finite(), "{value}");
        assert!(gradient.iter::<f64>().all(f64::is_finite));
        for (id, label) in [(3, 0), (-1, 0), (0, 3), (0, -1)] {
            assert!(loss(id, label, 0.5).0.is_nan(), "{id}, {label}");
        }
    });
}

/// Logits on a grid, so that many are equal: the ids are those of the host to the last.
#[test]
fn the_likeliest_are_those_of_the_host() {
    with_device(|| {
        for dtype in dtypes() {
            for (t, v, k, step) in [
                (2, 1, 1, 0.25),
                (3, 100, 7, 2.0),
                (3, 100, 100, 0.25),
                (2, 5000, 64, 0.25),
                (2, 51_203, 256, 0.0625),
                // All of them equal.
                (1, 4096, 33, 1e9),
            ] {
                let mut random = Random::new(v as u64);
                let logits: Vec<f64> = (0..t * v)
                    .map(|_| (random.size(0, 64) as f64 / 4.0 / step).floor() * step - 8.0)
                    .collect();
                let logits = Values::new(logits, [t, v], dtype);
                let host = choice::likeliest(logits.exact(), k);
                for logits in [logits.cube(), logits.sliced()] {
                    let found = likeliest(logits, k);
                    let name = format!("{k} of {v} in steps of {step}, {dtype:?}");
                    let ids = |ids: TensorData| ids.iter::<i64>().collect::<Vec<_>>();
                    let expected = ids(host.ids.clone().into_data());
                    assert_eq!(ids(found.ids.into_data()), expected, "{name}");
                    for (found, expected) in [
                        (found.log_q, host.log_q.clone()),
                        (found.log_rest, host.log_rest.clone()),
                    ] {
                        let (found, expected) = (found.into_data(), expected.into_data());
                        for (found, expected) in found.iter::<f64>().zip(expected.iter::<f64>()) {
                            let error = (found - expected).abs();
                            assert!(error <= 1e-5 * expected.abs().max(1.0), "{name}: {error}");
                        }
                    }
                }
            }
        }
    });
}
