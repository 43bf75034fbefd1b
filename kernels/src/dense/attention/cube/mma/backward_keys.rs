//! The backward pass to the keys and values: a plane has 16 of them. Tiles have keys as rows and queries as columns,
//! so that weights and gradients of scores are left factors here too.

use cubecl::prelude::barrier::{Barrier, copy_async};
use cubecl::prelude::*;

use super::super::reach::{Block, Reach, Rule, all_see, query_tiles, sees, some_see};
use super::{
    BARRIER, OWN, PLANES, TILE, add_products, copy, left_factors, products, weight, write_row,
    zeros,
};
use crate::cube::documents::row_tokens;
use crate::cube::fragments::{Eight, Matrix, PLANE, Pair};
use crate::cube::rows::{View, rows_of};
use crate::cube::tiles::longest_first;

/// Queries of a tile: of wide heads, whose two gradients fill the registers, fewer.
const fn queries(p: usize) -> usize {
    if p <= 64 { TILE } else { TILE / 2 }
}

/// Bytes of shared memory for heads of `p`: keys and values, two tiles of queries and of their outputs' gradients, and
/// two numbers of each of these queries.
pub(super) const fn shared_bytes(p: usize) -> usize {
    let of_rows = 2 * (2 * OWN + 4 * queries(p)) * (p + 8);
    of_rows + 2 * 8 * queries(p) + BARRIER
}

/// What a cube has in shared memory.
#[derive(CubeType)]
struct Memory<E: Float> {
    /// Its keys, and its values behind them.
    own: Matrix<E, Eight>,
    /// Twice a tile of queries, and one of the outputs' gradients behind it.
    staged: Matrix<E, Eight>,
    /// Twice what [`super::super::statistics`] are of a tile's queries.
    statistics: SharedMemory<Vector<f32, Pair>>,
}

/// The sums of a plane's keys and values.
#[derive(CubeType)]
struct Sums {
    dk: Array<Vector<f32, Pair>>,
    dv: Array<Vector<f32, Pair>>,
}

/// Starts to copy what is read of the queries from `first` on.
#[cube]
fn fetch<E: Float>(
    q_blhp: &Array<Vector<E, Eight>>,
    dy_blhp: &Array<Vector<E, Eight>>,
    statistics_bhl: &Array<Vector<f32, Pair>>,
    q_view: &View,
    dy_view: &View,
    memory: &mut Memory<E>,
    stage: usize,
    batch: usize,
    head: usize,
    first: usize,
    #[comptime] p: usize,
) {
    let tile = comptime!(queries(p));
    let (l, h) = (q_view.count, q_view.groups);
    let q_rows = rows_of(q_view, batch, head, h);
    let dy_rows = rows_of(dy_view, batch, head, h);
    let at = stage * comptime!(2 * tile);
    copy(q_blhp, q_rows, first, &mut memory.staged, at, tile, p);
    copy(
        dy_blhp,
        dy_rows,
        first,
        &mut memory.staged,
        at + tile,
        tile,
        p,
    );
    let unit = UNIT_POS as usize;
    if unit < tile {
        let query = clamp_max(first + unit, l - 1);
        let from = (batch * h + head) * l + query;
        let from = statistics_bhl.slice(from, from + 1);
        let to = stage * tile + unit;
        let mut to = memory.statistics.slice_mut(to, to + 1);
        copy_async(&from, &mut to, comptime!(2u32));
    }
}

/// Adds the contributions of the tile of queries from `first` on. `hidden` as in the forward pass.
#[cube]
fn add<E: Float>(
    memory: &Memory<E>,
    stage: usize,
    sums: &mut Sums,
    scale: f32,
    reach: Reach,
    starts_bl: &ComptimeOption<Array<i32>>,
    block: Block,
    first: usize,
    l: usize,
    #[comptime] hidden: bool,
    #[comptime] rule: Rule,
    #[comptime] p: usize,
) {
    let tile = comptime!(queries(p));
    let lane = UNIT_POS_PLANE as usize;
    let plane_row = UNIT_POS as usize / PLANE * 16;
    let of_queries = stage * comptime!(2 * tile);
    let of_dy = of_queries + tile;
    let keys = left_factors(&memory.own, plane_row, p, 1usize);
    let mut weights = products(&keys, &memory.staged, of_queries, tile, p, 1usize);
    let values = left_factors(&memory.own, plane_row + OWN, p, 1usize);
    let mut slopes = products(&values, &memory.staged, of_dy, tile, p, 1usize);
    #[unroll]
    for j in 0..comptime!(tile / 8) {
        #[unroll]
        for k in 0..2usize {
            let column = lane % 4 * 2 + comptime!(j * 8 + k);
            let of_query = memory.statistics[stage * tile + column];
            let (lse, along) = (of_query[0], of_query[1]);
            #[unroll]
            for row in 0..2usize {
                let i = comptime!(j * 2 + row);
                let mut pair = weights[i];
                let mut slope = slopes[i];
                let mut value = weight(pair[k] * scale - lse);
                if comptime!(hidden) {
                    let key = block.key + comptime!(row * 8) + lane / 4;
                    let position = block.position + column;
                    let seen = sees(reach, starts_bl, block.tokens, position, key, rule);
                    value = select(seen && first + column < l, value, 0.0f32);
                }
                pair[k] = value;
                slope[k] = value * (slope[k] - along);
                weights[i] = pair;
                slopes[i] = slope;
            }
        }
    }
    add_products(&weights, &memory.staged, of_dy, &mut sums.dv, tile, p);
    add_products(&slopes, &memory.staged, of_queries, &mut sums.dk, tile, p);
}

/// The gradients to the keys and the values, `[b, t, g, p]`; numbers as of [`super::query_gradients`]. A cube goes
/// over the queries of all heads that read its group, so that their sum is its own.
///
/// Cubes: groups, batch, blocks of keys, the first of which are seen by the most queries and come first.
#[cube(
    launch_unchecked,
    address_type = "dynamic",
    fast_math = FastMath::ReducedPrecision | FastMath::NotNaN | FastMath::NotInf
)]
pub(in super::super) fn key_gradients<E: Float>(
    q_blhp: &Array<Vector<E, Eight>>,
    k_btgp: &Array<Vector<E, Eight>>,
    v_btgp: &Array<Vector<E, Eight>>,
    dy_blhp: &Array<Vector<E, Eight>>,
    statistics_bhl: &Array<Vector<f32, Pair>>,
    starts_bl: &ComptimeOption<Array<i32>>,
    dk_btgp: &mut Array<Vector<E, Pair>>,
    dv_btgp: &mut Array<Vector<E, Pair>>,
    scale: f32,
    dk_scale: f32,
    q_view: View,
    k_view: View,
    v_view: View,
    dy_view: View,
    reach: Reach,
    #[comptime] rule: Rule,
    #[comptime] p: usize,
    #[define(E)] _dtype: StorageType,
) {
    let tile = comptime!(queries(p));
    let (group, batch) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let (g, h) = (CUBE_COUNT_X as usize, q_view.groups);
    let k_rows = rows_of(&k_view, batch, group, g);
    let v_rows = rows_of(&v_view, batch, group, g);
    let (l, t) = (q_view.count, k_rows.count);
    let cube_first = longest_first(CUBE_POS_Z as usize, CUBE_COUNT_Z as usize, true) * OWN;
    let lane = UNIT_POS_PLANE as usize;
    let first = cube_first + UNIT_POS as usize / PLANE * 16;
    let tokens = row_tokens(batch, l);
    let tiles = query_tiles(reach, starts_bl, tokens, cube_first, l, t, OWN, tile, rule);
    let heads = h / g;
    let steps = heads * tiles.count;

    let mut memory = Memory::<E> {
        own: Matrix::<E, Eight>::new(comptime!(2 * OWN), p, 8usize),
        staged: Matrix::<E, Eight>::new(comptime!(4 * tile), p, 8usize),
        statistics: SharedMemory::<Vector<f32, Pair>>::new_aligned(comptime!(2 * tile), 16usize),
    };
    let barrier = Barrier::shared(comptime!((PLANES * PLANE) as u32).runtime(), UNIT_POS == 0);
    if steps > 0 {
        copy(k_btgp, k_rows, cube_first, &mut memory.own, 0, OWN, p);
        copy(v_btgp, v_rows, cube_first, &mut memory.own, OWN, OWN, p);
        fetch(
            q_blhp,
            dy_blhp,
            statistics_bhl,
            &q_view,
            &dy_view,
            &mut memory,
            0,
            batch,
            group * heads,
            tiles.first * tile,
            p,
        );
    }
    barrier.commit_copy_async();
    let mut sums = Sums {
        dk: zeros(comptime!(p / 8)),
        dv: zeros(comptime!(p / 8)),
    };

    for step in 0..steps {
        // All units are done with the tile before this one, and this one has come.
        barrier.arrive_and_wait();
        let next = step + 1;
        if next < steps {
            fetch(
                q_blhp,
                dy_blhp,
                statistics_bhl,
                &q_view,
                &dy_view,
                &mut memory,
                next % 2,
                batch,
                group * heads + next / tiles.count,
                (tiles.first + next % tiles.count) * tile,
                p,
            );
        }
        barrier.commit_copy_async();

        let query = (tiles.first + step % tiles.count) * tile;
        let stage = step % 2;
        let position = t - l + query;
        let block = Block {
            position,
            last_position: position + comptime!(tile - 1),
            key: first,
            last_key: first + 15,
            tokens,
        };
        if first < t && some_see(reach, starts_bl, block, rule) {
            if all_see(reach, starts_bl, block, rule) && query + tile <= l {
                add(
                    &memory, stage, &mut sums, scale, reach, starts_bl, block, query, l, false,
                    rule, p,
                );
            } else {
                add(
                    &memory, stage, &mut sums, scale, reach, starts_bl, block, query, l, true,
                    rule, p,
                );
            }
        }
    }

    #[unroll]
    for row in 0..2usize {
        let key = first + comptime!(row * 8) + lane / 4;
        if key < t {
            let to = ((batch * t + key) * g + group) * p;
            write_row(&sums.dk, row, dk_scale, dk_btgp, to, p);
            write_row(&sums.dv, row, 1.0f32, dv_btgp, to, p);
        }
    }
}
