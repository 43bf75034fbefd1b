//! Rotary position embedding of the first dimensions of each head, as in Phi.

mod autodiff;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
#[cfg(feature = "flex")]
mod flex;
pub mod reference;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::profile::{Kind, timed};

/// The op, as backends compute it.
pub trait Rotary: Backend {
    /// See [`rotary()`].
    fn rotary_forward(
        x: Tensor<Self, 4>,
        cos: Tensor<Self, 2>,
        sin: Tensor<Self, 2>,
    ) -> Tensor<Self, 4> {
        reference::forward(x, cos, sin)
    }

    /// The gradient of [`Rotary::rotary_forward`] to x: `dy [b, l, h, p]` turned the other way.
    fn rotary_backward(
        dy: Tensor<Self, 4>,
        cos: Tensor<Self, 2>,
        sin: Tensor<Self, 2>,
    ) -> Tensor<Self, 4> {
        Self::rotary_forward(dy, cos, -sin)
    }

    /// See [`rotary_of_heads`].
    fn rotary_of_heads(
        x: Tensor<Self, 4>,
        cos: Tensor<Self, 2>,
        sin: Tensor<Self, 2>,
        heads: usize,
    ) -> Tensor<Self, 4> {
        reference::of_heads(x, cos, sin, heads)
    }
}

by_default!(Rotary for ndarray);

/// `x [b, l, h, p]` with the pairs `(i, i + r)`, `i < r`, of each head turned by the angle of their
/// position and frequency, whose `cos` and `sin` are `[l, r]`; dimensions from `2 r` on as they were.
///
/// Differentiable in `x`. The output has the dtype of `x`. Half-precision `x` is rotated in f32, and its `cos` and
/// `sin` may be f32.
///
/// # Panics
/// If `cos` and `sin` are not `[l, r]` with `2 r <= p`.
pub fn rotary<B: Rotary>(x: Tensor<B, 4>, cos: Tensor<B, 2>, sin: Tensor<B, 2>) -> Tensor<B, 4> {
    check(x.dims(), [cos.dims(), sin.dims()]);
    timed(Kind::Elementwise, || B::rotary_forward(x, cos, sin))
}

/// [`rotary`] of the first `heads` heads of `x [b, l, h, p]`, the others as they were; in place, where the backend
/// can and nothing else holds `x`.
///
/// # Panics
/// As `rotary`, and if `x` has fewer than `heads` heads.
pub fn rotary_of_heads<B: Rotary>(
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
