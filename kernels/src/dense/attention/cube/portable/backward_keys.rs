//! The backward pass to the keys and values.

use cubecl::prelude::*;

use super::super::reach::{Reach, Rule, query_tiles, sees};
use super::{add_products, columns, write, zeros};
use crate::cube::documents::row_tokens;
use crate::cube::rows::{View, rows_of};
use crate::cube::tiles::{PITCH, SIDE, longest_first, products};

/// The gradients to the keys and the values, `[b, t, g, p]`. `statistics` as of [`super::super::statistics`], with
/// the factor 1.
///
/// Tiles have keys as rows and queries as columns. A cube goes over the queries of all heads that read its group, so
/// that their sum is its own.
///
/// Cubes: groups, batch, blocks of keys, the first of which are seen by the most queries and come first.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(in super::super) fn key_gradients<F: Float>(
    q_blhp: &Array<F>,
    k_btgp: &Array<F>,
    v_btgp: &Array<F>,
    dy_blhp: &Array<F>,
    statistics: &Array<f32>,
    starts_bl: &ComptimeOption<Array<i32>>,
    dk_btgp: &mut Array<F>,
    dv_btgp: &mut Array<F>,
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
    let (group, batch) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let (g, h) = (CUBE_COUNT_X as usize, q_view.groups);
    let (unit_x, unit_y) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let k_rows = rows_of(&k_view, batch, group, g);
    let v_rows = rows_of(&v_view, batch, group, g);
    let (l, t) = (q_view.count, k_rows.count);
    let block = longest_first(CUBE_POS_Z as usize, CUBE_COUNT_Z as usize, true);
    let key = block * tile;
    let tokens = row_tokens(batch, l);
    let tiles = query_tiles(reach, starts_bl, tokens, key, l, t, tile, tile, rule);

    let mut staged = SharedMemory::<f32>::new(comptime!(2 * tile * PITCH));
    let mut factors = SharedMemory::<f32>::new(comptime!(tile * (tile + 1)));
    let mut dk = zeros(comptime!(r * columns(p)));
    let mut dv = zeros(comptime!(r * columns(p)));

    let heads = h / g;
    for step in 0..heads * tiles.count {
        let head = group * heads + step / tiles.count;
        let first = (tiles.first + step % tiles.count) * tile;
        let position = t - l + first;
        let q_rows = rows_of(&q_view, batch, head, h);
        let dy_rows = rows_of(&dy_view, batch, head, h);
        let scores = products(
            k_btgp,
            k_rows,
            key,
            q_blhp,
            q_rows,
            first,
            &mut staged,
            p,
            r,
        );
        let mut slopes = products(
            v_btgp,
            v_rows,
            key,
            dy_blhp,
            dy_rows,
            first,
            &mut staged,
            p,
            r,
        );
        #[unroll]
        for j in 0..r {
            let column = unit_x + comptime!(j * SIDE);
            let query = clamp_max(first + column, l - 1);
            let at = 2 * ((batch * h + head) * l + query);
            let (lse, along) = (statistics[at], statistics[at + 1]);
            #[unroll]
            for i in 0..r {
                let row = unit_y + comptime!(i * SIDE);
                let mut weight = 0.0f32;
                let seen = sees(reach, starts_bl, tokens, position + column, key + row, rule);
                if seen && first + column < l {
                    weight = (scores[comptime!(i * r + j)] * scale - lse).exp();
                }
                slopes[comptime!(i * r + j)] = weight * (slopes[comptime!(i * r + j)] - along);
                factors[row * comptime!(tile + 1) + column] = weight;
            }
        }
        add_products(
            &factors,
            dy_blhp,
            dy_rows,
            first,
            &mut staged,
            &mut dv,
            p,
            r,
        );
        sync_cube();
        #[unroll]
        for i in 0..r {
            let row = unit_y + comptime!(i * SIDE);
            #[unroll]
            for j in 0..r {
                let column = unit_x + comptime!(j * SIDE);
                factors[row * comptime!(tile + 1) + column] = slopes[comptime!(i * r + j)];
            }
        }
        add_products(&factors, q_blhp, q_rows, first, &mut staged, &mut dk, p, r);
    }
    write(&dk, scale, dk_btgp, batch, key, t, group, g, p, r);
    write(&dv, 1.0f32, dv_btgp, batch, key, t, group, g, p, r);
}
