//! Layer normalisation.

use burn::tensor::DType;
use kernels::KernelBackend;
use kernels::dense::layer_norm::{Gradients, LayerNorm, reference};

use crate::support::*;

const EPSILON: f64 = 1e-5;

struct Case {
    shape: [usize; 2],
    dtype: DType,
    /// Of gamma and beta.
    parameters: DType,
    wanted: [bool; 3],
    /// Whether x and dy are slices of wider rows.
    sliced: bool,
    /// Added to x, so that its mean is large compared with its deviation.
    offset: f64,
}

impl Case {
    fn new(shape: [usize; 2], dtype: DType) -> Self {
        Self {
            shape,
            dtype,
            parameters: dtype,
            wanted: [true; 3],
            sliced: false,
            offset: 0.0,
        }
    }

    fn check(&self, random: &mut Random) {
        let Self {
            shape: [t, d],
            dtype,
            parameters,
            wanted,
            sliced,
            offset,
        } = *self;
        let x = random.values([t, d], 1.0, dtype).plus(offset);
        let dy = random.values([t, d], 1.0, dtype);
        let gamma = random.values([d], 2.0, parameters);
        let beta = random.values([d], 1.0, parameters);
        let exact = {
            let (x, gamma, beta, dy) = (x.exact(), gamma.exact(), beta.exact(), dy.exact());
            let y = reference::forward(x.clone(), gamma.clone(), beta, EPSILON);
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
            let (x, gamma, beta, dy) = (read(&x), gamma.cube(), beta.cube(), read(&dy));
            poison();
            let y = Cube::layer_norm_forward(x.clone(), gamma.clone(), beta, EPSILON);
            let gradients = Cube::layer_norm_backward(x, gamma, dy, EPSILON, wanted);
            assert_eq!(y.dtype(), dtype);
            let (dx, dgamma, dbeta) = &gradients;
            assert!(dx.iter().all(|dx| dx.dtype() == dtype));
            let mut rest = dgamma.iter().chain(dbeta);
            assert!(rest.all(|gradient| gradient.dtype() == parameters));
            outputs(y, gradients)
        };
        let name = format!(
            "norm {:?} {dtype:?}, parameters {parameters:?}, wanted {wanted:?}, sliced {sliced}, at {offset}",
            self.shape
        );
        // The subtraction of a large mean loses precision in proportion to the mean.
        let tolerance = tolerance(dtype).max(tolerance(parameters)) * (1.0 + 0.3 * offset.abs());
        check(&name, tolerance, exact, run);
    }
}

fn outputs<B: KernelBackend>(
    y: burn::tensor::Tensor<B, 2>,
    (dx, dgamma, dbeta): Gradients<B>,
) -> Outputs {
    let mut outputs = vec![output("y", y)];
    outputs.extend(dx.map(|x| output("dx", x)));
    outputs.extend(dgamma.map(|x| output("dgamma", x)));
    outputs.extend(dbeta.map(|x| output("dbeta", x)));
    outputs
}

#[test]
fn norm_is_right() {
    with_device(|| {
        for dtype in dtypes() {
            for shape in [
                [1, 1],
                [1, 2048],
                [5, 7],
                [300, 33],
                [3, 256],
                [70, 257],
                [1030, 24],
                [33, 2048],
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
fn norm_gives_what_is_wanted() {
    with_device(|| {
        for bits in 0..8 {
            let case = Case {
                wanted: [0, 1, 2].map(|k| bits >> k & 1 == 1),
                ..Case::new([37, 130], DType::F32)
            };
            case.check(&mut Random::new(bits));
        }
        // Sums over the rows alone.
        for shape in [[1, 1], [2000, 40], [70, 2050], [9000, 3]] {
            for dtype in dtypes() {
                let case = Case {
                    wanted: [false, false, true],
                    ..Case::new(shape, dtype)
                };
                case.check(&mut Random::new(9));
            }
        }
    });
}

#[test]
fn norm_takes_parameters_of_another_dtype() {
    with_device(|| {
        for dtype in dtypes() {
            for parameters in dtypes() {
                for shape in [[40, 96], [6, 2048], [5, 77]] {
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
fn norm_reads_slices_and_rows_far_from_zero() {
    with_device(|| {
        for dtype in dtypes() {
            for shape in [[40, 96], [6, 200], [5, 77]] {
                let case = Case {
                    sliced: true,
                    ..Case::new(shape, dtype)
                };
                case.check(&mut Random::new(6));
            }
        }
        // The mean of the squares minus the square of the mean would lose all precision here.
        let case = Case {
            offset: 3000.0,
            ..Case::new([6, 2048], DType::F32)
        };
        case.check(&mut Random::new(6));
    });
}

#[test]
fn norm_is_right_on_random_shapes() {
    with_device(|| {
        for mut random in random_cases() {
            let shape = [random.size(1, 700), random.size(1, 600)];
            let case = Case {
                parameters: random.of(&dtypes()),
                wanted: [(); 3].map(|()| random.flag()),
                sliced: random.flag(),
                ..Case::new(shape, random.of(&dtypes()))
            };
            case.check(&mut random);
        }
    });
}
