//! The forward pass: a plane has 16 or 32 queries.

use std::f32::consts::LN_2;

use cubecl::prelude::barrier::Barrier;
use cubecl::prelude::*;

use super::super::reach::{Block, Reach, Rule, all_see, key_tiles, nth, sees, some_see};
use super::{
    FLOOR, PLANES, STAGE, TILE, copy, left_factors, multiply, product, products, weight, write_row,
    zeros,
};
use crate::cube::documents::row_tokens;
use crate::cube::fragments::{Eight, Matrix, PLANE, Pair};
use crate::cube::rows::{View, rows_of};
use crate::cube::tiles::longest_first;

/// The natural logarithm of two to the power of `FLOOR`.
const LN_LEAST: f32 = FLOOR * LN_2;

/// How many times 16 queries a plane has, of `l` in all with heads of `p`: registers allow 32 to narrow heads.
pub(in super::super) fn down(l: usize, p: usize) -> usize {
    if p <= 64 && l > queries(1) { 2 } else { 1 }
}

/// Queries of a cube whose planes have `down` times 16.
pub(in super::super) const fn queries(down: usize) -> usize {
    PLANES * 16 * down
}

/// The larger of what the four units of a row have.
#[cube]
fn row_max(value: f32) -> f32 {
    let pairs = max(value, plane_shuffle_xor(value, 1u32));
    max(pairs, plane_shuffle_xor(pairs, 2u32))
}

/// The running results of a plane's queries: two rows of each unit for every 16 queries.
#[derive(CubeType)]
struct SoFar {
    /// The score of weight one, at least a row's largest.
    top: Array<f32>,
    /// Of a row's weights, the same in each column of a fragment.
    sums: Array<Vector<f32, Pair>>,
    /// Of values times their weights.
    y: Array<Vector<f32, Pair>>,
}

/// Adds the tile of keys in rows `at` on of shared memory, and of values behind it. The queries from `block.position`
/// on see all keys, from `block.key` on, unless some are `hidden`. `scale` and `slack` as in [`attend`].
#[cube]
fn add<E: Float>(
    queries: &Sequence<Array<Vector<E, Pair>>>,
    staged: &Matrix<E, Eight>,
    at: usize,
    so_far: &mut SoFar,
    scale: f32,
    slack: f32,
    reach: Reach,
    starts_bl: &ComptimeOption<Array<i32>>,
    block: Block,
    #[comptime] hidden: bool,
    #[comptime] rule: Rule,
    #[comptime] p: usize,
    #[comptime] down: usize,
) {
    let rows = comptime!(2 * down);
    let lane = UNIT_POS_PLANE as usize;
    let mut scores = products(queries, staged, at, TILE, p, down);

    if comptime!(hidden) {
        #[unroll]
        for i in 0..comptime!(down * TILE / 4) {
            let row = comptime!(i / (TILE / 4) * 16 + i % 2 * 8);
            let own = block.position + row + lane / 4;
            let column = block.key + comptime!(i % (TILE / 4) / 2 * 8) + lane % 4 * 2;
            let mut pair = scores[i];
            #[unroll]
            for k in 0..2usize {
                let seen = sees(reach, starts_bl, block.tokens, own, column + k, rule);
                pair[k] = select(seen, pair[k], f32::MIN.runtime());
            }
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
            // Only rows whose maximum has changed are rescaled, so that the result of a query does not depend on the
            // other queries of its plane.
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

/// Queries `[b, l, h, p]`, keys and values `[b, t, g, p]` to `[b, l, h, p]`, and the logarithms of the sums of the
/// scores' exponentials, `[b, h, l]`. `starts_bl` is given if the rule is packed; the rule also distinguishes the two
/// optional arguments in the kernel cache. `scale` is the scale of the scores times the logarithm of e to base 2,
/// divided by `FLOOR`. If a row's largest score exceeds the score of weight one, the score of weight one becomes the
/// largest score plus `slack`. So sums and outputs are rescaled only if the largest score has changed much, not at
/// every change.
///
/// Cubes: heads, batch, blocks of queries, the last of which see the most keys and come first.
#[cube(
    launch_unchecked,
    address_type = "dynamic",
    fast_math = FastMath::ReducedPrecision | FastMath::NotNaN | FastMath::NotInf
)]
pub(in super::super) fn attend<E: Float>(
    q_blhp: &Array<Vector<E, Eight>>,
    k_btgp: &Array<Vector<E, Eight>>,
    v_btgp: &Array<Vector<E, Eight>>,
    starts_bl: &ComptimeOption<Array<i32>>,
    y_blhp: &mut Array<Vector<E, Pair>>,
    lse_bhl: &mut ComptimeOption<Array<f32>>,
    scale: f32,
    slack: f32,
    q_view: View,
    k_view: View,
    v_view: View,
    reach: Reach,
    #[comptime] rule: Rule,
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
    let cube_position = t - l + cube_first;
    let end = clamp_max(cube_position + comptime!(queries(down)), t);
    let tokens = row_tokens(batch, l);
    let tiles = key_tiles(reach, starts_bl, tokens, cube_position, end, TILE, rule);

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
    let key = nth(tiles, 0, rule) * TILE;
    copy(k_btgp, k_rows, key, &mut staged, 0, TILE, p);
    copy(v_btgp, v_rows, key, &mut staged, TILE, TILE, p);
    barrier.commit_copy_async();
    barrier.arrive_and_wait();
    let queries = left_factors(&staged, plane_row + STAGE, p, down);

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

    for i in 0..tiles.count {
        // All units are done with the tile before this one, and this one has come.
        barrier.arrive_and_wait();
        let next = i + 1;
        if next < tiles.count {
            let at = next % 2 * STAGE;
            let key = nth(tiles, next, rule) * TILE;
            copy(k_btgp, k_rows, key, &mut staged, at, TILE, p);
            copy(v_btgp, v_rows, key, &mut staged, at + TILE, TILE, p);
        }
        barrier.commit_copy_async();

        let key = nth(tiles, i, rule) * TILE;
        let at = i % 2 * STAGE;
        let block = Block {
            position,
            last_position: position + comptime!(16 * down - 1),
            key,
            last_key: key + comptime!(TILE - 1),
            tokens,
        };
        if first < l && some_see(reach, starts_bl, block, rule) {
            if all_see(reach, starts_bl, block, rule) {
                add(
                    &queries,
                    &staged,
                    at,
                    &mut so_far,
                    scale,
                    slack,
                    reach,
                    starts_bl,
                    block,
                    false,
                    rule,
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
                    reach,
                    starts_bl,
                    block,
                    true,
                    rule,
                    p,
                    down,
                );
            }
        }
    }

    #[unroll]
    for row in 0..rows {
        let query = first + comptime!(row / 2 * 16 + row % 2 * 8) + lane / 4;
        let sum = so_far.sums[row][0];
        if query < l {
            let to = ((batch * l + query) * h + head) * p;
            write_row(&so_far.y, row, 1.0 / sum, y_blhp, to, p);
            #[comptime]
            match lse_bhl {
                ComptimeOption::Some(lse_bhl) => {
                    let column = lane % 4;
                    if column == 0 {
                        let top = so_far.top[row] * scale * LN_LEAST.runtime();
                        lse_bhl[(batch * h + head) * l + query] = top + sum.ln();
                    }
                }
                ComptimeOption::None => {}
            }
        }
    }
}
