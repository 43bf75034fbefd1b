//! The backward pass to the queries.

use cubecl::prelude::*;

use super::super::reach::{Reach, Rule, key_tiles, nth, sees};
use super::{add_products, columns, write, zeros};
use crate::cube::documents::row_tokens;
use crate::cube::rows::{View, rows_of};
use crate::cube::tiles::{PITCH, SIDE, longest_first, products};

/// The gradient to the queries, `[b, l, h, p]`. `statistics` as of [`super::super::statistics`], with the factor 1.
///
/// Cubes: heads, batch, blocks of queries, as forward.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(in super::super) fn query_gradients<F: Float>(
    q_blhp: &Array<F>,
    k_btgp: &Array<F>,
    v_btgp: &Array<F>,
    dy_blhp: &Array<F>,
    statistics: &Array<f32>,
    starts_bl: &ComptimeOption<Array<i32>>,
    dq_blhp: &mut Array<F>,
    scale: f32,
    q_view: View,
    k_view: View,
    v_view: View,
    dy_view: View,
    reach: Reach,
    #[comptime] rule: Rule,
    #[comptime] p: usize,
    #[comptime] r: usize,
    #[define(F)] _dtype: StorageType,
) {
    let tile = comptime!(r * SIDE);
    let (head, batch) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let h = CUBE_COUNT_X as usize;
    let (unit_x, unit_y) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let q_rows = rows_of(&q_view, batch, head, h);
    let k_rows = rows_of(&k_view, batch, head, h);
    let v_rows = rows_of(&v_view, batch, head, h);
    let dy_rows = rows_of(&dy_view, batch, head, h);
    let (l, t) = (q_rows.count, k_rows.count);
    let block = longest_first(CUBE_POS_Z as usize, CUBE_COUNT_Z as usize, false);
    let first = block * tile;
    let position = t - l + first;
    let end = clamp_max(position + tile, t);
    let tokens = row_tokens(batch, l);
    let tiles = key_tiles(reach, starts_bl, tokens, position, end, tile, rule);

    let mut staged = SharedMemory::<f32>::new(comptime!(2 * tile * PITCH));
    let mut slopes = SharedMemory::<f32>::new(comptime!(tile * (tile + 1)));
    let mut dq = zeros(comptime!(r * columns(p)));
    let mut lse = Array::<f32>::new(r);
    let mut along = Array::<f32>::new(r);
    #[unroll]
    for i in 0..r {
        let query = clamp_max(first + unit_y + comptime!(i * SIDE), l - 1);
        let at = 2 * ((batch * h + head) * l + query);
        lse[i] = statistics[at];
        along[i] = statistics[at + 1];
    }

    for i in 0..tiles.count {
        let key = nth(tiles, i, rule) * tile;
        let scores = products(
            q_blhp,
            q_rows,
            first,
            k_btgp,
            k_rows,
            key,
            &mut staged,
            p,
            r,
        );
        let to_weights = products(
            dy_blhp,
            dy_rows,
            first,
            v_btgp,
            v_rows,
            key,
            &mut staged,
            p,
            r,
        );
        #[unroll]
        for i in 0..r {
            let row = unit_y + comptime!(i * SIDE);
            #[unroll]
            for j in 0..r {
                let column = unit_x + comptime!(j * SIDE);
                let mut slope = 0.0f32;
                if sees(reach, starts_bl, tokens, position + row, key + column, rule) {
                    let weight = (scores[comptime!(i * r + j)] * scale - lse[i]).exp();
                    slope = weight * (to_weights[comptime!(i * r + j)] - along[i]);
                }
                slopes[row * comptime!(tile + 1) + column] = slope;
            }
        }
        add_products(&slopes, k_btgp, k_rows, key, &mut staged, &mut dq, p, r);
    }
    write(&dq, scale, dq_blhp, batch, first, l, head, h, p, r);
}
