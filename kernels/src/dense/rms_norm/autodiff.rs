//! The backward pass on Burn's graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::Tensor;

use super::RmsNorm;
use crate::autodiff::{input, primitive, record, value};
use crate::profile::{Kind, timed};

impl<B: RmsNorm, C: CheckpointStrategy> RmsNorm for Autodiff<B, C> {
    fn rms_norm_forward(
        x: Tensor<Self, 2>,
        gamma: Tensor<Self, 1>,
        epsilon: f64,
    ) -> Tensor<Self, 2> {
        let saved = (value(&x), value(&gamma), epsilon);
        let y = B::rms_norm_forward(saved.0.clone(), saved.1.clone(), epsilon);
        let inputs = [input(&x), input(&gamma)];
        record(inputs, y, saved, |(x, gamma, epsilon), dy, wanted| {
            let (dx, dgamma) = timed(Kind::Elementwise, || {
                B::rms_norm_backward(x, gamma, dy, epsilon, wanted)
            });
            [dx.map(primitive), dgamma.map(primitive)]
        })
    }
}
