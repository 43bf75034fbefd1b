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
    check(x.dims(), [cos.dims(), sin.dims()]);
    timed(Kind::Elementwise, || B::rotary_forward(x, cos, sin))
}

/// [`rotary`] of the first `heads` heads of `x [b, l, h, p]`, the others as they were; in place, where the backend
/// can and nothing else holds `x`.
///
/// # Panics
/// As `rotary`, and if there are fewer heads.
pub fn rotary_of_heads<B: KernelBackend>(
    x: Tensor<B, 4>,
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
    heads: usize,
) -> Tensor<B, 4> {
    check(x.dims(), [cos.dims(), sin.dims()]);
    assert!(
        heads <= x.dims()[2],
        "rotary: there are fewer than {heads} heads"
    );
    timed(Kind::Elementwise, || B::rotary_of_heads(x, cos, sin, heads))
}

fn check([_, l, _, p]: [usize; 4], [cos, sin]: [[usize; 2]; 2]) {
    let [_, r] = cos;
    assert_eq!(cos, [l, r], "rotary: cos must be [l, r]");
    assert_eq!(sin, [l, r], "rotary: sin must have the shape of cos");
    assert!(2 * r <= p, "rotary: {r} pairs do not fit in {p} dimensions");
}
