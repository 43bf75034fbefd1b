//! The definition, in tensor operations.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::Gradients;
use crate::dtype::{narrow, widen};

/// `1 / sqrt(mean(x^2) + epsilon)` of each row of `x [t, d]`: `[t, 1]`.
fn inverse<B: Backend>(x: &Tensor<B, 2>, epsilon: f64) -> Tensor<B, 2> {
    let mean = (x.clone() * x.clone()).mean_dim(1);
    (mean + epsilon).sqrt().recip()
}

/// `x [t, d]`, `gamma [d]` to `[t, d]`.
pub fn forward<B: Backend>(x: Tensor<B, 2>, gamma: Tensor<B, 1>, epsilon: f64) -> Tensor<B, 2> {
    let dtype = x.dtype();
    let x = widen(x);
    let gamma = narrow(gamma, x.dtype()).unsqueeze();
    let inverse = inverse(&x, epsilon);
    narrow(x * inverse * gamma, dtype)
}

/// With `r = 1 / sqrt(mean(x^2) + epsilon)`, the normalised input `n = x r` and `g = dy * gamma`:
/// `dx = (g - n * mean(g * n)) r`, `dgamma = sum of dy * n over tokens`.
pub fn backward<B: Backend>(
    x: Tensor<B, 2>,
    gamma: Tensor<B, 1>,
    dy: Tensor<B, 2>,
    epsilon: f64,
    wanted: [bool; 2],
) -> Gradients<B> {
    let (dtype, parameter_dtype) = (x.dtype(), gamma.dtype());
    let [_, d] = x.dims();
    let (x, dy) = (widen(x), widen(dy));
    let inverse = inverse(&x, epsilon);
    let normalised = x * inverse.clone();
    let dx = wanted[0].then(|| {
        let g = dy.clone() * narrow(gamma, dy.dtype()).unsqueeze();
        let along = (g.clone() * normalised.clone()).mean_dim(1);
        narrow((g - normalised.clone() * along) * inverse, dtype)
    });
    let dgamma = wanted[1].then(|| {
        let sums = (dy * normalised).sum_dim(0).reshape([d]);
        narrow(sums, parameter_dtype)
    });
    (dx, dgamma)
}
