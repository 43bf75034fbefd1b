//! Layer normalisation over the last dimension, as PyTorch defines it (biased variance).
//!
//! Burn's own keeps a dozen intermediates alive for the backward pass; this one keeps its input.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) mod cube;
#[cfg(feature = "flex")]
pub(crate) mod flex;
pub mod reference;

use burn::tensor::{Shape, Tensor};

use crate::KernelBackend;
use crate::meter::{Kind, timed};

/// Gradients to `x`, `gamma` and `beta`; `None` where none was wanted.
pub type Gradients<B> = (
    Option<Tensor<B, 2>>,
    Option<Tensor<B, 1>>,
    Option<Tensor<B, 1>>,
);

/// `(x - mean) / sqrt(var + epsilon) * gamma + beta` over the last dimension of `x [.., d]`, in the dtype of
/// `x`; gamma and beta may have another.
///
/// # Panics
/// If `gamma` or `beta` is not as long as the last dimension.
pub fn layer_norm<B: KernelBackend, const D: usize>(
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
