//! The likeliest ids of each token.

use burn::tensor::backend::Backend;
use kernels::TopClasses;
use kernels::losses::divergence::likeliest::LEAST;

/// For some tokens: the likeliest ids and the logarithms of their probabilities, token by token, and the logarithms for
/// the rest.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct TopK {
    pub(super) ids: Vec<i32>,
    pub(super) log_q: Vec<f32>,
    pub(super) log_rest: Vec<f32>,
}

impl TopK {
    /// Copies `classes` from their device to the host.
    pub(crate) fn read<B: Backend>(classes: TopClasses<B>) -> Self {
        let ids = classes.ids.into_data().convert::<i32>();
        let [log_q, log_rest] = [classes.log_q, classes.log_rest].map(|log| {
            let log = log.into_data().convert::<f32>();
            log.into_vec().expect("it was made f32")
        });
        Self {
            ids: ids.into_vec().expect("they were made i32"),
            log_q,
            log_rest,
        }
    }

    /// Appends those of more tokens.
    pub(crate) fn append(&mut self, mut more: Self) {
        self.ids.append(&mut more.ids);
        self.log_q.append(&mut more.log_q);
        self.log_rest.append(&mut more.log_rest);
    }

    /// Whether all values are finite.
    pub(crate) fn is_finite(&self) -> bool {
        let mut values = self.log_q.iter().chain(&self.log_rest);
        values.all(|value| value.is_finite())
    }
}

/// The logarithm of the sum of the exponentials of `logs`; [`LEAST`] if there are none.
pub(super) fn log_sum(logs: impl Iterator<Item = f32> + Clone) -> f32 {
    let most = logs.clone().fold(f32::NEG_INFINITY, f32::max);
    if most == f32::NEG_INFINITY {
        return LEAST;
    }
    let sum: f64 = logs.map(|log| f64::from((log - most).exp())).sum();
    (most + sum.ln() as f32).max(LEAST)
}
