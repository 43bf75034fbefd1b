//! The backward pass on Burn's graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::Tensor;

use super::{CausalConv, ConvInputs};
use crate::autodiff::{input, optional, primitive, record};
use crate::documents::DocumentStarts;
use crate::profile::{Kind, timed};

impl<B: CausalConv, C: CheckpointStrategy> CausalConv for Autodiff<B, C> {
    fn causal_conv_forward(inputs: ConvInputs<Self>) -> Tensor<Self, 3> {
        let nodes = [
            input(&inputs.x),
            input(&inputs.weight),
            optional(&inputs.bias),
            optional(&inputs.history),
        ];
        let saved = ConvInputs {
            x: inputs.x.inner(),
            weight: inputs.weight.inner(),
            bias: inputs.bias.map(Tensor::inner),
            history: inputs.history.map(Tensor::inner),
            activation: inputs.activation,
            documents: inputs.documents.map(DocumentStarts::inner),
        };
        let y = B::causal_conv_forward(saved.clone());
        record(nodes, y, saved, |saved, dy, wanted| {
            let gradients = timed(Kind::Convolution, || {
                B::causal_conv_backward(saved, dy, wanted)
            });
            [
                gradients.x.map(primitive),
                gradients.weight.map(primitive),
                gradients.bias.map(primitive),
                gradients.history.map(primitive),
            ]
        })
    }
}
