//! The likeliest ids of each token.

use rayon::prelude::*;

/// Of some tokens: the likeliest ids and the logarithms of their probabilities, token by token, and those of the rest.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct TopK {
    pub(super) ids: Vec<u32>,
    pub(super) log_q: Vec<f32>,
    pub(super) log_rest: Vec<f32>,
}

/// The smallest logarithm that is kept, so that f16 holds it and zero times it is zero.
const SMALLEST: f32 = -60_000.0;

impl TopK {
    /// The `k` likeliest of each row of `v` logarithms of probabilities.
    pub(crate) fn of(log_q: &[f32], v: usize, k: usize) -> Self {
        let rows = log_q.par_chunks(v);
        let tokens: Vec<(Vec<u32>, f32)> = rows
            .map_init(Vec::new, |scratch, row| top(row, k, scratch))
            .collect();
        let mut all = Self::default();
        for ((ids, rest), row) in tokens.into_iter().zip(log_q.chunks(v)) {
            let values = ids.iter().map(|&id| kept(row[id as usize]));
            all.log_q.extend(values);
            all.ids.extend(ids);
            all.log_rest.push(rest);
        }
        all
    }

    /// Appends those of more tokens.
    pub(crate) fn append(&mut self, mut more: Self) {
        self.ids.append(&mut more.ids);
        self.log_q.append(&mut more.log_q);
        self.log_rest.append(&mut more.log_rest);
    }

    /// Whether all of it are numbers.
    pub(crate) fn is_finite(&self) -> bool {
        let mut values = self.log_q.iter().chain(&self.log_rest);
        values.all(|value| value.is_finite())
    }
}

/// The `k` likeliest ids of a row, the likeliest first, and the logarithm of the probability of all others together.
/// `scratch` is memory that is used again.
fn top(row: &[f32], k: usize, scratch: &mut Vec<u32>) -> (Vec<u32>, f32) {
    scratch.clear();
    scratch.extend(0..row.len() as u32);
    let order = |a: &u32, b: &u32| {
        let values = row[*b as usize].total_cmp(&row[*a as usize]);
        values.then(a.cmp(b))
    };
    let k = k.min(row.len());
    if k < row.len() {
        scratch.select_nth_unstable_by(k, order);
    }
    let (ids, others) = scratch.split_at_mut(k);
    ids.sort_unstable_by(order);
    let others = others.iter().map(|&id| row[id as usize]);
    (ids.to_vec(), log_sum(others))
}

/// The logarithm of the sum of the exponentials of `logs`; [`SMALLEST`] of none.
pub(super) fn log_sum(logs: impl Iterator<Item = f32> + Clone) -> f32 {
    let most = logs.clone().fold(f32::NEG_INFINITY, f32::max);
    if most == f32::NEG_INFINITY {
        return SMALLEST;
    }
    let sum: f64 = logs.map(|log| f64::from((log - most).exp())).sum();
    kept(most + sum.ln() as f32)
}

/// A logarithm as it is kept. What is no number stays none.
fn kept(log: f32) -> f32 {
    if log < SMALLEST { SMALLEST } else { log }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: probabilities of 1/2, 1/4, 1/8 and 1/8, two of which are equal.
    #[test]
    fn the_likeliest_come_first() {
        let row: Vec<f32> = [0.125f32, 0.5, 0.125, 0.25].map(f32::ln).to_vec();
        let two_rows = [&row[..], &[0.0, f32::NEG_INFINITY, -1e6, f32::NEG_INFINITY]].concat();
        let top = TopK::of(&two_rows, 4, 3);
        assert_eq!(top.ids, [1, 3, 0, 0, 2, 1]);
        assert_eq!(top.log_q[..3], [row[1], row[3], row[0]]);
        assert_eq!(top.log_q[3..], [0.0, SMALLEST, SMALLEST]);
        assert_eq!(top.log_rest, [row[2], SMALLEST]);
        let one = TopK::of(&row, 4, 1);
        assert!((one.log_rest[0] - 0.5f32.ln()).abs() < 1e-6);
        let all = TopK::of(&row, 4, 4);
        assert_eq!((all.ids, all.log_rest), (vec![1, 3, 0, 2], vec![SMALLEST]));
        assert!(!TopK::of(&[f32::NAN, 0.0], 2, 1).is_finite());
    }
}
