//! The forward pass.

use cubecl::prelude::*;

use super::super::reach::{Reach, Rule, key_tiles, nth, sees};
use super::{add_products, columns, write, zeros};
use crate::cube::documents::row_tokens;
use crate::cube::rows::{View, rows_of};
use crate::cube::tiles::{PITCH, SIDE, longest_first, products};

/// Numbers from one row of shared memory to the next.
const LINE: usize = SIDE + 1;

/// Queries `[b, l, h, p]`, keys and values `[b, t, g, p]` to `[b, l, h, p]`, and the logarithms of the sums of the
/// scores' exponentials, `[b, h, l]`. `starts_bl` is given if the rule is packed; the rule also distinguishes the two
/// optional arguments in the kernel cache.
///
/// Cubes: heads, batch, blocks of queries, the last of which see the most keys and come first.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(in super::super) fn attend<F: Float>(
    q_blhp: &Array<F>,
    k_btgp: &Array<F>,
    v_btgp: &Array<F>,
    starts_bl: &ComptimeOption<Array<i32>>,
    y_blhp: &mut Array<F>,
    lse_bhl: &mut ComptimeOption<Array<f32>>,
    scale: f32,
    q_view: View,
    k_view: View,
    v_view: View,
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
    let (l, t) = (q_rows.count, k_rows.count);
    let block = longest_first(CUBE_POS_Z as usize, CUBE_COUNT_Z as usize, false);
    let first = block * tile;
    let position = t - l + first;
    let end = clamp_max(position + tile, t);
    let tokens = row_tokens(batch, l);
    let tiles = key_tiles(reach, starts_bl, tokens, position, end, tile, rule);

    let mut staged = SharedMemory::<f32>::new(comptime!(2 * tile * PITCH));
    let mut weights = SharedMemory::<f32>::new(comptime!(tile * (tile + 1)));
    let of_row = comptime!(columns(p));
    let mut y = zeros(comptime!(r * of_row));
    let mut sums = zeros(r);
    let mut reference = Array::<f32>::new(r);
    #[unroll]
    for i in 0..r {
        reference[i] = f32::MIN.runtime();
    }

    for i in 0..tiles.count {
        let key = nth(tiles, i, rule) * tile;
        let mut scores = products(
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
        sync_cube();
        #[unroll]
        for i in 0..r {
            let row = unit_y + comptime!(i * SIDE);
            let mut largest = f32::MIN.runtime();
            #[unroll]
            for j in 0..r {
                let mut score = scores[comptime!(i * r + j)] * scale;
                let column = key + unit_x + comptime!(j * SIDE);
                if !sees(reach, starts_bl, tokens, position + row, column, rule) {
                    score = f32::MIN.runtime();
                }
                largest = max(largest, score);
                scores[comptime!(i * r + j)] = score;
            }
            staged[row * LINE + unit_x] = largest;
        }
        sync_cube();
        #[unroll]
        for i in 0..r {
            let row = unit_y + comptime!(i * SIDE);
            // Without a window each row sees the first key, so that this is a score from the first tile on.
            let mut largest = reference[i];
            #[unroll]
            for x in 0..SIDE {
                largest = max(largest, staged[row * LINE + x]);
            }
            let rescale = (reference[i] - largest).exp();
            reference[i] = largest;
            let mut sum = sums[i] * rescale;
            #[unroll]
            for j in 0..of_row {
                y[comptime!(i * of_row + j)] *= rescale;
            }
            #[unroll]
            for j in 0..r {
                let score = scores[comptime!(i * r + j)];
                let mut weight = (score - largest).exp();
                if comptime!(rule.windowed || rule.packed) {
                    // A row that has seen no key yet has no largest score to tell them from.
                    weight = select(score == f32::MIN.runtime(), 0.0f32, weight);
                }
                sum += weight;
                weights[row * comptime!(tile + 1) + unit_x + comptime!(j * SIDE)] = weight;
            }
            sums[i] = sum;
        }
        add_products(&weights, v_btgp, v_rows, key, &mut staged, &mut y, p, r);
    }

    sync_cube();
    #[unroll]
    for i in 0..r {
        staged[(unit_y + comptime!(i * SIDE)) * LINE + unit_x] = sums[i];
    }
    sync_cube();
    #[unroll]
    for i in 0..r {
        let row = unit_y + comptime!(i * SIDE);
        let mut sum = 0.0f32;
        #[unroll]
        for x in 0..SIDE {
            sum += staged[row * LINE + x];
        }
        #[unroll]
        for j in 0..of_row {
            y[comptime!(i * of_row + j)] = y[comptime!(i * of_row + j)] / sum;
        }
        #[comptime]
        match lse_bhl {
            ComptimeOption::Some(lse_bhl) => {
                if unit_x == 0 && first + row < l {
                    lse_bhl[(batch * h + head) * l + first + row] = reference[i] + sum.ln();
                }
            }
            ComptimeOption::None => {}
        }
    }
    write(&y, 1.0f32, y_blhp, batch, first, l, head, h, p, r);
}
