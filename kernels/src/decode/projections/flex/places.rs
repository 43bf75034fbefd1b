//! Products of weights in 4 bits with vectors in whole numbers.
//!
//! The sum of a word's numbers times those that they meet is exact in 32 bits, as in [`rounded`](super::rounded), and a
//! group's is the sum of its words'. Only then does it become a float, and is multiplied with the group's scale.

use super::rounded::Rounded;
use super::rows::{WORDS, scales_of_groups};
use crate::decode::projections::GROUP;
use crate::flex::math::sum;

/// Rounded vectors in the order in which weights in 4 bits meet them.
///
/// Both halves of a word are shifted at once, so that four shifts bring each of its numbers to the lowest place of a half.
pub(super) struct Places {
    /// `[b, 4, d_in / 4]`: for each place in a half of a word, the numbers that meet it.
    q: Vec<i16>,
    /// `[b, groups]`: eight times the sum of a group, since weights are stored as `q + 8`.
    eights: Vec<i32>,
    /// `[b, groups]`.
    steps: Vec<f32>,
    d_in: usize,
}

/// A vector of [`Places`].
#[derive(Clone, Copy)]
pub(super) struct Vector<'a> {
    places: [&'a [i16]; 4],
    eights: &'a [i32],
    steps: &'a [f32],
}

/// What a row's products need room for.
#[derive(Default)]
pub(super) struct Scratch {
    /// `[groups]`: of the row.
    scales: Vec<f32>,
    /// `[words]`.
    sums: Vec<i32>,
    /// `[groups]`.
    products: Vec<f32>,
}

impl Places {
    /// Of vectors of whole groups.
    pub(super) fn of(rounded: &Rounded) -> Self {
        let d_in = rounded.d_in();
        let (mut q, mut eights, mut steps) = (Vec::new(), Vec::new(), Vec::new());
        for vector in rounded.vectors() {
            let fours = vector.q().as_chunks::<4>().0;
            q.extend((0..4).flat_map(|place| fours.iter().map(move |four| four[place])));
            for (i, group) in vector.q().chunks_exact(GROUP).enumerate() {
                eights.push(8 * group.iter().map(|q| i32::from(*q)).sum::<i32>());
                steps.push(vector.step_at(i * GROUP));
            }
        }
        Self {
            q,
            eights,
            steps,
            d_in,
        }
    }

    pub(super) fn vectors(&self) -> Vec<Vector<'_>> {
        let (d_in, groups) = (self.d_in, self.d_in / GROUP);
        let b = self.q.len() / d_in;
        let vector = |row: usize| Vector {
            places: [0, 1, 2, 3].map(|place| &self.q[(4 * row + place) * d_in / 4..][..d_in / 4]),
            eights: &self.eights[row * groups..][..groups],
            steps: &self.steps[row * groups..][..groups],
        };
        (0..b).map(vector).collect()
    }
}

impl Scratch {
    /// Takes the scales of the row `row` of `words` words, where `pairs` has two groups' in a word.
    #[inline(always)]
    pub(super) fn take_scales(&mut self, pairs: &[i32], row: usize, words: usize) {
        let groups = words / WORDS;
        self.sums.resize(words, 0);
        self.products.resize(groups, 0.0);
        self.scales.resize(groups, 0.0);
        let found = scales_of_groups(pairs, row * groups);
        self.scales
            .iter_mut()
            .zip(found)
            .for_each(|(scale, found)| *scale = found);
    }
}

/// The product of a row, whose scales `scratch` has, and a vector.
#[inline(always)]
pub(super) fn dot(words: &[i32], x: Vector, scratch: &mut Scratch) -> f32 {
    let Scratch {
        scales,
        sums,
        products,
    } = scratch;
    sums_of_words(words, x.places, sums);
    let groups = sums.as_chunks::<WORDS>().0.iter().zip(x.eights);
    for (product, ([a, b, c, d], eight)) in products.iter_mut().zip(groups) {
        *product = (a + b + c + d - eight) as f32;
    }
    let factors = scales.iter().zip(x.steps);
    for (product, (scale, step)) in products.iter_mut().zip(factors) {
        *product *= scale * step;
    }
    sum(products, |product| product)
}

/// For each word the sum of its numbers, plus 8 each, times those of `x`.
#[inline(always)]
fn sums_of_words(words: &[i32], x: [&[i16]; 4], sums: &mut [i32]) {
    #[cfg(target_arch = "x86_64")]
    let done = x86::sums_of_words(words, x, sums);
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    let rest = sums.iter_mut().zip(words).enumerate().skip(done);
    for (i, (sum, word)) in rest {
        let products = (0..8).map(|j| {
            let (half, place) = (j / 4, j % 4);
            (word >> (4 * j) & 15) * i32::from(x[place][2 * i + half])
        });
        *sum = products.sum();
    }
}

/// The same in registers, which compilers do not find.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__m256i, __m512i};

    use pulp::bytemuck::cast;
    use pulp::x86::{V3, V4};

    /// Of the first words, as many as fill registers: their number.
    #[inline(always)]
    pub(super) fn sums_of_words(words: &[i32], x: [&[i16]; 4], sums: &mut [i32]) -> usize {
        let mut done = 0;
        if let Some(simd) = V4::try_new() {
            let x = x.map(|x| x.as_chunks::<32>().0);
            let both = words.as_chunks().0.iter().zip(sums.as_chunks_mut().0);
            for (i, (words, sums)) in both.enumerate() {
                *sums = sixteen(simd, words, x.map(|x| &x[i]));
                done += 16;
            }
        }
        if let Some(simd) = V3::try_new() {
            let x = x.map(|x| x[2 * done..].as_chunks::<16>().0);
            let both = words[done..].as_chunks().0.iter();
            let both = both.zip(sums[done..].as_chunks_mut().0);
            for (i, (words, sums)) in both.enumerate() {
                *sums = eight(simd, words, x.map(|x| &x[i]));
                done += 8;
            }
        }
        done
    }

    #[inline(always)]
    fn sixteen(simd: V4, words: &[i32; 16], x: [&[i16; 32]; 4]) -> [i32; 16] {
        let (f, bw) = (simd.avx512f, simd.avx512bw);
        let (words, low): (__m512i, __m512i) = (cast(*words), cast([15_i16; 32]));
        let sums = |numbers, x: &[i16; 32]| bw._mm512_madd_epi16(numbers, cast(*x));
        let first = sums(f._mm512_and_si512(words, low), x[0]);
        let second = bw._mm512_srli_epi16::<4>(words);
        let second = sums(f._mm512_and_si512(second, low), x[1]);
        let third = bw._mm512_srli_epi16::<8>(words);
        let third = sums(f._mm512_and_si512(third, low), x[2]);
        let fourth = sums(bw._mm512_srli_epi16::<12>(words), x[3]);
        let (lower, upper) = (
            f._mm512_add_epi32(first, second),
            f._mm512_add_epi32(third, fourth),
        );
        cast(f._mm512_add_epi32(lower, upper))
    }

    #[inline(always)]
    fn eight(simd: V3, words: &[i32; 8], x: [&[i16; 16]; 4]) -> [i32; 8] {
        let avx2 = simd.avx2;
        let (words, low): (__m256i, __m256i) = (cast(*words), cast([15_i16; 16]));
        let sums = |numbers, x: &[i16; 16]| avx2._mm256_madd_epi16(numbers, cast(*x));
        let first = sums(avx2._mm256_and_si256(words, low), x[0]);
        let second = avx2._mm256_srli_epi16::<4>(words);
        let second = sums(avx2._mm256_and_si256(second, low), x[1]);
        let third = avx2._mm256_srli_epi16::<8>(words);
        let third = sums(avx2._mm256_and_si256(third, low), x[2]);
        let fourth = sums(avx2._mm256_srli_epi16::<12>(words), x[3]);
        let (lower, upper) = (
            avx2._mm256_add_epi32(first, second),
            avx2._mm256_add_epi32(third, fourth),
        );
        cast(avx2._mm256_add_epi32(lower, upper))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of as many words as fill registers of both widths, and of some that are left over.
    #[test]
    fn sums_of_words_are_exact() {
        for n in [4, 8, 12, 16, 28, 72, 100] {
            let words: Vec<_> = (0..n as u32)
                .map(|i| i.wrapping_mul(2_654_435_761) as i32)
                .collect();
            let q: Vec<_> = (0..8 * n as i32)
                .map(|i| (i * 104_729 % 32_768) as i16 * if i % 3 == 0 { -1 } else { 1 })
                .collect();
            let places = [0, 1, 2, 3].map(|place| {
                let fours = q.as_chunks::<4>().0.iter();
                fours.map(|four| four[place]).collect::<Vec<_>>()
            });
            let x = places.each_ref().map(|place| &place[..]);
            let mut sums = vec![0; n];
            sums_of_words(&words, x, &mut sums);
            for (i, sum) in sums.into_iter().enumerate() {
                let product = |j: usize| (words[i] >> (4 * j) & 15) * i32::from(q[8 * i + j]);
                assert_eq!(sum, (0..8).map(product).sum::<i32>(), "word {i} of {n}");
            }
        }
    }
}
