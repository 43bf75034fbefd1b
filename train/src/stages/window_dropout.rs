//! Chooses the sequences of a batch that are read without the window.
//!
//! A state-space mixer beside a window learns mainly what the window cannot do. In some sequences of each batch the
//! window's attention adds nothing, so that the mixer also has to learn the rest.

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use super::StageStep;

/// For each of `rows` rows of a batch, whether it is read without the window. Each row is drawn independently, with the
/// probability `share`, as a function of seed, step and the row's place in the batch. Empty if `share` is 0.
pub(crate) fn left_out(share: f64, seed: u64, at: StageStep, rows: usize) -> Vec<bool> {
    if share <= 0.0 {
        return vec![];
    }
    let row = |row: usize| {
        let of_step = SplitMix64::seed_from_u64(seed ^ WINDOW).next_u64() ^ at.number as u64;
        let of_row = SplitMix64::seed_from_u64(of_step).next_u64() ^ row as u64;
        let drawn = SplitMix64::seed_from_u64(of_row).next_u64() >> 11;
        // From 0 to 1, without 1.
        (drawn as f64 / (1_u64 << 53) as f64) < share
    };
    (0..rows).map(row).collect()
}

/// Makes these draws independent of the order of the text, which has the same seed.
const WINDOW: u64 = 0x7769_6e64_6f77;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: usize) -> StageStep {
        StageStep { number, of: 1000 }
    }

    #[test]
    fn rows_follow_from_seed_and_step() {
        let rows = left_out(0.5, 42, at(3), 64);
        assert_eq!(left_out(0.5, 42, at(3), 64), rows);
        assert_eq!(left_out(0.5, 42, at(3), 8), rows[..8]);
        assert_ne!(left_out(0.5, 42, at(4), 64), rows);
        assert_ne!(left_out(0.5, 43, at(3), 64), rows);
    }

    #[test]
    fn the_share_is_kept() {
        assert!(left_out(0.0, 1, at(0), 8).is_empty());
        assert_eq!(left_out(1.0, 1, at(0), 8), [true; 8]);
        let steps = 0..500;
        let count = |step| {
            left_out(0.25, 7, at(step), 16)
                .into_iter()
                .filter(|row| *row)
                .count()
        };
        let all: usize = steps.map(count).sum();
        // 2,000 are expected of 8,000, with a deviation of 39.
        assert!((1800..2200).contains(&all), "{all}");
    }
}
