//! The definition, in tensor operations.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::{Activation, ConvGradients, ConvInputs};
use crate::documents::DocumentStarts;
use crate::dtype::{narrow, sigmoid, widen};

impl<B: Backend> ConvInputs<B> {
    /// All in f32 where they are narrower.
    fn widened(self) -> Self {
        Self {
            x: widen(self.x),
            weight: widen(self.weight),
            bias: self.bias.map(widen),
            history: self.history.map(widen),
            activation: self.activation,
            documents: self.documents,
        }
    }
}

/// The inputs with the `w - 1` before the first: `[b, w - 1 + l, c]`.
fn with_history<B: Backend>(
    x: Tensor<B, 3>,
    history: Option<Tensor<B, 3>>,
    w: usize,
) -> Tensor<B, 3> {
    if w == 1 {
        return x; // no empty tensors: backends differ on them
    }
    let [b, _, c] = x.dims();
    let options = (&x.device(), x.dtype());
    let history = history.unwrap_or_else(|| Tensor::zeros([b, w - 1, c], options));
    Tensor::cat(vec![history, x], 1)
}

/// Tap `k` of every channel, `[1, 1, c]`.
fn tap<B: Backend>(weight: &Tensor<B, 2>, k: usize) -> Tensor<B, 3> {
    let [c, _] = weight.dims();
    weight.clone().narrow(1, k, 1).reshape([1, 1, c])
}

/// See [`causal_conv`](super::causal_conv).
pub fn forward<B: Backend>(inputs: ConvInputs<B>) -> Tensor<B, 3> {
    let (activation, dtype) = (inputs.activation, inputs.x.dtype());
    let v = sums(inputs.widened());
    let y = match activation {
        Activation::Identity => v,
        Activation::Silu => v.clone() * sigmoid(v),
    };
    narrow(y, dtype)
}

/// `dy` times the slope of the activation at the sums `v`: the gradient to those.
pub(crate) fn through_silu<B: Backend>(v: Tensor<B, 3>, dy: Tensor<B, 3>) -> Tensor<B, 3> {
    let sigmoid = sigmoid(v.clone());
    dy * (v * (-sigmoid.clone() + 1.0) + 1.0) * sigmoid
}

/// `x [b, l, c]`, but 0 at tokens for which that `distance` before belongs to another document.
fn within<B: Backend>(
    x: Tensor<B, 3>,
    documents: &Option<DocumentStarts<B>>,
    distance: usize,
) -> Tensor<B, 3> {
    match documents {
        Some(documents) if distance > 0 => {
            let ([b, l, c], hidden_bl) = (x.dims(), documents.are_beyond(distance));
            x.mask_fill(hidden_bl.reshape([b, l, 1]).expand([b, l, c]), 0.0)
        }
        _ => x,
    }
}

/// What the activation is applied to.
fn sums<B: Backend>(inputs: ConvInputs<B>) -> Tensor<B, 3> {
    let ConvInputs {
        x,
        weight,
        bias,
        history,
        documents,
        ..
    } = inputs;
    let [_, l, _] = x.dims();
    let [_, w] = weight.dims();
    let padded = with_history(x, history, w);
    let mut y = padded.clone().narrow(1, w - 1, l) * tap(&weight, w - 1);
    for k in 0..w - 1 {
        let inputs = within(padded.clone().narrow(1, k, l), &documents, w - 1 - k);
        y = y + inputs * tap(&weight, k);
    }
    match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    }
}

/// Each padded input meets output `t` through tap `k` where `input = t + k`.
pub fn backward<B: Backend>(
    inputs: ConvInputs<B>,
    dy: Tensor<B, 3>,
    wanted: [bool; 4],
) -> ConvGradients<B> {
    let (dtype, parameter_dtype) = (inputs.x.dtype(), inputs.weight.dtype());
    let (inputs, dy) = (inputs.widened(), widen(dy));
    let dy = match inputs.activation {
        Activation::Identity => dy,
        Activation::Silu => through_silu(sums(inputs.clone()), dy),
    };
    let ConvInputs {
        x,
        weight,
        history,
        documents,
        ..
    } = inputs;
    let [b, l, c] = x.dims();
    let [_, w] = weight.dims();
    // Of the sums that tap `k` is in.
    let through = |k: usize| within(dy.clone(), &documents, w - 1 - k);
    let over_tokens = |t: Tensor<B, 3>| t.sum_dim(1).sum_dim(0).reshape([c, 1]);

    let dpadded = (wanted[0] || wanted[3]).then(|| {
        let zeros = |length| Tensor::<B, 3>::zeros([b, length, c], (&dy.device(), dy.dtype()));
        let shifted = |k: usize| {
            let mut parts = vec![through(k) * tap(&weight, k)];
            if k > 0 {
                parts.insert(0, zeros(k));
            }
            if k < w - 1 {
                parts.push(zeros(w - 1 - k));
            }
            Tensor::cat(parts, 1)
        };
        (1..w).fold(shifted(0), |sum, k| sum + shifted(k))
    });
    let dweight = wanted[1].then(|| {
        let padded = with_history(x, history, w);
        let taps = (0..w).map(|k| over_tokens(padded.clone().narrow(1, k, l) * through(k)));
        Tensor::cat(taps.collect(), 1)
    });
    ConvGradients {
        x: dpadded
            .clone()
            .map(|d| narrow(d.narrow(1, w - 1, l), dtype)),
        weight: dweight.map(|d| narrow(d, parameter_dtype)),
        bias: wanted[2].then(|| narrow(over_tokens(dy).reshape([c]), parameter_dtype)),
        history: (wanted[3] && w > 1)
            .then_some(dpadded)
            .flatten()
            .map(|d| narrow(d.narrow(1, 0, w - 1), dtype)),
    }
}
