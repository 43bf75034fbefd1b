//! A shuffle that is computed entry by entry and not stored.

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// A seeded permutation of the numbers `0..len` that computes any entry in constant time and needs no
/// memory.
///
/// A Feistel network permutes the numbers of `2k` bits for the smallest `k` with `4^k >= len`: it
/// splits a number into halves and, eight times, replaces `(left, right)` by
/// `(right, left ^ mix(right, key))`, which is invertible for any `mix`. A result of `len` or more is
/// permuted again until it is below `len` (cycle walking). Two starting points cannot reach the same
/// first number below `len` of their cycle, so the result is a permutation of `0..len`. Since `4^k` is
/// below `4 len`, an entry takes four rounds or fewer on average.
///
/// `mix` and the keys come from SplitMix64 (Steele, Lea and Flood 2014): integer arithmetic modulo
/// 2^64, the same on every machine. The permutation is for shuffling and not for cryptography.
pub(crate) struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; 8],
}

impl Permutation {
    /// The permutation of `0..len` for `seed` and `round`, for example the number of an epoch.
    pub(crate) fn new(len: u64, seed: u64, round: u64) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        // The hash between the two makes (seed 1, round 0) differ from (seed 0, round 1).
        let start = mix(mix(seed) ^ round);
        Self {
            len,
            half_bits: bits.div_ceil(2).max(1),
            keys: std::array::from_fn(|i| mix(start.wrapping_add(i as u64))),
        }
    }

    /// Entry `i`.
    ///
    /// # Panics
    ///
    /// `i` is `len` or more.
    pub(crate) fn at(&self, i: u64) -> u64 {
        assert!(i < self.len, "entry {i} of {}", self.len);
        let mut x = self.network(i);
        while x >= self.len {
            x = self.network(x);
        }
        x
    }

    fn network(&self, x: u64) -> u64 {
        let mask = u64::MAX >> (u64::BITS - self.half_bits);
        let (mut left, mut right) = (x >> self.half_bits, x & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

/// The output of SplitMix64 at the state `x`.
fn mix(x: u64) -> u64 {
    SplitMix64::seed_from_u64(x).next_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(len: u64, seed: u64, round: u64) -> Vec<u64> {
        let permutation = Permutation::new(len, seed, round);
        (0..len).map(|i| permutation.at(i)).collect()
    }

    #[test]
    fn every_number_comes_once() {
        let lengths = (1..=300).chain([1023, 1024, 1025, 4095, 4096, 4097, 65_537, 300_000]);
        for len in lengths {
            for seed in 0..4 {
                let mut sorted = entries(len, seed, seed ^ 1);
                sorted.sort_unstable();
                assert!(
                    sorted.iter().copied().eq(0..len),
                    "length {len}, seed {seed}"
                );
            }
        }
    }

    #[test]
    fn lengths_near_the_largest_work() {
        for len in [u64::MAX, (1 << 63) + 1, 1 << 62] {
            let permutation = Permutation::new(len, 1, 2);
            let mut seen: Vec<u64> = (0..100).map(|i| permutation.at(i)).collect();
            assert!(seen.iter().all(|&entry| entry < len));
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 100);
        }
    }

    /// The statistics of a uniform shuffle, each within five standard deviations of its mean.
    #[test]
    fn it_looks_shuffled() {
        let len = 10_007;
        let n = len as f64;
        for seed in 0..8 {
            let entries = entries(len, seed, 0);
            let place = |i: usize| entries[i] as f64 / n;

            // One entry is expected to stay where it was, with variance 1.
            let fixed = (0..len).filter(|&i| entries[i as usize] == i).count();
            assert!(fixed <= 6, "{fixed} entries stayed");

            // How far entries moved: the mean of |u - v| of two uniform numbers is 1/3, their
            // standard deviation 0.236.
            let moved = (0..entries.len()).map(|i| (place(i) - i as f64 / n).abs());
            let mean = moved.sum::<f64>() / n;
            assert!(
                (mean - 1.0 / 3.0).abs() < 5.0 * 0.236 / n.sqrt(),
                "moved by {mean}"
            );

            // The correlation of an entry with its index, and with its neighbour: 0, with a
            // standard deviation of 1 / sqrt(n).
            let correlation = |other: &dyn Fn(usize) -> f64| {
                let products =
                    (1..entries.len()).map(|i| (place(i) - 0.5) * (other(i) - 0.5) * 12.0);
                products.sum::<f64>() / n
            };
            let with_place = correlation(&|i| i as f64 / n);
            let with_neighbour = correlation(&|i| place(i - 1));
            assert!(with_place.abs() < 5.0 / n.sqrt(), "{with_place}");
            assert!(with_neighbour.abs() < 5.0 / n.sqrt(), "{with_neighbour}");

            // The first hundredth of the entries, over ten bins: chi-square with 9 degrees of
            // freedom has mean 9 and standard deviation 4.2.
            let mut bins = [0.0; 10];
            for i in 0..entries.len() / 100 {
                bins[(place(i) * 10.0) as usize] += 1.0;
            }
            let expected = (entries.len() / 100) as f64 / 10.0;
            let chi_square: f64 = bins
                .iter()
                .map(|bin: &f64| (bin - expected).powi(2) / expected)
                .sum();
            assert!(chi_square < 9.0 + 5.0 * 4.2, "{chi_square}");
        }
    }

    #[test]
    fn seeds_and_rounds_all_differ() {
        let mut orders = Vec::new();
        for seed in 0..12 {
            for round in 0..12 {
                orders.push(entries(50, seed, round));
            }
        }
        orders.sort();
        orders.dedup();
        assert_eq!(orders.len(), 144);
    }

    /// A run that is resumed on another machine or by a later version must continue in the same order.
    /// The numbers are from a second implementation in another language.
    #[test]
    fn the_order_never_changes() {
        assert_eq!(entries(10, 0, 0), [7, 8, 2, 6, 9, 3, 0, 4, 5, 1]);
        assert_eq!(entries(10, 42, 3), [0, 6, 5, 2, 3, 1, 7, 4, 8, 9]);
    }
}
