//! The backward pass on Burn's graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::{Int, Tensor};

use super::Embedding;
use crate::autodiff::{input, primitive, record, value};
use crate::profile::{Kind, timed};

impl<B: Embedding, C: CheckpointStrategy> Embedding for Autodiff<B, C> {
    fn embedding_forward(table: Tensor<Self, 2>, ids: Tensor<Self, 2, Int>) -> Tensor<Self, 3> {
        let saved = (ids.inner(), table.dims()[0]);
        let y = B::embedding_forward(value(&table), saved.0.clone());
        record([input(&table)], y, saved, |(ids, v), dy, _| {
            let gradient = timed(Kind::Embedding, || B::embedding_gradient(ids, dy, v));
            [Some(primitive(gradient))]
        })
    }
}
