//! The backward pass on Burn's graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::Tensor;

use super::SwiGlu;
use crate::autodiff::{input, primitive, record, value};
use crate::profile::{Kind, timed};

impl<B: SwiGlu, C: CheckpointStrategy> SwiGlu for Autodiff<B, C> {
    fn swiglu_forward(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let saved = [value(&gate), value(&up)];
        let [gate_, up_] = saved.clone();
        let y = B::swiglu_forward(gate_, up_);
        let inputs = [input(&gate), input(&up)];
        record(inputs, y, saved, |[gate, up], dy, _| {
            let gradients = timed(Kind::Elementwise, || B::swiglu_backward(gate, up, dy));
            gradients.map(|gradient| Some(primitive(gradient)))
        })
    }
}
