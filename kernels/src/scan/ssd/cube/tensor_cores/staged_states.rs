//! The state of a head, in the walks that copy their inputs ahead: what a chunk adds to it, and how it is written.

use cubecl::prelude::*;

use super::chunk_decays::ChunkDecays;
use super::forward::CHUNK;
use super::product::{Eight, Pair, Product};
use super::staged::UNITS;
use super::tile::Tile;

/// Adds a chunk's share to a state without its decay: the products of x and B, decayed to the chunk's end; backwards,
/// from its start.
#[cube]
pub fn add_share<E: Float>(
    state: &mut Product,
    x: &Tile<E>,
    b: &Tile<E>,
    decays: &ChunkDecays,
    at: usize,
    #[comptime] backwards: bool,
) {
    if state.busy {
        #[unroll]
        for step in 0..comptime!(CHUNK / 16) {
            let token = comptime!(step * 16) + UNIT_POS_PLANE as usize % 4 * 2;
            let mut factors = Sequence::<Vector<f32, Pair>>::new();
            factors.push(decays.towards(at, token, backwards));
            factors.push(decays.towards(at, token + 8, backwards));
            let mut lefts = Sequence::<Array<Vector<E, Pair>>>::new();
            #[unroll]
            for i in 0..state.down() {
                let first_row = state.first_row() + comptime!(i * 16);
                let mut left = x.left(first_row, at + comptime!(step * 16), true);
                #[unroll]
                for part in 0..4usize {
                    let value = Vector::<f32, Pair>::cast_from(left[part]);
                    left[part] = Vector::cast_from(value * *factors.index(comptime!(part / 2)));
                }
                lefts.push(left);
            }
            #[unroll]
            for j in 0..state.steps_across() {
                let column = state.first_column() + comptime!(j * 16);
                let both = b.right(at + comptime!(step * 16), column, false);
                state.add_fragments(&lefts, 0usize, &both, j);
            }
        }
    }
}

/// Writes a state, rounded, to the rows of shared memory from `at` on.
#[cube]
pub fn store_state<E: Float>(state: &Product, to: &mut Tile<E>, at: usize) {
    if state.busy {
        #[unroll]
        for i in 0..state.pairs() {
            to.set_pair(
                at + state.row(i),
                state.column(i),
                Vector::cast_from(state.get(i)),
            );
        }
    }
}

/// Writes the state in the rows of shared memory from `at` on to the matrix `to` of many.
#[cube]
pub fn write_state<E: Float>(
    from: &Tile<E>,
    at: usize,
    out: &mut Tensor<Vector<E, Eight>>,
    to: usize,
    #[comptime] p: usize,
    #[comptime] n: usize,
) {
    let across = comptime!(n / 8);
    let vectors = comptime!(p * across);
    #[unroll]
    for round in 0..comptime!(vectors.div_ceil(UNITS)) {
        let vector = UNIT_POS as usize + comptime!(round * UNITS);
        if comptime!((round + 1) * UNITS <= vectors) || vector < vectors {
            out[to * vectors + vector] = from.get(at + vector / across, vector % across);
        }
    }
}
