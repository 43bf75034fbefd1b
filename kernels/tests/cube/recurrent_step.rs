//! The recurrent step.

use burn::tensor::{DType, Tensor};
use kernels::decode::recurrent_step::{RecurrentStep, reference};
use kernels::scan::causal_conv::Activation;
use kernels::{HeadNorm, KernelBackend, StepParameters, StepState, Turn};

use crate::support::*;

struct Case {
    /// `[b, h, p, n]`.
    sizes: [usize; 4],
    groups: usize,
    width: usize,
    biases: bool,
    activation: Activation,
    decay: f64,
    /// Whether something else holds the state.
    held: bool,
    dtype: DType,
}

impl Case {
    fn random(random: &mut Random) -> Self {
        let (h, groups) = random.of(&[(1, 1), (2, 2), (3, 1), (6, 2), (5, 5)]);
        Self {
            sizes: [
                random.of(&[1, 2, 3, 17]),
                h,
                random.of(&[1, 5, 16, 64, 96, 128, 200]),
                random.of(&[1, 7, 16, 32, 64, 100, 128]),
            ],
            groups,
            width: random.of(&[1, 2, 3, 4, 4, 5]),
            biases: random.flag(),
            activation: random.of(&[Activation::Identity, Activation::Silu]),
            decay: random.of(&[1.0, 60.0]),
            held: random.flag(),
            dtype: random.of(&dtypes()),
        }
    }

    fn check(&self, random: &mut Random) {
        let Self {
            sizes: [b, h, p, n],
            groups: g,
            width: w,
            activation,
            dtype,
            held,
            ..
        } = *self;
        let c = h * p + 2 * g * n;
        // The products of a few inputs must not exceed what f16 holds.
        let scale = match dtype {
            DType::F16 => self.decay.min(2.0),
            _ => self.decay,
        };
        let tokens: Vec<_> = (0..3)
            .map(|_| random.values([b, c + h * p + h], scale, dtype))
            .collect();
        let taps = random.values([c, 1, w], 1.0, dtype);
        let bias = self.biases.then(|| random.values([c], 1.0, dtype));
        let d = random.values([h], 1.0, dtype);
        let z_bias = self.biases.then(|| random.values([h * p], 1.0, dtype));
        let a_log_bias = self.biases.then(|| random.values([h], 1.0, dtype));
        let gammas = random
            .flag()
            .then(|| [(); 2].map(|()| random.values([n], 1.0, dtype)));
        // Of those with biases that have pairs: of some numbers, or of all.
        let angles = (self.biases && n > 1).then(|| {
            let r = if random.flag() {
                n / 2
            } else {
                random.size(1, n / 2)
            };
            [(); 2].map(|()| random.values([1, r], 1.0, DType::F32))
        });
        let conv = random.values([b, c, w], 1.0, dtype);
        let ssm = random.values([b, h, p, n], 1.0, DType::F32);

        let exact = {
            let parameters = StepParameters {
                taps: taps.exact(),
                bias: bias.as_ref().map(Values::exact),
                activation,
                d: d.exact(),
                z_bias: z_bias.as_ref().map(Values::exact),
                a_log_bias: a_log_bias.as_ref().map(Values::exact),
                bc_norms: gammas.as_ref().map(|[b, c]| norms(b.exact(), c.exact())),
                turn: angles.as_ref().map(|[cos, sin]| Turn {
                    cos: cos.exact(),
                    sin: sin.exact(),
                }),
            };
            let (conv, ssm) = (conv.exact(), ssm.exact());
            let tokens = tokens.iter().map(Values::exact);
            steps(tokens, parameters, StepState { conv, ssm }, reference::step)
        };
        let run = || {
            let parameters = StepParameters {
                taps: taps.cube(),
                bias: bias.as_ref().map(Values::cube),
                activation,
                d: d.cube(),
                z_bias: z_bias.as_ref().map(Values::cube),
                a_log_bias: a_log_bias.as_ref().map(Values::cube),
                bc_norms: gammas.as_ref().map(|[b, c]| norms(b.cube(), c.cube())),
                turn: angles.as_ref().map(|[cos, sin]| Turn {
                    cos: cos.cube(),
                    sin: sin.cube(),
                }),
            };
            // As prefill leaves it.
            let view = conv.cube().swap_dims(1, 2) * 1.0;
            let state = StepState {
                conv: view.swap_dims(1, 2),
                ssm: ssm.cube(),
            };
            let copy = held.then(|| state.clone());
            poison();
            let tokens = tokens.iter().map(Values::cube);
            let outputs = steps(tokens, parameters, state, Cube::recurrent_step);
            if let Some(copy) = copy {
                let held = distance(&ssm.exact().into_data(), &copy.ssm.into_data());
                assert!(held < 1e-6, "the step wrote over a state that was held");
            }
            outputs
        };
        let name = format!(
            "step {:?}, {g} groups, width {w}, biases {}, {activation:?}, decay {}, held {held}, norms {}, {} pairs, \
             {dtype:?}",
            self.sizes,
            self.biases,
            self.decay,
            gammas.is_some(),
            angles.as_ref().map_or(0, |[cos, _]| cos.exact().dims()[1])
        );
        check(&name, tolerance(dtype), exact, run);
    }
}

/// With different epsilons.
fn norms<B: KernelBackend>(b: Tensor<B, 1>, c: Tensor<B, 1>) -> [HeadNorm<B>; 2] {
    [(b, 1e-3), (c, 1e-2)].map(|(gamma, epsilon)| HeadNorm { gamma, epsilon })
}

type Step<B> = fn(Tensor<B, 2>, StepParameters<B>, StepState<B>) -> (Tensor<B, 2>, StepState<B>);

fn steps<B: KernelBackend>(
    tokens: impl Iterator<Item = Tensor<B, 2>>,
    parameters: StepParameters<B>,
    mut state: StepState<B>,
    step: Step<B>,
) -> Outputs {
    let mut outputs = vec![];
    for token in tokens {
        let (y, after) = step(token, parameters.clone(), state);
        state = after;
        outputs.push(output("y", y));
    }
    outputs.push(output("conv", state.conv));
    outputs.push(output("ssm", state.ssm));
    outputs
}

#[test]
fn step_is_right() {
    with_device(|| {
        for dtype in dtypes() {
            for (sizes, groups, width) in [
                ([1, 1, 1, 1], 1, 4),
                ([2, 4, 64, 64], 4, 4),
                ([3, 4, 64, 64], 2, 4),
                ([1, 3, 16, 128], 3, 2),
            ] {
                for held in [false, true] {
                    let case = Case {
                        sizes,
                        groups,
                        width,
                        biases: held,
                        activation: Activation::Identity,
                        decay: 2.0,
                        held,
                        dtype,
                    };
                    case.check(&mut Random::new(5));
                }
            }
        }
    });
}

#[test]
fn step_is_right_on_random_shapes() {
    with_device(|| {
        for mut random in random_cases() {
            Case::random(&mut random).check(&mut random);
        }
    });
}
