//! How much a network recalls: the scores of the answers, from what its last layer gives.

use burn::tensor::{Int, Tensor, TensorData};
use kernels::KernelBackend;
use kernels::runtime::BackendError;
use model::{CausalLm, widen};
use serde::Serialize;

use super::questions::Reading;
use crate::error::TrainError;
use crate::stages::head;

/// Rows of logits at a time; a row has an entry for every token of the vocabulary.
const ROWS: usize = 1024;

/// How well a network answers the questions of one set.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Recall {
    /// Natural logarithm of the probability: the mean over an answer's tokens, then the mean over answers.
    pub log_likelihood: f64,
    /// The share of answers of which each token is the likeliest.
    pub accuracy: f64,
    /// The number of answers.
    pub answers: usize,
}

impl Recall {
    /// Two standard errors of the accuracy, as if the answers were independent.
    pub fn two_errors(&self) -> f64 {
        let variance = self.accuracy * (1.0 - self.accuracy);
        2.0 * (variance / self.answers.max(1) as f64).sqrt()
    }
}

/// The means over sets, each with the same weight, of the log-likelihood and of the accuracy.
pub(super) fn means(recalls: &[Recall]) -> (f64, f64) {
    let n = recalls.len().max(1) as f64;
    let sum = |of: fn(&Recall) -> f64| recalls.iter().map(of).sum::<f64>() / n;
    (sum(|r| r.log_likelihood), sum(|r| r.accuracy))
}

/// Sums over the answers of each set.
#[derive(Debug, Clone)]
pub(super) struct Sums(Vec<Recall>);

impl Sums {
    pub(super) fn new(sets: usize) -> Self {
        Self(vec![Recall::default(); sets])
    }

    /// Adds the answers of `reading`. `x_bld` is the residual stream after the last layer.
    ///
    /// # Errors
    /// [`TrainError::Device`].
    pub(super) fn add<B: KernelBackend>(
        &mut self,
        model: &CausalLm<B>,
        x_bld: Tensor<B, 3>,
        reading: &Reading<B>,
    ) -> Result<(), TrainError> {
        let scores = scores(model, x_bld, reading)?;
        for answer in &reading.answers {
            let tokens = &scores[answer.tokens.clone()];
            let sum: f64 = tokens.iter().map(|(log, _)| log).sum();
            let set = &mut self.0[answer.set];
            set.log_likelihood += sum / tokens.len() as f64;
            set.accuracy += f64::from(u8::from(tokens.iter().all(|(_, likeliest)| *likeliest)));
            set.answers += 1;
        }
        Ok(())
    }

    /// The means.
    pub(super) fn recalls(self) -> Vec<Recall> {
        let mean = |set: Recall| {
            let n = set.answers.max(1) as f64;
            Recall {
                log_likelihood: set.log_likelihood / n,
                accuracy: set.accuracy / n,
                ..set
            }
        };
        self.0.into_iter().map(mean).collect()
    }
}

/// For each scored token, the logarithm of its probability, and whether it is the likeliest one at its position.
fn scores<B: KernelBackend>(
    model: &CausalLm<B>,
    x_bld: Tensor<B, 3>,
    reading: &Reading<B>,
) -> Result<Vec<(f64, bool)>, TrainError> {
    let ([b, l, d], n) = (x_bld.dims(), reading.targets.len());
    let x_nd = x_bld
        .reshape([b * l, d])
        .select(0, reading.places_n.clone());
    let features = model
        .backbone
        .final_layernorm
        .forward(x_nd.reshape([1, n, d]));
    let device = features.device();
    let (mut logs, mut likeliest) = (vec![], vec![]);
    head::forward(
        &model.head(),
        features,
        ROWS,
        |start, logits_nv: Tensor<B, 2>| {
            let logits_nv = widen(logits_nv);
            let n = logits_nv.dims()[0];
            let targets = reading.targets[start..start + n].to_vec();
            let targets_n1 =
                Tensor::<B, 2, Int>::from_data(TensorData::new(targets, [n, 1]), &device);
            let largest_n1 = logits_nv.clone().max_dim(1);
            let chosen_n1 = logits_nv.clone().gather(1, targets_n1) - largest_n1.clone();
            // Relative to the largest logit, so that nothing overflows.
            let sum_n1 = (logits_nv.clone() - largest_n1).exp().sum_dim(1);
            logs.push(chosen_n1 - sum_n1.log());
            likeliest.push(logits_nv.argmax(1));
        },
    );
    let logs = Tensor::cat(logs, 0).try_into_data().map_err(failed)?;
    let likeliest = Tensor::cat(likeliest, 0).try_into_data().map_err(failed)?;
    let targets = reading.targets.iter().map(|target| i64::from(*target));
    let likeliest = likeliest.iter::<i64>().zip(targets);
    let scores = logs.iter::<f64>().zip(likeliest);
    Ok(scores
        .map(|(log, (id, target))| (log, id == target))
        .collect())
}

fn failed(error: impl std::fmt::Display) -> TrainError {
    TrainError::Device(BackendError::Failed {
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_count_once() {
        let recall = |log_likelihood, accuracy, answers| Recall {
            log_likelihood,
            accuracy,
            answers,
        };
        let sets = [recall(-1.0, 0.5, 1), recall(-3.0, 1.0, 100)];
        assert_eq!(means(&sets), (-2.0, 0.75));
        assert_eq!(recall(0.0, 0.5, 100).two_errors(), 0.1);
        let sums = Sums(vec![recall(-6.0, 3.0, 4), Recall::default()]);
        assert_eq!(sums.recalls(), [recall(-1.5, 0.75, 4), Recall::default()]);
    }
}
