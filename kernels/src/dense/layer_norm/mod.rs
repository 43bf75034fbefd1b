//! Layer normalisation over the last dimension, as PyTorch defines it (biased variance).
//!
//! Burn has such a layer too, but keeps a dozen intermediates alive for the backward pass; this one keeps
//! its input.

mod autodiff;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
#[cfg(feature = "flex")]
mod flex;
pub mod reference;

use burn::tensor::backend::Backend;
use burn::tensor::{Shape, Tensor};

use crate::profile::{Kind, timed};

/// Gradients to `x`, `gamma` and `beta`; `None` where none was wanted.
pub type Gradients<B> = (
    Option<Tensor<B, 2>>,
    Option<Tensor<B, 1>>,
    Option<Tensor<B, 1>>,
);

/// The op, as backends compute it, with leading dimensions flattened to `t`.
pub trait LayerNorm: Backend {
    /// See [`layer_norm`]: `x [t, d]` to `[t, d]`.
    fn layer_norm_forward(
        x: Tensor<Self, 2>,
        gamma: Tensor<Self, 1>,
        beta: Tensor<Self, 1>,
        epsilon: f64,
    ) -> Tensor<Self, 2> {
        reference::forward(x, gamma, beta, epsilon)
    }

    /// Gradients of [`LayerNorm::layer_norm_forward`] to `x`, `gamma` and `beta`, those that are wanted,
    /// from `dy [t, d]`.
    fn layer_norm_backward(
        x: Tensor<Self, 2>,
        gamma: Tensor<Self, 1>,
        dy: Tensor<Self, 2>,
        epsilon: f64,
        wanted: [bool; 3],
    ) -> Gradients<Self> {
        reference::backward(x, gamma, dy, epsilon, wanted)
    }
}

by_default!(LayerNorm for ndarray);

/// `(x - mean) / sqrt(var + epsilon) * gamma + beta` over the last dimension of `x [.., d]`, in the dtype of
/// `x`; gamma and beta may have another.
///
/// # Panics
/// If `gamma` or `beta` is not as long as the last dimension.
pub fn layer_norm<B: LayerNorm, const D: usize>(
    x: Tensor<B, D>,
    gamma: Tensor<B, 1>,
    beta: Tensor<B, 1>,
    epsilon: f64,
) -> Tensor<B, D> {
    let shape = x.dims();
    let d = shape[D - 1];
    assert_eq!(
        gamma.dims(),
        [d],
        "layer_norm: gamma must have {d} elements"
    );
    assert_eq!(beta.dims(), [d], "layer_norm: beta must have {d} elements");
    let tokens = shape[..D - 1].iter().product::<usize>();
    timed(Kind::Elementwise, || {
        B::layer_norm_forward(x.reshape([tokens, d]), gamma, beta, epsilon)
    })
    .reshape(Shape::from(shape))
}
