//! Stage 3's loss: the student's predictions against the teacher's.
//!
//! It is one op, because a composition of tensor operations would keep several arrays as large as the logits.

mod autodiff;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
#[cfg(feature = "flex")]
mod flex;
pub mod reference;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use super::scale::Scale;
use crate::dtype::assert_one_width;
use crate::profile::{Kind, timed};

/// How the parts of the loss are weighed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DistillationWeights {
    /// Divides the student's logits; the teacher's are left as they are, as published.
    pub temperature: f64,
    /// Share of the cross-entropy against the data's next token, 0 (as published) to 1.
    pub hard: f64,
}

impl Default for DistillationWeights {
    /// The published loss: temperature 1, no hard labels.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            hard: 0.0,
        }
    }
}

/// The predictions that are compared, and how.
#[derive(Debug, Clone)]
pub struct DistillationInputs<B: Backend> {
    /// The student's logits, `[t, v]`.
    pub student: Tensor<B, 2>,
    /// The teacher's logits, `[t, v]`.
    pub teacher: Tensor<B, 2>,
    /// The next tokens, `[t]`; needed if `weights.hard > 0`.
    pub labels: Option<Tensor<B, 1, Int>>,
    /// How the parts of the loss are weighed.
    pub weights: DistillationWeights,
}

/// The op, as backends compute it.
pub trait Predictions: Scale {
    /// See [`distillation_loss`].
    fn distillation_loss_forward(inputs: DistillationInputs<Self>) -> Tensor<Self, 1> {
        reference::forward(inputs)
    }

    /// [`Predictions::distillation_loss_forward`] with its gradient to the student's logits.
    fn distillation_loss_with_gradient(
        inputs: DistillationInputs<Self>,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        reference::with_gradient(inputs)
    }

    /// See [`distillation_block`]. No gradient passes through it.
    fn distillation_block(
        inputs: DistillationInputs<Self>,
        tokens: usize,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        reference::block(inputs, tokens)
    }
}

by_default!(Predictions for ndarray);

/// `(1 - hard) * CE(softmax(teacher), s) + hard * CE(labels, s)` with `s = student / temperature`,
/// the mean over tokens: logits `[t, v]`, `labels [t]` (needed if `hard > 0`), to one element.
///
/// Differentiable in the student's logits alone. Computed in f32 for half-precision logits. The student's and the
/// teacher's logits may have different dtypes if neither is f64. The loss has the student's dtype.
///
/// # Panics
/// If the shapes differ, one of the logits is f64 and the other not, or `hard > 0` without labels.
pub fn distillation_loss<B: Predictions>(
    student: Tensor<B, 2>,
    teacher: Tensor<B, 2>,
    labels: Option<Tensor<B, 1, Int>>,
    weights: DistillationWeights,
) -> Tensor<B, 1> {
    let inputs = DistillationInputs {
        student,
        teacher,
        labels,
        weights,
    };
    check(&inputs);
    timed(Kind::Losses, || B::distillation_loss_forward(inputs))
}

/// The contribution of a block of tokens to [`distillation_loss`] over `tokens` tokens, `[1]` in f32 or wider, and the
/// gradient of this contribution with respect to the student's logits, `[t, v]` in the student's dtype. Summed over the
/// blocks of a batch, both give the values of the whole batch, so the logits of only one block need to exist at a time.
///
/// No gradient passes through it.
///
/// # Panics
/// If the shapes differ, one of the logits is f64 and the other not, `hard > 0` without labels, or `tokens` is 0.
pub fn distillation_block<B: Predictions>(
    student: Tensor<B, 2>,
    teacher: Tensor<B, 2>,
    labels: Option<Tensor<B, 1, Int>>,
    weights: DistillationWeights,
    tokens: usize,
) -> (Tensor<B, 1>, Tensor<B, 2>) {
    let inputs = DistillationInputs {
        student,
        teacher,
        labels,
        weights,
    };
    check(&inputs);
    assert!(tokens > 0, "distillation_block: a batch has tokens");
    timed(Kind::Losses, || B::distillation_block(inputs, tokens))
}

pub(super) fn check<B: Backend>(inputs: &DistillationInputs<B>) {
    let [t, _] = inputs.student.dims();
    let dtypes = [inputs.student.dtype(), inputs.teacher.dtype()];
    assert_one_width("distillation_loss", &dtypes);
    assert_eq!(
        inputs.student.dims(),
        inputs.teacher.dims(),
        "distillation_loss: the logits' shapes must agree"
    );
    assert!(
        inputs.weights.hard == 0.0 || inputs.labels.is_some(),
        "distillation_loss: hard needs labels"
    );
    if let Some(labels) = &inputs.labels {
        assert_eq!(labels.dims(), [t], "distillation_loss: one label a token");
    }
}

/// The mean cross-entropy of `logits [t, v]` against the next tokens `labels [t]`, as one element.
///
/// # Panics
/// If there is not one label a token. If a label is not below `v`, on the CPU; on a GPU, whose work is done
/// later, the loss is NaN.
pub fn cross_entropy<B: Predictions>(
    logits: Tensor<B, 2>,
    labels: Tensor<B, 1, Int>,
) -> Tensor<B, 1> {
    let weights = DistillationWeights {
        temperature: 1.0,
        hard: 1.0,
    };
    // With hard labels alone, the teacher's part has no weight.
    distillation_loss(logits.clone(), logits, Some(labels), weights)
}
