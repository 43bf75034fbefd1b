//! Rotary position embedding of the first dimensions of each head, as in Phi.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) mod cube;
#[cfg(feature = "flex")]
pub(crate) mod flex;
pub mod reference;

use burn::tensor::Tensor;

use crate::KernelBackend;
use crate::meter::{Kind, timed};

/// `x [b, l, h, p]` with the pairs `(i, i + r)`, `i < r`, of each head turned by the angle of their
/// position and frequency, whose `cos` and `sin` are `[l, r]`; dimensions from `2 r` on as they were.
///
/// Differentiable in `x`. In the dtype of `x`; half precision is turned in f32, by angles that may be so.
///
/// # Panics
/// If `cos` and `sin` are not `[l, r]` with `2 r <= p`.
pub fn rotary<B: KernelBackend>(
    x: Tensor<B, 4>,
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
) -> Tensor<B, 4> {
    let [_, l, _, p] = x.dims();
    let [_, r] = cos.dims();
    assert_eq!(cos.dims(), [l, r], "rotary: cos must be [l, r]");
    assert_eq!(sin.dims(), [l, r], "rotary: sin must have the shape of cos");
    assert!(2 * r <= p, "rotary: {r} pairs do not fit in {p} dimensions");
    timed(Kind::Elementwise, || B::rotary_forward(x, cos, sin))
}
