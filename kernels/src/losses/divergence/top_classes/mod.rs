//! The stage-3 loss against a teacher of which only the likeliest ids are known, as in a cache of its predictions.
//!
//! Of each token there are `k + 1` classes: the `k` ids that the teacher finds likeliest, each by itself, and all other
//! ids together, whose probability is the sum of theirs. With `q` the teacher's and `p` the student's probabilities of
//! these classes, the loss is that of [`divergence_block`](super::divergence_block) with `top_k = k`: the sum over classes
//! of `-q log p`, or of `p (log p - log q)`. Where `k` ids are all that there are, no other class is left, and the loss
//! is that over all ids. (There is one difference: ids that are exactly as likely as the last of the `k` are classes of
//! their own there, and among the others here.)

#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
#[cfg(feature = "flex")]
mod flex;
pub mod reference;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use super::Divergence;
use crate::dtype::assert_one_width;
use crate::losses::predictions::DistillationWeights;
use crate::profile::{Kind, timed};

/// What is known of a teacher's predictions of `t` tokens.
#[derive(Debug, Clone)]
pub struct TopClasses<B: Backend> {
    /// The `k` ids that it finds likeliest, `[t, k]`; in a row, no id stands twice.
    pub ids: Tensor<B, 2, Int>,
    /// The logarithms of their probabilities, `[t, k]`; finite.
    pub log_q: Tensor<B, 2>,
    /// The logarithm of the probability of all other ids together, `[t, 1]`; finite. It is not read if there are none.
    pub log_rest: Tensor<B, 2>,
}

impl<B: Backend> TopClasses<B> {
    /// The predictions of the `n` tokens from `start` on.
    pub fn narrow(&self, start: usize, n: usize) -> Self {
        Self {
            ids: self.ids.clone().narrow(0, start, n),
            log_q: self.log_q.clone().narrow(0, start, n),
            log_rest: self.log_rest.clone().narrow(0, start, n),
        }
    }
}

/// The predictions that are compared, and how.
#[derive(Debug, Clone)]
pub struct TopClassesInputs<B: Backend> {
    /// The student's logits, `[t, v]`.
    pub student: Tensor<B, 2>,
    /// What is known of the teacher's.
    pub teacher: TopClasses<B>,
    /// The next tokens, `[t]`; needed if `weights.hard > 0`.
    pub labels: Option<Tensor<B, 1, Int>>,
    /// How the parts of the loss are weighed.
    pub weights: DistillationWeights,
    /// How the two are compared.
    pub divergence: Divergence,
}

/// The op, as backends compute it.
pub trait TopClassesLoss: Backend {
    /// See [`top_classes_block`]. No gradient passes through it.
    fn top_classes_block(
        inputs: TopClassesInputs<Self>,
        tokens: usize,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        reference::block(inputs, tokens)
    }
}

by_default!(TopClassesLoss for ndarray, autodiff);

/// The contribution of a block of tokens to the mean loss over `tokens` tokens, `[1]` in f32 or wider, and the gradient
/// of this contribution with respect to the student's logits, `[t, v]` in the student's dtype. Summed over the blocks
/// of a batch, both give the values of the whole batch, as for [`divergence_block`](super::divergence_block). Computed
/// in f32 for half-precision logits.
///
/// It is meant for a backend without autodiff, since it returns the gradient itself.
///
/// # Panics
/// If shapes differ, the teacher's have no id or more than the student's, some inputs are f64 and others not,
/// `hard > 0` without labels, or `tokens` is 0. If an id or a label is not below `v`, on a CPU; on a GPU, whose work is
/// done later, the loss is NaN.
pub fn top_classes_block<B: TopClassesLoss>(
    inputs: TopClassesInputs<B>,
    tokens: usize,
) -> (Tensor<B, 1>, Tensor<B, 2>) {
    const OP: &str = "top_classes_block";
    let ([t, v], [rows, k]) = (inputs.student.dims(), inputs.teacher.ids.dims());
    let TopClasses {
        log_q, log_rest, ..
    } = &inputs.teacher;
    let dtypes = [inputs.student.dtype(), log_q.dtype(), log_rest.dtype()];
    assert_one_width(OP, &dtypes);
    assert!(
        rows == t && log_q.dims() == [t, k] && log_rest.dims() == [t, 1],
        "{OP}: k ids, k logarithms and one of the rest for each of {t} tokens"
    );
    assert!((1..=v).contains(&k), "{OP}: {k} ids of {v}");
    assert!(tokens > 0, "{OP}: a batch has tokens");
    match &inputs.labels {
        Some(labels) => assert_eq!(labels.dims(), [t], "{OP}: one label a token"),
        None => assert!(inputs.weights.hard == 0.0, "{OP}: hard needs labels"),
    }
    timed(Kind::Losses, || B::top_classes_block(inputs, tokens))
}
