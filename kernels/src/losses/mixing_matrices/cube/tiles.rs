//! The passes over the matrices in tiles of `r * 16` by `r * 16`, with nothing but shared memory and barriers.

use cubecl::prelude::*;

use super::decay::{
    DIAGONAL, LOG_COLUMNS, LOG_ROWS, NORMALISER, ON_DIAGONAL, REST, SQUARES, WHOLE,
};
use super::{STATS, SUMS};
use crate::cube::documents::{RowTokens, row_tokens, start_of};
use crate::cube::rows::{View, rows_of};
use crate::cube::tiles::{DEPTH, longest_first, stage};
pub(super) use crate::cube::tiles::{PITCH, SIDE, products, shared_bytes};

/// What is known of a row or column.
#[derive(CubeType, Clone, Copy)]
struct Statistics {
    whole: f32,
    rest: f32,
    normaliser: f32,
}

#[cube]
fn statistics(stats: &Array<f32>, row: usize, t: usize, l: usize) -> Statistics {
    let t = clamp_max(t, l - 1);
    Statistics {
        whole: stats[row + WHOLE * l + t],
        rest: stats[row + REST * l + t],
        normaliser: stats[row + NORMALISER * l + t],
    }
}

/// The sums of `values` along the tile's rows, to a slot of the sums.
#[cube]
fn add_along(
    values: &Array<f32>,
    shared: &mut SharedMemory<f32>,
    sums: &mut Array<f32>,
    at: usize,
    first: usize,
    l: usize,
    #[comptime] r: usize,
) {
    sync_cube();
    #[unroll]
    for i in 0..r {
        let row = UNIT_POS_Y as usize + i * SIDE;
        shared[row * comptime!(SIDE + 1) + UNIT_POS_X as usize] = values[i];
    }
    sync_cube();
    let row = UNIT_POS as usize;
    if row < comptime!(r * SIDE) && first + row < l {
        let mut parts = Array::<f32>::new(SIDE);
        #[unroll]
        for x in 0..SIDE {
            parts[x] = shared[row * comptime!(SIDE + 1) + x];
        }
        #[unroll]
        for level in 0..comptime!(SIDE.ilog2()) {
            let half = comptime!(SIDE >> (level + 1));
            #[unroll]
            for x in 0..half {
                parts[x] = parts[x] + parts[x + half];
            }
        }
        sums[at + first + row] = parts[0];
    }
}

/// The tiles that meet a block of rows or, with `columns`, of columns.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Met {
    pub from: usize,
    pub to: usize,
}

/// Of block `block` of `blocks`, each of `tile` tokens: those on and before the diagonal, or on and after it; in
/// kernels that are compiled for documents, as far as documents with a token in the block go.
#[cube]
pub(super) fn met(
    starts_bl: &ComptimeOption<Array<i32>>,
    tokens: RowTokens,
    block: usize,
    blocks: usize,
    #[comptime] tile: usize,
    #[comptime] columns: bool,
) -> Met {
    let mut from = 0usize;
    let mut to = block + 1;
    if comptime!(columns) {
        from = block;
        if comptime!(starts_bl.is_some()) {
            for other in block + 1..blocks {
                if start_of(starts_bl, tokens, other * tile) < (block + 1) * tile {
                    to = other + 1;
                }
            }
        } else {
            to = blocks;
        }
    } else {
        if comptime!(starts_bl.is_some()) {
            from = start_of(starts_bl, tokens, block * tile) / tile;
        }
    }
    Met { from, to }
}

/// One cube a tile of rows and head, over all tiles of columns; or, with `columns`, one a tile of
/// columns over all tiles of rows. `own` are C and q over rows, B and k over columns, `other` the others.
///
/// The sums along its rows or columns; with `gradients`, the gradient to the student's `own`, but for
/// the head's factor.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn pass_kernel<F: Float, T: Float>(
    own_student: &Array<F>,
    other_student: &Array<F>,
    own_teacher: &Array<T>,
    other_teacher: &Array<T>,
    stats: &Array<f32>,
    starts_bl: &ComptimeOption<Array<i32>>,
    gradient_bhln: &mut Array<f32>,
    sums: &mut Array<f32>,
    scale: f32,
    own_student_view: View,
    other_student_view: View,
    own_teacher_view: View,
    other_teacher_view: View,
    #[comptime] n: usize,
    #[comptime] p: usize,
    #[comptime] r: usize,
    #[comptime] columns: bool,
    #[comptime] gradients: bool,
    #[define(F)] _student: StorageType,
    #[define(T)] _teacher: StorageType,
) {
    let tile = comptime!(r * SIDE);
    let (batch, head) = (CUBE_POS_Z as usize, CUBE_POS_Y as usize);
    let h = CUBE_COUNT_Y as usize;
    let (x, y) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let own_s = rows_of(&own_student_view, batch, head, h);
    let other_s = rows_of(&other_student_view, batch, head, h);
    let own_t = rows_of(&own_teacher_view, batch, head, h);
    let other_t = rows_of(&other_teacher_view, batch, head, h);
    let l = own_s.count;
    let pair = batch * h + head;
    let stats_row = pair * STATS * l;
    let d = stats[stats_row + DIAGONAL * l];

    let blocks = CUBE_COUNT_X as usize;
    let block = longest_first(CUBE_POS_X as usize, blocks, columns);
    let tokens = row_tokens(batch, l);
    let met = met(starts_bl, tokens, block, blocks, tile, columns);
    let first = block * tile;

    let mut staged = SharedMemory::<f32>::new(comptime!(2 * tile * PITCH));
    let mut slopes = SharedMemory::<f32>::new(comptime!(tile * (tile + 1)));
    let per_slice = comptime!(DEPTH / SIDE);
    let slices = comptime!(n.div_ceil(DEPTH));
    let mut gradient = Array::<f32>::new(comptime!(r * slices * per_slice));
    #[unroll]
    for i in 0..comptime!(r * slices * per_slice) {
        gradient[i] = 0.0;
    }
    let mut logs = Array::<f32>::new(r);
    let mut squares = Array::<f32>::new(r);
    let mut diagonal = Array::<f32>::new(r);
    let mut own = Sequence::<Statistics>::new();
    #[unroll]
    for i in 0..r {
        logs[i] = 0.0;
        squares[i] = 0.0;
        diagonal[i] = 0.0;
        own.push(statistics(stats, stats_row, first + y + i * SIDE, l));
    }

    for other in met.from..met.to {
        let other_first = other * tile;
        let mixed = products(
            own_student,
            own_s,
            first,
            other_student,
            other_s,
            other_first,
            &mut staged,
            n,
            r,
        );
        let scores = products(
            own_teacher,
            own_t,
            first,
            other_teacher,
            other_t,
            other_first,
            &mut staged,
            p,
            r,
        );
        #[unroll]
        for j in 0..r {
            let other_at = other_first + x + j * SIDE;
            let other = statistics(stats, stats_row, other_at, l);
            #[unroll]
            for i in 0..r {
                let own_at = first + y + i * SIDE;
                let own = *own.index(i);
                let (row, column) = if columns {
                    (other_at, own_at)
                } else {
                    (own_at, other_at)
                };
                let (of_row, of_column) = if columns { (other, own) } else { (own, other) };
                let mut slope = 0.0f32;
                if column <= row && row < l {
                    let log = (of_row.whole - of_column.whole) + (of_row.rest - of_column.rest);
                    let decay = clamp_max(log, 0.0).exp();
                    let inside = mixed[i * r + j] * decay;
                    let mut attention = (scores[i * r + j] * scale - of_row.normaliser).exp();
                    if comptime!(starts_bl.is_some()) {
                        let start = start_of(starts_bl, tokens, row);
                        if column < start {
                            attention = 0.0; // between documents; the decay is 0 there
                        }
                    }
                    let mut difference = inside - attention;
                    if column == row {
                        difference += d;
                        diagonal[i] = difference;
                    } else {
                        logs[i] += difference * inside;
                    }
                    squares[i] += difference * difference;
                    slope = difference * decay;
                }
                slopes[(y + i * SIDE) * comptime!(tile + 1) + x + j * SIDE] = slope;
            }
        }
        if gradients {
            #[unroll]
            for slice in 0..slices {
                sync_cube();
                let from = slice * DEPTH;
                stage(
                    other_student,
                    other_s,
                    other_first,
                    from,
                    &mut staged,
                    0,
                    n,
                    r,
                );
                sync_cube();
                for s in 0..tile {
                    #[unroll]
                    for i in 0..r {
                        let slope = slopes[(y + i * SIDE) * comptime!(tile + 1) + s];
                        #[unroll]
                        for m in 0..per_slice {
                            gradient[(i * slices + slice) * per_slice + m] +=
                                slope * staged[s * PITCH + x + m * SIDE];
                        }
                    }
                }
            }
        }
    }

    let row = pair * SUMS * l;
    if columns {
        add_along(&logs, &mut slopes, sums, row + LOG_COLUMNS * l, first, l, r);
    } else {
        add_along(&logs, &mut slopes, sums, row + LOG_ROWS * l, first, l, r);
        add_along(&squares, &mut slopes, sums, row + SQUARES * l, first, l, r);
        add_along(
            &diagonal,
            &mut slopes,
            sums,
            row + ON_DIAGONAL * l,
            first,
            l,
            r,
        );
    }
    if gradients {
        #[unroll]
        for i in 0..r {
            let t = first + y + i * SIDE;
            #[unroll]
            for slice in 0..slices {
                #[unroll]
                for m in 0..per_slice {
                    let column = slice * DEPTH + x + m * SIDE;
                    if t < l && column < n {
                        gradient_bhln[(pair * l + t) * n + column] =
                            gradient[(i * slices + slice) * per_slice + m];
                    }
                }
            }
        }
    }
}
