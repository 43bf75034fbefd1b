//! The passes over the matrices on tensor cores, by `mma` of 16 by 8 by 16, whose layout of elements in
//! registers is known: what follows the products happens where they are, and feeds the next.
//!
//! A cube has a tile of [`TILE`] rows, each of its planes 16 of them with their factors in registers; the
//! tiles that they meet pass through shared memory. In a plane, unit `4 g + t` has rows `g` and `g + 8`,
//! and of every 8 columns `2 t` and `2 t + 1`.

use cubecl::cmma::MmaDefinition;
use cubecl::ir::MatrixIdent;
use cubecl::prelude::*;

use super::decay::{
    DIAGONAL, LOG_COLUMNS, LOG_ROWS, NORMALISER, ON_DIAGONAL, REST, SQUARES, WHOLE,
};
use super::tiles::met;
use super::{STATS, SUMS};
use crate::cube::documents::{row_tokens, start_of};
use crate::cube::rows::{Rows, View, rows_of};
use crate::cube::tiles::longest_first;

/// Rows of a cube, and columns that they meet at a time.
pub(super) const TILE: usize = 64;
/// Units of a plane, and planes of a cube.
pub(super) const PLANE: usize = 32;
pub(super) const PLANES: usize = TILE / 16;
/// Elements by which rows of shared memory are longer, for neighbours to be in different banks.
pub(super) const PADDING: usize = 8;

type Pair = Const<2>;

/// Bytes of shared memory for factors of these widths.
pub(super) const fn shared_bytes(n: usize, p: usize) -> usize {
    2 * TILE * (n + p + 2 * PADDING) + 4 * 4 * TILE
}

/// The tile's rows from `first` on to shared memory, zeros where there are none.
#[cube]
pub(super) fn stage<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    rows: Rows,
    first: usize,
    shared: &mut SharedMemory<Vector<F, N>>,
    #[comptime] width: usize,
    #[comptime] vector: usize,
) {
    let across = comptime!(width / vector);
    #[unroll]
    for round in 0..comptime!(TILE * width / vector / (PLANE * PLANES)) {
        let element = round * PLANE * PLANES + UNIT_POS as usize;
        let (row, column) = (element / across, element % across);
        let mut value = Vector::<F, N>::new(F::new(0.0));
        if first + row < rows.count {
            value = x[(rows.base + (first + row) * rows.step) / vector + column];
        }
        shared[row * comptime!((width + PADDING) / vector) + column] = value;
    }
}

/// The plane's 16 rows of the tile in shared memory, as the left factor of a product: four registers
/// for every 16 columns.
#[cube]
pub(super) fn left_factor<F: Float, N: Size>(
    shared: &SharedMemory<Vector<F, N>>,
    #[comptime] width: usize,
) -> Array<Vector<F, Pair>> {
    let pairs = shared.to_slice().with_vector_size::<Pair>();
    let lane = UNIT_POS_X as usize;
    let mut factor = Array::<Vector<F, Pair>>::new(comptime!(width / 4));
    #[unroll]
    for step in 0..comptime!(width / 16) {
        #[unroll]
        for i in 0..4usize {
            let row = UNIT_POS_Y as usize * 16 + lane / 4 + comptime!(i % 2 * 8);
            let column = lane % 4 * 2 + comptime!(step * 16 + i / 2 * 8);
            factor[step * 4 + i] = pairs[(row * comptime!(width + PADDING) + column) / 2];
        }
    }
    factor
}

/// The products of the plane's rows with those of the tile in shared memory: two registers for every 8
/// columns, for rows `g` and `g + 8`.
#[cube]
pub(super) fn products<F: Float, N: Size>(
    own: &Array<Vector<F, Pair>>,
    shared: &SharedMemory<Vector<F, N>>,
    #[comptime] width: usize,
) -> Array<Vector<f32, Pair>> {
    let def = MmaDefinition::<F, F, f32>::new(16usize, 8usize, 16usize);
    let pairs = shared.to_slice().with_vector_size::<Pair>();
    let lane = UNIT_POS_X as usize;
    let mut sums = Array::<Vector<f32, Pair>>::new(comptime!(TILE / 4));
    #[unroll]
    for tile in 0..comptime!(TILE / 8) {
        let mut sum = Array::<Vector<f32, Pair>>::new(2usize);
        sum[0] = Vector::new(0.0f32);
        sum[1] = Vector::new(0.0f32);
        let row = (tile * 8 + lane / 4) * comptime!(width + PADDING);
        #[unroll]
        for step in 0..comptime!(width / 16) {
            let mut left = Array::<Vector<F, Pair>>::new(4usize);
            #[unroll]
            for i in 0..4usize {
                left[i] = own[step * 4 + i];
            }
            let mut right = Array::<Vector<F, Pair>>::new(2usize);
            let at = row + lane % 4 * 2 + step * 16;
            right[0] = pairs[at / 2];
            right[1] = pairs[at / 2 + 4];
            let after = def.execute(&left, &right, &sum);
            sum[0] = after[0];
            sum[1] = after[1];
        }
        sums[tile * 2] = sum[0];
        sums[tile * 2 + 1] = sum[1];
    }
    sums
}

/// Adds to `gradient` the products of the slopes, 16 rows by the tile's columns, with the tile in shared
/// memory. They are the left factor as they are, but for the dtype.
#[cube]
fn accumulate<F: Float, N: Size>(
    slopes: &Array<Vector<f32, Pair>>,
    shared: &SharedMemory<Vector<F, N>>,
    gradient: &mut Array<Vector<f32, Pair>>,
    #[comptime] width: usize,
    #[comptime] vector: usize,
) {
    let def = MmaDefinition::<F, F, f32>::new(16usize, 8usize, 16usize);
    let lane = UNIT_POS_X as usize;
    #[unroll]
    for step in 0..comptime!(TILE / 16) {
        let mut left = Array::<Vector<F, Pair>>::new(4usize);
        #[unroll]
        for i in 0..4usize {
            left[i] = Vector::cast_from(slopes[step * 4 + i]);
        }
        // The units of a plane name the rows that are loaded and transposed.
        let row = (step * 16 + lane % 16) * comptime!((width + PADDING) / vector);
        #[unroll]
        for tile in 0..comptime!(width / 8) {
            let start = row + comptime!(tile * 8 / vector);
            let slice = shared.slice(start, start + comptime!(8 / vector));
            let right = def.load_matrix::<Vector<F, N>, Pair>(&slice, MatrixIdent::B, 2usize, true);
            let mut sum = Array::<Vector<f32, Pair>>::new(2usize);
            sum[0] = gradient[tile * 2];
            sum[1] = gradient[tile * 2 + 1];
            let after = def.execute(&left, &right, &sum);
            gradient[tile * 2] = after[0];
            gradient[tile * 2 + 1] = after[1];
        }
    }
}

/// The sum over the four units that share a row.
#[cube]
fn row_sum(value: f32) -> f32 {
    let pairs = value + plane_shuffle_xor(value, 1u32);
    pairs + plane_shuffle_xor(pairs, 2u32)
}

/// As the portable [`pass_kernel`](super::tiles::pass_kernel).
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn pass_kernel<F: Float, N: Size>(
    own_student: &Array<Vector<F, N>>,
    other_student: &Array<Vector<F, N>>,
    own_teacher: &Array<Vector<F, N>>,
    other_teacher: &Array<Vector<F, N>>,
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
    #[comptime] vector: usize,
    #[comptime] columns: bool,
    #[comptime] gradients: bool,
    #[define(F)] _dtype: StorageType,
) {
    let (batch, head) = (CUBE_POS_Z as usize, CUBE_POS_Y as usize);
    let h = CUBE_COUNT_Y as usize;
    let lane = UNIT_POS_X as usize;
    let column = lane % 4;
    let own_s = rows_of(&own_student_view, batch, head, h);
    let other_s = rows_of(&other_student_view, batch, head, h);
    let own_t = rows_of(&own_teacher_view, batch, head, h);
    let other_t = rows_of(&other_teacher_view, batch, head, h);
    let l = own_s.count;
    let pair = batch * h + head;
    let row = pair * STATS * l;
    let d = stats[row + DIAGONAL * l];

    let blocks = CUBE_COUNT_X as usize;
    let block = longest_first(CUBE_POS_X as usize, blocks, columns);
    let tokens = row_tokens(batch, l);
    let met = met(starts_bl, tokens, block, blocks, TILE, columns);
    let first = block * TILE;
    let own_first = first + UNIT_POS_Y as usize * 16 + lane / 4;

    let mut student = SharedMemory::<Vector<F, N>>::new_aligned(
        comptime!(TILE * (n + PADDING) / vector),
        16usize,
    );
    let mut teacher = SharedMemory::<Vector<F, N>>::new_aligned(
        comptime!(TILE * (p + PADDING) / vector),
        16usize,
    );
    stage(own_student, own_s, first, &mut student, n, vector);
    stage(own_teacher, own_t, first, &mut teacher, p, vector);
    sync_cube();
    let own_student = left_factor(&student, n);
    let own_teacher = left_factor(&teacher, p);

    // Off the diagonal a product of decays is one factor for the row times one for the column, from the
    // block's edge between them: neither exceeds one.
    let edge = if columns {
        clamp_max(first + comptime!(TILE - 1), l - 1)
    } else {
        first
    };
    let edge_whole = stats[row + WHOLE * l + edge];
    let edge_rest = stats[row + REST * l + edge];
    let sign = comptime!(if columns { -1.0f32 } else { 1.0f32 });
    let mut own_whole = Array::<f32>::new(2usize);
    let mut own_rest = Array::<f32>::new(2usize);
    let mut own_normaliser = Array::<f32>::new(2usize);
    let mut own_factor = Array::<f32>::new(2usize);
    let mut logs = Array::<f32>::new(2usize);
    let mut squares = Array::<f32>::new(2usize);
    let mut diagonal = Array::<f32>::new(2usize);
    #[unroll]
    for half in 0..2usize {
        let t = clamp_max(own_first + comptime!(half * 8), l - 1);
        own_whole[half] = stats[row + WHOLE * l + t];
        own_rest[half] = stats[row + REST * l + t];
        own_normaliser[half] = stats[row + NORMALISER * l + t];
        let log = (own_whole[half] - edge_whole) + (own_rest[half] - edge_rest);
        own_factor[half] = clamp_max(log * sign, 0.0).exp();
        logs[half] = 0.0;
        squares[half] = 0.0;
        diagonal[half] = 0.0;
    }
    let mut gradient = Array::<Vector<f32, Pair>>::new(comptime!(n / 4));
    #[unroll]
    for i in 0..comptime!(n / 4) {
        gradient[i] = Vector::new(0.0f32);
    }
    let mut other_whole = SharedMemory::<f32>::new(TILE);
    let mut other_rest = SharedMemory::<f32>::new(TILE);
    let mut other_normaliser = SharedMemory::<f32>::new(TILE);
    let mut other_factor = SharedMemory::<f32>::new(TILE);

    for other in met.from..met.to {
        let other_first = other * TILE;
        sync_cube();
        stage(other_student, other_s, other_first, &mut student, n, vector);
        stage(other_teacher, other_t, other_first, &mut teacher, p, vector);
        let unit = UNIT_POS as usize;
        if unit < TILE {
            let t = clamp_max(other_first + unit, l - 1);
            let (whole, rest) = (stats[row + WHOLE * l + t], stats[row + REST * l + t]);
            let log = (edge_whole - whole) + (edge_rest - rest);
            let mut normaliser = stats[row + NORMALISER * l + t];
            if other_first + unit >= l {
                normaliser = 1e30; // no attention, where there is nothing
            }
            other_whole[unit] = whole;
            other_rest[unit] = rest;
            other_normaliser[unit] = normaliser;
            other_factor[unit] = clamp_max(log * sign, 0.0).exp();
        }
        sync_cube();
        let mut mixed = products(&own_student, &student, n);
        let scores = products(&own_teacher, &teacher, p);
        #[unroll]
        for tile in 0..comptime!(TILE / 8) {
            #[unroll]
            for i in 0..2usize {
                let s = column * 2 + comptime!(tile * 8 + i);
                let (whole, rest) = (other_whole[s], other_rest[s]);
                let (factor, normaliser) = (other_factor[s], other_normaliser[s]);
                #[unroll]
                for half in 0..2usize {
                    let of_row = if columns {
                        normaliser
                    } else {
                        own_normaliser[half]
                    };
                    let mut decay = own_factor[half] * factor;
                    if other == block {
                        let log = (own_whole[half] - whole) + (own_rest[half] - rest);
                        decay = clamp_max(log * sign, 0.0).exp();
                    }
                    let mut inside = mixed[tile * 2 + half][i] * decay;
                    let mut attention = (scores[tile * 2 + half][i] * scale - of_row).exp();
                    if comptime!(starts_bl.is_some()) {
                        let own_at = own_first + comptime!(half * 8);
                        let other_at = other_first + s;
                        let (row, column) = if columns {
                            (other_at, own_at)
                        } else {
                            (own_at, other_at)
                        };
                        if column < start_of(starts_bl, tokens, row) {
                            attention = 0.0; // between documents; the decay is 0 there
                        }
                    }
                    let mut difference = inside - attention;
                    if other == block {
                        let own_at = own_first + comptime!(half * 8);
                        let other_at = other_first + s;
                        let (row, column) = if columns {
                            (other_at, own_at)
                        } else {
                            (own_at, other_at)
                        };
                        if column > row {
                            difference = 0.0;
                        }
                        if column == row {
                            difference += d;
                            diagonal[half] = difference;
                            inside = 0.0; // no decay in it
                        }
                    }
                    logs[half] += difference * inside;
                    squares[half] += difference * difference;
                    let mut pair = mixed[tile * 2 + half];
                    pair[i] = difference * decay;
                    mixed[tile * 2 + half] = pair;
                }
            }
        }
        if gradients {
            accumulate(&mixed, &student, &mut gradient, n, vector);
        }
    }

    let sums_row = pair * SUMS * l;
    #[unroll]
    for half in 0..2usize {
        let t = own_first + comptime!(half * 8);
        let log = row_sum(logs[half]);
        let square = row_sum(squares[half]);
        let on_diagonal = row_sum(diagonal[half]);
        if column == 0 && t < l {
            if columns {
                sums[sums_row + LOG_COLUMNS * l + t] = log;
            } else {
                sums[sums_row + LOG_ROWS * l + t] = log;
                sums[sums_row + SQUARES * l + t] = square;
                sums[sums_row + ON_DIAGONAL * l + t] = on_diagonal;
            }
        }
        if gradients && t < l {
            #[unroll]
            for tile in 0..comptime!(n / 8) {
                #[unroll]
                for i in 0..2usize {
                    let column = column * 2 + comptime!(tile * 8 + i);
                    gradient_bhln[(pair * l + t) * n + column] = gradient[tile * 2 + half][i];
                }
            }
        }
    }
}
