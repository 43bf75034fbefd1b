//! Root-mean-square normalisation.

use burn::tensor::{DType, Tensor};
use kernels::KernelBackend;
use kernels::dense::rms_norm::{Gradients, RmsNorm, reference};

use crate::support::*;

const EPSILON: f64 = 1e-5;

struct Case {
    shape: [usize; 2],
    dtype: DType,
    /// Of gamma.
    parameters: DType,
    wanted: [bool; 2],
    /// Whether x and dy are slices of wider rows.
    sliced: bool,
    /// The scale of x. Values far below the root of epsilon must not be enlarged.
    scale: f64,
}

impl Case {
    fn new(shape: [usize; 2], dtype: DType) -> Self {
        Self {
            shape,
            dtype,
            parameters: dtype,
            wanted: [true; 2],
            sliced: false,
            scale: 1.0,
        }
    }

    fn check(&self, random: &mut Random) {
        let Self {
            shape: [t, d],
            dtype,
            parameters,
            wanted,
            sliced,
            scale,
        } = *self;
        let x = random.values([t, d], scale, dtype);
        let dy = random.values([t, d], 1.0, dtype);
        let gamma = random.values([d], 2.0, parameters);
        let exact = {
            let (x, gamma, dy) = (x.exact(), gamma.exact(), dy.exact());
            let y = reference::forward(x.clone(), gamma.clone(), EPSILON);
            outputs(y, reference::backward(x, gamma, dy, EPSILON, wanted))
        };
        let read = |values: &Values<2>| {
            if sliced {
                values.sliced()
            } else {
                values.cube()
            }
        };
        let run = || {
            let (x, gamma, dy) = (read(&x), gamma.cube(), read(&dy));
            poison();
            let y = Cube::rms_norm_forward(x.clone(), gamma.clone(), EPSILON);
            let gradients = Cube::rms_norm_backward(x, gamma, dy, EPSILON, wanted);
            assert_eq!(y.dtype(), dtype);
            let (dx, dgamma) = &gradients;
            assert!(dx.iter().all(|dx| dx.dtype() == dtype));
            assert!(dgamma.iter().all(|dgamma| dgamma.dtype() == parameters));
            outputs(y, gradients)
        };
        let name = format!(
            "rms norm {:?} {dtype:?}, parameters {parameters:?}, wanted {wanted:?}, sliced {sliced}, scale {scale}",
            self.shape
        );
        let tolerance = tolerance(dtype).max(tolerance(parameters));
        check(&name, tolerance, exact, run);
    }
}

fn outputs<B: KernelBackend>(y: Tensor<B, 2>, (dx, dgamma): Gradients<B>) -> Outputs {
    let mut outputs = vec![output("y", y)];
    outputs.extend(dx.map(|x| output("dx", x)));
    outputs.extend(dgamma.map(|x| output("dgamma", x)));
    outputs
}

#[test]
fn rms_norm_is_right() {
    with_device(|| {
        for dtype in dtypes() {
            // Not of one column, where the gradient to x is what rounding leaves of a difference.
            for shape in [
                [1, 2],
                [1, 2048],
                [5, 7],
                [300, 33],
                [70, 257],
                [1030, 24],
                [130, 576],
                [20, 2050],
                [9, 8192],
                [3, 10_001],
            ] {
                Case::new(shape, dtype).check(&mut Random::new(3));
            }
        }
    });
}

#[test]
fn rms_norm_gives_what_is_wanted() {
    with_device(|| {
        for bits in 0..4 {
            let case = Case {
                wanted: [0, 1].map(|k| bits >> k & 1 == 1),
                ..Case::new([37, 130], DType::F32)
            };
            case.check(&mut Random::new(bits));
        }
    });
}

#[test]
fn rms_norm_takes_parameters_of_another_dtype() {
    with_device(|| {
        for dtype in dtypes() {
            for parameters in dtypes() {
                for shape in [[40, 96], [5, 77]] {
                    let case = Case {
                        parameters,
                        ..Case::new(shape, dtype)
                    };
                    case.check(&mut Random::new(5));
                }
            }
        }
    });
}

#[test]
fn rms_norm_reads_slices_and_small_rows() {
    with_device(|| {
        for dtype in dtypes() {
            for shape in [[40, 96], [5, 77]] {
                let case = Case {
                    sliced: true,
                    ..Case::new(shape, dtype)
                };
                case.check(&mut Random::new(6));
            }
        }
        for scale in [1e-3, 100.0] {
            let case = Case {
                scale,
                ..Case::new([6, 2048], DType::F32)
            };
            case.check(&mut Random::new(6));
        }
    });
}

#[test]
fn rms_norm_is_right_on_random_shapes() {
    with_device(|| {
        for mut random in random_cases() {
            let shape = [random.size(1, 700), random.size(2, 600)];
            let case = Case {
                parameters: random.of(&dtypes()),
                wanted: [(); 2].map(|()| random.flag()),
                sliced: random.flag(),
                ..Case::new(shape, random.of(&dtypes()))
            };
            case.check(&mut random);
        }
    });
}
