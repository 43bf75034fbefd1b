//! Vectors rounded to 16-bit integers, so that products with weights of 8 or 4 bits are sums of integers.
//!
//! An integer sum is exact in any order, so a product has the same bits on every processor. One instruction multiplies
//! and adds two numbers, while floats need a conversion for each number. 16 bits cost as much as 8 if the processor has
//! no instruction for four products of 8 bits. The rounding error of the vectors is about a hundredth of that of the
//! weights.

use burn_flex::Flex;

use crate::decode::projections::Input;
use crate::flex::Values;
use crate::flex::math::{largest, sum, vectorised};

/// Numbers of a vector that share a step.
const BLOCK: usize = 512;
/// The largest number of a block, in its steps.
const LARGEST: f32 = i16::MAX as f32;
/// The sum with a number of less than 2^22 has the nearest whole number in its lowest bits.
const ROUND: f32 = 12_582_912.0;

// The sum of a block's products with any numbers of 8 bits fits into 32.
const _: () = assert!(BLOCK as i64 * 128 * i16::MAX as i64 <= i32::MAX as i64);

/// Vectors as `step * q`, with whole numbers `q` of 16 bits and a step for each [`BLOCK`] of a vector. No number is more
/// than half a step from what it was: a 65,534th of the largest in its block.
pub(super) struct Rounded {
    /// `[b, d_in]`.
    q: Vec<i16>,
    /// `[b, blocks]`; NaN where a number of the block is infinite or none.
    steps: Vec<f32>,
    d_in: usize,
}

/// One of them.
#[derive(Clone, Copy)]
pub(super) struct Vector<'a> {
    q: &'a [i16],
    steps: &'a [f32],
}

impl Rounded {
    pub(super) fn of(input: &Input<Flex>) -> Self {
        let [b, d_in] = input.u.dims();
        let u = Values::of(input.u.clone());
        let gate = input.gate.clone().map(Values::of);
        let (mut q, mut steps) = (vec![0; b * d_in], Vec::new());
        let mut factors = [0.0; BLOCK];
        vectorised(
            #[inline(always)]
            || {
                for (row, q) in q.chunks_exact_mut(d_in).enumerate() {
                    for (block, q) in q.chunks_mut(BLOCK).enumerate() {
                        let at = row * d_in + block * BLOCK;
                        let (u, factors) = (&u[at..][..q.len()], &mut factors[..q.len()]);
                        factors.copy_from_slice(u);
                        if let Some(gate) = &gate {
                            let gate = &gate[at..][..q.len()];
                            factors
                                .iter_mut()
                                .zip(gate)
                                .for_each(|(v, gate)| *v *= gate);
                        }
                        steps.push(round(factors, q));
                    }
                }
            },
        );
        Self { q, steps, d_in }
    }

    /// Numbers of a vector.
    pub(super) fn d_in(&self) -> usize {
        self.d_in
    }

    pub(super) fn vectors(&self) -> Vec<Vector<'_>> {
        let blocks = self.d_in.div_ceil(BLOCK);
        let rows = self.q.chunks_exact(self.d_in);
        let rows = rows.zip(self.steps.chunks_exact(blocks));
        rows.map(|(q, steps)| Vector { q, steps }).collect()
    }
}

impl<'a> Vector<'a> {
    pub(super) fn q(self) -> &'a [i16] {
        self.q
    }

    /// The step of the number at `i`.
    pub(super) fn step_at(self, i: usize) -> f32 {
        self.steps[i / BLOCK]
    }
}

/// Writes the numbers of a block in steps, and gives the step.
#[inline(always)]
fn round(values: &[f32], q: &mut [i16]) -> f32 {
    let largest = largest(values);
    // The product is NaN for what is infinite or none, and the sum then too.
    let step = largest / LARGEST + sum(values, |v| v * 0.0);
    let inverse = if largest > 0.0 {
        LARGEST / largest
    } else {
        0.0
    };
    for (q, v) in q.iter_mut().zip(values) {
        let steps = (v * inverse).clamp(-LARGEST, LARGEST);
        *q = (steps + ROUND).to_bits() as i16;
    }
    step
}

/// The product of a weight's row, without its scale, and a vector.
#[inline(always)]
pub(super) fn dot(weights: &[i8], x: Vector) -> f32 {
    let (blocks, rest) = weights.as_chunks::<BLOCK>();
    let (q_blocks, q_rest) = x.q.as_chunks::<BLOCK>();
    let mut product = 0.0;
    for ((block, q), step) in blocks.iter().zip(q_blocks).zip(x.steps) {
        product += whole_dot(block, q) as f32 * step;
    }
    match x.steps.get(blocks.len()) {
        Some(step) => product + whole_dot(rest, q_rest) as f32 * step,
        None => product,
    }
}

/// Of at most a block.
#[inline(always)]
fn whole_dot(weights: &[i8], q: &[i16]) -> i32 {
    // In this form compilers find the instruction for pairs of products.
    let pairs = weights.iter().zip(q);
    pairs.map(|(w, q)| i32::from(*w) * i32::from(*q)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers from -1 to 1.
    fn random(seed: u32, n: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state as i32 as f32 / 2.0_f32.powi(31)
        };
        (0..n).map(|_| next()).collect()
    }

    /// As everywhere, in the wrapper for wide vectors and without.
    #[test]
    fn sums_are_exact_in_every_width() {
        for n in [1, 3, 64, 288, 511, BLOCK] {
            let weights: Vec<_> = (0..n).map(|i| (i * 7919 % 256) as u8 as i8).collect();
            let q: Vec<_> = (0..n)
                .map(|i| (i * 104_729 % 65_535) as u16 as i16)
                .collect();
            let exact = weights.iter().zip(&q);
            let exact: i64 = exact.map(|(w, q)| i64::from(*w) * i64::from(*q)).sum();
            assert_eq!(i64::from(whole_dot(&weights, &q)), exact);
            let wide = vectorised(
                #[inline(always)]
                || whole_dot(&weights, &q),
            );
            assert_eq!(i64::from(wide), exact);
        }
        // The largest of all.
        let most = whole_dot(&[-128; BLOCK], &[-i16::MAX; BLOCK]);
        assert_eq!(i64::from(most), 128 * 32_767 * BLOCK as i64);
    }

    #[test]
    fn numbers_are_within_half_a_step() {
        for (seed, size) in [(1, 1.0), (2, 1e-30), (3, 1e30), (4, 3e-41)] {
            let mut values = random(seed, BLOCK);
            values.iter_mut().for_each(|v| *v *= size);
            let largest = values
                .iter()
                .fold(0.0_f32, |largest, v| largest.max(v.abs()));
            let mut q = vec![0; BLOCK];
            let step = round(&values, &mut q);
            for (v, q) in values.iter().zip(q) {
                let apart = (f64::from(*v) - f64::from(step) * f64::from(q)).abs();
                // Half a step, and the two roundings on the way; below the normal range, next to nothing.
                let most = f64::from(largest) / 65_534.0 * (1.0 + 1e-2) + 1e-40;
                assert!(apart <= most, "{v} became {q} steps of {step}");
            }
        }
        let mut q = [1; 4];
        assert_eq!(round(&[0.0; 4], &mut q), 0.0);
        assert_eq!(q, [0; 4]);
        for none in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(round(&[1.0, none, 2.0, 3.0], &mut q).is_nan());
        }
    }
}
