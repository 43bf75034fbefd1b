//! The definition, in tensor operations, and its gradient.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::dtype::{narrow, widen};

/// See [`rows_distance`](super::rows_distance()).
pub fn forward<B: Backend>(a: Tensor<B, 2>, b: Tensor<B, 2>) -> Tensor<B, 1> {
    let squares = difference(a, b).powi_scalar(2).sum_dim(1);
    let zero = squares.clone().equal_elem(0.0);
    let distances = squares.mask_fill(zero.clone(), 1.0).sqrt();
    distances.mask_fill(zero, 0.0).mean()
}

/// The distance and its gradient to `a`: the rows' differences, of length `1 / n` each.
pub fn with_gradient<B: Backend>(a: Tensor<B, 2>, b: Tensor<B, 2>) -> (Tensor<B, 1>, Tensor<B, 2>) {
    let ([n, _], dtype) = (a.dims(), a.dtype());
    let difference = difference(a, b);
    let distances = difference.clone().powi_scalar(2).sum_dim(1).sqrt();
    let zero = distances.clone().equal_elem(0.0);
    let by = (distances.clone() * n as f64).recip().mask_fill(zero, 0.0);
    (distances.mean(), narrow(difference * by, dtype))
}

fn difference<B: Backend>(a: Tensor<B, 2>, b: Tensor<B, 2>) -> Tensor<B, 2> {
    let a = widen(a);
    let b = narrow(widen(b), a.dtype());
    a - b
}
