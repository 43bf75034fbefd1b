//! Made-up batches, whose tokens are as frequent as words.

use datasets::Batch;
use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// Sequences whose tokens have the frequencies of words: the token of rank `r` comes about in proportion to `1 / r`.
/// The same `number` gives the same batch.
pub(super) fn batch(number: u64, batch: usize, length: usize, vocab_size: usize) -> Batch {
    let token = |i: u64| {
        let uniform = unit((number << 32) + i);
        let id = ((vocab_size + 1) as f64).powf(uniform) - 1.0;
        (id as usize).min(vocab_size - 1) as i32
    };
    let row = |row: usize| {
        let first = (row * (length + 1)) as u64;
        (0..=length as u64)
            .map(move |i| token(first + i))
            .collect::<Vec<_>>()
    };
    let (mut ids, mut labels) = (vec![], vec![]);
    for tokens in (0..batch).map(row) {
        ids.extend(&tokens[..length]);
        labels.extend(&tokens[1..]);
    }
    Batch {
        ids,
        labels,
        starts: None,
        batch,
        context: length,
    }
}

/// A number between 0 and 1, the same for the same `seed`.
fn unit(seed: u64) -> f64 {
    let bits = SplitMix64::seed_from_u64(seed).next_u64();
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_as_frequent_as_words() {
        let made = batch(1, 16, 4096, 51200);
        assert_eq!(made, batch(1, 16, 4096, 51200));
        assert_ne!(made.ids, batch(2, 16, 4096, 51200).ids);
        assert_eq!(made.ids[1..4096], made.labels[..4095]);
        assert!(made.ids.iter().all(|id| (0..51200).contains(id)));
        // A rank's share is ln(1 + 1 / r) / ln(51201): 6.4% for the first, half for the first 225.
        let below = |n: i32| made.ids.iter().filter(|id| **id < n).count() as f64 / 65536.0;
        assert!((below(1) - 0.064).abs() < 0.01, "{}", below(1));
        assert!((below(225) - 0.5).abs() < 0.02, "{}", below(225));
    }
}
