//! Log-probabilities of tokens.

use crate::sampling::SamplingError;

/// A token's log-probability (natural logarithm) by the model's own distribution: before penalties, temperature and all
/// other [settings](crate::SamplingSettings), over all rows of the head, padding included.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenScore {
    /// The log-probability of the token.
    pub log_probability: f64,
    /// The likeliest tokens and their log-probabilities, largest first; of equal ones the lower id first.
    /// Padding of the vocabulary is not among them.
    pub likeliest: Vec<(u32, f64)>,
}

impl TokenScore {
    /// The score of `token` by `logits [v]`, with the `n` likeliest of the first `vocab_size` tokens.
    ///
    /// # Errors
    /// [`SamplingError::NotAScore`] and [`SamplingError::NoToken`].
    pub fn new(
        logits: &[f32],
        token: u32,
        n: usize,
        vocab_size: usize,
    ) -> Result<Self, SamplingError> {
        let broken = |logit: &f32| logit.is_nan() || *logit == f32::INFINITY;
        if let Some(token) = logits.iter().position(broken) {
            let logit = logits[token];
            return Err(SamplingError::NotAScore { token, logit });
        }
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let Some(&logit) = logits.get(token as usize) else {
            return Err(SamplingError::NoToken);
        };
        if largest == f32::NEG_INFINITY {
            return Err(SamplingError::NoToken);
        }
        let weight = |&logit: &f32| f64::from(logit - largest).exp();
        let normaliser = f64::from(largest) + logits.iter().map(weight).sum::<f64>().ln();
        let log_probability = |logit: f32| f64::from(logit) - normaliser;
        let known = &logits[..vocab_size.min(logits.len())];
        Ok(Self {
            log_probability: log_probability(logit),
            likeliest: largest_of(known, n)
                .into_iter()
                .map(|token| (token as u32, log_probability(known[token])))
                .collect(),
        })
    }
}

/// The indices of the `n` largest values, largest first.
fn largest_of(values: &[f32], n: usize) -> Vec<usize> {
    let mut largest: Vec<usize> = Vec::with_capacity(n + 1);
    for (i, value) in values.iter().enumerate() {
        if largest.len() == n && largest.last().is_none_or(|&last| *value <= values[last]) {
            continue;
        }
        let place = largest.partition_point(|&other| values[other] >= *value);
        largest.insert(place, i);
        largest.truncate(n);
    }
    largest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_add_up_to_one() {
        let logits = [0.5, -1.0, 3.0, 3.0, f32::NEG_INFINITY, 2.0];
        let of = |token| TokenScore::new(&logits, token, 0, 6).unwrap();
        let total: f64 = (0..6).map(|token| of(token).log_probability.exp()).sum();
        assert!((total - 1.0).abs() < 1e-12, "{total}");
        assert_eq!(of(4).log_probability, f64::NEG_INFINITY);
        assert!(of(0).likeliest.is_empty());
    }

    #[test]
    fn the_likeliest_come_in_order_and_without_padding() {
        let logits = [0.5, -1.0, 3.0, 3.0, 4.0, 2.0, 9.0];
        let ids = |n, vocab_size| -> Vec<u32> {
            let score = TokenScore::new(&logits, 0, n, vocab_size).unwrap();
            score.likeliest.iter().map(|(id, _)| *id).collect()
        };
        assert_eq!(ids(4, 6), [4, 2, 3, 5]);
        assert_eq!(ids(1, 4), [2]);
        assert_eq!(ids(9, 6), [4, 2, 3, 5, 0, 1]);
        // Padding counts in the normaliser: the model gives it a probability.
        let score = TokenScore::new(&logits, 4, 1, 6).unwrap();
        assert_eq!(score.likeliest, [(4, score.log_probability)]);
        assert!(score.log_probability < -5.0);
    }

    #[test]
    fn what_is_no_score_is_an_error() {
        let score = |logits: &[f32], token| TokenScore::new(logits, token, 1, 2);
        let broken = score(&[0.0, f32::NAN], 0);
        assert!(matches!(
            broken,
            Err(SamplingError::NotAScore { token: 1, .. })
        ));
        assert_eq!(score(&[0.0, 1.0], 2), Err(SamplingError::NoToken));
        let nothing = score(&[f32::NEG_INFINITY; 2], 0);
        assert_eq!(nothing, Err(SamplingError::NoToken));
    }
}
