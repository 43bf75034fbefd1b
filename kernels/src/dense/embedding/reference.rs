//! The definition, in tensor operations, and its gradient.

use burn::tensor::backend::Backend;
use burn::tensor::{IndexingUpdateOp, Int, Tensor};

use crate::dtype::{narrow, widen};

/// See [`embedding`](super::embedding()).
pub fn forward<B: Backend>(table: Tensor<B, 2>, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
    burn::tensor::module::embedding(table, ids)
}

/// The gradient to the table of `v` rows, from `dy [b, l, d]`.
pub fn gradient<B: Backend>(ids: Tensor<B, 2, Int>, dy: Tensor<B, 3>, v: usize) -> Tensor<B, 2> {
    let ([b, l, d], dtype) = (dy.dims(), dy.dtype());
    let dy = widen(dy).reshape([b * l, d]);
    let zeros = Tensor::zeros([v, d], (&dy.device(), dy.dtype()));
    let sums = zeros.select_assign(0, ids.reshape([b * l]), dy, IndexingUpdateOp::Add);
    narrow(sums, dtype)
}
