//! The definition, in tensor operations. The gradient is the rotation the other way.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::Rotary;
use crate::dtype::{narrow, widen};

/// See [`rotary`](super::rotary()).
pub fn forward<B: Backend>(x: Tensor<B, 4>, cos: Tensor<B, 2>, sin: Tensor<B, 2>) -> Tensor<B, 4> {
    let (p, dtype) = (x.dims()[3], x.dtype());
    let [l, r] = cos.dims();
    let x = widen(x);
    let angles = |angles| narrow(angles, x.dtype()).reshape([1, l, 1, r]);
    let (cos, sin) = (angles(cos), angles(sin));
    let first = x.clone().narrow(3, 0, r);
    let second = x.clone().narrow(3, r, r);
    let mut parts = vec![
        first.clone() * cos.clone() - second.clone() * sin.clone(),
        second * cos + first * sin,
    ];
    if 2 * r < p {
        parts.push(x.narrow(3, 2 * r, p - 2 * r));
    }
    narrow(Tensor::cat(parts, 3), dtype)
}

/// See [`rotary_of_heads`](super::rotary_of_heads()).
pub fn of_heads<B: Rotary>(
    x: Tensor<B, 4>,
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
    heads: usize,
) -> Tensor<B, 4> {
    let h = x.dims()[2];
    if heads == 0 {
        return x;
    }
    if heads == h {
        return B::rotary_forward(x, cos, sin);
    }
    let rest = x.clone().narrow(2, heads, h - heads);
    let turned = B::rotary_forward(x.narrow(2, 0, heads), cos, sin);
    Tensor::cat(vec![turned, rest], 2)
}
