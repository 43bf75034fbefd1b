//! Stage 3's loss: the student's predictions against the teacher's.
//!
//! One op, because composed from tensors it would keep several arrays as wide as the vocabulary.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) mod cube;
#[cfg(feature = "flex")]
pub(crate) mod flex;
pub mod reference;

use burn::tensor::{Int, Tensor};

use crate::KernelBackend;
use crate::meter::{Kind, timed};

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

/// `(1 - hard) * CE(softmax(teacher), s) + hard * CE(labels, s)` with `s = student / temperature`,
/// the mean over tokens: logits `[t, v]`, `labels [t]` (needed if `hard > 0`), to one element.
///
/// Differentiable in the student's logits alone. Computed in f32 for half-precision logits, of which the
/// student's and the teacher's need not be of one dtype, and given in the student's dtype.
///
/// # Panics
/// If the shapes differ, or `hard > 0` without labels.
pub fn distillation_loss<B: KernelBackend>(
    student: Tensor<B, 2>,
    teacher: Tensor<B, 2>,
    labels: Option<Tensor<B, 1, Int>>,
    weights: DistillationWeights,
) -> Tensor<B, 1> {
    check(&student, &teacher, &labels, weights);
    timed(Kind::Losses, || {
        B::distillation_loss_forward(student, teacher, labels, weights)
    })
}

/// A block of tokens' part in [`distillation_loss`] over `tokens` of them, and that part's gradient to the
/// student's logits: `[1]` in f32 or wider, and `[t, v]` in the student's dtype. Both add up over the blocks
/// of a batch to what they are for the whole, so that no more than a block's logits need exist at once.
///
/// No gradient passes through it.
///
/// # Panics
/// If the shapes differ, or `hard > 0` without labels, or `tokens` is 0.
pub fn distillation_block<B: KernelBackend>(
    student: Tensor<B, 2>,
    teacher: Tensor<B, 2>,
    labels: Option<Tensor<B, 1, Int>>,
    weights: DistillationWeights,
    tokens: usize,
) -> (Tensor<B, 1>, Tensor<B, 2>) {
    check(&student, &teacher, &labels, weights);
    assert!(tokens > 0, "distillation_block: a batch has tokens");
    timed(Kind::Losses, || {
        B::distillation_block(student, teacher, labels, weights, tokens)
    })
}

fn check<B: KernelBackend>(
    student: &Tensor<B, 2>,
    teacher: &Tensor<B, 2>,
    labels: &Option<Tensor<B, 1, Int>>,
    weights: DistillationWeights,
) {
    let [t, _] = student.dims();
    assert_eq!(
        student.dims(),
        teacher.dims(),
        "distillation_loss: the logits' shapes must agree"
    );
    assert!(
        weights.hard == 0.0 || labels.is_some(),
        "distillation_loss: hard needs labels"
    );
    if let Some(labels) = labels {
        assert_eq!(labels.dims(), [t], "distillation_loss: one label a token");
    }
}

/// The mean cross-entropy of `logits [t, v]` against the next tokens `labels [t]`, as one element.
///
/// # Panics
/// If there is not one label a token. If one of them is not below `v`, on the CPU; on a GPU, where nobody
/// waits to hear of it, the loss is NaN.
pub fn cross_entropy<B: KernelBackend>(
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
