//! The backward pass on Burn's graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::Tensor;

use super::{Attention, Window};
use crate::autodiff::{input, primitive, record, value};
use crate::profile::{Kind, timed};

impl<B: Attention, C: CheckpointStrategy> Attention for Autodiff<B, C> {
    fn attention_forward(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        window: Option<Window>,
    ) -> Tensor<Self, 4> {
        let values = [value(&q), value(&k), value(&v)];
        let [q_, k_, v_] = values.clone();
        let (y, saved) = B::attention_forward_saving(q_, k_, v_, window);
        let inputs = [input(&q), input(&k), input(&v)];
        let state = (values, saved, window);
        record(inputs, y, state, |([q, k, v], saved, window), dy, _| {
            let backward = || B::attention_backward(q, k, v, saved, dy, window);
            let (dq, dk, dv) = timed(Kind::Attention, backward);
            [dq, dk, dv].map(|gradient| Some(primitive(gradient)))
        })
    }
}
