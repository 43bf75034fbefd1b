//! The causal depthwise convolution over time that comes before the scan.
//!
//! Burn's general convolution is slow for one channel in each group and four taps. As a sum of shifted inputs, the
//! convolution is one pass over memory.

mod autodiff;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
#[cfg(feature = "flex")]
mod flex;
pub mod reference;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::documents::DocumentStarts;
use crate::dtype::assert_one_width;
use crate::profile::{Kind, timed};

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

/// What [`causal_conv`] convolves.
#[derive(Debug, Clone)]
pub struct ConvInputs<B: Backend> {
    /// `[b, l, c]`.
    pub x: Tensor<B, 3>,
    /// The taps, `[c, w]`; the last tap is multiplied with the current input. They are f64 if and only if `x` is f64;
    /// narrower dtypes of taps and inputs may differ.
    pub weight: Tensor<B, 2>,
    /// `[c]`, in the dtype of the taps.
    pub bias: Option<Tensor<B, 1>>,
    /// The inputs before the first, `[b, w - 1, c]`, in the dtype of `x`; zeros where absent.
    pub history: Option<Tensor<B, 3>>,
    /// What is applied to the sums.
    pub activation: Activation,
    /// Where documents begin, if a row holds several. A sum leaves out the inputs before its own document. The history
    /// belongs to the row's first document.
    pub documents: Option<DocumentStarts<B>>,
}

/// The op, as backends compute it.
pub trait CausalConv: Backend {
    /// See [`causal_conv`].
    fn causal_conv_forward(inputs: ConvInputs<Self>) -> Tensor<Self, 3> {
        reference::forward(inputs)
    }

    /// Gradients of [`CausalConv::causal_conv_forward`] to `x`, `weight`, `bias` and `history`, those that
    /// are wanted, from `dy [b, l, c]`.
    fn causal_conv_backward(
        inputs: ConvInputs<Self>,
        dy: Tensor<Self, 3>,
        wanted: [bool; 4],
    ) -> ConvGradients<Self> {
        reference::backward(inputs, dy, wanted)
    }
}

by_default!(CausalConv for ndarray);

/// `y[t] = f(bias + sum over k of weight[k] * x[t - (w - 1) + k])` with `f` the activation: `x [b, l, c]`,
/// `weight [c, w]` with the last tap for the current input, `bias [c]`, to `[b, l, c]`.
///
/// `history [b, w - 1, c]` holds the inputs before the first, zeros where absent, so that a
/// sequence may be convolved in any number of pieces.
///
/// # Panics
/// If shapes or dtypes do not fit together as above and in [`ConvInputs`].
pub fn causal_conv<B: CausalConv>(
    x: Tensor<B, 3>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
    history: Option<Tensor<B, 3>>,
    activation: Activation,
) -> Tensor<B, 3> {
    causal_conv_of(ConvInputs {
        x,
        weight,
        bias,
        history,
        activation,
        documents: None,
    })
}

/// [`causal_conv`] with all its `inputs` in one struct, which can also hold the starts of documents.
///
/// # Panics
/// As [`causal_conv`], and if there are not as many starts as tokens.
pub fn causal_conv_of<B: CausalConv>(inputs: ConvInputs<B>) -> Tensor<B, 3> {
    let ConvInputs {
        x,
        weight,
        bias,
        history,
        documents,
        ..
    } = &inputs;
    let [b, l, c] = x.dims();
    let [channels, w] = weight.dims();
    let mut dtypes = vec![x.dtype(), weight.dtype()];
    dtypes.extend(bias.as_ref().map(Tensor::dtype));
    dtypes.extend(history.as_ref().map(Tensor::dtype));
    assert_one_width("causal_conv", &dtypes);
    assert_eq!(
        channels, c,
        "causal_conv: the weight has {channels} channels, x has {c}"
    );
    if let Some(bias) = bias {
        assert_eq!(
            bias.dims(),
            [c],
            "causal_conv: the bias must have {c} elements"
        );
        assert_eq!(
            bias.dtype(),
            weight.dtype(),
            "causal_conv: the bias must have the dtype of the weight"
        );
    }
    if let Some(history) = history {
        assert_eq!(
            history.dims(),
            [b, w - 1, c],
            "causal_conv: history must be [b, w - 1, c]"
        );
        assert_eq!(
            history.dtype(),
            x.dtype(),
            "causal_conv: the history must have the dtype of x"
        );
    }
    if let Some(documents) = documents {
        documents.check("causal_conv", [b, l]);
    }
    timed(Kind::Convolution, || B::causal_conv_forward(inputs))
}
