//! Which source each row of a mixture comes from.

use crate::error::{DataError, Result};
use crate::permutation::Permutation;

/// Rows of the endless sequence in which each source has exactly its share.
const BLOCK: u64 = 1000;

/// The sources of the rows of an endless sequence. The source of a row is a function of the row's number and a seed,
/// computed in constant time. The amount of text in the sources need not be known.
///
/// The sequence consists of blocks of a thousand rows, and each source has a fixed number of rows in every block. A
/// keyed permutation of the block says which rows these are. Since the number is the same in every block, the number of
/// earlier rows of a source is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mixture {
    /// For each source, the end of its rows in a block before the block is shuffled.
    ends: Vec<u64>,
}

impl Mixture {
    /// All rows from one source.
    pub(crate) fn of_one() -> Self {
        Self { ends: vec![BLOCK] }
    }

    /// Rows from as many sources as there are `weights`, in proportion to these.
    pub(crate) fn new(weights: &[f64]) -> Result<Self> {
        let total: f64 = weights.iter().sum();
        let is_good = |weight: &f64| weight.is_finite() && *weight > 0.0;
        let count = weights.len() as u64;
        if !weights.iter().all(is_good) || !total.is_finite() || !(1..=BLOCK).contains(&count) {
            return Err(DataError::Weights {
                weights: weights.to_vec(),
            });
        }
        // Each source gets one row; the other rows are distributed by the largest-remainder method.
        let left = BLOCK - count;
        let shares = weights.iter().map(|weight| {
            let share = weight / total * BLOCK as f64 - 1.0;
            share.max(0.0)
        });
        let shares: Vec<f64> = shares.collect();
        let sum: f64 = shares.iter().sum();
        let scale = if sum > 0.0 { left as f64 / sum } else { 0.0 };
        let exact: Vec<f64> = shares.iter().map(|share| share * scale).collect();
        let mut rows: Vec<u64> = exact.iter().map(|share| 1 + share.floor() as u64).collect();
        let mut by_remainder: Vec<usize> = (0..rows.len()).collect();
        by_remainder.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract()));
        let missing = BLOCK.saturating_sub(rows.iter().sum());
        for &source in by_remainder.iter().cycle().take(missing as usize) {
            rows[source] += 1;
        }
        let mut end = 0;
        let ends = rows.iter().map(|rows| {
            end += rows;
            end
        });
        Ok(Self {
            ends: ends.collect(),
        })
    }

    /// The source of row `number`, and the number of the row among those of this source.
    pub(crate) fn at(&self, number: u128, seed: u64) -> (usize, u128) {
        if self.ends.len() == 1 {
            return (0, number);
        }
        let block = number / u128::from(BLOCK);
        let place = (number % u128::from(BLOCK)) as u64;
        // The complement of the seed, because the orders of the sources use the seed itself, with the numbers of their
        // epochs.
        let place = Permutation::new(BLOCK, !seed, block as u64).at(place);
        let source = self.ends.partition_point(|&end| end <= place);
        let begin = source.checked_sub(1).map_or(0, |before| self.ends[before]);
        let rows = u128::from(self.ends[source] - begin);
        (source, block * rows + u128::from(place - begin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(weights: &[f64]) -> Vec<u64> {
        let ends = Mixture::new(weights).unwrap().ends;
        let begins = [0].into_iter().chain(ends.iter().copied());
        begins.zip(&ends).map(|(begin, end)| end - begin).collect()
    }

    #[test]
    fn a_source_has_its_share() {
        assert_eq!(rows(&[2.0]), [1000]);
        assert_eq!(rows(&[0.7, 0.3]), [700, 300]);
        assert_eq!(rows(&[2.0, 1.0, 1.0]), [500, 250, 250]);
        assert_eq!(rows(&[1.0, 1.0, 1.0]), [334, 333, 333]);
        assert_eq!(rows(&[1e12, 1.0]), [999, 1]);
        assert_eq!(rows(&[1.0; 1000]), [1; 1000]);
        for bad in [&[][..], &[0.0, 1.0], &[-1.0], &[f64::NAN], &[1.0; 1001]] {
            let error = Mixture::new(bad).unwrap_err();
            assert!(matches!(error, DataError::Weights { .. }), "{error}");
        }
    }

    #[test]
    fn every_row_of_a_source_comes_once() {
        let mixture = Mixture::new(&[5.0, 3.0, 2.0]).unwrap();
        let mut places = [vec![], vec![], vec![]];
        for number in 0..3000 {
            let (source, place) = mixture.at(number, 42);
            places[source].push(place);
        }
        for (mut places, rows) in places.into_iter().zip([1500, 900, 600]) {
            assert!(!places.is_sorted());
            places.sort_unstable();
            assert!(places.into_iter().eq(0..rows));
        }
        // Far on, too.
        let (_, place) = mixture.at(u128::from(u64::MAX) * 512, 42);
        assert!(place > u128::from(u64::MAX));
    }

    #[test]
    fn the_order_depends_on_the_seed() {
        let mixture = Mixture::new(&[1.0, 1.0]).unwrap();
        let sources = |seed, from: u128| -> Vec<usize> {
            let numbers = from..from + 100;
            numbers.map(|number| mixture.at(number, seed).0).collect()
        };
        assert_eq!(sources(1, 0), sources(1, 0));
        assert_ne!(sources(1, 0), sources(2, 0));
        assert_ne!(sources(1, 0), sources(1, 1000));
    }

    /// As for the order of windows. The numbers are from a second implementation in another language.
    #[test]
    fn the_order_never_changes() {
        let mixture = Mixture::new(&[0.7, 0.3]).unwrap();
        let at = |number| mixture.at(number, 42);
        let rows: Vec<_> = [0, 1, 2, 3, 1000, 1001, 5999].map(at).into();
        assert_eq!(
            rows,
            [
                (1, 148),
                (0, 477),
                (1, 200),
                (1, 1),
                (0, 875),
                (1, 582),
                (0, 3674)
            ]
        );
    }
}
