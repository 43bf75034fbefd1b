//! The optimiser's step and the norms of gradients.

use std::ops::Range;

use burn::tensor::{DType, Tensor};
use kernels::optim::adamw::{AdamW, Update, reference};
use kernels::{AdamWStep, KernelBackend};

use crate::support::*;

const STEP: AdamWStep = AdamWStep {
    lr: 1e-2,
    beta1: 0.9,
    beta2: 0.95,
    epsilon: 1e-8,
    weight_decay: 0.1,
    time: 3,
};

struct Case {
    parameter: Values<2>,
    gradient: Values<2>,
    moments: [Values<2>; 2],
    scale: f64,
}

impl Case {
    fn random(shape: [usize; 2], gradient: DType, scale: f64) -> Self {
        let mut random = Random::new(11);
        let m = random.values(shape, 0.1, DType::F32);
        let v = random.values(shape, 0.05, DType::F32).plus(0.05);
        Self {
            parameter: random.values(shape, 1.0, DType::F32),
            gradient: random.values(shape, 1.0, gradient),
            moments: [m, v],
            scale,
        }
    }

    fn exact(&self) -> Outputs {
        let moments = self.moments.each_ref().map(Values::exact);
        let scale = Tensor::from_data([self.scale], &Default::default());
        let (parameter, gradient) = (self.parameter.exact(), self.gradient.exact());
        outputs(reference::step(parameter, gradient, moments, scale, STEP))
    }

    /// `held`: whether something else holds parameter and moments, which must not change.
    fn run(&self, held: bool) -> Outputs {
        let scale = Tensor::from_data([self.scale as f32], &Default::default());
        let (parameter, gradient) = (self.parameter.cube(), self.gradient.cube());
        let moments = self.moments.each_ref().map(Values::cube);
        let holders = held.then(|| (parameter.clone(), moments.clone()));
        let before = holders.clone().map(outputs);
        poison();
        let after = outputs(Cube::adamw_step(parameter, gradient, moments, scale, STEP));
        if let (Some(holders), Some(before)) = (holders, before) {
            assert_eq!(
                outputs(holders),
                before,
                "a tensor that is held was written to"
            );
        }
        after
    }

    fn check(&self, name: &str) {
        for held in [false, true] {
            let name = format!("adamw {name}, held {held}");
            check(&name, 1e-5, self.exact(), || self.run(held));
        }
    }
}

fn outputs<B: KernelBackend, const D: usize>(
    (parameter, [m, v]): (Tensor<B, D>, [Tensor<B, D>; 2]),
) -> Outputs {
    vec![
        output("parameter", parameter),
        output("m", m),
        output("v", v),
    ]
}

#[test]
fn adamw_is_right() {
    with_device(|| {
        for dtype in dtypes() {
            for shape in [[1, 1], [5, 7], [33, 2], [3, 2050], [64, 2048]] {
                let case = Case::random(shape, dtype, 0.37);
                case.check(&format!("{shape:?}, gradient {dtype:?}"));
            }
        }
    });
}

#[test]
fn adamw_changes_nothing_by_a_scale_that_is_not_finite() {
    with_device(|| {
        for scale in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let case = Case::random([9, 130], DType::F32, scale);
            let moments = case.moments.each_ref().map(Values::cube);
            let before = outputs((case.parameter.cube(), moments));
            for held in [false, true] {
                assert_eq!(case.run(held), before, "scale {scale}, held {held}");
            }
            case.check(&format!("scale {scale}"));
        }
    });
}

#[test]
fn adamw_passes_the_largest_number_of_cubes_in_a_row() {
    with_device(|| {
        // Odd, so that a unit has one element.
        let elements = 65_535 * 256 + 257;
        let device = Default::default();
        let ones = || Tensor::<Cube, 1>::ones([elements], &device);
        let step = AdamWStep {
            weight_decay: 0.0,
            ..STEP
        };
        let moments = [ones(), ones()];
        let (_, [m, _]) = Cube::adamw_step(ones(), ones() * 2.0, moments, ones().slice(0..1), step);
        // Counts the right elements and not the wrong ones: every comparison with NaN is false.
        let right = m.sub_scalar(1.1f32).abs().lower_elem(1e-6).int().sum();
        assert_eq!(right.into_scalar() as usize, elements);
    });
}

/// More parameters than a launch takes, of sizes that are read in vectors of one to eight, and with two steps.
#[test]
fn many_parameters_are_stepped_together() {
    with_device(|| {
        for dtype in dtypes() {
            let case = |i: usize| Case::random([1 + i % 3, [1, 7, 64, 1030][i % 4]], dtype, 0.5);
            let cases: Vec<_> = (0..40).map(case).collect();
            let step = |i: usize| AdamWStep {
                lr: if i.is_multiple_of(5) { 1e-3 } else { 1e-2 },
                ..STEP
            };
            let exact = cases.iter().enumerate().flat_map(|(i, case)| {
                let moments = case.moments.each_ref().map(Values::exact);
                let scale = Tensor::from_data([case.scale], &Default::default());
                let (parameter, gradient) = (case.parameter.exact(), case.gradient.exact());
                outputs(reference::step(
                    parameter,
                    gradient,
                    moments,
                    scale,
                    step(i),
                ))
            });
            let run = || {
                fn flat<const D: usize>(x: &Values<D>) -> Tensor<Cube, 1> {
                    let x = x.cube();
                    let elements = x.shape().num_elements();
                    x.reshape([elements])
                }
                let update = |(i, case): (usize, &Case)| Update {
                    parameter: flat(&case.parameter),
                    start: 0,
                    gradient: flat(&case.gradient),
                    moments: case.moments.each_ref().map(flat),
                    step: step(i),
                };
                let updates = cases.iter().enumerate().map(update).collect();
                poison();
                let scale = Tensor::from_data([0.5f32], &Default::default());
                let updated = kernels::adamw_steps::<Cube>(updates, scale).into_iter();
                let shaped = updated
                    .zip(&cases)
                    .flat_map(|((parameter, moments), case)| {
                        let shape = case.parameter.exact().dims();
                        let whole = |x: Tensor<Cube, 1>| x.reshape(shape);
                        outputs((whole(parameter), moments.map(whole)))
                    });
                shaped.collect()
            };
            check(
                &format!("adamw together, gradient {dtype:?}"),
                1e-5,
                exact.collect(),
                run,
            );
        }
    });
}

/// Updates of parts of parameters with 40 elements, which begin at 0, 8, 16, 21 and 39, in vectors and one by one. The
/// other elements must not change.
#[test]
fn a_part_of_a_parameter_is_stepped() {
    with_device(|| {
        let mut random = Random::new(19);
        for dtype in dtypes() {
            let parts = [0..40, 8..40, 16..24, 21..22, 39..40];
            let cases = parts.map(|part| {
                let n = part.len();
                let parameter = random.values([40], 1.0, DType::F32);
                let gradient = random.values([n], 1.0, dtype);
                let m = random.values([n], 0.1, DType::F32);
                let v = random.values([n], 0.05, DType::F32).plus(0.05);
                (part, parameter, gradient, [m, v])
            });
            let exact = |(part, parameter, gradient, moments): &PartCase| {
                let whole = parameter.exact();
                let own = whole.clone().slice([part.clone()]);
                let moments = moments.each_ref().map(Values::exact);
                let scale = Tensor::from_data([0.5], &Default::default());
                let (own, moments) = reference::step(own, gradient.exact(), moments, scale, STEP);
                outputs((whole.slice_assign([part.clone()], own), moments))
            };
            let exact = cases.iter().flat_map(exact);
            let run = || {
                let update = |(part, parameter, gradient, moments): &PartCase| Update {
                    parameter: parameter.cube(),
                    start: part.start,
                    gradient: gradient.cube(),
                    moments: moments.each_ref().map(Values::cube),
                    step: STEP,
                };
                let updates = cases.iter().map(update).collect();
                poison();
                let scale = Tensor::from_data([0.5f32], &Default::default());
                let updated = kernels::adamw_steps::<Cube>(updates, scale);
                updated.into_iter().flat_map(outputs).collect()
            };
            check(
                &format!("adamw of parts, gradient {dtype:?}"),
                1e-5,
                exact.collect(),
                run,
            );
        }
    });
}

/// The range that is updated, the parameter, the gradient, and the moments.
type PartCase = (Range<usize>, Values<1>, Values<1>, [Values<1>; 2]);

#[test]
fn norms_are_right() {
    with_device(|| {
        let mut random = Random::new(13);
        let lists: [&[usize]; 5] = [
            &[1],
            &[7, 1, 33],
            &[2050, 16_384, 16_385],
            &[100_003, 5],
            &[300_000, 8, 4096, 1],
        ];
        // More than a launch takes.
        let many: Vec<usize> = (1..40).map(|i| 37 * i).collect();
        let lists = lists.into_iter().chain([&many[..]]);
        for dtype in dtypes() {
            for sizes in lists.clone() {
                let values = sizes.iter().map(|&size| random.values([size], 1.0, dtype));
                let values: Vec<Values<1>> = values.collect();
                let exact = reference::squared_norms(values.iter().map(Values::exact).collect());
                let run = || {
                    let xs = values.iter().map(Values::cube).collect();
                    poison();
                    vec![output("norm", kernels::squared_norms::<Cube>(xs))]
                };
                let name = format!("norms {sizes:?}, {dtype:?}");
                check(&name, 1e-6, vec![output("norm", exact)], run);
            }
        }
    });
}

#[test]
fn norms_take_dtypes_side_by_side() {
    with_device(|| {
        let mut random = Random::new(17);
        let values = dtypes()
            .into_iter()
            .map(|dtype| random.values([999], 1.0, dtype));
        let values: Vec<Values<1>> = values.collect();
        let exact = reference::squared_norms(values.iter().map(Values::exact).collect());
        let run = || {
            let norm = kernels::squared_norms::<Cube>(values.iter().map(Values::cube).collect());
            assert_eq!(norm.dtype(), DType::F32);
            let one = kernels::squared_norm::<Cube, 1>(values[0].cube());
            vec![output("norm", norm), output("one", one)]
        };
        let one = reference::squared_norm(values[0].exact());
        check(
            "norms",
            1e-6,
            vec![output("norm", exact), output("one", one)],
            run,
        );
    });
}
