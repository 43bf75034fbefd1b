//! Packed weights on tensor cores: their numbers are small whole numbers, and so are the digits of the vectors, so that
//! the `mma` of 16 by 8 by 32 in 8 bits multiplies them as they are, with sums that are exact.
//!
//! The right factor is 8 rows of the weight. The left factor is the vectors' digits: where there are at most four
//! vectors, rows `2 v` and `2 v + 8` are the first two digits of the vector `v`, and the rows behind them the other
//! two. For more vectors there are two products, one for each two digits, with a row of each for every vector.
//!
//! In 8 bits a sum goes over a chunk of numbers, and then becomes a float times the chunk's unit. In 4 bits it goes over
//! a group, which is one `mma`; the unit `t` of a row has every fourth word of it. A sum begins with the bits of a float
//! whose last digit stands for 1, so that its bits are those of a float all the time, as in
//! [`number_of_half`](super::numbers::number_of_half).

use cubecl::cmma::MmaDefinition;
use cubecl::features::MmaConfig;
use cubecl::ir::{ElemType, IntKind};
use cubecl::prelude::*;

use super::digits::{QUADS, place};
use super::mma::{ROWS, SHARERS, TILES};
use super::plan::{Plan, STEP};
use super::ring::Ring;
use crate::cube::fragments::Pair;
use crate::decode::projections::Form;

/// Vectors of which all digits are rows of one left factor.
pub(super) const TOGETHER: usize = 4;
/// The float that sums begin with, 1.5 times 2^23, to which less than 2^22 may be added.
const ZERO: f32 = 12_582_912.0;
/// In 4 bits, what the numbers are multiplied with, as they lie in the upper half of a byte.
const UPPER: f32 = 16.0;

/// Four numbers in a register.
type Four = Const<4>;

/// What a device must be able to do.
pub(super) fn config() -> MmaConfig {
    let byte = ElemType::Int(IntKind::I8).into();
    MmaConfig {
        a_type: byte,
        b_type: byte,
        cd_type: ElemType::Int(IntKind::I32).into(),
        m: 16,
        n: 8,
        k: 32,
    }
}

/// Adds to `sums [TILES, sets, 2]` the products of the step in `stage` with the digits of the unit's vector `vector`,
/// which begin at `begin`, and have a unit for each chunk.
#[cube]
pub(super) fn multiply<W: Numeric, N: Size, X: Size>(
    sums: &mut Array<f32>,
    ring: &Ring<W, N, X>,
    digits: &SharedMemory<Vector<f32, X>>,
    units: &Array<f32>,
    begin: usize,
    vector: usize,
    stage: usize,
    #[comptime] plan: Plan,
) {
    #[unroll]
    for chunk in 0..comptime!(plan.chunks()) {
        let at = begin + comptime!(chunk * QUADS);
        let unit = units[chunk];
        if comptime!(plan.form == Form::Int4) {
            let own = groups(ring, digits, at, vector, stage, chunk, plan);
            #[unroll]
            for i in 0..comptime!(plan.sums()) {
                sums[i] = fma(own[i], unit, sums[i]);
            }
        } else {
            let products = bytes(ring, digits, at, vector, stage, plan);
            #[unroll]
            for i in 0..comptime!(plan.sums()) {
                sums[i] = fma(sum(&products, i), unit, sums[i]);
            }
        }
    }
}

/// The products of a chunk in 8 bits, `[TILES, sets]` fragments of two.
#[cube]
fn bytes<W: Numeric, N: Size, X: Size>(
    ring: &Ring<W, N, X>,
    digits: &SharedMemory<Vector<f32, X>>,
    at: usize,
    vector: usize,
    stage: usize,
    #[comptime] plan: Plan,
) -> Array<Vector<i32, Pair>> {
    let lane = UNIT_POS_PLANE as usize;
    let (row, sharer) = (lane / SHARERS, lane % SHARERS);
    let mut products = begun(comptime!(TILES * plan.sets()));
    #[unroll]
    for turn in 0..comptime!(STEP / SHARERS) {
        let column = comptime!(turn * SHARERS) + sharer;
        let mut weights = Array::<Vector<W, N>>::new(TILES);
        #[unroll]
        for tile in 0..TILES {
            weights[tile] = ring.weight(comptime!(tile * ROWS) + row, column, stage, plan);
        }
        #[unroll]
        for half in 0..2usize {
            let left = words(digits, at, turn, comptime!(2 * half), vector, plan);
            #[unroll]
            for tile in 0..TILES {
                let first = u32::cast_from(weights[tile][comptime!(2 * half)]);
                let second = u32::cast_from(weights[tile][comptime!(2 * half + 1)]);
                #[unroll]
                for set in 0..comptime!(plan.sets()) {
                    let to = comptime!(tile * plan.sets() + set);
                    add_product(&mut products, &left, first, second, set, to);
                }
            }
        }
    }
    products
}

/// The sums of a chunk in 4 bits, of the products of its groups times their scales, `[TILES, sets, 2]`.
#[cube]
fn groups<W: Numeric, N: Size, X: Size>(
    ring: &Ring<W, N, X>,
    digits: &SharedMemory<Vector<f32, X>>,
    at: usize,
    vector: usize,
    stage: usize,
    #[comptime] chunk: usize,
    #[comptime] plan: Plan,
) -> Array<f32> {
    let lane = UNIT_POS_PLANE as usize;
    let (row, sharer) = (lane / SHARERS, lane % SHARERS);
    let of_chunk = comptime!(STEP / plan.chunks());
    let sets = comptime!(plan.sets());
    let mut sums = Array::<f32>::new(comptime!(plan.sums()));
    #[unroll]
    for turn in 0..of_chunk {
        let column = comptime!(chunk * of_chunk + turn);
        let left = words(digits, at, turn, 0usize, vector, plan);
        #[unroll]
        for tile in 0..TILES {
            let word = ring.word(comptime!(tile * ROWS) + row, column, sharer, stage, plan);
            let mut products = begun(sets);
            #[unroll]
            for set in 0..sets {
                let (even, odd) = (halves(word << 4u32), halves(word));
                add_product(&mut products, &left, even, odd, set, set);
            }
            #[unroll]
            for side in 0..2usize {
                let of_row = comptime!(tile * ROWS + side) + sharer * 2;
                let pair = ring.scales(of_row, comptime!(column / 2), stage, plan);
                let scale = f32::cast_from(pair[comptime!(column % 2)]);
                #[unroll]
                for set in 0..sets {
                    let i = comptime!((tile * sets + set) * 2 + side);
                    let product = sum(&products, comptime!(set * 2 + side));
                    if comptime!(turn == 0) {
                        sums[i] = product * scale;
                    } else {
                        sums[i] = fma(product, scale, sums[i]);
                    }
                }
            }
        }
    }
    sums
}

/// The numbers in the upper halves of four bytes, times [`UPPER`]. They have 8 added, which turns the first bit.
#[cube]
fn halves(word: u32) -> u32 {
    (word & 0xf0f0_f0f0u32) ^ 0x8080_8080u32
}

/// Fragments of sums that begin.
#[cube]
fn begun(#[comptime] fragments: usize) -> Array<Vector<i32, Pair>> {
    let mut products = Array::<Vector<i32, Pair>>::new(comptime!(2 * fragments));
    #[unroll]
    for i in 0..comptime!(2 * fragments) {
        products[i] = Vector::new(comptime!(ZERO.to_bits() as i32).runtime());
    }
    products
}

/// Of the words of two left factors, those of the unit's vector: the first four for its numbers `piece` of the weight's,
/// the others for those behind them, a word a digit. Where all digits are rows of one left factor, the unit has two, and
/// these come first.
#[cube]
fn words<X: Size>(
    digits: &SharedMemory<Vector<f32, X>>,
    at: usize,
    #[comptime] turn: usize,
    #[comptime] piece: usize,
    vector: usize,
    #[comptime] plan: Plan,
) -> Array<u32> {
    let lane = UNIT_POS_PLANE as usize;
    let sharer = lane % SHARERS;
    let mut words = Array::<u32>::new(8usize);
    #[unroll]
    for i in 0..2usize {
        let place = at + place(turn, sharer, comptime!(piece + i), vector, plan.form);
        if comptime!(plan.sets() == 1) {
            let pairs = digits.to_slice().with_vector_size::<Pair>();
            let two = pairs[place * 2 + lane / SHARERS % 2];
            #[unroll]
            for j in 0..2usize {
                words[comptime!(4 * i + j)] = u32::reinterpret(two[j]);
            }
        } else {
            let all = digits[place];
            #[unroll]
            for j in 0..4usize {
                words[comptime!(4 * i + j)] = u32::reinterpret(all[j]);
            }
        }
    }
    words
}

/// Adds a product of 32 positions, of which the unit has twice four of its row of the weight, to the fragment `to`.
#[cube]
fn add_product(
    products: &mut Array<Vector<i32, Pair>>,
    words: &Array<u32>,
    first: u32,
    second: u32,
    #[comptime] set: usize,
    #[comptime] to: usize,
) {
    let mma = MmaDefinition::<i8, i8, i32>::new(16usize, 8usize, 32usize);
    let mut left = Array::<Vector<i8, Four>>::new(4usize);
    #[unroll]
    for i in 0..2usize {
        left[comptime!(2 * i)] = four(words[comptime!(4 * i + 2 * set)]);
        left[comptime!(2 * i + 1)] = four(words[comptime!(4 * i + 2 * set + 1)]);
    }
    let mut right = Array::<Vector<i8, Four>>::new(2usize);
    right[0] = four(first);
    right[1] = four(second);
    let mut before = Array::<Vector<i32, Pair>>::new(2usize);
    #[unroll]
    for digit in 0..2usize {
        before[digit] = products[comptime!(2 * to + digit)];
    }
    let after = mma.execute(&left, &right, &before);
    #[unroll]
    for digit in 0..2usize {
        products[comptime!(2 * to + digit)] = after[digit];
    }
}

#[cube]
fn four(word: u32) -> Vector<i8, Four> {
    Vector::<i8, Four>::reinterpret(word)
}

/// The sum `i` of fragments `[.., 2]`: the two digits of it that the unit has, in steps of the lower one.
#[cube]
fn sum(products: &Array<Vector<i32, Pair>>, #[comptime] i: usize) -> f32 {
    let (fragment, side) = comptime!((i / 2, i % 2));
    let lower = products[comptime!(2 * fragment)][side];
    let upper = products[comptime!(2 * fragment + 1)][side];
    fma(float(upper), 256.0f32, float(lower))
}

/// A sum that began with [`ZERO`].
#[cube]
fn float(sum: i32) -> f32 {
    f32::reinterpret(sum) - comptime!(ZERO)
}

/// The sum of the row that [`row_of`](super::mma::row_of) says, of all digits, which begins anew. Where two units share
/// the digits of a vector, the first has it.
#[cube]
pub(super) fn take_row(sums: &mut Array<f32>, #[comptime] r: usize, #[comptime] plan: Plan) -> f32 {
    let sets = comptime!(plan.sets());
    let at = comptime!(r / 2 * sets * 2 + r % 2);
    let lower = sums[at];
    sums[at] = 0.0;
    let upper = if comptime!(sets == 1) {
        plane_shuffle_xor(lower, comptime!(SHARERS as u32))
    } else {
        let upper = sums[comptime!(at + 2)];
        sums[comptime!(at + 2)] = 0.0;
        upper
    };
    let sum = fma(upper, 65536.0f32, lower);
    if comptime!(plan.form == Form::Int4) {
        sum * comptime!(1.0 / UPPER)
    } else {
        sum
    }
}
