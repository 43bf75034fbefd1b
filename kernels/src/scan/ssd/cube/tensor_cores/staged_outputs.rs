//! The outputs of a plane's 16 tokens, in the walk of [`staged`](super::staged): what is added to them, and how they are
//! written.

use cubecl::prelude::*;

use super::chunk_decays::{ChunkDecays, Through};
use super::copies::HeadRows;
use super::epilogue::gated;
use super::product::{Eight, PLANE, Pair, Product};
use super::tile::Tile;

/// Adds to the outputs of a plane's 16 tokens, `row` of the chunk and the next, those parts that come from the 16 tokens
/// from `s` on, which are its own on the `diagonal`. `c` are the plane's left factors; the chunk's rows of shared memory
/// begin at `at`.
#[cube]
pub fn add_tokens<E: Float>(
    y: &mut Product,
    c: &Sequence<Array<Vector<E, Pair>>>,
    b: &Tile<E>,
    x: &Tile<E>,
    decays: &ChunkDecays,
    through: &Sequence<Through>,
    at: usize,
    row: usize,
    s: usize,
    #[comptime] diagonal: bool,
    #[comptime] p: usize,
    #[comptime] n: usize,
) {
    let mut scores = Product::of_plane(row, 16usize);
    #[unroll]
    for step in 0..comptime!(n / 16) {
        let both = b.right(comptime!(step * 16), at + s, true);
        scores.add_fragments(c, step, &both, 0usize);
    }
    let mut weights = Array::<Vector<E, Pair>>::new(4usize);
    #[unroll]
    for half in 0..2usize {
        let column = s + comptime!(half * 8) + UNIT_POS_PLANE as usize % 4 * 2;
        #[unroll]
        for down in 0..2usize {
            let i = comptime!(2 * half + down);
            let decay = decays.within(at, *through.index(down), column);
            let mut pair = scores.get(i) * decay;
            if comptime!(diagonal) {
                let t = scores.row(i);
                pair[0] = select(column <= t, pair[0], 0.0f32);
                pair[1] = select(column < t, pair[1], 0.0f32);
            }
            weights[i] = Vector::cast_from(pair);
        }
    }
    let mut left = Sequence::<Array<Vector<E, Pair>>>::new();
    left.push(weights);
    #[unroll]
    for j in 0..comptime!(p / 16) {
        let both = x.right(at + s, comptime!(j * 16), false);
        y.add_fragments(&left, 0usize, &both, j);
    }
}

/// Adds the skip to outputs, and gates them.
#[cube]
pub fn finish<E: Float>(
    y: &mut Product,
    x: &Tile<E>,
    z: &Tile<E>,
    d_h: &ComptimeOption<Tensor<f32>>,
    z_bias: &SharedMemory<f32>,
    head: usize,
    at: usize,
    #[comptime] gate: bool,
) {
    #[comptime]
    match d_h {
        ComptimeOption::Some(d) => {
            let d = Vector::<f32, Pair>::new(d[head]);
            #[unroll]
            for i in 0..y.pairs() {
                let x = x.pair(at + y.row(i), y.column(i));
                let sum = y.get(i) + d * Vector::<f32, Pair>::cast_from(x);
                y.set(i, sum);
            }
        }
        ComptimeOption::None => {}
    }
    if comptime!(gate) {
        let plane = UNIT_POS as usize / PLANE;
        #[unroll]
        for i in 0..y.pairs() {
            let column = y.column(i);
            let row = plane * 16 + comptime!(i % 2 * 8) + UNIT_POS_PLANE as usize / 4;
            let value = gated::<E>(y.get(i), z.pair(row, column), z_bias, column);
            y.set(i, value);
        }
    }
}

/// Writes the outputs of a plane's tokens, whose first is `first_token` of `l`, to the head's rows, through the plane's rows of a
/// tile from `row` on, which no other plane reads.
#[cube]
pub fn write_outputs<E: Float>(
    y: &Product,
    through: &mut Tile<E>,
    row: usize,
    out: &mut Tensor<Vector<E, Eight>>,
    rows: HeadRows,
    first_token: usize,
    l: usize,
    #[comptime] p: usize,
) {
    let lane = UNIT_POS_PLANE as usize;
    let across = comptime!(p / 8);
    // All units have read the factors that lay here.
    sync_plane();
    #[unroll]
    for i in 0..y.pairs() {
        let down = comptime!(i % 2 * 8) + lane / 4;
        through.set_pair(row + down, y.column(i), Vector::cast_from(y.get(i)));
    }
    sync_plane();
    #[unroll]
    for round in 0..comptime!(16 * across / PLANE) {
        let at = lane + comptime!(round * PLANE);
        let (down, vector) = (at / across, at % across);
        let token = first_token + down;
        if token < l {
            out[rows.first + token * rows.step + vector] = through.get(row + down, vector);
        }
    }
}
