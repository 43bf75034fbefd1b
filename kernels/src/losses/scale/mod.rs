//! Code that the losses share, for gradients that are known before the backward pass begins.
//!
//! Each loss computes its gradient together with its value. The backward pass then only multiplies this gradient by the
//! gradient of the scalar loss.

mod autodiff;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
#[cfg(feature = "flex")]
mod flex;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::dtype::narrow;

/// The ops, as backends compute them.
pub trait Scale: Backend {
    /// A scalar whose gradient with respect to `y` is `dy`. A backward pass that was begun elsewhere continues from it.
    /// The value of the scalar has no meaning.
    fn with_gradient<const D: usize>(y: Tensor<Self, D>, dy: Tensor<Self, D>) -> Tensor<Self, 1> {
        (y * dy).sum()
    }

    /// `x` times the one element of `by`, which may be wider than `x`, in the dtype of `x`.
    fn scaled<const D: usize>(x: Tensor<Self, D>, by: Tensor<Self, 1>) -> Tensor<Self, D> {
        product(x, by)
    }
}

by_default!(Scale for ndarray);

fn product<B: Backend, const D: usize>(x: Tensor<B, D>, by: Tensor<B, 1>) -> Tensor<B, D> {
    let (dtype, wide) = (x.dtype(), by.dtype());
    narrow(narrow(x, wide) * by.reshape([1; D]), dtype)
}
