//! The backward pass to the queries: a plane has 16 of them.

use cubecl::prelude::barrier::Barrier;
use cubecl::prelude::*;

use super::super::reach::{Block, Reach, Rule, all_see, key_tiles, nth, sees, some_see};
use super::{
    OWN, PLANES, STAGE, TILE, add_products, copy, left_factors, products, weight, write_row, zeros,
};
use crate::cube::documents::row_tokens;
use crate::cube::fragments::{Eight, Matrix, PLANE, Pair};
use crate::cube::rows::{View, rows_of};
use crate::cube::tiles::longest_first;

/// The data of a plane's queries.
#[derive(CubeType)]
struct Own<E: Float> {
    queries: Sequence<Array<Vector<E, Pair>>>,
    /// Gradients of their outputs.
    dy: Sequence<Array<Vector<E, Pair>>>,
    /// Of a unit's two rows, as of [`super::super::statistics`].
    lse: Array<f32>,
    along: Array<f32>,
}

/// Adds the contributions of the tile of keys that begins at row `at` of shared memory, and of the values after it.
/// `hidden` as in the forward pass.
#[cube]
fn add<E: Float>(
    own: &Own<E>,
    staged: &Matrix<E, Eight>,
    at: usize,
    dq: &mut Array<Vector<f32, Pair>>,
    scale: f32,
    reach: Reach,
    starts_bl: &ComptimeOption<Array<i32>>,
    block: Block,
    #[comptime] hidden: bool,
    #[comptime] rule: Rule,
    #[comptime] p: usize,
) {
    let lane = UNIT_POS_PLANE as usize;
    let scores = products(&own.queries, staged, at, TILE, p, 1usize);
    let mut slopes = products(&own.dy, staged, at + TILE, TILE, p, 1usize);
    #[unroll]
    for i in 0..comptime!(TILE / 4) {
        let row = comptime!(i % 2);
        let position = block.position + comptime!(row * 8) + lane / 4;
        let key = block.key + comptime!(i / 2 * 8) + lane % 4 * 2;
        let score = scores[i];
        let mut slope = slopes[i];
        #[unroll]
        for k in 0..2usize {
            let mut value = weight(score[k] * scale - own.lse[row]) * (slope[k] - own.along[row]);
            if comptime!(hidden) {
                let seen = sees(reach, starts_bl, block.tokens, position, key + k, rule);
                value = select(seen, value, 0.0f32);
            }
            slope[k] = value;
        }
        slopes[i] = slope;
    }
    add_products(&slopes, staged, at, dq, TILE, p);
}

/// The gradient to the queries, `[b, l, h, p]`. `scale` is the scores' times the logarithm of e to base 2, over
/// `FLOOR`; `statistics_bhl` has the logarithms times the same but for the scores' scale, which is `dq_scale`.
///
/// Cubes: heads, batch, blocks of queries, as forward.
#[cube(
    launch_unchecked,
    address_type = "dynamic",
    fast_math = FastMath::ReducedPrecision | FastMath::NotNaN | FastMath::NotInf
)]
pub(in super::super) fn query_gradients<E: Float>(
    q_blhp: &Array<Vector<E, Eight>>,
    k_btgp: &Array<Vector<E, Eight>>,
    v_btgp: &Array<Vector<E, Eight>>,
    dy_blhp: &Array<Vector<E, Eight>>,
    statistics_bhl: &Array<Vector<f32, Pair>>,
    starts_bl: &ComptimeOption<Array<i32>>,
    dq_blhp: &mut Array<Vector<E, Pair>>,
    scale: f32,
    dq_scale: f32,
    q_view: View,
    k_view: View,
    v_view: View,
    dy_view: View,
    reach: Reach,
    #[comptime] rule: Rule,
    #[comptime] p: usize,
    #[define(E)] _dtype: StorageType,
) {
    let (head, batch) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let h = CUBE_COUNT_X as usize;
    let q_rows = rows_of(&q_view, batch, head, h);
    let k_rows = rows_of(&k_view, batch, head, h);
    let v_rows = rows_of(&v_view, batch, head, h);
    let dy_rows = rows_of(&dy_view, batch, head, h);
    let (l, t) = (q_rows.count, k_rows.count);
    let cube_first = longest_first(CUBE_POS_Z as usize, CUBE_COUNT_Z as usize, false) * OWN;
    let cube_position = t - l + cube_first;
    let lane = UNIT_POS_PLANE as usize;
    let plane_row = UNIT_POS as usize / PLANE * 16;
    // The plane's first query, and its position.
    let first = cube_first + plane_row;
    let position = t - l + first;
    let end = clamp_max(cube_position + OWN, t);
    let tokens = row_tokens(batch, l);
    let tiles = key_tiles(reach, starts_bl, tokens, cube_position, end, TILE, rule);

    let mut staged = Matrix::<E, Eight>::new(comptime!(2 * STAGE), p, 8usize);
    let barrier = Barrier::shared(comptime!((PLANES * PLANE) as u32).runtime(), UNIT_POS == 0);
    // The cube's own rows are copied through the memory of the second tile.
    let of_dy = comptime!(STAGE + OWN);
    copy(q_blhp, q_rows, cube_first, &mut staged, STAGE, OWN, p);
    copy(dy_blhp, dy_rows, cube_first, &mut staged, of_dy, OWN, p);
    let key = nth(tiles, 0, rule) * TILE;
    copy(k_btgp, k_rows, key, &mut staged, 0, TILE, p);
    copy(v_btgp, v_rows, key, &mut staged, TILE, TILE, p);
    barrier.commit_copy_async();
    barrier.arrive_and_wait();
    let mut own = Own::<E> {
        queries: left_factors(&staged, plane_row + STAGE, p, 1usize),
        dy: left_factors(&staged, plane_row + of_dy, p, 1usize),
        lse: Array::new(2usize),
        along: Array::new(2usize),
    };
    #[unroll]
    for row in 0..2usize {
        let query = clamp_max(first + comptime!(row * 8) + lane / 4, l - 1);
        let pair = statistics_bhl[(batch * h + head) * l + query];
        own.lse[row] = pair[0];
        own.along[row] = pair[1];
    }
    let mut dq = zeros(comptime!(p / 8));

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
            last_position: position + 15,
            key,
            last_key: key + comptime!(TILE - 1),
            tokens,
        };
        if first < l && some_see(reach, starts_bl, block, rule) {
            if all_see(reach, starts_bl, block, rule) {
                add(
                    &own, &staged, at, &mut dq, scale, reach, starts_bl, block, false, rule, p,
                );
            } else {
                add(
                    &own, &staged, at, &mut dq, scale, reach, starts_bl, block, true, rule, p,
                );
            }
        }
    }

    #[unroll]
    for row in 0..2usize {
        let query = first + comptime!(row * 8) + lane / 4;
        if query < l {
            let to = ((batch * l + query) * h + head) * p;
            write_row(&dq, row, dq_scale, dq_blhp, to, p);
        }
    }
}
