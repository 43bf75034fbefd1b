//! In tiles of `r * 16` by `r * 16`, with nothing but shared memory and barriers, in f32.

use cubecl::prelude::*;

use crate::cube::rows::{View, rows_of};
use crate::cube::tiles::{DEPTH, PITCH, SIDE, longest_first, products, stage};

/// Columns of [`DEPTH`] that a unit has.
const ACROSS: usize = DEPTH / SIDE;
/// Numbers from one row of shared memory to the next.
const LINE: usize = SIDE + 1;

/// Queries `[b, l, h, p]`, keys and values `[b, t, g, p]` to `[b, l, h, p]`.
///
/// Cubes: heads, batch, blocks of queries, the last of which see the most keys and come first.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn attend<F: Float>(
    q_blhp: &Array<F>,
    k_btgp: &Array<F>,
    v_btgp: &Array<F>,
    y_blhp: &mut Array<F>,
    scale: f32,
    q_view: View,
    k_view: View,
    v_view: View,
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
    let keys = clamp_max(position + tile, t);

    let mut staged = SharedMemory::<f32>::new(comptime!(2 * tile * PITCH));
    let mut weights = SharedMemory::<f32>::new(comptime!(tile * (tile + 1)));
    let slices = comptime!(p.div_ceil(DEPTH));
    let of_row = comptime!(slices * ACROSS);
    let mut y = Array::<f32>::new(comptime!(r * of_row));
    #[unroll]
    for i in 0..comptime!(r * of_row) {
        y[i] = 0.0f32;
    }
    let mut reference = Array::<f32>::new(r);
    let mut sums = Array::<f32>::new(r);
    #[unroll]
    for i in 0..r {
        reference[i] = f32::MIN.runtime();
        sums[i] = 0.0f32;
    }

    for other in 0..keys.div_ceil(tile) {
        let key = other * tile;
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
                if key + unit_x + comptime!(j * SIDE) > position + row {
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
            // Each row sees the first key, so that this is a score from the first tile on.
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
                let weight = (scores[comptime!(i * r + j)] - largest).exp();
                sum += weight;
                weights[row * comptime!(tile + 1) + unit_x + comptime!(j * SIDE)] = weight;
            }
            sums[i] = sum;
        }
        #[unroll]
        for slice in 0..slices {
            sync_cube();
            stage(
                v_btgp,
                v_rows,
                key,
                comptime!(slice * DEPTH),
                &mut staged,
                0,
                p,
                r,
            );
            sync_cube();
            for s in 0..tile {
                let mut values = Array::<f32>::new(ACROSS);
                #[unroll]
                for j in 0..ACROSS {
                    values[j] = staged[s * PITCH + unit_x + comptime!(j * SIDE)];
                }
                #[unroll]
                for i in 0..r {
                    let row = unit_y + comptime!(i * SIDE);
                    let weight = weights[row * comptime!(tile + 1) + s];
                    #[unroll]
                    for j in 0..ACROSS {
                        y[comptime!(i * of_row + slice * ACROSS + j)] += weight * values[j];
                    }
                }
            }
        }
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
        if first + row < l {
            let to = ((batch * l + first + row) * h + head) * p;
            #[unroll]
            for j in 0..of_row {
                let column = unit_x + comptime!(j * SIDE);
                if column < p {
                    y_blhp[to + column] = F::cast_from(y[comptime!(i * of_row + j)] / sum);
                }
            }
        }
    }
}
