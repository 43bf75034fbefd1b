//! In tiles of `r * 16` by `r * 16`, with nothing but shared memory and barriers, in f32.
//!
//! Of each tile of weights or of their gradients, a unit of 16 by 16 has `r` by `r` elements that are 16 apart. As
//! the factor of a product they pass through shared memory.

mod backward_keys;
mod backward_queries;
mod forward;

pub(super) use backward_keys::key_gradients;
pub(super) use backward_queries::query_gradients;
use cubecl::prelude::*;
pub(super) use forward::attend;

use crate::cube::rows::Rows;
use crate::cube::tiles::{DEPTH, PITCH, SIDE, stage};

/// Columns of [`DEPTH`] that a unit has.
const ACROSS: usize = DEPTH / SIDE;

/// A unit's columns of rows of `p`.
const fn columns(p: usize) -> usize {
    p.div_ceil(DEPTH) * ACROSS
}

#[cube]
fn zeros(#[comptime] count: usize) -> Array<f32> {
    let mut values = Array::<f32>::new(count);
    #[unroll]
    for i in 0..count {
        values[i] = 0.0f32;
    }
    values
}

/// Adds the products of `weights`, a tile in shared memory, with the rows of `x` from `first` on to a unit's `sums`
/// of `r` rows. All units call it, when they have written the weights.
#[cube]
fn add_products<F: Float>(
    weights: &SharedMemory<f32>,
    x: &Array<F>,
    rows: Rows,
    first: usize,
    staged: &mut SharedMemory<f32>,
    sums: &mut Array<f32>,
    #[comptime] p: usize,
    #[comptime] r: usize,
) {
    let tile = comptime!(r * SIDE);
    let of_row = comptime!(columns(p));
    let (unit_x, unit_y) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    #[unroll]
    for slice in 0..comptime!(p.div_ceil(DEPTH)) {
        sync_cube();
        stage(x, rows, first, comptime!(slice * DEPTH), staged, 0, p, r);
        sync_cube();
        for s in 0..tile {
            let mut values = Array::<f32>::new(ACROSS);
            #[unroll]
            for j in 0..ACROSS {
                values[j] = staged[s * PITCH + unit_x + comptime!(j * SIDE)];
            }
            #[unroll]
            for i in 0..r {
                let row = unit_y + comptime!(i * SIDE);
                let weight = weights[row * comptime!(tile + 1) + s];
                #[unroll]
                for j in 0..ACROSS {
                    sums[comptime!(i * of_row + slice * ACROSS + j)] += weight * values[j];
                }
            }
        }
    }
}

/// Writes a unit's sums, times `factor`, to rows from `first` on of `[b, count, heads, p]`.
#[cube]
fn write<F: Float>(
    sums: &Array<f32>,
    factor: f32,
    to: &mut Array<F>,
    batch: usize,
    first: usize,
    count: usize,
    head: usize,
    heads: usize,
    #[comptime] p: usize,
    #[comptime] r: usize,
) {
    let of_row = comptime!(columns(p));
    #[unroll]
    for i in 0..r {
        let row = first + UNIT_POS_Y as usize + comptime!(i * SIDE);
        if row < count {
            let at = ((batch * count + row) * heads + head) * p;
            #[unroll]
            for j in 0..of_row {
                let column = UNIT_POS_X as usize + comptime!(j * SIDE);
                if column < p {
                    to[at + column] = F::cast_from(sums[comptime!(i * of_row + j)] * factor);
                }
            }
        }
    }
}
