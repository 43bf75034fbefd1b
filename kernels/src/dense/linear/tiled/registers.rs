//! On any device: tiles of `16 r` by `16 r`, of which a unit has `r` by `r` sums in registers.
//!
//! Slices of [`DEPTH`] of the factors pass through shared memory in f32, four along the contracted axis in a vector,
//! so that what lies along it in memory is stored as it comes. While a slice is multiplied, the next one is on its way
//! to registers. Of each four neighbouring rows one follows the other `4 r` places later: the units of a plane, which
//! have four neighbouring rows each, so read neighbouring places.

use cubecl::prelude::*;

use super::epilogue::{Epilogue, put};
use super::factor::{Four, Order, View, four, place};

/// Units along each side of a tile.
const SIDE: usize = 16;
/// Units of a cube.
pub(super) const UNITS: usize = SIDE * SIDE;
/// Of the contracted axis in shared memory at a time.
pub(super) const DEPTH: usize = 16;
/// The same in vectors.
const ACROSS: usize = DEPTH / 4;
/// Vectors from one row of shared memory to the next, an odd number for the banks.
const PITCH: usize = ACROSS + 1;

/// Rows and columns of a tile.
pub(super) const fn tile(r: usize) -> usize {
    SIDE * r
}

/// Bytes of shared memory.
pub(super) const fn shared_bytes(r: usize) -> usize {
    2 * tile(r) * PITCH * 16
}

/// Vectors that a unit fetches of a slice.
fn fetched(order: Order, r: usize) -> usize {
    match order {
        Order::Depth | Order::Single => (tile(r) * ACROSS).div_ceil(UNITS),
        // Blocks of four rows by four.
        Order::Rows => 4 * (tile(r) / 4 * ACROSS).div_ceil(UNITS),
    }
}

/// Where a row of the tile is in shared memory.
#[cube]
fn slot(row: usize, #[comptime] r: usize) -> usize {
    row % 4 * comptime!(tile(r) / 4) + row / 4
}

/// This unit's part of the slice from `k` on of the tile from row `first` on.
#[cube]
fn fetch<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    view: View,
    first: usize,
    k: usize,
    end: usize,
    to: &mut Array<Vector<F, Four>>,
    #[comptime] order: Order,
    #[comptime] r: usize,
) {
    let unit = UNIT_POS as usize;
    if comptime!(order == Order::Rows) {
        let blocks = comptime!(tile(r) / 4);
        let (block, quarter) = (unit % blocks, unit / blocks);
        if quarter < ACROSS {
            #[unroll]
            for i in 0..4usize {
                let k = k + quarter * 4 + i;
                to[i] = four(x, view, first + block * 4, k, end, order);
            }
        }
    } else {
        #[unroll]
        for round in 0..comptime!(fetched(order, r)) {
            let vector = unit + comptime!(round * UNITS);
            let (row, quarter) = (vector / ACROSS, vector % ACROSS);
            to[round] = four(x, view, first + row, k + quarter * 4, end, order);
        }
    }
}

/// Stores what [`fetch`] brought from `at` on.
#[cube]
fn stage<F: Float>(
    held: &Array<Vector<F, Four>>,
    shared: &mut SharedMemory<Vector<f32, Four>>,
    #[comptime] at: usize,
    #[comptime] order: Order,
    #[comptime] r: usize,
) {
    let unit = UNIT_POS as usize;
    if comptime!(order == Order::Rows) {
        let blocks = comptime!(tile(r) / 4);
        let (block, quarter) = (unit % blocks, unit / blocks);
        if quarter < ACROSS {
            #[unroll]
            for i in 0..4usize {
                let mut along = Vector::<f32, Four>::empty();
                #[unroll]
                for k in 0..4usize {
                    along[k] = f32::cast_from(held[k][i]);
                }
                shared[at + (i * blocks + block) * PITCH + quarter] = along;
            }
        }
    } else {
        #[unroll]
        for round in 0..comptime!(fetched(order, r)) {
            let vector = unit + comptime!(round * UNITS);
            let (row, quarter) = (vector / ACROSS, vector % ACROSS);
            let along = Vector::<f32, Four>::cast_from(held[round]);
            shared[at + slot(row, r) * PITCH + quarter] = along;
        }
    }
}

/// `a [rows, depth]` times the transpose of `b [columns, depth]` to this cube's share of `out [shares, rows, columns]`.
/// A share is of `cut` of the depth, a multiple of [`DEPTH`].
///
/// Cubes: tiles in two dimensions, shares.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn multiply<F: Float, O: Float, VA: Size, VB: Size, N: Size>(
    a: &Array<Vector<F, VA>>,
    b: &Array<Vector<F, VB>>,
    bias: &ComptimeOption<Array<Vector<F, N>>>,
    out: &mut Array<Vector<O, N>>,
    a_view: View,
    b_view: View,
    cut: usize,
    #[comptime] a_order: Order,
    #[comptime] b_order: Order,
    #[comptime] n: usize,
    #[comptime] r: usize,
    #[comptime] epilogue: Epilogue,
    #[define(F)] _dtype: StorageType,
    #[define(O)] _to: StorageType,
) {
    let at_b = comptime!(tile(r) * PITCH);
    let mut shared = SharedMemory::<Vector<f32, Four>>::new(comptime!(2 * tile(r) * PITCH));
    let (unit_x, unit_y) = (UNIT_POS as usize % SIDE, UNIT_POS as usize / SIDE);
    let place = place(a_view, b_view, cut, comptime!(tile(r)), comptime!(tile(r)));
    if place.exists {
        let mut sums = Array::<f32>::new(comptime!(r * r));
        #[unroll]
        for i in 0..comptime!(r * r) {
            sums[i] = 0.0f32;
        }
        let mut of_a = Array::<Vector<F, Four>>::new(comptime!(fetched(a_order, r)));
        let mut of_b = Array::<Vector<F, Four>>::new(comptime!(fetched(b_order, r)));
        let (row, column, end) = (place.row, place.column, place.end);
        fetch(a, a_view, row, place.from, end, &mut of_a, a_order, r);
        fetch(b, b_view, column, place.from, end, &mut of_b, b_order, r);
        for slice in 0..(end - place.from).div_ceil(DEPTH) {
            // All units are done with the slice before this one.
            sync_cube();
            stage(&of_a, &mut shared, 0usize, a_order, r);
            stage(&of_b, &mut shared, at_b, b_order, r);
            sync_cube();
            // Beyond the end, zeros that nothing reads.
            let next = place.from + (slice + 1) * DEPTH;
            fetch(a, a_view, row, next, end, &mut of_a, a_order, r);
            fetch(b, b_view, column, next, end, &mut of_b, b_order, r);
            for quarter in 0..ACROSS {
                let mut rows = Array::<Vector<f32, Four>>::new(r);
                #[unroll]
                for i in 0..r {
                    let place = comptime!(i % 4 * (tile(r) / 4) + i / 4 * SIDE) + unit_y;
                    rows[i] = shared[place * PITCH + quarter];
                }
                #[unroll]
                for j in 0..r {
                    let place = comptime!(j % 4 * (tile(r) / 4) + j / 4 * SIDE) + unit_x;
                    let column = shared[at_b + place * PITCH + quarter];
                    #[unroll]
                    for i in 0..r {
                        #[unroll]
                        for k in 0..4usize {
                            sums[comptime!(i * r + j)] += rows[i][k] * column[k];
                        }
                    }
                }
            }
        }
        #[unroll]
        for i in 0..r {
            let row = row + comptime!(i / 4 * 4 * SIDE + i % 4) + unit_y * 4;
            #[unroll]
            for j in 0..comptime!(r / 4) {
                let column = column + comptime!(j * 4 * SIDE) + unit_x * 4;
                let mut four = Vector::<f32, Four>::empty();
                #[unroll]
                for k in 0..4usize {
                    four[k] = sums[comptime!(i * r + j * 4 + k)];
                }
                put(
                    four,
                    row,
                    column,
                    a_view.rows,
                    b_view.rows,
                    bias,
                    out,
                    n,
                    epilogue,
                );
            }
        }
    }
}
