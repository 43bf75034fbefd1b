//! The definition, by the ops of the same backend.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, ElementConversion, Int, Tensor};

use super::{Activation, Input, Normalisation, Projection, Projections};
use crate::dtype::{narrow, sigmoid, widen};

/// See [`into`](super::into).
pub fn into<B: Projections>(
    x: Tensor<B, 2>,
    norm: Normalisation<B>,
    projections: Vec<(Projection<B>, Activation)>,
) -> Vec<Tensor<B, 2>> {
    let normed = normalised(x, norm);
    let project = |(projection, activation)| {
        let y = B::projection(normed.clone(), projection);
        B::projection_activated(y, activation)
    };
    projections.into_iter().map(project).collect()
}

/// See [`Projections::projection_activated`].
pub fn activated<B: Projections>(y: Tensor<B, 2>, activation: Activation) -> Tensor<B, 2> {
    match activation {
        Activation::Identity => y,
        Activation::GeluNew => B::gelu_new_forward(y),
        Activation::Silu => y.clone() * sigmoid(y),
    }
}

/// `x [b, d]` normalised, in its dtype.
pub(super) fn normalised<B: Projections>(x: Tensor<B, 2>, norm: Normalisation<B>) -> Tensor<B, 2> {
    let dtype = x.dtype();
    let gamma = narrow(norm.gamma, dtype);
    match norm.beta {
        Some(beta) => B::layer_norm_forward(x, gamma, narrow(beta, dtype), norm.epsilon),
        None => B::rms_norm_forward(x, gamma, norm.epsilon),
    }
}

/// See [`head`](super::head).
pub fn head<B: Projections>(
    x: Tensor<B, 2>,
    norm: Normalisation<B>,
    projection: Projection<B>,
) -> Tensor<B, 2> {
    let mut outputs = into(x, norm, vec![(projection, Activation::Identity)]);
    outputs.swap_remove(0)
}

/// See [`out_of`](super::out_of).
pub fn out_of<B: Projections>(
    x: Tensor<B, 2>,
    inputs: Vec<(Input<B>, Projection<B>)>,
) -> Tensor<B, 2> {
    let outputs = inputs
        .into_iter()
        .map(|(input, projection)| B::projection(input.product(), projection));
    let sum = outputs.reduce(|sum, y| sum + y);
    sum.map_or(x.clone(), |sum| sum + x)
}

/// See [`rows`](super::rows).
pub fn rows<B: Projections>(table: Tensor<B, 2>, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
    widen(table.select(0, ids))
}

/// See [`Projections::projection`].
pub fn linear<B: Projections>(x: Tensor<B, 2>, projection: Projection<B>) -> Tensor<B, 2> {
    let dtype = x.dtype();
    let weight = projection.weight.to_float(dtype);
    B::linear_forward(x, weight, projection.bias.map(|bias| narrow(bias, dtype)))
}

/// See [`Projections::int8_to_float`].
pub fn int8_to_float<B: Backend>(packed: Tensor<B, 2, Int>, scales: Tensor<B, 1>) -> Tensor<B, 2> {
    let [d_out, words] = packed.dims();
    // Whatever the width of the backend's integers, `(byte ^ 128) - 128` is the byte's number.
    let byte = |i: i32| {
        let byte = packed.clone().bitwise_right_shift_scalar((8 * i).elem());
        let byte = byte.bitwise_and_scalar(255.elem());
        byte.bitwise_xor_scalar(128.elem()).sub_scalar(128)
    };
    let bytes = (0..4).map(byte).collect();
    let q: Tensor<B, 3, Int> = Tensor::stack(bytes, 2);
    let q = q.reshape([d_out, 4 * words]).float().cast(DType::F32);
    q * scales.reshape([d_out, 1])
}
