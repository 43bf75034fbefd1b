//! The causal depthwise convolution over time that comes before the scan.
//!
//! Burn's general convolution is slow for one channel a group and four taps; as a sum of shifted
//! inputs it is one pass over memory.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) mod cube;
#[cfg(feature = "flex")]
pub(crate) mod flex;
pub mod reference;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::KernelBackend;
use crate::meter::{Kind, timed};

/// What [`causal_conv`] applies to its sums.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Nothing.
    #[default]
    Identity,
    /// `v -> v / (1 + e^-v)`.
    Silu,
}

/// Gradients of [`causal_conv`], each in its input's shape; `None` where none was wanted.
#[derive(Debug, Clone)]
pub struct ConvGradients<B: Backend> {
    /// To the input, `[b, l, c]`.
    pub x: Option<Tensor<B, 3>>,
    /// To the taps, `[c, w]`.
    pub weight: Option<Tensor<B, 2>>,
    /// To the bias, `[c]`.
    pub bias: Option<Tensor<B, 1>>,
    /// To the inputs before the first, `[b, w - 1, c]`.
    pub history: Option<Tensor<B, 3>>,
}

/// `y[t] = f(bias + sum over k of weight[k] * x[t - (w - 1) + k])` with `f` the activation:
/// `x [b, l, c]`, `weight [c, w]` with the last tap on the present, `bias [c]`, to `[b, l, c]`.
///
/// `history [b, w - 1, c]` holds the inputs before the first, zeros where absent, so that a
/// sequence may be convolved in any number of pieces.
///
/// # Panics
/// If the shapes do not fit together as above.
pub fn causal_conv<B: KernelBackend>(
    x: Tensor<B, 3>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
    history: Option<Tensor<B, 3>>,
    activation: Activation,
) -> Tensor<B, 3> {
    let [b, _, c] = x.dims();
    let [channels, w] = weight.dims();
    assert_eq!(
        channels, c,
        "causal_conv: the weight has {channels} channels, x has {c}"
    );
    if let Some(bias) = &bias {
        assert_eq!(
            bias.dims(),
            [c],
            "causal_conv: the bias must have {c} elements"
        );
    }
    if let Some(history) = &history {
        assert_eq!(
            history.dims(),
            [b, w - 1, c],
            "causal_conv: history must be [b, w - 1, c]"
        );
    }
    timed(Kind::Convolution, || {
        B::causal_conv_forward(x, weight, bias, history, activation)
    })
}
