//! The definition, in tensor operations and the ops of the convolution and the gate.

use burn::tensor::Tensor;

use super::{HeadNorm, RecurrentStep, StepParameters, StepState};
use crate::dtype::{narrow, widen};
use crate::groups::to_heads;
use crate::scan::causal_conv::ConvInputs;
use crate::scan::skip_gate::SkipGateInputs;
use crate::scan::ssd::reference::log_decay;

/// See [`recurrent_step`](super::recurrent_step).
pub fn step<B: RecurrentStep>(
    projected: Tensor<B, 2>,
    parameters: StepParameters<B>,
    state: StepState<B>,
) -> (Tensor<B, 2>, StepState<B>) {
    let [b, h, p, n] = state.ssm.dims();
    let [_, c, w] = state.conv.dims();
    let (g, dtype) = ((c - h * p) / (2 * n), projected.dtype());
    let part = |start, width| projected.clone().narrow(1, start, width);
    let input_b1c = part(0, c).reshape([b, 1, c]);
    let z = part(c, h * p);
    let a_log = match parameters.a_log_bias {
        Some(bias) => widen(part(c + h * p, h)) + widen(bias).reshape([1, h]),
        None => widen(part(c + h * p, h)),
    };

    let history = (w > 1).then(|| {
        let window = narrow(state.conv, dtype).swap_dims(1, 2);
        window.narrow(1, 1, w - 1)
    });
    let latest = match history.clone() {
        Some(history) => Tensor::cat(vec![history, input_b1c.clone()], 1),
        None => input_b1c.clone(),
    };
    // Half-precision parameters may meet wider tokens.
    let taps = narrow(parameters.taps, dtype).reshape([c, w]);
    let bias = parameters.bias.map(|bias| narrow(bias, dtype));
    let z_bias = parameters.z_bias.map(|bias| narrow(bias, dtype));
    let d = narrow(parameters.d, dtype);
    let convolved = B::causal_conv_forward(ConvInputs {
        x: input_b1c,
        weight: taps,
        bias,
        history,
        activation: parameters.activation,
        documents: None,
    });
    let part = |start, width| convolved.clone().narrow(2, start, width);
    let x_b1hp = part(0, h * p).reshape([b, 1, h, p]);
    let grouped = |start, norm: Option<HeadNorm<B>>| {
        let x = widen(part(start, g * n));
        let x = match norm {
            Some(HeadNorm { gamma, epsilon }) => {
                let gamma = narrow(gamma, x.dtype());
                B::rms_norm_forward(x.reshape([b * g, n]), gamma, epsilon)
            }
            None => x.reshape([b * g, n]),
        };
        to_heads(x.reshape([b, 1, g, n]), h).reshape([b, h, 1, n])
    };
    let [b_norm, c_norm] = match parameters.bc_norms {
        Some(norms) => norms.map(Some),
        None => [None, None],
    };
    let b_bh1n = grouped(h * p, b_norm);
    let c_bh1n = grouped(h * p + g * n, c_norm);

    let decay = log_decay(a_log).exp().reshape([b, h, 1, 1]);
    let x_bhp1 = widen(x_b1hp.clone()).reshape([b, h, p, 1]);
    let before = match parameters.turn {
        Some(turn) => turn.apply(state.ssm),
        None => state.ssm,
    };
    let ssm = before * decay + x_bhp1 * b_bh1n;
    let y = (ssm.clone() * c_bh1n).sum_dim(3).reshape([b, 1, h, p]);
    let y = narrow(y, dtype);
    let z = z.reshape([b, 1, h * p]);
    let gated = B::skip_gate_forward(SkipGateInputs {
        y,
        x: x_b1hp,
        d,
        z,
        z_bias,
    });
    let conv = latest.swap_dims(1, 2);
    (gated.reshape([b, h * p]), StepState { conv, ssm })
}
