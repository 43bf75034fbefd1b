//! The definition, in tensor operations. The gradient is the rotation the other way.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::ssd::reference::{narrow, widen};

/// See [`rotary`](super::rotary()).
pub fn forward<B: Backend>(x: Tensor<B, 4>, cos: Tensor<B, 2>, sin: Tensor<B, 2>) -> Tensor<B, 4> {
    let (p, dtype) = (x.dims()[3], x.dtype());
    let [l, r] = cos.dims();
    let x = widen(x);
    let angles = |it| narrow(it, x.dtype()).reshape([1, l, 1, r]);
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
