//! The numbers of a packed weight's row as floats.

use pulp::bytemuck;

use crate::decode::projections::GROUP;

/// Words of a group in 4 bits.
pub(super) const WORDS: usize = GROUP / 8;
/// Between `q + 8` in four bits and `q` in two's complement, for all eight of a word.
const SIGNS: i32 = 0x8888_8888_u32 as i32;

/// The number of four bits in two's complement that begins at the bit `first`.
#[inline(always)]
fn field(word: i32, first: u32) -> f32 {
    (word << (28 - first) >> 28) as f32
}

/// The scales of all groups from `first` on, where `pairs` has two groups' in a word.
#[inline(always)]
pub(super) fn scales_of_groups(pairs: &[i32], first: usize) -> impl Iterator<Item = f32> {
    let halves: &[u16] = bytemuck::cast_slice(pairs);
    halves[first..].iter().map(|bits| half(u32::from(*bits)))
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

/// The numbers of a row in 4 bits, given the scales from its first group on.
#[inline(always)]
pub(super) fn floats_of_int4(words: &[i32], scales: impl Iterator<Item = f32>, floats: &mut [f32]) {
    let groups = floats.as_chunks_mut::<GROUP>().0.iter_mut();
    let groups = groups.zip(words.as_chunks::<WORDS>().0);
    for ((floats, words), scale) in groups.zip(scales) {
        for (eight, word) in floats.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            let word = word ^ SIGNS;
            for (place, float) in eight.iter_mut().enumerate() {
                *float = field(word, 4 * place as u32) * scale;
            }
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
