//! The gradient on Burn's graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::Tensor;

use super::HiddenStates;
use crate::autodiff::{input, primitive, record, value};

impl<B: HiddenStates, C: CheckpointStrategy> HiddenStates for Autodiff<B, C> {
    fn rows_distance_forward(a: Tensor<Self, 2>, b: Tensor<Self, 2>) -> Tensor<Self, 1> {
        let (loss, gradient) = B::rows_distance_with_gradient(value(&a), value(&b));
        record([input(&a)], loss, gradient, |gradient, dloss, _| {
            [Some(primitive(B::scaled(gradient, dloss)))]
        })
    }
}
