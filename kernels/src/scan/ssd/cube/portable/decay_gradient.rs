//! The gradient of the decays.

use cubecl::prelude::*;

use super::super::decay::{Decays, sigmoid};
use super::tile::{ACROSS, DOWN, Micro, Tile, Window, Zeros, tokens, units};

/// The gradient of `a_log` in one chunk of one head.
///
/// The log-decay of token k is in every path from a token before k to one at k or after it, so its
/// gradient is the sum of what all those paths give: of those inside the chunk
/// `G[t, s] = L[t, s] (C_t . B_s) (dy_t . x_s)`, of those that enter it, that leave it, and that run
/// through it.
///
/// Cubes: chunks, batch times heads.
#[cube(launch, address_type = "dynamic")]
pub fn decay_gradient<E: Float>(
    x_blhp: &Tensor<E>,
    b_blgn: &Tensor<E>,
    c_blgn: &Tensor<E>,
    dy_blhp: &Tensor<E>,
    a_log_blh: &Tensor<f32>,
    // [2, b, h, chunks, p, n]: the states that enter, and the gradients of those that leave.
    states: &Tensor<f32>,
    da_log_blh: &mut Tensor<f32>,
    #[comptime] chunk: usize,
    #[define(E)] _dtype: StorageType,
) {
    let l = x_blhp.shape(1);
    let h = x_blhp.shape(2);
    let p = x_blhp.shape(3);
    let n = b_blgn.shape(3);
    let k = CUBE_POS_X as usize;
    let batch = CUBE_POS_Y as usize / h;
    let head = CUBE_POS_Y as usize % h;
    let group = head / (h / b_blgn.shape(2));
    let first_token = k * chunk;
    let present = min(l - first_token, chunk);
    let entering = (CUBE_POS_Y as usize * CUBE_COUNT_X as usize + k) * p * n;
    let leaving = entering + states.stride(0);
    let unit = UNIT_POS as usize;

    let mut decays = Decays::new(chunk);
    let mut left = Tile::new(chunk);
    let mut right = Tile::new(chunk);
    decays.load(a_log_blh, batch, first_token, present, head);

    let mut paths = Micro::new(chunk);
    for block in 0..n.div_ceil(chunk) {
        sync_cube();
        left.stage(
            c_blgn,
            tokens(c_blgn, batch, first_token, present, group, block * chunk),
        );
        right.stage(
            b_blgn,
            tokens(b_blgn, batch, first_token, present, group, block * chunk),
        );
        sync_cube();
        paths.add_scores(&left, &right, Zeros::Above);
    }
    let mut dscores = Micro::new(chunk);
    for block in 0..p.div_ceil(chunk) {
        sync_cube();
        left.stage(
            dy_blhp,
            tokens(dy_blhp, batch, first_token, present, head, block * chunk),
        );
        right.stage(
            x_blhp,
            tokens(x_blhp, batch, first_token, present, head, block * chunk),
        );
        sync_cube();
        dscores.add_scores(&left, &right, Zeros::Above);
    }

    // Inside: G's sums from each row downwards, then of each row's columns before the diagonal. Sums of
    // whole rows less sums of whole columns would be cheaper, and lose a small gradient between them.
    sync_cube();
    #[unroll]
    for i in 0..DOWN {
        let t = paths.row(i);
        #[unroll]
        for j in 0..ACROSS {
            let s = paths.column(j);
            let mut path = 0.0f32;
            if s < t {
                path = paths.get(i, j) * dscores.get(i, j) * decays.within(t, s, false);
            }
            left.set(t, s, path);
        }
    }
    sync_cube();
    if unit < chunk {
        let mut below = 0.0f32;
        for i in 0..chunk {
            let t = chunk - 1 - i;
            below += left.get(t, unit);
            left.set(t, unit, below);
        }
    }
    sync_cube();
    let mut total = 0.0f32;
    if unit < chunk {
        for s in 0..unit {
            total += left.get(unit, s);
        }
    }

    // What enters and what leaves: dy . (state C) and x . (dstate B), tile by tile of p, and this unit's
    // part of the sums over p.
    let mut enters = Array::<f32>::new(DOWN);
    let mut leaves = Array::<f32>::new(DOWN);
    #[unroll]
    for i in 0..DOWN {
        enters[i] = 0.0f32;
        leaves[i] = 0.0f32;
    }
    for block in 0..p.div_ceil(chunk) {
        let first_p = block * chunk;
        paths.clear();
        dscores.clear();
        for across in 0..n.div_ceil(chunk) {
            let first_n = across * chunk;
            sync_cube();
            left.stage(
                c_blgn,
                tokens(c_blgn, batch, first_token, present, group, first_n),
            );
            right.stage(states, state_window(entering, p, n, first_p, first_n));
            sync_cube();
            paths.add_product(&left, &right, false, true);
            sync_cube();
            left.stage(
                b_blgn,
                tokens(b_blgn, batch, first_token, present, group, first_n),
            );
            right.stage(states, state_window(leaving, p, n, first_p, first_n));
            sync_cube();
            dscores.add_product(&left, &right, false, true);
        }
        sync_cube();
        left.stage(
            dy_blhp,
            tokens(dy_blhp, batch, first_token, present, head, first_p),
        );
        right.stage(
            x_blhp,
            tokens(x_blhp, batch, first_token, present, head, first_p),
        );
        sync_cube();
        #[unroll]
        for i in 0..DOWN {
            let t = paths.row(i);
            #[unroll]
            for j in 0..ACROSS {
                let feature = paths.column(j);
                enters[i] += paths.get(i, j) * left.get(t, feature);
                leaves[i] += dscores.get(i, j) * right.get(t, feature);
            }
        }
    }

    // What runs through: each unit its share of the products of the two states.
    let units = comptime!(units(chunk));
    let mut through = 0.0f32;
    for i in 0..(p * n).div_ceil(units) {
        let element = i * units + unit;
        if element < p * n {
            through += states[entering + element] * states[leaving + element];
        }
    }
    through *= decays.between(0, chunk);

    // The units' parts, side by side; then each token's, in the order of the units.
    let width = comptime!(chunk / ACROSS);
    let column = unit % width;
    sync_cube();
    #[unroll]
    for i in 0..DOWN {
        let t = paths.row(i);
        left.set(t, column, enters[i] * decays.between(0, t + 1));
        left.set(t, column + width, leaves[i] * decays.between(t + 1, chunk));
    }
    right.set(unit % chunk, unit / chunk, through);
    sync_cube();
    let mut entering_t = 0.0f32;
    let mut leaving_t = 0.0f32;
    let mut through_t = 0.0f32;
    if unit < chunk {
        for i in 0..width {
            entering_t += left.get(unit, i);
            leaving_t += left.get(unit, i + width);
        }
        for i in 0..comptime!(units / chunk) {
            through_t += right.get(unit, i);
        }
    }
    sync_cube();
    if unit < chunk {
        right.set(0, unit, entering_t);
        right.set(1, unit, leaving_t);
        right.set(2, unit, through_t);
    }
    sync_cube();
    if unit < present {
        for t in 0..chunk {
            // Paths that enter pass this token on their way to t >= it; those that leave, from t < it.
            let mut row = 0usize;
            if t < unit {
                row = 1usize;
            }
            total += right.get(row, t) + right.get(2, t);
        }
        let index = batch * a_log_blh.stride(0)
            + (first_token + unit) * a_log_blh.stride(1)
            + head * a_log_blh.stride(2);
        da_log_blh[(batch * l + first_token + unit) * h + head] =
            -total * sigmoid(a_log_blh[index]);
    }
}

/// The tile of a state `[p, n]` that begins at (`first_p`, `first_n`).
#[cube]
fn state_window(state: usize, p: usize, n: usize, first_p: usize, first_n: usize) -> Window {
    Window {
        first: state + first_p * n + first_n,
        row_stride: n,
        column_stride: 1usize,
        rows: p - first_p,
        columns: n - first_n,
    }
}
