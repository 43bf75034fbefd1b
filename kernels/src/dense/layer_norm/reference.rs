//! The definition, in tensor operations.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::Gradients;
use crate::dtype::{narrow, widen};

/// `x [t, d]` normalised, and `1 / sqrt(var + epsilon) [t, 1]`.
fn normalise<B: Backend>(x: Tensor<B, 2>, epsilon: f64) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let centred = x.clone() - x.mean_dim(1);
    let variance = centred.clone().powi_scalar(2).mean_dim(1);
    let inverse = (variance + epsilon).sqrt().recip();
    (centred * inverse.clone(), inverse)
}

/// `x [t, d]`, `gamma [d]`, `beta [d]` to `[t, d]`.
pub fn forward<B: Backend>(
    x: Tensor<B, 2>,
    gamma: Tensor<B, 1>,
    beta: Tensor<B, 1>,
    epsilon: f64,
) -> Tensor<B, 2> {
    let dtype = x.dtype();
    let (normalised, _) = normalise(widen(x), epsilon);
    let [gamma, beta] = [gamma, beta].map(|parameter| narrow(parameter, normalised.dtype()));
    narrow(normalised * gamma.unsqueeze() + beta.unsqueeze(), dtype)
}

/// With `n` the normalised input and `g = dy * gamma`:
/// `dx = (g - mean(g) - n * mean(g * n)) / sqrt(var + epsilon)`.
pub fn backward<B: Backend>(
    x: Tensor<B, 2>,
    gamma: Tensor<B, 1>,
    dy: Tensor<B, 2>,
    epsilon: f64,
    wanted: [bool; 3],
) -> Gradients<B> {
    let (dtype, parameter_dtype) = (x.dtype(), gamma.dtype());
    let [_, d] = x.dims();
    let dy = widen(dy);
    let (normalised, inverse) = normalise(widen(x), epsilon);
    let dx = wanted[0].then(|| {
        let g = dy.clone() * narrow(gamma, dy.dtype()).unsqueeze();
        let along = (g.clone() * normalised.clone()).mean_dim(1);
        let dx = (g.clone() - g.mean_dim(1) - normalised.clone() * along) * inverse;
        narrow(dx, dtype)
    });
    let over_tokens =
        |x: Tensor<B, 2>| -> Tensor<B, 1> { narrow(x.sum_dim(0).reshape([d]), parameter_dtype) };
    let dgamma = wanted[1].then(|| over_tokens(dy.clone() * normalised));
    let dbeta = wanted[2].then(|| over_tokens(dy));
    (dx, dgamma, dbeta)
}
