//! The backward pass on Burn's graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::Tensor;

use super::LayerNorm;
use crate::autodiff::{input, primitive, record, value};
use crate::profile::{Kind, timed};

impl<B: LayerNorm, C: CheckpointStrategy> LayerNorm for Autodiff<B, C> {
    fn layer_norm_forward(
        x: Tensor<Self, 2>,
        gamma: Tensor<Self, 1>,
        beta: Tensor<Self, 1>,
        epsilon: f64,
    ) -> Tensor<Self, 2> {
        let saved = (value(&x), value(&gamma), epsilon);
        let y = B::layer_norm_forward(saved.0.clone(), saved.1.clone(), value(&beta), epsilon);
        let inputs = [input(&x), input(&gamma), input(&beta)];
        record(inputs, y, saved, |(x, gamma, epsilon), dy, wanted| {
            let (dx, dgamma, dbeta) = timed(Kind::Elementwise, || {
                B::layer_norm_backward(x, gamma, dy, epsilon, wanted)
            });
            [
                dx.map(primitive),
                dgamma.map(primitive),
                dbeta.map(primitive),
            ]
        })
    }
}
