//! The backward pass on Burn's graph: the rotation the other way.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::Tensor;

use super::Rotary;
use crate::autodiff::{input, primitive, record, value};
use crate::profile::{Kind, timed};

impl<B: Rotary, C: CheckpointStrategy> Rotary for Autodiff<B, C> {
    fn rotary_forward(
        x: Tensor<Self, 4>,
        cos: Tensor<Self, 2>,
        sin: Tensor<Self, 2>,
    ) -> Tensor<Self, 4> {
        let saved = (value(&cos), value(&sin));
        let y = B::rotary_forward(value(&x), saved.0.clone(), saved.1.clone());
        record([input(&x)], y, saved, |(cos, sin), dy, _| {
            let dx = timed(Kind::Elementwise, || B::rotary_backward(dy, cos, sin));
            [Some(primitive(dx))]
        })
    }
}
