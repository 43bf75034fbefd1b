//! The gradient on Burn's graph. The teacher is a constant of the loss.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::Tensor;

use super::{DistillationInputs, Predictions};
use crate::autodiff::{input, primitive, record};

impl<B: Predictions, C: CheckpointStrategy> Predictions for Autodiff<B, C> {
    fn distillation_loss_forward(inputs: DistillationInputs<Self>) -> Tensor<Self, 1> {
        let student = input(&inputs.student);
        let (loss, gradient) = B::distillation_loss_with_gradient(values(inputs));
        record([student], loss, gradient, |gradient, dloss, _| {
            [Some(primitive(B::scaled(gradient, dloss)))]
        })
    }

    fn distillation_block(
        inputs: DistillationInputs<Self>,
        tokens: usize,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        let (loss, gradient) = B::distillation_block(values(inputs), tokens);
        (Tensor::from_inner(loss), Tensor::from_inner(gradient))
    }
}

fn values<B: Predictions, C: CheckpointStrategy>(
    inputs: DistillationInputs<Autodiff<B, C>>,
) -> DistillationInputs<B> {
    DistillationInputs {
        student: inputs.student.inner(),
        teacher: inputs.teacher.inner(),
        labels: inputs.labels.map(Tensor::inner),
        weights: inputs.weights,
    }
}
