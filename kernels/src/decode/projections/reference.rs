//! The definition, by the ops of the same backend.

use burn::tensor::{Int, Tensor};

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
        let y = linear(normed.clone(), projection);
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
        .map(|(u, projection)| linear(u, projection));
    let sum = outputs.reduce(|sum, y| sum + y);
    sum.map_or(x.clone(), |sum| sum + x)
}

/// See [`rows`](super::rows).
pub fn rows<B: Projections>(table: Tensor<B, 2>, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
    widen(table.select(0, ids))
}

fn linear<B: Projections>(x: Tensor<B, 2>, projection: Projection<B>) -> Tensor<B, 2> {
    let dtype = x.dtype();
    let weight = projection.weight.to_float(dtype);
    B::linear_forward(x, weight, projection.bias.map(|bias| narrow(bias, dtype)))
}
