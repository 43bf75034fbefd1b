//! Copies of inputs to tiles in shared memory, which a barrier waits for.

use cubecl::prelude::*;

use super::forward::CHUNK;
use super::product::{Eight, PLANE};
use super::tile::Tile;

/// Where the rows of one head lie in `[b, l, heads, features]`, in vectors: read once, as these numbers are in device
/// memory.
#[derive(CubeType, Clone, Copy)]
pub struct HeadRows {
    pub first: usize,
    pub step: usize,
}

#[cube]
pub fn head_rows<E: Float>(
    x_blhf: &Tensor<Vector<E, Eight>>,
    batch: usize,
    head: usize,
) -> HeadRows {
    HeadRows {
        first: (batch * x_blhf.stride(0) + head * x_blhf.stride(2)) / 8,
        step: x_blhf.stride(1) / 8,
    }
}

/// Starts to copy the chunk of a head's rows that begins at `token`, and of which `present` exist, to the rows of shared
/// memory from `at` on; the other rows become 0. A cube has so many `units`.
#[cube]
pub fn copy_tokens<E: Float>(
    to: &mut Tile<E>,
    at: usize,
    from: &Tensor<Vector<E, Eight>>,
    rows: HeadRows,
    token: usize,
    present: usize,
    #[comptime] width: usize,
    #[comptime] units: usize,
) {
    let across = comptime!(width / 8);
    let apart = comptime!(units / across);
    let rounds = comptime!(CHUNK.div_ceil(apart));
    let (row, vector) = (UNIT_POS as usize / across, UNIT_POS as usize % across);
    // Of a narrow matrix the last units have no rows.
    let mine = comptime!(apart <= CHUNK) || row < CHUNK;
    let first = rows.first + (token + row) * rows.step + vector;
    let step = rows.step * apart;
    if mine && present >= CHUNK {
        #[unroll]
        for round in 0..rounds {
            let down = row + comptime!(round * apart);
            to.copy(at + down, vector, from, first + round * step);
        }
    } else if mine {
        #[unroll]
        for round in 0..rounds {
            let down = row + comptime!(round * apart);
            if down < present {
                to.copy(at + down, vector, from, first + round * step);
            } else {
                to.set(at + down, vector, Vector::new(E::new(0.0)));
            }
        }
    }
}

/// Starts to copy what gates a plane's 16 tokens of one head, of `[b, l, channels]`, if there is a gate, to the plane's
/// rows.
#[cube]
pub fn copy_gate<E: Float>(
    to: &mut Tile<E>,
    from: &ComptimeOption<Tensor<Vector<E, Eight>>>,
    batch: usize,
    channel: usize,
    first_token: usize,
    #[comptime] width: usize,
) {
    #[comptime]
    match from {
        ComptimeOption::Some(z) => {
            let across = comptime!(width / 8);
            let plane = UNIT_POS as usize / PLANE;
            let first = batch * z.stride(0) + channel;
            #[unroll]
            for round in 0..comptime!(16 * across / PLANE) {
                let at = UNIT_POS_PLANE as usize + comptime!(round * PLANE);
                let (down, vector) = (at / across, at % across);
                let token = first_token + down;
                if token < z.shape(1) {
                    let from = (first + token * z.stride(1)) / 8 + vector;
                    to.copy(plane * 16 + down, vector, z, from);
                }
            }
        }
        ComptimeOption::None => {}
    }
}

/// Starts to copy a state, whose vectors begin at `first`. A cube has so many `units`.
#[cube]
pub fn copy_state<E: Float>(
    to: &mut Tile<E>,
    from: &Tensor<Vector<E, Eight>>,
    first: usize,
    #[comptime] p: usize,
    #[comptime] n: usize,
    #[comptime] units: usize,
) {
    let across = comptime!(n / 8);
    let vectors = comptime!(p * across);
    #[unroll]
    for round in 0..comptime!(vectors.div_ceil(units)) {
        let at = UNIT_POS as usize + comptime!(round * units);
        if comptime!((round + 1) * units <= vectors) || at < vectors {
            to.copy(at / across, at % across, from, first + at);
        }
    }
}
