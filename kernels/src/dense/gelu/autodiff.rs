//! The backward pass on Burn's graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::Tensor;

use super::GeluNew;
use crate::autodiff::{input, primitive, record, value};
use crate::profile::{Kind, timed};

impl<B: GeluNew, C: CheckpointStrategy> GeluNew for Autodiff<B, C> {
    fn gelu_new_forward(x: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let saved = value(&x);
        let y = B::gelu_new_forward(saved.clone());
        record([input(&x)], y, saved, |x, dy, _| {
            [Some(primitive(timed(Kind::Elementwise, || {
                B::gelu_new_backward(x, dy)
            })))]
        })
    }
}
