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
    ) -> Tensor<Self, 4> {
        let saved = [value(&q), value(&k), value(&v)];
        let [q_, k_, v_] = saved.clone();
        let y = B::attention_forward(q_, k_, v_);
        let inputs = [input(&q), input(&k), input(&v)];
        record(inputs, y, saved, |[q, k, v], dy, _| {
            let (dq, dk, dv) = timed(Kind::Attention, || B::attention_backward(q, k, v, dy));
            [dq, dk, dv].map(|gradient| Some(primitive(gradient)))
        })
    }

    fn windowed_attention_forward(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        window: Window,
    ) -> Tensor<Self, 4> {
        let saved = [value(&q), value(&k), value(&v)];
        let [q_, k_, v_] = saved.clone();
        let y = B::windowed_attention_forward(q_, k_, v_, window);
        let inputs = [input(&q), input(&k), input(&v)];
        record(inputs, y, (saved, window), |([q, k, v], window), dy, _| {
            let backward = || B::windowed_attention_backward(q, k, v, dy, window);
            let (dq, dk, dv) = timed(Kind::Attention, backward);
            [dq, dk, dv].map(|gradient| Some(primitive(gradient)))
        })
    }
}
