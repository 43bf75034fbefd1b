//! The backward pass on Burn's graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::Tensor;

use super::{SkipGate, SkipGateInputs};
use crate::autodiff::{input, optional, primitive, record};
use crate::profile::{Kind, timed};

impl<B: SkipGate, C: CheckpointStrategy> SkipGate for Autodiff<B, C> {
    fn skip_gate_forward(inputs: SkipGateInputs<Self>) -> Tensor<Self, 3> {
        let nodes = [
            input(&inputs.y),
            input(&inputs.x),
            input(&inputs.d),
            input(&inputs.z),
            optional(&inputs.z_bias),
        ];
        let saved = SkipGateInputs {
            y: inputs.y.inner(),
            x: inputs.x.inner(),
            d: inputs.d.inner(),
            z: inputs.z.inner(),
            z_bias: inputs.z_bias.map(Tensor::inner),
        };
        let out = B::skip_gate_forward(saved.clone());
        record(nodes, out, saved, |saved, dout, _| {
            let gradients = timed(Kind::Elementwise, || B::skip_gate_backward(saved, dout));
            [
                Some(primitive(gradients.y)),
                Some(primitive(gradients.x)),
                Some(primitive(gradients.d)),
                Some(primitive(gradients.z)),
                Some(primitive(gradients.z_bias)),
            ]
        })
    }
}
