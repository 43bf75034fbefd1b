//! The backward pass on Burn's graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::Tensor;

use super::{Attention, Visible};
use crate::autodiff::{input, primitive, record, value};
use crate::documents::DocumentStarts;
use crate::profile::{Kind, timed};

impl<B: Attention, C: CheckpointStrategy> Attention for Autodiff<B, C> {
    fn attention_forward(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        visible: Visible<Self>,
    ) -> Tensor<Self, 4> {
        let visible = Visible {
            window: visible.window,
            documents: visible.documents.map(DocumentStarts::inner),
        };
        let values = [value(&q), value(&k), value(&v)];
        let [q_, k_, v_] = values.clone();
        let (y, saved) = B::attention_forward_saving(q_, k_, v_, visible.clone());
        let inputs = [input(&q), input(&k), input(&v)];
        let state = (values, saved, visible);
        record(inputs, y, state, |([q, k, v], saved, visible), dy, _| {
            let backward = || B::attention_backward(q, k, v, saved, dy, visible);
            let (dq, dk, dv) = timed(Kind::Attention, backward);
            [dq, dk, dv].map(|gradient| Some(primitive(gradient)))
        })
    }
}
