//! The definition, by the ops of the same backend.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, ElementConversion, Int, Tensor, TensorData};

use super::{Activation, GROUP, Input, Normalisation, Projection, Projections};
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

/// See [`Projections::int8_to_float`]; in f32.
pub fn int8_to_float<B: Backend>(packed: Tensor<B, 2, Int>, scales: Tensor<B, 1>) -> Tensor<B, 2> {
    let [d_out, _] = packed.dims();
    // Whatever the width of the backend's integers, `(byte ^ 128) - 128` is the byte's number.
    let bytes = fields(packed, 4).bitwise_xor_scalar(128.elem());
    let q = bytes.sub_scalar(128).float().cast(DType::F32);
    q * scales.reshape([d_out, 1])
}

/// See [`Projections::int4_to_float`]; in f32.
pub fn int4_to_float<B: Backend>(
    packed: Tensor<B, 2, Int>,
    scales: Tensor<B, 1, Int>,
) -> Tensor<B, 2> {
    let [d_out, words] = packed.dims();
    let (d_in, groups) = (8 * words, d_out * 8 * words / GROUP);
    let [pairs] = scales.dims();
    let halves = fields(scales.reshape([pairs, 1]), 2).reshape([2 * pairs]);
    let scales = half_to_float(halves.narrow(0, 0, groups));
    let q = fields(packed, 8).sub_scalar(8).float().cast(DType::F32);
    let numbers = q.reshape([groups, GROUP]) * scales.reshape([groups, 1]);
    numbers.reshape([d_out, d_in])
}

/// The `n` equally wide fields of each 32 bits of `x [rows, words]`, the lowest first: `[rows, n * words]`.
fn fields<B: Backend>(x: Tensor<B, 2, Int>, n: i32) -> Tensor<B, 2, Int> {
    let [rows, words] = x.dims();
    let bits = 32 / n;
    let field = |i: i32| {
        let field = x.clone().bitwise_right_shift_scalar((bits * i).elem());
        field.bitwise_and_scalar(((1 << bits) - 1).elem())
    };
    let all: Tensor<B, 3, Int> = Tensor::stack((0..n).map(field).collect(), 2);
    all.reshape([rows, n as usize * words])
}

/// The numbers of which `x` has the bits in f16, in f32.
fn half_to_float<B: Backend>(x: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    let part = |first: i32, mask: i32| {
        let part = x.clone().bitwise_right_shift_scalar(first.elem());
        part.bitwise_and_scalar(mask.elem())
    };
    let exponent = part(10, 31);
    // The power of two that the last bit stands for; the last exponent is that of what is no number.
    let power = |exponent: i32| match exponent {
        31 => f32::NAN,
        _ => 2.0_f32.powi(exponent.max(1) - 25),
    };
    let powers: Vec<f32> = (0..32).map(power).collect();
    let device = x.device();
    let powers = Tensor::<B, 1>::from_data(TensorData::new(powers, [32]), (&device, DType::F32));
    // Before the last bits stands a one, but where the exponent is the least.
    let one = exponent.clone().greater_elem(0).int().mul_scalar(1024);
    let sign = part(15, 1).mul_scalar(-2).add_scalar(1);
    let whole = (part(0, 1023) + one) * sign;
    whole.float().cast(DType::F32) * powers.select(0, exponent)
}
