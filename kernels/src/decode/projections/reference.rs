//! The definition, by the ops of the same backend.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, ElementConversion, Int, Tensor};

use super::{Activation, Normalisation, Projection, Projections};
use crate::dtype::{narrow, widen};

/// See [`into`](super::into).
pub fn into<B: Projections>(
    x: Tensor<B, 2>,
    norm: Normalisation<B>,
    projections: Vec<(Projection<B>, Activation)>,
) -> Vec<Tensor<B, 2>> {
    let dtype = x.dtype();
    let (gamma, beta) = (narrow(norm.gamma, dtype), narrow(norm.beta, dtype));
    let normed = B::layer_norm_forward(x, gamma, beta, norm.epsilon);
    let project = |(projection, activation)| {
        let y = B::projection(normed.clone(), projection);
        match activation {
            Activation::Identity => y,
            Activation::GeluNew => B::gelu_new_forward(y),
        }
    };
    projections.into_iter().map(project).collect()
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
    inputs: Vec<(Tensor<B, 2>, Projection<B>)>,
) -> Tensor<B, 2> {
    let outputs = inputs
        .into_iter()
        .map(|(u, projection)| B::projection(u, projection));
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
