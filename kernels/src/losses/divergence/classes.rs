//! The classes of each token, by the logarithms of their probabilities.

use burn::tensor::activation::log_softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{Bool, Tensor};

use super::Divergence;
use crate::dtype::{narrow, widen};

/// The logarithm of a probability that is zero, where the rest holds no id: finite, so that zero times it is zero.
pub(super) const NOTHING: f64 = -1e30;

/// How often the range in which the k-th largest of a row lies is halved. Of the second largest or a smaller
/// probability, neighbouring f32 logarithms are at least 2^-24 apart, so that 40 tell them from each other in a range of
/// up to 2^15.
const HALVINGS: usize = 40;

/// Student and teacher, in f32 or wider.
pub(super) struct Classes<B: Backend> {
    /// Of the student, of each id: `[t, v]`.
    pub(super) log_p_tv: Tensor<B, 2>,
    /// Of the teacher, of each id: `[t, v]`.
    log_q_tv: Tensor<B, 2>,
    /// None where each id is a class.
    top_tv: Option<Tensor<B, 2, Bool>>,
}

impl<B: Backend> Classes<B> {
    /// Of logits `[t, v]`, the student's divided by `temperature`; see [`Comparison`](super::Comparison::top_k).
    pub(super) fn new(
        student: Tensor<B, 2>,
        temperature: f64,
        teacher: Tensor<B, 2>,
        top_k: usize,
    ) -> Self {
        let [_, v] = student.dims();
        let log_p_tv = log_softmax(widen(student) * (1.0 / temperature), 1);
        let log_q_tv = narrow(log_softmax(widen(teacher), 1), log_p_tv.dtype());
        let top_tv = (1..v)
            .contains(&top_k)
            .then(|| largest(log_q_tv.clone(), top_k));
        Self {
            log_p_tv,
            log_q_tv,
            top_tv,
        }
    }

    /// The loss of each token, `[t, 1]`, and its derivatives in the `log p` of each id, as of [`Divergence::terms`],
    /// `[t, v]`.
    pub(super) fn compare(self, divergence: Divergence) -> (Tensor<B, 2>, Tensor<B, 2>) {
        let Self {
            log_p_tv,
            log_q_tv,
            top_tv,
        } = self;
        let (terms_tv, slopes_tv) = divergence.terms(log_p_tv.clone(), log_q_tv.clone());
        let Some(top_tv) = top_tv else {
            return (terms_tv.sum_dim(1), slopes_tv);
        };
        let [log_p_t1, log_q_t1] =
            [&log_p_tv, &log_q_tv].map(|log_tv| log_sum_of_others(log_tv.clone(), top_tv.clone()));
        drop(log_q_tv);
        let (term_t1, slope_t1) = divergence.terms(log_p_t1.clone(), log_q_t1);
        let others_tv = top_tv.clone().bool_not();
        let values_t1 = terms_tv.mask_fill(others_tv.clone(), 0.0).sum_dim(1) + term_t1;
        // The class of the others passes its slope on to them, by their shares of its probability.
        let shares_tv = (log_p_tv - log_p_t1).mask_fill(top_tv, NOTHING).exp();
        let slopes_tv = slopes_tv.mask_fill(others_tv, 0.0) + shares_tv * slope_t1;
        (values_t1, slopes_tv)
    }
}

/// A mask `[t, v]` of the `k` largest values of each row, and of all values that equal the k-th. Burn sorts on the
/// host; this finds the k-th value by counting, on the device.
fn largest<B: Backend>(x_tv: Tensor<B, 2>, k: usize) -> Tensor<B, 2, Bool> {
    let at_least = |bound_t1: Tensor<B, 2>| (x_tv.clone() - bound_t1).greater_equal_elem(0.0);
    // At least k reach the one, and fewer than k the other.
    let mut low_t1 = x_tv.clone().min_dim(1);
    let mut high_t1 = x_tv.clone().max_dim(1) + 1.0;
    for _ in 0..HALVINGS {
        let middle_t1 = (low_t1.clone() + high_t1.clone()) * 0.5;
        let count_t1 = at_least(middle_t1.clone()).int().sum_dim(1);
        let enough_t1 = count_t1.greater_equal_elem(k as i64);
        low_t1 = low_t1.mask_where(enough_t1.clone(), middle_t1.clone());
        high_t1 = middle_t1.mask_where(enough_t1, high_t1);
    }
    at_least(low_t1)
}

/// The logarithm of the probability of all ids together that are not at the top, `[t, 1]`.
pub(super) fn log_sum_of_others<B: Backend>(
    log_tv: Tensor<B, 2>,
    top_tv: Tensor<B, 2, Bool>,
) -> Tensor<B, 2> {
    let log_tv = log_tv.mask_fill(top_tv, NOTHING);
    let most_t1 = log_tv.clone().max_dim(1).detach();
    (log_tv - most_t1.clone()).exp().sum_dim(1).log() + most_t1
}
