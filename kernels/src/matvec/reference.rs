//! The definition, by the ops of the same backend.

use burn::tensor::{DType, Int, Tensor};

use super::{Activation, Normalisation, Projection};
use crate::KernelBackend;
use crate::ssd::reference::widen;

/// See [`fan_out`](super::fan_out).
pub fn fan_out<B: KernelBackend>(
    x: Tensor<B, 2>,
    norm: Normalisation<B>,
    projections: Vec<(Projection<B>, Activation)>,
) -> Vec<Tensor<B, 2>> {
    let dtype = x.dtype();
    let (gamma, beta) = (to_dtype(norm.gamma, dtype), to_dtype(norm.beta, dtype));
    let normed = B::layer_norm_forward(x, gamma, beta, norm.epsilon);
    let project = |(projection, activation)| {
        let y = linear(normed.clone(), projection);
        match activation {
            Activation::Identity => y,
            Activation::GeluNew => B::gelu_new_forward(y),
        }
    };
    projections.into_iter().map(project).collect()
}

/// See [`head`](super::head).
pub fn head<B: KernelBackend>(
    x: Tensor<B, 2>,
    norm: Normalisation<B>,
    projection: Projection<B>,
) -> Tensor<B, 2> {
    let mut outputs = fan_out(x, norm, vec![(projection, Activation::Identity)]);
    outputs.swap_remove(0)
}

/// See [`fan_in`](super::fan_in).
pub fn fan_in<B: KernelBackend>(
    x: Tensor<B, 2>,
    inputs: Vec<(Tensor<B, 2>, Projection<B>)>,
) -> Tensor<B, 2> {
    let outputs = inputs.into_iter().map(|(u, it)| linear(u, it));
    let sum = outputs.reduce(|sum, y| sum + y);
    sum.map_or(x.clone(), |sum| sum + x)
}

/// See [`rows`](super::rows).
pub fn rows<B: KernelBackend>(table: Tensor<B, 2>, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
    widen(table.select(0, ids))
}

fn linear<B: KernelBackend>(x: Tensor<B, 2>, projection: Projection<B>) -> Tensor<B, 2> {
    let dtype = x.dtype();
    let weight = projection.weight.to_float(dtype);
    B::linear_forward(x, weight, projection.bias.map(|bias| to_dtype(bias, dtype)))
}

fn to_dtype<B: KernelBackend>(x: Tensor<B, 1>, dtype: DType) -> Tensor<B, 1> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}
