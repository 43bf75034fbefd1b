//! The definition, in tensor operations.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};

use crate::dtype::{narrow, widen};

/// See [`add_bias`](super::add_bias): `x [b, l, d]`, `bias [d]`.
pub fn forward<B: Backend>(x: Tensor<B, 3>, bias: Tensor<B, 1>) -> Tensor<B, 3> {
    widen(x) + widen(bias).unsqueeze()
}

/// See [`Bias::bias_gradient`](super::Bias::bias_gradient).
pub fn gradient<B: Backend>(dy: Tensor<B, 2>, dtype: DType) -> Tensor<B, 1> {
    let [_, d] = dy.dims();
    narrow(dy.sum_dim(0).reshape([d]), dtype)
}
