//! Stage 2's loss: how far the rows of one matrix are from those of another.

mod autodiff;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
pub mod reference;

use burn::tensor::Tensor;

use super::scale::Scale;
use crate::dtype::assert_one_width;
use crate::profile::{Kind, timed};

/// The op, as backends compute it.
pub trait HiddenStates: Scale {
    /// See [`rows_distance`].
    fn rows_distance_forward(a: Tensor<Self, 2>, b: Tensor<Self, 2>) -> Tensor<Self, 1> {
        reference::forward(a, b)
    }

    /// [`HiddenStates::rows_distance_forward`] with its gradient to `a`, in the dtype of `a`.
    fn rows_distance_with_gradient(
        a: Tensor<Self, 2>,
        b: Tensor<Self, 2>,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        reference::with_gradient(a, b)
    }
}

by_default!(HiddenStates for ndarray, flex);

/// The mean over rows of `||a - b||_2`, for `a` and `b` `[n, d]`, as one element; in f32 for half precision. `a` and
/// `b` may have different dtypes if neither is f64.
///
/// Differentiable in `a` alone. Its gradient is zero in a row whose distance is zero.
///
/// # Panics
/// If the shapes differ, or one of the two is f64 and the other not.
pub fn rows_distance<B: HiddenStates>(a: Tensor<B, 2>, b: Tensor<B, 2>) -> Tensor<B, 1> {
    assert_eq!(
        a.dims(),
        b.dims(),
        "rows_distance: both must have the same shape"
    );
    assert_one_width("rows_distance", &[a.dtype(), b.dtype()]);
    timed(Kind::Losses, || B::rows_distance_forward(a, b))
}
