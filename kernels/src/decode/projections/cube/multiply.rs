//! Products without tensor cores: a unit multiplies what it has read of a few rows with every vector.

use cubecl::prelude::*;

use super::kernels::{Place, Shared, zeros};
use super::numbers::{half, half_bits, number};
use super::plan::{Part, Plan};
use crate::cube::fragments::PLANE;
use crate::decode::projections::Form;

/// What a unit has read of a weight before it multiplies.
#[derive(CubeType)]
pub(super) struct Held<W: Numeric, N: Size> {
    /// Of each turn of a block, one a row.
    vectors: Array<Vector<W, N>>,
    /// In 4 bits, the bits of their scales.
    scales: Array<u32>,
}

#[cube]
impl<W: Numeric, N: Size> Held<W, N> {
    pub(super) fn new(#[comptime] plan: Plan) -> Self {
        let vectors = comptime!(plan.block() * plan.rows);
        Held::<W, N> {
            vectors: Array::new(vectors),
            scales: Array::new(comptime!(if plan.form == Form::Int4 { vectors } else { 1 })),
        }
    }
}

/// Reads a unit's vectors of a block of turns of the weight `i`. Rows beyond the last are the last once more, and what
/// lies beyond a row is its last vector.
#[cube]
pub(super) fn read<W: Numeric, N: Size>(
    weight_oi: &Array<Vector<W, N>>,
    scales: &Sequence<Array<u32>>,
    held: &mut Held<W, N>,
    place: Place,
    i: usize,
    #[comptime] first_turn: usize,
    #[comptime] turns: usize,
    #[comptime] part: Part,
    #[comptime] plan: Plan,
) {
    let vectors = comptime!(plan.vectors(part.d_in));
    #[unroll]
    for turn in 0..turns {
        let mut at = (first_turn + turn) * plan.lanes + place.lane;
        if comptime!((first_turn + turn + 1) * plan.lanes > vectors) {
            at = clamp_max(at, comptime!(vectors - 1));
        }
        read_turn(weight_oi, scales, held, place, i, at, turn, part, plan);
    }
}

/// Reads the rows' vectors `at` as those of the block's turn `turn`.
#[cube]
fn read_turn<W: Numeric, N: Size>(
    weight_oi: &Array<Vector<W, N>>,
    scales: &Sequence<Array<u32>>,
    held: &mut Held<W, N>,
    place: Place,
    i: usize,
    at: usize,
    #[comptime] turn: usize,
    #[comptime] part: Part,
    #[comptime] plan: Plan,
) {
    let vectors = comptime!(plan.vectors(part.d_in));
    #[unroll]
    for r in 0..plan.rows {
        let row = clamp_max(place.row + r, comptime!(part.d_out - 1));
        let vector = row * vectors + at;
        held.vectors[turn * plan.rows + r] = weight_oi[vector];
        if comptime!(plan.form == Form::Int4) {
            let group = vector / comptime!(plan.of_group());
            held.scales[turn * plan.rows + r] = half_bits(&scales[i], group);
        }
    }
}

/// Adds to `sums [rows, batch]` the products of what was read with its places in `x`, or in `x` times `gate`.
#[cube]
fn multiply<W: Numeric, N: Size, X: Size>(
    sums: &mut Array<f32>,
    held: &Held<W, N>,
    x_bi: &Slice<Vector<f32, X>>,
    gate_bi: &Slice<Vector<f32, X>>,
    place: Place,
    #[comptime] first_turn: usize,
    #[comptime] turns: usize,
    #[comptime] part: Part,
    #[comptime] plan: Plan,
) {
    let vectors = comptime!(plan.vectors(part.d_in));
    #[unroll]
    for turn in 0..turns {
        let at = (first_turn + turn) * plan.lanes + place.lane;
        if comptime!((first_turn + turn + 1) * plan.lanes <= vectors) || at < vectors {
            multiply_turn(sums, held, x_bi, gate_bi, at, turn, part, plan);
        }
    }
}

/// The same of one turn's vectors, which are the rows' vectors `at`.
#[cube]
fn multiply_turn<W: Numeric, N: Size, X: Size>(
    sums: &mut Array<f32>,
    held: &Held<W, N>,
    x_bi: &Slice<Vector<f32, X>>,
    gate_bi: &Slice<Vector<f32, X>>,
    at: usize,
    #[comptime] turn: usize,
    #[comptime] part: Part,
    #[comptime] plan: Plan,
) {
    if comptime!(plan.form == Form::Int4) {
        // Each vector has another scale.
        let mut own = zeros(comptime!(plan.rows * plan.batch));
        multiply_numbers(&mut own, held, x_bi, gate_bi, at, turn, part, plan);
        #[unroll]
        for r in 0..plan.rows {
            let scale = half(held.scales[turn * plan.rows + r]);
            #[unroll]
            for b in 0..plan.batch {
                let sum = comptime!(r * plan.batch + b);
                sums[sum] = fma(own[sum], scale, sums[sum]);
            }
        }
    } else {
        multiply_numbers(sums, held, x_bi, gate_bi, at, turn, part, plan);
    }
}

/// The same without scales.
#[cube]
fn multiply_numbers<W: Numeric, N: Size, X: Size>(
    sums: &mut Array<f32>,
    held: &Held<W, N>,
    x_bi: &Slice<Vector<f32, X>>,
    gate_bi: &Slice<Vector<f32, X>>,
    at: usize,
    #[comptime] turn: usize,
    #[comptime] part: Part,
    #[comptime] plan: Plan,
) {
    let vectors = comptime!(plan.vectors(part.d_in));
    let pieces = comptime!(plan.pieces());
    #[unroll]
    for piece in 0..pieces {
        let mut numbers = Array::<f32>::new(comptime!(plan.rows * plan.input));
        #[unroll]
        for r in 0..plan.rows {
            #[unroll]
            for j in 0..plan.input {
                let element = comptime!(piece * plan.input + j);
                let vector = held.vectors[turn * plan.rows + r];
                numbers[r * plan.input + j] = number(vector, element, plan.form);
            }
        }
        #[unroll]
        for b in 0..plan.batch {
            let first = comptime!(b * part.d_in / plan.input);
            let mut place_in_x = first + at * pieces + piece;
            if comptime!(plan.normalises) {
                place_in_x = first + piece * vectors + at;
            }
            let mut x = x_bi[place_in_x];
            if comptime!(plan.gated) {
                x *= gate_bi[place_in_x];
            }
            #[unroll]
            for r in 0..plan.rows {
                #[unroll]
                for j in 0..plan.input {
                    let sum = comptime!(r * plan.batch + b);
                    sums[sum] = fma(numbers[r * plan.input + j], x[j], sums[sum]);
                }
            }
        }
    }
}

/// All of a unit's products of the weight `i` with `x`, or with `x` times `gate`, where its first block of vectors has been read.
#[cube]
pub(super) fn accumulate<W: Numeric, N: Size, X: Size>(
    sums: &mut Array<f32>,
    weight_oi: &Array<Vector<W, N>>,
    scales: &Sequence<Array<u32>>,
    held: &mut Held<W, N>,
    x_bi: &Slice<Vector<f32, X>>,
    gate_bi: &Slice<Vector<f32, X>>,
    place: Place,
    i: usize,
    #[comptime] part: Part,
    #[comptime] plan: Plan,
) {
    let (turns, block) = comptime!((plan.turns(part.d_in), plan.block()));
    if comptime!(block == 1) {
        // A loop, since its body is long.
        let vectors = comptime!(plan.vectors(part.d_in));
        let even = comptime!(vectors.is_multiple_of(plan.lanes));
        for turn in 0..turns {
            let at = turn * plan.lanes + place.lane;
            if turn > 0 {
                let last = comptime!(vectors - 1);
                let read = if comptime!(even) {
                    at
                } else {
                    clamp_max(at, last)
                };
                read_turn(weight_oi, scales, held, place, i, read, 0usize, part, plan);
            }
            if comptime!(even) || at < vectors {
                multiply_turn(sums, held, x_bi, gate_bi, at, 0usize, part, plan);
            }
        }
    } else {
        #[unroll]
        for n in 0..comptime!(turns.div_ceil(block)) {
            let first = comptime!(n * block);
            let count = comptime!(block.min(turns - n * block));
            if comptime!(n > 0) {
                read(weight_oi, scales, held, place, i, first, count, part, plan);
            }
            multiply(sums, held, x_bi, gate_bi, place, first, count, part, plan);
        }
    }
}

/// Adds up the sums of the units that share rows, into the totals: [`Plan::shares`] for each of the
/// cube's outputs, which are `[groups of lanes, rows, batch]`.
#[cube]
pub(super) fn reduce(sums: &Array<f32>, shared: &mut Shared, #[comptime] plan: Plan) {
    let unit = UNIT_POS as usize;
    let (n, lanes, shares) = comptime!((plan.sums(), plan.lanes, plan.shares()));
    let (group, lane) = (unit / lanes, unit % lanes);
    let units = comptime!(plan.units());
    if comptime!(plan.planes) {
        #[unroll]
        for i in 0..n {
            let total = plane_sum(sums[i]);
            if UNIT_POS_PLANE == 0 {
                shared.totals[(group * n + i) * shares + lane / PLANE] = total;
            }
        }
        sync_cube();
    } else {
        // Some sums at a time, as shared memory is small.
        let most = comptime!(plan.partials());
        #[unroll]
        for turn in 0..comptime!(n.div_ceil(most)) {
            let first = comptime!(turn * most);
            let count = comptime!(most.min(n - turn * most));
            #[unroll]
            for i in 0..count {
                shared.partials[i * units + unit] = sums[first + i];
            }
            sync_cube();
            let mut half = comptime!(lanes / 2).runtime();
            while half > 0 {
                if lane < half {
                    #[unroll]
                    for i in 0..count {
                        let other = shared.partials[i * units + unit + half];
                        shared.partials[i * units + unit] += other;
                    }
                }
                sync_cube();
                half /= 2;
            }
            if lane == 0 {
                #[unroll]
                for i in 0..count {
                    shared.totals[group * n + first + i] = shared.partials[i * units + unit];
                }
            }
            sync_cube();
        }
    }
}
