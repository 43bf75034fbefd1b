//! On slices: the windows of all channels, then a task a head. The state is written where it is.

use burn::tensor::{Tensor, TensorPrimitive};
use burn_flex::{Flex, FlexTensor};
use rayon::prelude::*;

use super::{RecurrentStep, StepParameters, StepState, Turn, reference};
use crate::flex::math::{dot, sigmoid, sum, vectorised};
use crate::flex::{Values, is_f32, tensor};
use crate::scan::causal_conv::Activation;

impl RecurrentStep for Flex {
    fn recurrent_step(
        projected: Tensor<Self, 2>,
        parameters: StepParameters<Self>,
        state: StepState<Self>,
    ) -> (Tensor<Self, 2>, StepState<Self>) {
        let states = is_f32(&state.conv) && is_f32(&state.ssm);
        let angles = |turn: &Turn<Self>| is_f32(&turn.cos) && is_f32(&turn.sin);
        let mut norms = parameters.bc_norms.iter().flatten();
        let norms = norms.all(|norm| is_f32(&norm.gamma));
        let turns = parameters.turn.as_ref().is_none_or(angles);
        if states && turns && norms && is_f32(&projected) && is_f32(&parameters.taps) {
            step(projected, parameters, state)
        } else {
            reference::step(projected, parameters, state)
        }
    }
}

fn owned<const D: usize>(x: Tensor<Flex, D>) -> FlexTensor {
    x.into_primitive().tensor().to_contiguous()
}

/// Moves the windows `[c, w]` on to the inputs `[c]`, and convolves them.
#[inline(always)]
fn convolve(windows: &mut [f32], inputs: &[f32], parameters: &Slices, y: &mut [f32]) {
    let w = parameters.taps.len() / inputs.len();
    let windows = windows
        .chunks_exact_mut(w)
        .zip(parameters.taps.chunks_exact(w));
    for (channel, (window, taps)) in windows.enumerate() {
        // Number by number, as a call that moves so few takes longer.
        let mut sum = 0.0;
        for i in 0..w {
            window[i] = if i + 1 < w {
                window[i + 1]
            } else {
                inputs[channel]
            };
            sum += window[i] * taps[i];
        }
        sum += parameters.bias.map_or(0.0, |bias| bias[channel]);
        y[channel] = match parameters.activation {
            Activation::Identity => sum,
            Activation::Silu => sum * sigmoid(sum),
        };
    }
}

/// [`StepParameters`], contiguous.
struct Parameters {
    taps: Values,
    bias: Option<Values>,
    activation: Activation,
    d: Values,
    z_bias: Option<Values>,
    a_log_bias: Option<Values>,
    /// Of B and of C, gamma and epsilon.
    bc_norms: Option<[(Values, f32); 2]>,
    /// Cosines and sines.
    turn: Option<(Values, Values)>,
}

/// The same as slices, since to have one of a tensor takes longer than what is done with a number.
struct Slices<'a> {
    taps: &'a [f32],
    bias: Option<&'a [f32]>,
    activation: Activation,
    d: &'a [f32],
    z_bias: Option<&'a [f32]>,
    a_log_bias: Option<&'a [f32]>,
    bc_norms: Option<[(&'a [f32], f32); 2]>,
    turn: Option<(&'a [f32], &'a [f32])>,
}

impl Parameters {
    fn slices(&self) -> Slices<'_> {
        let norms = self.bc_norms.as_ref();
        Slices {
            taps: &self.taps,
            bias: self.bias.as_deref(),
            activation: self.activation,
            d: &self.d,
            z_bias: self.z_bias.as_deref(),
            a_log_bias: self.a_log_bias.as_deref(),
            bc_norms: norms.map(|norms| {
                norms
                    .each_ref()
                    .map(|(gamma, epsilon)| (&**gamma, *epsilon))
            }),
            turn: self.turn.as_ref().map(|(cos, sin)| (&**cos, &**sin)),
        }
    }
}

/// Turns the pairs `(i, i + r)` of a row of the state.
#[inline(always)]
fn turn(row: &mut [f32], cos: &[f32], sin: &[f32]) {
    let r = cos.len();
    let sin = &sin[..r];
    let (first, second) = row[..2 * r].split_at_mut(r);
    for i in 0..r {
        let (x1, x2) = (first[i], second[i]);
        first[i] = x1 * cos[i] - x2 * sin[i];
        second[i] = x2 * cos[i] + x1 * sin[i];
    }
}

/// Normalises a head of B or C.
fn normalise(head: &mut [f32], gamma: &[f32], epsilon: f32) {
    let mean = sum(head, |x| x * x) / head.len() as f32;
    let inverse = 1.0 / (mean + epsilon).sqrt();
    for (x, gamma) in head.iter_mut().zip(gamma) {
        *x *= inverse * gamma;
    }
}

fn step(
    projected: Tensor<Flex, 2>,
    parameters: StepParameters<Flex>,
    state: StepState<Flex>,
) -> (Tensor<Flex, 2>, StepState<Flex>) {
    let [b, h, p, n] = state.ssm.dims();
    let [_, c, w] = state.conv.dims();
    let (g, width) = ((c - h * p) / (2 * n), c + h * p + h);
    let projected = Values::of(projected);
    let projected: &[f32] = &projected;
    let parameters = Parameters {
        taps: Values::of(parameters.taps),
        bias: parameters.bias.map(Values::of),
        activation: parameters.activation,
        d: Values::of(parameters.d),
        z_bias: parameters.z_bias.map(Values::of),
        a_log_bias: parameters.a_log_bias.map(Values::of),
        bc_norms: (parameters.bc_norms)
            .map(|norms| norms.map(|norm| (Values::of(norm.gamma), norm.epsilon as f32))),
        turn: (parameters.turn).map(|turn| (Values::of(turn.cos), Values::of(turn.sin))),
    };
    let parameters = parameters.slices();
    let (mut conv, mut ssm) = (owned(state.conv), owned(state.ssm));

    let mut convolved = vec![0.0; b * c];
    let windows = conv.storage_mut::<f32>().par_chunks_mut(c * w);
    let tokens = windows.zip(projected.par_chunks(width));
    tokens
        .zip(convolved.par_chunks_mut(c))
        .for_each(|((windows, token), y)| {
            vectorised(
                #[inline(always)]
                || convolve(windows, &token[..c], &parameters, y),
            );
            if let Some(norms) = &parameters.bc_norms {
                let parts = y[h * p..].chunks_exact_mut(g * n).zip(norms);
                for (heads, (gamma, epsilon)) in parts {
                    heads
                        .chunks_exact_mut(n)
                        .for_each(|head| normalise(head, gamma, *epsilon));
                }
            }
        });

    let mut output = vec![0.0; b * h * p];
    let states = ssm.storage_mut::<f32>().par_chunks_mut(p * n);
    let heads = states.zip(output.par_chunks_mut(p)).enumerate();
    heads.for_each(|(i, (state, y))| {
        let (batch, head) = (i / h, i % h);
        let group = head / (h / g);
        let token = &projected[batch * width..][..width];
        let convolved = &convolved[batch * c..][..c];
        let x_p = &convolved[head * p..][..p];
        let b_n = &convolved[h * p + group * n..][..n];
        let c_n = &convolved[h * p + (g + group) * n..][..n];
        let z = &token[c + head * p..][..p];
        let z_bias = parameters.z_bias.map(|z_bias| &z_bias[head * p..][..p]);
        let (d, bias) = (
            parameters.d[head],
            parameters.a_log_bias.map_or(0.0, |a| a[head]),
        );
        let decay = sigmoid(-token[c + h * p + head] - bias);
        vectorised(
            #[inline(always)]
            || {
                y.copy_from_slice(z);
                if let Some(z_bias) = z_bias {
                    y.iter_mut().zip(z_bias).for_each(|(y, bias)| *y += bias);
                }
                for v in y.iter_mut() {
                    *v *= sigmoid(*v);
                }
                for ((state, y), x) in state.chunks_exact_mut(n).zip(y.iter_mut()).zip(x_p) {
                    if let Some((cos, sin)) = parameters.turn {
                        turn(state, cos, sin);
                    }
                    for (state, b) in state.iter_mut().zip(b_n) {
                        *state = decay * *state + x * b;
                    }
                    *y *= dot(state, c_n) + d * x;
                }
            },
        );
    });
    let state = StepState {
        conv: Tensor::from_primitive(TensorPrimitive::Float(conv)),
        ssm: Tensor::from_primitive(TensorPrimitive::Float(ssm)),
    };
    (tensor(output, [b, h * p]), state)
}
