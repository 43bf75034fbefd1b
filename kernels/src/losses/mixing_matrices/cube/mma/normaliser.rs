//! The softmax's denominators: the scores once, before the passes need them.

use std::f32::consts::LN_2;

use cubecl::prelude::barrier::Barrier;
use cubecl::prelude::*;

use super::super::STATS;
use super::super::decay::NORMALISER;
use super::{TILE, has, met, own, stages};
use crate::cube::documents::{RowTokens, row_tokens, start_of};
use crate::cube::fragments::{Eight, Matrix, PLANE, Pair};
use crate::cube::plane_products::{FLOOR, PLANES, copy, left_factors, power, products};
use crate::cube::rows::{View, rows_of};
use crate::cube::tiles::longest_first;

/// The natural logarithm of two to the power of `FLOOR`.
const LN_LEAST: f32 = FLOOR * LN_2;

/// The running results of a unit's rows, over its own columns.
#[derive(CubeType)]
struct SoFar {
    maxima: Array<f32>,
    sums: Array<f32>,
}

/// Adds the tile of keys from `key` on, which lies in rows `at` on of shared memory. All of the plane's rows, from
/// `row` on, see all keys, unless some are `hidden`.
#[cube]
fn add<E: Float>(
    queries: &Sequence<Array<Vector<E, Pair>>>,
    staged: &Matrix<E, Eight>,
    at: usize,
    so_far: &mut SoFar,
    scale: f32,
    starts_bl: &ComptimeOption<Array<i32>>,
    tokens: RowTokens,
    row: usize,
    key: usize,
    #[comptime] hidden: bool,
    #[comptime] p: usize,
    #[comptime] down: usize,
) {
    let lane = UNIT_POS_PLANE as usize;
    let mut scores = products(queries, staged, at, TILE, p, down);
    if comptime!(hidden) {
        #[unroll]
        for i in 0..comptime!(down * TILE / 4) {
            let own_row = row + comptime!(i / (TILE / 4) * 16 + i % 2 * 8) + lane / 4;
            let column = key + comptime!(i % (TILE / 4) / 2 * 8) + lane % 4 * 2;
            let mut pair = scores[i];
            #[unroll]
            for k in 0..2usize {
                let seen = has(starts_bl, tokens, own_row, column + k);
                pair[k] = select(seen, pair[k], f32::MIN.runtime());
            }
            scores[i] = pair;
        }
    }
    #[unroll]
    for r in 0..comptime!(2 * down) {
        let from = comptime!(r / 2 * (TILE / 4) + r % 2);
        let before = so_far.maxima[r];
        let mut maximum = before;
        #[unroll]
        for j in 0..comptime!(TILE / 8) {
            let pair = scores[comptime!(from + j * 2)];
            maximum = max(maximum, max(pair[0], pair[1]));
        }
        let mut sum = so_far.sums[r] * power((before - maximum) * scale);
        let shift = maximum * scale;
        #[unroll]
        for j in 0..comptime!(TILE / 8) {
            let pair = scores[comptime!(from + j * 2)];
            #[unroll]
            for k in 0..2usize {
                let mut weight = power(pair[k] * scale - shift);
                if comptime!(hidden) {
                    // The least power is not zero.
                    weight = select(pair[k] == f32::MIN.runtime(), 0.0f32, weight);
                }
                sum += weight;
            }
        }
        so_far.maxima[r] = maximum;
        so_far.sums[r] = sum;
    }
}

/// The logarithms of the softmax's denominators, to their slot of the statistics. `scale` is the scores' times
/// [`SHARE`](super::SHARE).
///
/// Cubes: heads, batch, blocks of rows, the last of which see the most keys and come first.
#[cube(
    launch_unchecked,
    address_type = "dynamic",
    fast_math = FastMath::ReducedPrecision | FastMath::NotNaN | FastMath::NotInf
)]
pub(in super::super) fn normaliser_kernel<E: Float>(
    q_blhp: &Array<Vector<E, Eight>>,
    k_blkp: &Array<Vector<E, Eight>>,
    starts_bl: &ComptimeOption<Array<i32>>,
    stats: &mut Array<f32>,
    scale: f32,
    q_view: View,
    k_view: View,
    #[comptime] p: usize,
    #[comptime] down: usize,
    #[define(E)] _dtype: StorageType,
) {
    let (head, batch) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let h = CUBE_COUNT_X as usize;
    let q_rows = rows_of(&q_view, batch, head, h);
    let k_rows = rows_of(&k_view, batch, head, h);
    let l = q_rows.count;
    let block = longest_first(CUBE_POS_Z as usize, CUBE_COUNT_Z as usize, false);
    let first = block * comptime!(own(down));
    let plane_row = UNIT_POS as usize / PLANE * comptime!(16 * down);
    let row = first + plane_row;
    let last_row = row + comptime!(16 * down - 1);
    let lane = UNIT_POS_PLANE as usize;
    let tokens = row_tokens(batch, l);
    let met = met(starts_bl, tokens, first, comptime!(own(down)), false);

    let mut staged = Matrix::<E, Eight>::new(comptime!(stages(down) * TILE), p, 8usize);
    let barrier = Barrier::shared(comptime!((PLANES * PLANE) as u32).runtime(), UNIT_POS == 0);
    let rows = comptime!(own(down));
    copy(q_blhp, q_rows, first, &mut staged, TILE, rows, p);
    copy(k_blkp, k_rows, met.first * TILE, &mut staged, 0, TILE, p);
    barrier.commit_copy_async();
    barrier.arrive_and_wait();
    let queries = left_factors(&staged, plane_row + TILE, p, down);

    let mut so_far = SoFar {
        maxima: Array::new(comptime!(2 * down)),
        sums: Array::new(comptime!(2 * down)),
    };
    #[unroll]
    for r in 0..comptime!(2 * down) {
        so_far.maxima[r] = f32::MIN.runtime();
        so_far.sums[r] = 0.0;
    }
    for i in 0..met.count {
        // All units are done with the tile before this one, and this one has come.
        barrier.arrive_and_wait();
        let key = (met.first + i) * TILE;
        let next = i + 1;
        if next < met.count {
            let at = next % comptime!(stages(down)) * TILE;
            copy(k_blkp, k_rows, key + TILE, &mut staged, at, TILE, p);
        }
        barrier.commit_copy_async();

        let at = i % comptime!(stages(down)) * TILE;
        if row < l && key <= last_row {
            let mut hidden = key + comptime!(TILE - 1) > row;
            if comptime!(starts_bl.is_some()) {
                hidden = hidden || start_of(starts_bl, tokens, last_row) > key;
            }
            if hidden {
                add(
                    &queries,
                    &staged,
                    at,
                    &mut so_far,
                    scale,
                    starts_bl,
                    tokens,
                    row,
                    key,
                    true,
                    p,
                    down,
                );
            } else {
                add(
                    &queries,
                    &staged,
                    at,
                    &mut so_far,
                    scale,
                    starts_bl,
                    tokens,
                    row,
                    key,
                    false,
                    p,
                    down,
                );
            }
        }
    }

    let pair = batch * h + head;
    #[unroll]
    for r in 0..comptime!(2 * down) {
        let mut maximum = so_far.maxima[r];
        let mut sum = so_far.sums[r];
        #[unroll]
        for level in 0..2u32 {
            let distance = comptime!(1u32 << level);
            let other = plane_shuffle_xor(maximum, distance);
            let other_sum = plane_shuffle_xor(sum, distance);
            let larger = max(maximum, other);
            let scaled = sum * power((maximum - larger) * scale);
            sum = scaled + other_sum * power((other - larger) * scale);
            maximum = larger;
        }
        let t = row + comptime!(r / 2 * 16 + r % 2 * 8) + lane / 4;
        let column = lane % 4;
        if column == 0 && t < l {
            let top = maximum * scale * LN_LEAST.runtime();
            stats[(pair * STATS + NORMALISER) * l + t] = top + sum.ln();
        }
    }
}
