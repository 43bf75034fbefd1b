//! A row of a packed weight: its products with vectors, and its numbers as floats.

use crate::decode::projections::GROUP;
use crate::flex::math::LANES;

/// Words of a group in 4 bits.
pub(super) const WORDS: usize = GROUP / 8;
/// Between `q + 8` in four bits and `q` in two's complement, for all eight of a word.
const SIGNS: i32 = 0x8888_8888_u32 as i32;

/// The number of `BITS` bits in two's complement that begins at the bit `first`.
#[inline(always)]
fn field<const BITS: u32>(word: i32, first: u32) -> f32 {
    (word << (32 - BITS - first) >> (32 - BITS)) as f32
}

/// The sum of the bytes of `words` times `x`, which has the numbers for all first bytes, then those for all second
/// ones, and so on.
#[inline(always)]
pub(super) fn dot_int8(words: &[i32], x: &[f32]) -> f32 {
    let n = words.len();
    let [x0, x1, x2, x3] = [0, 1, 2, 3].map(|byte| &x[byte * n..(byte + 1) * n]);
    let of_word = |word: i32, x: [f32; 4]| {
        let lower = field::<8>(word, 8).mul_add(x[1], field::<8>(word, 0) * x[0]);
        let upper = field::<8>(word, 24).mul_add(x[3], field::<8>(word, 16) * x[2]);
        lower + upper
    };
    let mut lanes = [0.0; LANES];
    let whole = n / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        let block = start..start + LANES;
        let words = &words[block.clone()];
        let (x0, x1) = (&x0[block.clone()], &x1[block.clone()]);
        let (x2, x3) = (&x2[block.clone()], &x3[block]);
        for k in 0..LANES {
            lanes[k] += of_word(words[k], [x0[k], x1[k], x2[k], x3[k]]);
        }
    }
    let rest = (whole..n).map(|j| of_word(words[j], [x0[j], x1[j], x2[j], x3[j]]));
    lanes.iter().sum::<f32>() + rest.sum::<f32>()
}

/// The same of numbers in four bits, each word's sum times its scale; of whole groups.
#[inline(always)]
pub(super) fn dot_int4(words: &[i32], scales: &[f32], x: &[f32]) -> f32 {
    let n = words.len();
    let x = std::array::from_fn(|place| &x[place * n..(place + 1) * n]);
    let mut lanes = [0.0; LANES];
    let mut start = 0;
    while start + LANES <= n {
        add_words::<LANES>(&mut lanes, start, words, scales, x);
        start += LANES;
    }
    // Rows of 576 numbers have 8 words behind 64.
    while start + WORDS <= n {
        add_words::<WORDS>(&mut lanes, start, words, scales, x);
        start += WORDS;
    }
    lanes.iter().sum()
}

/// Adds the sums of `N` words from `start` on to as many of the lanes.
#[inline(always)]
fn add_words<const N: usize>(
    lanes: &mut [f32; LANES],
    start: usize,
    words: &[i32],
    scales: &[f32],
    [x0, x1, x2, x3, x4, x5, x6, x7]: [&[f32]; 8],
) {
    // Each slice by itself: of an array of slices the compiler makes no vectors.
    let block = start..start + N;
    let (words, scales) = (&words[block.clone()], &scales[block.clone()]);
    let (x0, x1) = (&x0[block.clone()], &x1[block.clone()]);
    let (x2, x3) = (&x2[block.clone()], &x3[block.clone()]);
    let (x4, x5) = (&x4[block.clone()], &x5[block.clone()]);
    let (x6, x7) = (&x6[block.clone()], &x7[block]);
    for k in 0..N {
        let word = words[k] ^ SIGNS;
        let sum = field::<4>(word, 0) * x0[k];
        let sum = field::<4>(word, 4).mul_add(x1[k], sum);
        let sum = field::<4>(word, 8).mul_add(x2[k], sum);
        let lower = field::<4>(word, 12).mul_add(x3[k], sum);
        let sum = field::<4>(word, 16) * x4[k];
        let sum = field::<4>(word, 20).mul_add(x5[k], sum);
        let sum = field::<4>(word, 24).mul_add(x6[k], sum);
        let upper = field::<4>(word, 28).mul_add(x7[k], sum);
        lanes[k] = (lower + upper).mul_add(scales[k], lanes[k]);
    }
}

/// The scale of each word of a row whose first group is `first`, where `pairs` has two groups' in a word.
#[inline(always)]
pub(super) fn scales_of_words(pairs: &[i32], first: usize, scales: &mut [f32]) {
    for (i, words) in scales.chunks_exact_mut(WORDS).enumerate() {
        let group = first + i;
        let bits = pairs[group / 2] as u32 >> (group % 2 * 16);
        words.fill(half(bits & 0xffff));
    }
}

/// The f16 number of these bits, or NaN in place of an infinite one. A call of the library's would take longer than the
/// products of a group.
#[inline(always)]
fn half(bits: u32) -> f32 {
    // The exponents of f32 begin 112 before those of f16.
    const POWER: f32 = f32::from_bits((112 + 127) << 23);
    if bits & 0x7c00 == 0x7c00 {
        return f32::NAN;
    }
    let size = f32::from_bits((bits & 0x7fff) << 13) * POWER;
    f32::from_bits(size.to_bits() | (bits & 0x8000) << 16)
}

/// The numbers of a row in 8 bits.
#[inline(always)]
pub(super) fn floats_of_int8(words: &[i32], scale: f32, floats: &mut [f32]) {
    for (four, word) in floats.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *four = word.to_le_bytes().map(|byte| f32::from(byte as i8) * scale);
    }
}

/// The numbers of a row in 4 bits, where `scales` has one for each word.
#[inline(always)]
pub(super) fn floats_of_int4(words: &[i32], scales: &[f32], floats: &mut [f32]) {
    let rows = floats.as_chunks_mut::<8>().0.iter_mut();
    for ((eight, word), scale) in rows.zip(words).zip(scales) {
        let word = word ^ SIGNS;
        for (place, float) in eight.iter_mut().enumerate() {
            *float = field::<4>(word, 4 * place as u32) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::f16;

    use super::half;

    #[test]
    fn every_half_is_its_number() {
        for bits in 0..=u16::MAX {
            let (found, expected) = (half(bits.into()), f16::from_bits(bits).to_f32());
            if expected.is_finite() {
                assert_eq!(found.to_bits(), expected.to_bits(), "{bits:x}");
            } else {
                assert!(found.is_nan(), "{bits:x}");
            }
        }
    }
}
