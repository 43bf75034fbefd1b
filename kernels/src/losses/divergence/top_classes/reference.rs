//! The definition, in tensor operations.

use burn::tensor::activation::log_softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{IndexingUpdateOp, Tensor};

use super::super::classes::{NOTHING, log_sum_of_others};
use super::super::{Losses, with_labels};
use super::{TopClasses, TopClassesInputs};
use crate::dtype::{narrow, widen};

/// See [`top_classes_block`](super::top_classes_block).
pub fn block<B: Backend>(
    inputs: TopClassesInputs<B>,
    tokens: usize,
) -> (Tensor<B, 1>, Tensor<B, 2>) {
    let TopClassesInputs {
        student,
        teacher,
        labels,
        weights,
        divergence,
    } = inputs;
    let ([_, v], dtype) = (student.dims(), student.dtype());
    let log_p_tv = log_softmax(widen(student) * (1.0 / weights.temperature), 1);
    let TopClasses {
        ids: ids_tk,
        log_q,
        log_rest,
    } = teacher;
    let [_, k] = ids_tk.dims();
    let [log_q_tk, log_rest_t1] = [log_q, log_rest].map(|log| narrow(log, log_p_tv.dtype()));

    // In place of a mask of `[t, v]` that is looked up: ids that stand in a row once.
    let spread = |x_tk: Tensor<B, 2>| {
        let zeros_tv = log_p_tv.zeros_like();
        zeros_tv.scatter(1, ids_tk.clone(), x_tk, IndexingUpdateOp::Add)
    };
    let log_p_tk = log_p_tv.clone().gather(1, ids_tk.clone());
    let ones_tk = log_p_tk.ones_like();
    let (terms_tk, slopes_tk) = divergence.terms(log_p_tk, log_q_tk);
    let (mut values_t1, mut slopes_tv) = (terms_tk.sum_dim(1), spread(slopes_tk));
    if k < v {
        let top_tv = spread(ones_tk).greater_elem(0.5);
        let log_p_t1 = log_sum_of_others(log_p_tv.clone(), top_tv.clone());
        let (term_t1, slope_t1) = divergence.terms(log_p_t1.clone(), log_rest_t1);
        // The class of the others passes its slope on to them, by their shares of its probability.
        let shares_tv = (log_p_tv.clone() - log_p_t1)
            .mask_fill(top_tv, NOTHING)
            .exp();
        values_t1 = values_t1 + term_t1;
        slopes_tv = slopes_tv + shares_tv * slope_t1;
    }
    let losses = Losses {
        values_t1,
        slopes_tv,
        log_p_tv,
    };
    with_labels(losses, labels, weights.hard).block(weights.temperature, tokens, dtype)
}
