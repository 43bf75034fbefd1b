//! On tensor cores, by `mma` of 16 by 8 by 16, whose layout of elements in registers is known: scores become
//! weights where they are, and the weights are the left factor of the product with the values as they are, but
//! for the dtype.
//!
//! A plane has 16 or 32 queries, in registers with their outputs. Keys and values pass through shared memory
//! in tiles, of which one is computed with while the next arrives. In a plane, unit `4 g + t` has rows `g` and
//! `g + 8` of 16, and of every 8 columns `2 t` and `2 t + 1`.

use cubecl::cmma::MmaDefinition;
use cubecl::prelude::barrier::Barrier;
use cubecl::prelude::*;

use crate::cube::fragments::{Eight, Matrix, PLANE, Pair};
use crate::cube::rows::{Rows, View, rows_of};
use crate::cube::tiles::longest_first;

/// Keys of a tile.
const TILE: usize = 64;
/// Planes of a cube.
pub(super) const PLANES: usize = 4;
/// Rows of shared memory for a tile's keys and values.
const STAGE: usize = 2 * TILE;
/// Weights are at least two to this, and at most one.
pub(super) const FLOOR: f32 = -120.0;
/// Two to the power of `FLOOR`.
const LEAST: f32 = f32::from_bits((127 - 120) << 23);

/// Queries of a cube whose planes have `down` times 16.
pub(super) const fn queries(down: usize) -> usize {
    PLANES * 16 * down
}

/// Bytes of shared memory for heads of `p`, but for the barrier.
pub(super) const fn shared_bytes(p: usize) -> usize {
    2 * 2 * STAGE * (p + 8)
}

/// Starts to copy `count` rows from `first` on to the rows of shared memory from `at` on; the last row stands
/// for those beyond it.
#[cube]
fn copy<E: Float>(
    x: &Array<Vector<E, Eight>>,
    rows: Rows,
    first: usize,
    to: &mut Matrix<E, Eight>,
    at: usize,
    #[comptime] count: usize,
    #[comptime] p: usize,
) {
    let units = comptime!(PLANES * PLANE);
    let across = comptime!(p / 8);
    let unit = UNIT_POS as usize;
    // Where a unit's vectors lie below each other, their addresses are a step apart.
    let even = comptime!(units.is_multiple_of(across));
    if even && first + count <= rows.count {
        let (row, column) = (unit / across, unit % across);
        let from = (rows.base + (first + row) * rows.step) / 8 + column;
        let step = comptime!(units / across) * rows.step / 8;
        #[unroll]
        for round in 0..comptime!(count * across / units) {
            let down = comptime!(round * (units / across));
            to.copy(at + row + down, column * 8, x, from + round * step);
        }
    } else {
        #[unroll]
        for round in 0..comptime!(count * across / units) {
            let vector = unit + comptime!(round * units);
            let (row, column) = (vector / across, vector % across);
            let token = clamp_max(first + row, rows.count - 1);
            let from = (rows.base + token * rows.step) / 8 + column;
            to.copy(at + row, column * 8, x, from);
        }
    }
}

/// A left factor's 16 rows by a right factor's 8 columns, which begins at `from` of `right`, added to the two
/// registers from `to` on.
#[cube]
fn product<E: Float>(
    left: &Array<Vector<E, Pair>>,
    right: &Array<Vector<E, Pair>>,
    #[comptime] from: usize,
    sums: &mut Array<Vector<f32, Pair>>,
    #[comptime] to: usize,
) {
    let mma = MmaDefinition::<E, E, f32>::new(16usize, 8usize, 16usize);
    let mut columns = Array::<Vector<E, Pair>>::new(2usize);
    columns[0] = right[from];
    columns[1] = right[comptime!(from + 1)];
    let mut sum = Array::<Vector<f32, Pair>>::new(2usize);
    sum[0] = sums[to];
    sum[1] = sums[comptime!(to + 1)];
    let sum = mma.execute(left, &columns, &sum);
    sums[to] = sum[0];
    sums[comptime!(to + 1)] = sum[1];
}

/// A left factor by two right factors, one after the other.
#[cube]
fn multiply<E: Float>(
    left: &Array<Vector<E, Pair>>,
    both: &Array<Vector<E, Pair>>,
    sums: &mut Array<Vector<f32, Pair>>,
    #[comptime] to: usize,
) {
    product(left, both, 0usize, sums, to);
    product(left, both, 2usize, sums, comptime!(to + 2));
}

/// Zeros: two pairs for every fragment of 16 by 8.
#[cube]
fn zeros(#[comptime] fragments: usize) -> Array<Vector<f32, Pair>> {
    let mut values = Array::<Vector<f32, Pair>>::new(comptime!(2 * fragments));
    #[unroll]
    for i in 0..comptime!(2 * fragments) {
        values[i] = Vector::new(0.0f32);
    }
    values
}

/// The larger of what the four units of a row have.
#[cube]
fn row_max(value: f32) -> f32 {
    let pairs = max(value, plane_shuffle_xor(value, 1u32));
    max(pairs, plane_shuffle_xor(pairs, 2u32))
}

/// Two to the power of `FLOOR` times `share`, which is taken into 0..=1. On CUDA with fast mathematics the device's
/// power is enough: what is known not to lie below -126 needs no guard against powers too small for it. NaN is taken for
/// the weight one.
#[cube]
fn weight(share: f32) -> f32 {
    LEAST.runtime().powf(min(max(share, 0.0f32), 1.0f32))
}

/// What a plane's queries have come to: two rows every 16 queries.
#[derive(CubeType)]
struct SoFar {
    /// The score of weight one, at least a row's largest.
    top: Array<f32>,
    /// Of a row's weights, the same in each column of a fragment.
    sums: Array<Vector<f32, Pair>>,
    /// Of values times their weights.
    y: Array<Vector<f32, Pair>>,
}

/// Adds the tile of keys in rows `at` on of shared memory, and of values behind it. Queries from `position` on see
/// all keys, from `key` on, unless some are `hidden`. `scale` and `slack` as in [`attend`].
#[cube]
fn add<E: Float>(
    queries: &Sequence<Array<Vector<E, Pair>>>,
    staged: &Matrix<E, Eight>,
    at: usize,
    so_far: &mut SoFar,
    scale: f32,
    slack: f32,
    position: usize,
    key: usize,
    #[comptime] hidden: bool,
    #[comptime] p: usize,
    #[comptime] down: usize,
) {
    let rows = comptime!(2 * down);
    let lane = UNIT_POS_PLANE as usize;
    let mut scores = zeros(comptime!(down * TILE / 8));
    #[unroll]
    for step in 0..comptime!(p / 16) {
        #[unroll]
        for j in 0..comptime!(TILE / 16) {
            let both = staged.right(comptime!(step * 16), at + comptime!(j * 16), true);
            #[unroll]
            for i in 0..down {
                let left = queries.index(comptime!(step * down + i));
                multiply(left, &both, &mut scores, comptime!(i * TILE / 4 + j * 4));
            }
        }
    }

    if comptime!(hidden) {
        #[unroll]
        for i in 0..comptime!(down * TILE / 4) {
            let row = comptime!(i / (TILE / 4) * 16 + i % 2 * 8);
            let own = position + row + lane / 4;
            let column = key + comptime!(i % (TILE / 4) / 2 * 8) + lane % 4 * 2;
            let mut pair = scores[i];
            pair[0] = select(column > own, f32::MIN.runtime(), pair[0]);
            pair[1] = select(column + 1 > own, f32::MIN.runtime(), pair[1]);
            scores[i] = pair;
        }
    }

    let mut largest = Array::<f32>::new(rows);
    let mut moved = false;
    #[unroll]
    for row in 0..rows {
        let from = comptime!(row / 2 * (TILE / 4) + row % 2);
        let mut of_unit = max(scores[from][0], scores[from][1]);
        #[unroll]
        for j in 1..comptime!(TILE / 8) {
            let pair = scores[comptime!(from + j * 2)];
            of_unit = max(of_unit, max(pair[0], pair[1]));
        }
        largest[row] = row_max(of_unit);
        moved = moved || largest[row] > so_far.top[row];
    }
    if plane_any(moved) {
        #[unroll]
        for row in 0..rows {
            // Only rows that have moved, so that a query does not feel the others of its plane.
            let old = so_far.top[row];
            let top = select(largest[row] > old, largest[row] + slack, old);
            let rescale = Vector::new(weight((old - top) * scale));
            so_far.top[row] = top;
            so_far.sums[row] *= rescale;
            #[unroll]
            for j in 0..comptime!(p / 8) {
                let at = comptime!((row / 2 * (p / 8) + j) * 2 + row % 2);
                so_far.y[at] *= rescale;
            }
        }
    }

    #[unroll]
    for i in 0..comptime!(down * TILE / 4) {
        let row = comptime!(i / (TILE / 4) * 2 + i % 2);
        let shift = so_far.top[row] * scale;
        let mut pair = scores[i];
        #[unroll]
        for k in 0..2usize {
            let mut value = weight(pair[k] * scale - shift);
            if comptime!(hidden) {
                // The least weight is not zero.
                value = select(pair[k] == f32::MIN.runtime(), 0.0f32, value);
            }
            pair[k] = value;
        }
        scores[i] = pair;
    }

    let mut ones = Array::<Vector<E, Pair>>::new(2usize);
    ones[0] = Vector::new(E::new(1.0));
    ones[1] = Vector::new(E::new(1.0));
    #[unroll]
    for step in 0..comptime!(TILE / 16) {
        let mut weights = Sequence::<Array<Vector<E, Pair>>>::new();
        #[unroll]
        for i in 0..down {
            let mut left = Array::<Vector<E, Pair>>::new(4usize);
            #[unroll]
            for part in 0..4usize {
                let from = comptime!(i * TILE / 4 + step * 4 + part);
                left[part] = Vector::cast_from(scores[from]);
            }
            product(&left, &ones, 0usize, &mut so_far.sums, comptime!(i * 2));
            weights.push(left);
        }
        #[unroll]
        for j in 0..comptime!(p / 16) {
            let row = at + comptime!(TILE + step * 16);
            let both = staged.right(row, comptime!(j * 16), false);
            #[unroll]
            for i in 0..down {
                let to = comptime!((i * p / 8 + j * 2) * 2);
                multiply(weights.index(i), &both, &mut so_far.y, to);
            }
        }
    }
}

/// Queries `[b, l, h, p]`, keys and values `[b, t, g, p]` to `[b, l, h, p]`. `scale` is the scores' times the
/// logarithm of e to base 2, over `FLOOR`. When a row's largest score exceeds the score of weight one, that becomes
/// `slack` more than it: so sums and outputs are rescaled when the largest has moved far, not whenever it moves.
///
/// Cubes: heads, batch, blocks of queries, the last of which see the most keys and come first.
#[cube(
    launch_unchecked,
    address_type = "dynamic",
    fast_math = FastMath::ReducedPrecision | FastMath::NotNaN | FastMath::NotInf
)]
pub(super) fn attend<E: Float>(
    q_blhp: &Array<Vector<E, Eight>>,
    k_btgp: &Array<Vector<E, Eight>>,
    v_btgp: &Array<Vector<E, Eight>>,
    y_blhp: &mut Array<Vector<E, Pair>>,
    scale: f32,
    slack: f32,
    q_view: View,
    k_view: View,
    v_view: View,
    #[comptime] p: usize,
    #[comptime] down: usize,
    #[define(E)] _dtype: StorageType,
) {
    let (head, batch) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let h = CUBE_COUNT_X as usize;
    let q_rows = rows_of(&q_view, batch, head, h);
    let k_rows = rows_of(&k_view, batch, head, h);
    let v_rows = rows_of(&v_view, batch, head, h);
    let (l, t) = (q_rows.count, k_rows.count);
    let block = longest_first(CUBE_POS_Z as usize, CUBE_COUNT_Z as usize, false);
    let cube_first = block * comptime!(queries(down));
    let lane = UNIT_POS_PLANE as usize;
    let plane_row = UNIT_POS as usize / PLANE * comptime!(16 * down);
    // The plane's first query, and its position.
    let first = cube_first + plane_row;
    let position = t - l + first;
    let keys = clamp_max(t - l + cube_first + comptime!(queries(down)), t);
    let tiles = keys.div_ceil(TILE);

    let mut staged = Matrix::<E, Eight>::new(comptime!(2 * STAGE), p, 8usize);
    let barrier = Barrier::shared(comptime!((PLANES * PLANE) as u32).runtime(), UNIT_POS == 0);
    // The queries pass through the memory of the second tile.
    copy(
        q_blhp,
        q_rows,
        cube_first,
        &mut staged,
        STAGE,
        comptime!(queries(down)),
        p,
    );
    copy(k_btgp, k_rows, 0, &mut staged, 0, TILE, p);
    copy(v_btgp, v_rows, 0, &mut staged, TILE, TILE, p);
    barrier.commit_copy_async();
    barrier.arrive_and_wait();
    let mut queries = Sequence::<Array<Vector<E, Pair>>>::new();
    #[unroll]
    for step in 0..comptime!(p / 16) {
        #[unroll]
        for i in 0..down {
            let row = plane_row + comptime!(STAGE + i * 16);
            queries.push(staged.left(row, comptime!(step * 16), false));
        }
    }

    let rows = comptime!(2 * down);
    let mut so_far = SoFar {
        top: Array::new(rows),
        sums: zeros(down),
        y: zeros(comptime!(down * p / 8)),
    };
    #[unroll]
    for row in 0..rows {
        so_far.top[row] = f32::MIN.runtime();
    }

    for tile in 0..tiles {
        // All units are done with the tile before this one, and this one has come.
        barrier.arrive_and_wait();
        let next = tile + 1;
        if next < tiles {
            let at = next % 2 * STAGE;
            copy(k_btgp, k_rows, next * TILE, &mut staged, at, TILE, p);
            copy(v_btgp, v_rows, next * TILE, &mut staged, at + TILE, TILE, p);
        }
        barrier.commit_copy_async();

        let key = tile * TILE;
        let at = tile % 2 * STAGE;
        if first < l && key < position + comptime!(16 * down) {
            // Keys after a query, on and beyond the diagonal.
            if key + comptime!(TILE - 1) > position {
                add(
                    &queries,
                    &staged,
                    at,
                    &mut so_far,
                    scale,
                    slack,
                    position,
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
                    slack,
                    position,
                    key,
                    false,
                    p,
                    down,
                );
            }
        }
    }

    #[unroll]
    for row in 0..rows {
        let query = first + comptime!(row / 2 * 16 + row % 2 * 8) + lane / 4;
        let inverse = 1.0 / so_far.sums[row][0];
        if query < l {
            let to = ((batch * l + query) * h + head) * p + lane % 4 * 2;
            #[unroll]
            for j in 0..comptime!(p / 8) {
                let at = comptime!((row / 2 * (p / 8) + j) * 2 + row % 2);
                let y = so_far.y[at] * Vector::new(inverse);
                y_blhp[to / 2 + comptime!(j * 4)] = Vector::cast_from(y);
            }
        }
    }
}
