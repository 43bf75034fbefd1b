//! The definition, in tensor operations.

use burn::tensor::Tensor;
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::backend::Backend;

use super::DistillationInputs;
use crate::dtype::{narrow, widen};

/// See [`distillation_loss`](super::distillation_loss).
pub fn forward<B: Backend>(inputs: DistillationInputs<B>) -> Tensor<B, 1> {
    let dtype = inputs.student.dtype();
    narrow(wide_loss(inputs), dtype)
}

/// The loss and its gradient to the student's logits.
pub fn with_gradient<B: Backend>(inputs: DistillationInputs<B>) -> (Tensor<B, 1>, Tensor<B, 2>) {
    let ([t, _], dtype) = (inputs.student.dims(), inputs.student.dtype());
    let (loss, gradient) = block(inputs, t);
    (narrow(loss, dtype), gradient)
}

/// See [`distillation_block`](super::distillation_block). The gradient is
/// `(softmax(s) - target) / (temperature * tokens)`, target the weighed mix of both.
pub fn block<B: Backend>(
    inputs: DistillationInputs<B>,
    tokens: usize,
) -> (Tensor<B, 1>, Tensor<B, 2>) {
    let loss = wide_loss(inputs.clone());
    let DistillationInputs {
        student,
        teacher,
        labels,
        weights,
    } = inputs;
    let ([t, v], dtype) = (student.dims(), student.dtype());
    let predicted = softmax(widen(student) * (1.0 / weights.temperature), 1);
    let soft = narrow(softmax(widen(teacher), 1), predicted.dtype());
    let target = match labels {
        Some(labels) if weights.hard > 0.0 => {
            let hard = labels.one_hot::<2>(v).float().cast(soft.dtype());
            soft * (1.0 - weights.hard) + hard * weights.hard
        }
        _ => soft,
    };
    let gradient = (predicted - target) * (1.0 / (weights.temperature * tokens as f64));
    (loss * (t as f64 / tokens as f64), narrow(gradient, dtype))
}

/// The mean loss, in f32 for half-precision logits.
fn wide_loss<B: Backend>(inputs: DistillationInputs<B>) -> Tensor<B, 1> {
    let DistillationInputs {
        student,
        teacher,
        labels,
        weights,
    } = inputs;
    let log_s = log_softmax(widen(student) * (1.0 / weights.temperature), 1);
    let soft = narrow(softmax(widen(teacher), 1), log_s.dtype());
    let soft = -(soft * log_s.clone()).sum_dim(1).mean();
    match labels {
        Some(labels) if weights.hard > 0.0 => {
            let hard = -log_s.gather(1, labels.unsqueeze_dim(1)).mean();
            soft * (1.0 - weights.hard) + hard * weights.hard
        }
        _ => soft,
    }
}
