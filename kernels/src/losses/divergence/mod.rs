//! The stage-3 loss with divergences other than that of [`predictions`](super::predictions), and over fewer classes
//! than the vocabulary has.
//!
//! A divergence is one function, `Divergence::terms`: for each class, its term of the loss and the derivative of this
//! term. Temperature, hard labels, classes and the gradient are common code, in tensor operations on any backend. This
//! code holds about seven arrays `[t, v]` in f32, so callers pass blocks of tokens, as for
//! [`distillation_block`](crate::distillation_block).

mod classes;
pub mod likeliest;
pub mod top_classes;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor};

use self::classes::Classes;
use super::predictions::{DistillationInputs, DistillationWeights, check};
use crate::dtype::narrow;
use crate::profile::{Kind, timed};

/// How the student's distribution `p` is compared with the teacher's `q`, as a sum over classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Divergence {
    /// `sum of -q log p`: the cross-entropy, which is KL(q || p) plus the entropy of `q`, a constant. It makes the
    /// student give probability to everything that the teacher gives probability to.
    ForwardKl,
    /// `sum of p (log p - log q)`: KL(p || q). It makes the student give no probability to anything that the teacher
    /// gives none to.
    ReverseKl,
}

/// A divergence, and over which classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Comparison {
    /// How the two are compared.
    pub divergence: Divergence,
    /// The classes of each token: each of the `top_k` ids that the teacher finds likeliest is a class, and all other
    /// ids together are one more class, whose probability is the sum of theirs. Ids that are exactly as likely as the
    /// last of the `top_k` are also classes of their own. With 0, or if there are no other ids, each id is a class.
    pub top_k: usize,
}

impl Divergence {
    /// For classes with these log-probabilities: the term of each class in the loss, and the derivative of the term
    /// with respect to its `log p` alone. The derivative is given up to a multiple of `p`: probabilities sum to 1, so
    /// such a multiple is the derivative of a constant.
    fn terms<B: Backend>(
        self,
        log_p: Tensor<B, 2>,
        log_q: Tensor<B, 2>,
    ) -> (Tensor<B, 2>, Tensor<B, 2>) {
        match self {
            Self::ForwardKl => {
                let slope = -log_q.exp();
                (slope.clone() * log_p, slope)
            }
            Self::ReverseKl => {
                let term = log_p.clone().exp() * (log_p - log_q);
                // The derivative is this plus p.
                (term.clone(), term)
            }
        }
    }
}

/// `(1 - hard) * D(teacher, s) + hard * CE(labels, s)` with `s = student / temperature` and `D` the divergence of
/// `comparison`, the mean over tokens: logits `[t, v]`, `labels [t]` (needed if `hard > 0`), to one element.
///
/// This is the definition, whose gradient Burn takes operation by operation; training takes [`divergence_block`].
/// Differentiable in the student's logits alone. Computed and given in f32 for half-precision logits.
///
/// # Panics
/// As [`distillation_loss`](crate::distillation_loss).
pub fn divergence_loss<B: Backend>(
    student: Tensor<B, 2>,
    teacher: Tensor<B, 2>,
    labels: Option<Tensor<B, 1, Int>>,
    weights: DistillationWeights,
    comparison: Comparison,
) -> Tensor<B, 1> {
    let inputs = DistillationInputs {
        student,
        teacher: teacher.detach(),
        labels,
        weights,
    };
    check(&inputs);
    losses(inputs, comparison).values_t1.mean()
}

/// The contribution of a block of tokens to [`divergence_loss`] over `tokens` tokens, `[1]` in f32 or wider, and the
/// gradient of this contribution with respect to the student's logits, `[t, v]` in the student's dtype. Summed over the
/// blocks of a batch, both give the values of the whole batch, as for
/// [`distillation_block`](crate::distillation_block). The function consumes the teacher's logits, so that they are not
/// held beside the arrays that are computed from them.
///
/// No gradient passes through it.
///
/// # Panics
/// As [`distillation_block`](crate::distillation_block).
pub fn divergence_block<B: Backend>(
    student: Tensor<B, 2>,
    teacher: Tensor<B, 2>,
    labels: Option<Tensor<B, 1, Int>>,
    weights: DistillationWeights,
    comparison: Comparison,
    tokens: usize,
) -> (Tensor<B, 1>, Tensor<B, 2>) {
    let inputs = DistillationInputs {
        student,
        teacher,
        labels,
        weights,
    };
    check(&inputs);
    assert!(tokens > 0, "divergence_block: a batch has tokens");
    timed(Kind::Losses, || {
        let dtype = inputs.student.dtype();
        losses(inputs, comparison).block(weights.temperature, tokens, dtype)
    })
}

/// The loss of each token.
struct Losses<B: Backend> {
    /// `[t, 1]`.
    values_t1: Tensor<B, 2>,
    /// Their derivatives in the student's `log p`, as of [`Divergence::terms`]: `[t, v]`.
    slopes_tv: Tensor<B, 2>,
    /// Those logarithms, `[t, v]`.
    log_p_tv: Tensor<B, 2>,
}

impl<B: Backend> Losses<B> {
    /// Their part in the mean over `tokens`, and that part's gradient to the student's logits, in `dtype`.
    fn block(self, temperature: f64, tokens: usize, dtype: DType) -> (Tensor<B, 1>, Tensor<B, 2>) {
        // A logit raises its own log p by 1, and lowers each by the probability of its own id.
        let total_t1 = self.slopes_tv.clone().sum_dim(1);
        let gradient = self.slopes_tv - self.log_p_tv.exp() * total_t1;
        let by = 1.0 / (temperature * tokens as f64);
        let loss = self.values_t1.sum() * (1.0 / tokens as f64);
        (loss, narrow(gradient * by, dtype))
    }
}

fn losses<B: Backend>(inputs: DistillationInputs<B>, comparison: Comparison) -> Losses<B> {
    let DistillationInputs {
        student,
        teacher,
        labels,
        weights,
    } = inputs;
    let classes = Classes::new(student, weights.temperature, teacher, comparison.top_k);
    let log_p_tv = classes.log_p_tv.clone();
    let (values_t1, slopes_tv) = classes.compare(comparison.divergence);
    let losses = Losses {
        values_t1,
        slopes_tv,
        log_p_tv,
    };
    with_labels(losses, labels, weights.hard)
}

/// `losses` with the share `hard` of the cross-entropy against the next tokens `labels [t]`, if there are any.
fn with_labels<B: Backend>(
    losses: Losses<B>,
    labels: Option<Tensor<B, 1, Int>>,
    hard: f64,
) -> Losses<B> {
    let Some(labels) = labels.filter(|_| hard > 0.0) else {
        return losses;
    };
    let Losses {
        values_t1,
        slopes_tv,
        log_p_tv,
    } = losses;
    let soft = 1.0 - hard;
    let labels_t1 = labels.unsqueeze_dim::<2>(1);
    let hard_t1 = -log_p_tv.clone().gather(1, labels_t1.clone());
    let slope_t1 = hard_t1.full_like(-hard);
    Losses {
        values_t1: values_t1 * soft + hard_t1 * hard,
        // `scatter` and not `one_hot`, because `one_hot` reads the labels on the host.
        slopes_tv: (slopes_tv * soft).scatter(1, labels_t1, slope_t1, IndexingUpdateOp::Add),
        log_p_tv,
    }
}
