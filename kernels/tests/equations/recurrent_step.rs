//! One token through a mixer.

use kernels::runtime::{Flex, NdArray64};
use kernels::scan::causal_conv::Activation;
use kernels::{HeadNorm, KernelBackend, StepParameters, StepState, Turn};
use tests::assert_close;

use crate::support::*;

/// Three tokens through a mixer of `[b, h, p, n]`, `g` groups and windows of `w`: the outputs and the
/// state after them.
fn steps<B: KernelBackend>(
    [b, h, p, n, g, w]: [usize; 6],
    activation: Activation,
    norms: bool,
) -> Vec<Values> {
    let c = h * p + 2 * g * n;
    let parameters = StepParameters::<B> {
        taps: tensor(random(1, &[c, 1, w], 1.0)),
        bias: Some(tensor(random(2, &[c], 1.0))),
        activation,
        d: tensor(random(3, &[h], 1.0)),
        z_bias: Some(tensor(random(4, &[h * p], 1.0))),
        a_log_bias: Some(tensor(random(10, &[h], 1.0))),
        bc_norms: norms.then(|| {
            [13, 14].map(|seed| HeadNorm {
                gamma: tensor(random(seed, &[n], 1.0)),
                epsilon: 1e-3 * seed as f64,
            })
        }),
        turn: (n > 1).then(|| Turn {
            cos: tensor(random(11, &[1, n / 2], 1.0)),
            sin: tensor(random(12, &[1, n / 2], 1.0)),
        }),
    };
    let mut state = StepState {
        conv: tensor(random(5, &[b, c, w], 1.0)),
        ssm: tensor(random(6, &[b, h, p, n], 1.0)),
    };
    let mut outputs = vec![];
    for seed in 7..10 {
        let projected = tensor(random(seed, &[b, c + h * p + h], 3.0));
        let (y, after) = kernels::recurrent_step(projected, parameters.clone(), state);
        state = after;
        outputs.push(values(y));
    }
    outputs.extend([values(state.conv), values(state.ssm)]);
    outputs
}

#[test]
fn recurrent_step_is_right() {
    for sizes in [
        [1, 1, 1, 1, 1, 1],
        [2, 4, 16, 24, 4, 4],
        [3, 6, 8, 16, 2, 3],
    ] {
        for activation in [Activation::Identity, Activation::Silu] {
            for norms in [false, true] {
                let fast = steps::<Flex>(sizes, activation, norms);
                let exact = steps::<NdArray64>(sizes, activation, norms);
                for (fast, exact) in fast.into_iter().zip(exact) {
                    let case = format!("step {sizes:?} {activation:?}, norms {norms}");
                    assert_close(&case, fast, exact, F32_TOLERANCE);
                }
            }
        }
    }
}
