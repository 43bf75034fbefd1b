//! Stage 2's loss: how far the rows of one matrix are from those of another.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) mod cube;
pub mod reference;

use burn::tensor::Tensor;

use crate::KernelBackend;
use crate::meter::{Kind, timed};

/// The mean over rows of `||a - b||_2`, for `a` and `b` `[n, d]`, as one element: in f32 for half
/// precision, of which the two need not be of one dtype.
///
/// Differentiable in `a` alone. Its gradient is zero in a row whose distance is zero.
///
/// # Panics
/// If the shapes differ.
pub fn rows_distance<B: KernelBackend>(a: Tensor<B, 2>, b: Tensor<B, 2>) -> Tensor<B, 1> {
    assert_eq!(
        a.dims(),
        b.dims(),
        "rows_distance: both must have the same shape"
    );
    timed(Kind::Losses, || B::rows_distance_forward(a, b))
}
