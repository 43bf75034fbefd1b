//! Root-mean-square normalisation over the last dimension (arXiv 1910.07467), as Llama and Qwen use it.

mod autodiff;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
#[cfg(feature = "flex")]
mod flex;
pub mod reference;

use burn::tensor::backend::Backend;
use burn::tensor::{Shape, Tensor};

use crate::profile::{Kind, timed};

/// Gradients to `x` and `gamma`; `None` where none was wanted.
pub type Gradients<B> = (Option<Tensor<B, 2>>, Option<Tensor<B, 1>>);

/// The op, as backends compute it, with leading dimensions flattened to `t`.
pub trait RmsNorm: Backend {
    /// See [`rms_norm`]: `x [t, d]` to `[t, d]`.
    fn rms_norm_forward(
        x: Tensor<Self, 2>,
        gamma: Tensor<Self, 1>,
        epsilon: f64,
    ) -> Tensor<Self, 2> {
        reference::forward(x, gamma, epsilon)
    }

    /// Gradients of [`RmsNorm::rms_norm_forward`] to `x` and `gamma`, those that are wanted, from
    /// `dy [t, d]`.
    fn rms_norm_backward(
        x: Tensor<Self, 2>,
        gamma: Tensor<Self, 1>,
        dy: Tensor<Self, 2>,
        epsilon: f64,
        wanted: [bool; 2],
    ) -> Gradients<Self> {
        reference::backward(x, gamma, dy, epsilon, wanted)
    }
}

by_default!(RmsNorm for ndarray);

/// `x / sqrt(mean(x^2) + epsilon) * gamma` over the last dimension of `x [.., d]`, in the dtype of `x`;
/// computed in f32 for half precision. `gamma [d]` may have another dtype.
///
/// Differentiable in `x` and `gamma`.
///
/// # Panics
/// If `gamma` is not as long as the last dimension.
pub fn rms_norm<B: RmsNorm, const D: usize>(
    x: Tensor<B, D>,
    gamma: Tensor<B, 1>,
    epsilon: f64,
) -> Tensor<B, D> {
    let shape = x.dims();
    let d = shape[D - 1];
    assert_eq!(gamma.dims(), [d], "rms_norm: gamma must have {d} elements");
    let tokens = shape[..D - 1].iter().product::<usize>();
    timed(Kind::Elementwise, || {
        B::rms_norm_forward(x.reshape([tokens, d]), gamma, epsilon)
    })
    .reshape(Shape::from(shape))
}
