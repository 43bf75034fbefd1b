//! The softmax's denominators, from the scores tile by tile, with nothing but shared memory and barriers.

use cubecl::prelude::*;

use super::decay::NORMALISER;
use super::{STATS, tiles};
use crate::cube::documents::{row_tokens, start_of};
use crate::cube::rows::{View, rows_of};
use crate::cube::tiles::longest_first;

/// Whether the softmax of `row` has `column`, which begins with `start` in kernels that are compiled for documents.
#[cube]
fn has(row: usize, column: usize, start: usize, #[comptime] packed: bool) -> bool {
    let mut has = column <= row;
    if comptime!(packed) {
        has = has && start <= column;
    }
    has
}

/// One cube a tile of rows and head: the logarithms of the softmax's denominators.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn portable_kernel<T: Float>(
    q_blhp: &Array<T>,
    k_blkp: &Array<T>,
    starts_bl: &ComptimeOption<Array<i32>>,
    stats: &mut Array<f32>,
    scale: f32,
    q_view: View,
    k_view: View,
    #[comptime] p: usize,
    #[comptime] r: usize,
    #[define(T)] _dtype: StorageType,
) {
    let tile = comptime!(r * tiles::SIDE);
    let (batch, head) = (CUBE_POS_Z as usize, CUBE_POS_Y as usize);
    let h = CUBE_COUNT_Y as usize;
    let (x, y) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let (q_rows, k_rows) = (
        rows_of(&q_view, batch, head, h),
        rows_of(&k_view, batch, head, h),
    );
    let l = q_rows.count;
    let mut staged = SharedMemory::<f32>::new(comptime!(2 * tile * tiles::PITCH));
    let block = longest_first(CUBE_POS_X as usize, CUBE_COUNT_X as usize, false);
    let first = block * tile;
    let packed = comptime!(starts_bl.is_some());
    let tokens = row_tokens(batch, l);
    let mut from = 0usize;
    if comptime!(packed) {
        from = start_of(starts_bl, tokens, first) / tile;
    }

    // Each unit's maximum and sum over its own columns.
    let mut maxima = Array::<f32>::new(r);
    let mut sums = Array::<f32>::new(r);
    #[unroll]
    for i in 0..r {
        maxima[i] = f32::MIN;
        sums[i] = 0.0;
    }
    for other in from..block + 1 {
        let scores = tiles::products(
            q_blhp,
            q_rows,
            first,
            k_blkp,
            k_rows,
            other * tile,
            &mut staged,
            p,
            r,
        );
        #[unroll]
        for i in 0..r {
            let row = first + y + i * tiles::SIDE;
            let start = start_of(starts_bl, tokens, row);
            let mut maximum = maxima[i];
            #[unroll]
            for j in 0..r {
                if has(row, other * tile + x + j * tiles::SIDE, start, packed) {
                    maximum = max(maximum, scores[i * r + j] * scale);
                }
            }
            let mut sum = sums[i] * (maxima[i] - maximum).exp();
            #[unroll]
            for j in 0..r {
                if has(row, other * tile + x + j * tiles::SIDE, start, packed) {
                    sum += (scores[i * r + j] * scale - maximum).exp();
                }
            }
            maxima[i] = maximum;
            sums[i] = sum;
        }
    }

    sync_cube();
    let at_sums = comptime!(tile * (tiles::SIDE + 1));
    #[unroll]
    for i in 0..r {
        let at = (y + i * tiles::SIDE) * comptime!(tiles::SIDE + 1) + x;
        staged[at] = maxima[i];
        staged[at_sums + at] = sums[i];
    }
    sync_cube();
    let row = UNIT_POS as usize;
    if row < tile && first + row < l {
        let at = row * comptime!(tiles::SIDE + 1);
        let mut maximum = staged[at];
        #[unroll]
        for x in 1..tiles::SIDE {
            maximum = max(maximum, staged[at + x]);
        }
        let mut sum = 0.0f32;
        #[unroll]
        for x in 0..tiles::SIDE {
            sum += staged[at_sums + at + x] * (staged[at + x] - maximum).exp();
        }
        let pair = batch * h + head;
        stats[(pair * STATS + NORMALISER) * l + first + row] = maximum + sum.ln();
    }
}
