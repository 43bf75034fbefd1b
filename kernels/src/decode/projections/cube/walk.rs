//! The main loop of a cube's planes on tensor cores. Each plane multiplies its rows step by step, while the next steps
//! are copied into its part of the [`Ring`]. Several planes share the same rows: their steps are dealt out to the
//! planes in turn, and the planes' sums are added up at the end of the rows. All planes advance together, because
//! CubeCL's barriers belong to the cube: each plane waits until all planes' copies of a step have arrived.

use cubecl::prelude::*;

use super::kernels::{Shared, finish, of, scale_at, zeros};
use super::mma;
use super::plan::{Part, Plan, STEP};
use super::ring::Ring;

/// Turns of a plane: steps of all its rows of a weight that fall to the cube, `own` among those of the weight.
#[cube]
fn turns_of(own: usize, #[comptime] part: Part, #[comptime] plan: Plan) -> usize {
    let tasks = comptime!(part.d_out.div_ceil(plan.cube_rows()));
    (tasks - own).div_ceil(part.cubes.runtime()) * comptime!(plan.steps(part.d_in))
}

/// Fills the ring for [`rows`].
#[cube]
pub(super) fn begin_rows<W: Numeric, N: Size, X: Size>(
    ring: &mut Ring<W, N, X>,
    weight_oi: &Array<Vector<W, N>>,
    own: usize,
    #[comptime] part: Part,
    #[comptime] plan: Plan,
) {
    let turns = turns_of(own, part, plan);
    let place = mma::place(plan);
    for turn in 0..comptime!(plan.stages - 1) {
        begin_row(ring, weight_oi, own, place, turn, turns, turn, part, plan);
    }
}

/// All rows of one weight that fall to the cube, `own` among those of the weight, with vectors that are normalised.
#[cube]
pub(super) fn rows<W: Numeric, P: Float, N: Size, X: Size>(
    ring: &mut Ring<W, N, X>,
    weight_oi: &Array<Vector<W, N>>,
    normed: &SharedMemory<Vector<f32, X>>,
    shared: &mut Shared,
    scales: &Sequence<Array<u32>>,
    biases: &Sequence<Array<P>>,
    output_bo: &mut Array<f32>,
    own: usize,
    #[comptime] i: usize,
    #[comptime] part: Part,
    #[comptime] plan: Plan,
) {
    let (d, stages) = comptime!((part.d_in, plan.stages));
    let (apart, steps) = comptime!((d / plan.together, plan.steps(d)));
    let turns = turns_of(own, part, plan);
    let place = mma::place(plan);
    let begin = mma::vector_of_unit(plan) * comptime!(plan.stride(d));
    let mut sums = zeros(comptime!(plan.sums()));
    let mut rows = zeros(comptime!(2 * mma::TILES));
    for turn in 0..turns {
        let (round, stage) = (turn / stages, turn % stages);
        // The plane's units have read what is overwritten now.
        sync_plane();
        let next = turn + comptime!(stages - 1);
        begin_row(
            ring,
            weight_oi,
            own,
            place,
            next,
            turns,
            next % stages,
            part,
            plan,
        );
        ring.wait(round, stage, plan);
        let begin = begin + step(place, turn % steps, plan) * STEP;
        mma::multiply(&mut sums, ring, normed, begin, apart, stage, plan);
        if turn % steps == comptime!(steps - 1) {
            #[unroll]
            for r in 0..comptime!(2 * mma::TILES) {
                rows[r] = mma::take_row(&mut sums, r, plan);
            }
            mma::reduce(&rows, place, shared, plan);
            let first = first_row(own, turn / steps, part, plan);
            finish(output_bo, shared, first, biases, scales, i, part, plan);
        }
    }
}

/// The first row of the cube's task `task`, where it is `own` among the weight's cubes.
#[cube]
fn first_row(own: usize, task: usize, #[comptime] part: Part, #[comptime] plan: Plan) -> usize {
    (own + task * part.cubes) * comptime!(plan.cube_rows())
}

/// The step of its rows that is the plane's `nth`.
#[cube]
fn step(place: mma::Place, nth: usize, #[comptime] plan: Plan) -> usize {
    nth * comptime!(plan.shares()) + place.share
}

/// Starts to copy what the plane multiplies in its turn `turn`, if there are so many.
#[cube]
fn begin_row<W: Numeric, N: Size, X: Size>(
    ring: &mut Ring<W, N, X>,
    weight_oi: &Array<Vector<W, N>>,
    own: usize,
    place: mma::Place,
    turn: usize,
    turns: usize,
    stage: usize,
    #[comptime] part: Part,
    #[comptime] plan: Plan,
) {
    let steps = comptime!(plan.steps(part.d_in));
    if turn < turns {
        let first = first_row(own, turn / steps, part, plan) + place.row;
        let step = step(place, turn % steps, plan);
        ring.copy_rows(weight_oi, first, step, stage, part, plan);
        ring.started(stage, plan);
    }
}

/// The cube's rows from `first` on of all weights, each with its own input, or the product of that and its gate, into
/// the totals.
#[cube]
pub(super) fn inputs<W: Numeric, N: Size, X: Size>(
    inputs: &Sequence<Array<Vector<f32, X>>>,
    gates: &Sequence<Array<Vector<f32, X>>>,
    weights: &Sequence<Array<Vector<W, N>>>,
    scales: &Sequence<Array<u32>>,
    shared: &mut Shared,
    first: usize,
    #[comptime] parts: Vec<Part>,
    #[comptime] plan: Plan,
) {
    let stages = comptime!(plan.stages);
    let turns = comptime!(begin_of(&parts, parts.len(), plan));
    let mut ring = Ring::<W, N, X>::new(plan);
    let place = mma::place(plan);
    let normed = SharedMemory::<Vector<f32, X>>::new(1usize);
    for turn in 0..comptime!(stages - 1) {
        let parts = comptime!(parts.clone());
        begin_input(
            &mut ring, inputs, gates, weights, first, place, turn, turn, parts, plan,
        );
    }
    let mut sums = zeros(comptime!(plan.sums()));
    let mut rows = zeros(comptime!(2 * mma::TILES));
    for turn in 0..turns {
        let (round, stage) = (turn / stages, turn % stages);
        // The plane's units have read what is overwritten now.
        sync_plane();
        let next = turn + comptime!(stages - 1);
        let all = comptime!(parts.clone());
        begin_input(
            &mut ring,
            inputs,
            gates,
            weights,
            first,
            place,
            next,
            next % stages,
            all,
            plan,
        );
        ring.wait(round, stage, plan);
        mma::multiply(&mut sums, &ring, &normed, 0usize, 0usize, stage, plan);
        #[unroll]
        for i in 0..comptime!(parts.len()) {
            let d_out = comptime!(of(&parts, i).d_out);
            if turn == comptime!(begin_of(&parts, i + 1, plan) - 1) {
                #[unroll]
                for r in 0..comptime!(2 * mma::TILES) {
                    let row = first + place.row + mma::row_of(r);
                    let row = clamp_max(row, comptime!(d_out - 1));
                    let scale = scale_at(scales, row, i, plan.form);
                    rows[r] = fma(mma::take_row(&mut sums, r, plan), scale, rows[r]);
                }
            }
        }
    }
    mma::reduce(&rows, place, shared, plan);
}

/// The turn with which the weight `i` begins.
fn begin_of(parts: &[Part], i: usize, plan: Plan) -> usize {
    parts[..i].iter().map(|part| plan.steps(part.d_in)).sum()
}

/// Starts to copy what the plane multiplies in its turn `turn`, and with what, if there are so many.
#[cube]
fn begin_input<W: Numeric, N: Size, X: Size>(
    ring: &mut Ring<W, N, X>,
    inputs: &Sequence<Array<Vector<f32, X>>>,
    gates: &Sequence<Array<Vector<f32, X>>>,
    weights: &Sequence<Array<Vector<W, N>>>,
    first: usize,
    place: mma::Place,
    turn: usize,
    stage: usize,
    #[comptime] parts: Vec<Part>,
    #[comptime] plan: Plan,
) {
    #[unroll]
    for i in 0..comptime!(parts.len()) {
        let part = comptime!(of(&parts, i));
        let begin = comptime!(begin_of(&parts, i, plan));
        if turn >= begin && turn < comptime!(begin_of(&parts, i + 1, plan)) {
            let step = step(place, turn - begin, plan);
            ring.copy_rows(&weights[i], first + place.row, step, stage, part, plan);
            if comptime!(plan.gated) {
                ring.write_products(&inputs[i], &gates[i], step, stage, part, plan);
            } else {
                ring.copy_x(&inputs[i], step, stage, part, plan);
            }
        }
    }
    if turn < comptime!(begin_of(&parts, parts.len(), plan)) {
        ring.started(stage, plan);
    }
}
