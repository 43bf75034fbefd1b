//! The nearest weights in 8 and in 4 bits, on the host.

use std::num::NonZero;
use std::thread;

use burn::tensor::{bf16, f16};

use super::GROUP;

/// Words of a group in 4 bits.
const WORDS: usize = GROUP / 8;
/// The values that the largest number of a group is tried as, in steps of the scale. In 4 bits, -8 is the largest
/// magnitude. A smaller value makes the steps coarser for all numbers; a larger value clips the largest number and
/// makes the steps finer for the others.
const TRIED: [f32; 9] = [7.0, 7.25, 7.5, 7.75, 8.0, 8.25, 8.5, 8.75, 9.0];
/// Added to a number of less than 2^22 and taken off again, it leaves the nearest whole number.
const ROUND: f32 = 12_582_912.0;

/// Rows of `d_in` numbers, a multiple of four: the words, and the scale of each row.
pub(super) fn to_int8(values: &[f32], d_in: usize) -> (Vec<i32>, Vec<f32>) {
    let (d_in, rows) = (d_in.max(1), values.len() / d_in.max(1));
    let (mut words, mut scales) = (vec![0; values.len() / 4], vec![0.0; rows]);
    let share = share_of(rows);
    let shares = values.chunks(share * d_in);
    let shares = shares.zip(words.chunks_mut(share * d_in / 4));
    thread::scope(|scope| {
        for ((values, words), scales) in shares.zip(scales.chunks_mut(share)) {
            scope.spawn(move || {
                let rows = values
                    .chunks_exact(d_in)
                    .zip(words.chunks_exact_mut(d_in / 4));
                for ((row, words), scale) in rows.zip(scales) {
                    *scale = pack_row(row, words);
                }
            });
        }
    });
    (words, scales)
}

/// A row in 8 bits: its scale, and the words.
fn pack_row(row: &[f32], words: &mut [i32]) -> f32 {
    // `max` ignores NaN; the sum does not, so that it and the scale become NaN if a number is NaN or infinite.
    let largest = row.iter().fold(0.0_f32, |largest, v| largest.max(v.abs()));
    let sum: f32 = row.iter().map(|v| v * 0.0).sum();
    let scale = largest / 127.0 + sum;
    let steps = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    // What is no number stays none: its row's scale is NaN.
    let byte = |v: f32| whole((v * steps).clamp(-127.0, 127.0)) as i8 as u8;
    for (word, four) in words.iter_mut().zip(row.as_chunks::<4>().0) {
        *word = i32::from_le_bytes(four.map(byte));
    }
    scale
}

/// Whole groups: the words, and the scale of each group in f16. On all cores, as it takes some 500 operations a group.
pub(super) fn to_int4(values: &[f32]) -> (Vec<i32>, Vec<f16>) {
    let groups = values.as_chunks::<GROUP>().0;
    let mut words = vec![[0; WORDS]; groups.len()];
    let mut scales = vec![f16::ZERO; groups.len()];
    let share = share_of(groups.len());
    let shares = groups.chunks(share).zip(words.chunks_mut(share));
    thread::scope(|scope| {
        for ((groups, words), scales) in shares.zip(scales.chunks_mut(share)) {
            scope.spawn(move || {
                for ((group, words), scale) in groups.iter().zip(words).zip(scales) {
                    *scale = best_scale(group);
                    *words = packed(group, f32::from(*scale));
                }
            });
        }
    });
    (words.into_flattened(), scales)
}

/// What each core gets of `n`.
fn share_of(n: usize) -> usize {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    n.div_ceil(cores).max(1)
}

/// The nearest whole number of one that is less than 2^22.
#[inline(always)]
fn whole(v: f32) -> f32 {
    (v + ROUND) - ROUND
}

/// The bits of f16 numbers, two in 32 bits, with a zero behind an odd number of them.
pub(super) fn in_pairs(scales: &[f16]) -> Vec<i32> {
    let bits = |scale: Option<&f16>| u32::from(scale.map_or(0, |scale| scale.to_bits()));
    let pairs = scales.chunks(2);
    pairs
        .map(|pair| (bits(pair.first()) | bits(pair.get(1)) << 16) as i32)
        .collect()
}

/// The numbers of a group in steps of `1 / inverse`.
#[inline(always)]
fn steps(group: &[f32; GROUP], inverse: f32) -> [f32; GROUP] {
    // A loop, of which the compiler makes vectors, as it does not of `map`.
    let mut q = [0.0; GROUP];
    for (q, v) in q.iter_mut().zip(group) {
        *q = whole((v * inverse).clamp(-8.0, 7.0));
    }
    q
}

/// The scale with which the numbers of a group are nearest to what they were; NaN if one of them is infinite or NaN, or
/// so large that f16 has no such scale.
///
/// For the numbers `q` that some scale gives, the best one is `sum(v q) / sum(q^2)`, and the squared errors that it
/// leaves are `sum(v^2) - sum(v q)^2 / sum(q^2)`.
fn best_scale(group: &[f32; GROUP]) -> f16 {
    if !group.iter().map(|v| v * 0.0).sum::<f32>().is_finite() {
        return f16::NAN;
    }
    let [most, least] = [
        group.iter().fold(0.0_f32, |most, v| most.max(*v)),
        group.iter().fold(0.0_f32, |least, v| least.min(*v)),
    ];
    let largest = if most > -least { most } else { least };
    // Of zeros, or of numbers that are next to nothing.
    if !(1.0 / largest).is_finite() {
        return f16::ZERO;
    }
    // As multiples of the largest, whose squares are neither infinite nor 0.
    let mut shares = [0.0; GROUP];
    for (share, v) in shares.iter_mut().zip(group) {
        *share = v * (1.0 / largest);
    }
    let (mut best, mut explained) = (0.0, 0.0);
    for tried in TRIED {
        let q = steps(&shares, -tried);
        let vq = sum(&shares, &q);
        let qq = sum(&q, &q);
        if vq * vq > explained * qq {
            explained = vq * vq / qq;
            best = vq / qq * largest;
        }
    }
    // bf16 has the 8 significant bits that a scale may have.
    let scale = f16::from_f32(bf16::from_f32(best).to_f32());
    if scale.is_finite() { scale } else { f16::NAN }
}

/// The sum of products, in lanes.
#[inline(always)]
fn sum(a: &[f32; GROUP], b: &[f32; GROUP]) -> f32 {
    let mut lanes = [0.0; 8];
    for (a, b) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0) {
        for k in 0..8 {
            lanes[k] += a[k] * b[k];
        }
    }
    lanes.iter().sum()
}

fn packed(group: &[f32; GROUP], scale: f32) -> [i32; WORDS] {
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    // What is no number stays none: its group's scale is NaN.
    let q = steps(group, inverse);
    let mut words = [0; WORDS];
    for (word, eight) in words.iter_mut().zip(q.as_chunks::<8>().0) {
        for (place, q) in eight.iter().enumerate() {
            *word |= ((*q as i32 + 8) & 15) << (4 * place);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn squared_errors(group: &[f32; GROUP], scale: f32) -> f64 {
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let q = steps(group, inverse);
        let apart = group.iter().zip(q).map(|(v, q)| f64::from(v - scale * q));
        apart.map(|apart| apart * apart).sum()
    }

    /// At most a hundredth worse than the best of many scales, and better than what the largest number alone gives.
    #[test]
    fn scales_are_nearly_the_best() {
        let mut state = 1_u32;
        let (mut found, mut best, mut plain) = (0.0, 0.0, 0.0);
        for _ in 0..50 {
            let mut even = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state as i32 as f32 / 2.0_f32.powi(31)
            };
            // The sum of some evenly distributed numbers is nearly normal.
            let group = std::array::from_fn(|_| (0..6).map(|_| even()).sum::<f32>());
            let largest = group.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
            found += squared_errors(&group, f32::from(best_scale(&group)));
            plain += squared_errors(&group, largest / 7.0);
            let all = (400..1000).flat_map(|i| {
                let scale = largest * i as f32 / 5000.0;
                [scale, -scale]
            });
            let all = all.map(|scale| squared_errors(&group, scale));
            best += all.fold(f64::INFINITY, f64::min);
        }
        assert!(found < 1.03 * best, "{found} and {best}");
        assert!(found < 0.9 * plain, "{found} and {plain}");
    }

    #[test]
    fn scales_have_eight_bits_and_what_has_none_is_zero() {
        let mut group = [0.0; GROUP];
        assert_eq!(best_scale(&group), f16::ZERO);
        assert_eq!(packed(&group, 0.0), [0x8888_8888_u32 as i32; WORDS]);
        group[3] = f32::MIN_POSITIVE / 4.0;
        assert_eq!(best_scale(&group), f16::ZERO);
        for largest in [1e-3, 0.01, 1.2345, 30_000.0] {
            group[3] = largest;
            let scale = best_scale(&group);
            assert_eq!(scale.to_bits() & 7, 0, "{scale:?}");
            let (held, q) = (f32::from(scale), steps(&group, 1.0 / f32::from(scale))[3]);
            assert!((held * q - largest).abs() < 0.01 * largest, "{largest}");
        }
        for none in [1e6, f32::INFINITY, f32::NAN] {
            group[5] = none;
            assert!(best_scale(&group).is_nan(), "{none}");
        }
    }
}
