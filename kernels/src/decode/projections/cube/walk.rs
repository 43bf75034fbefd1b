//! The main loop of a cube's planes on tensor cores. Each plane multiplies its rows step by step, while the next steps
//! are copied into its part of the [`Ring`]. Several planes share the same rows: their steps are dealt out to the
//! planes in turn, and the planes' sums are added up at the end of the rows. All planes advance together, because
//! CubeCL's barriers belong to the cube: each plane waits until all planes' copies of a step have arrived.

use cubecl::prelude::*;

use super::digits::{QUADS, digits, place_of_unit};
use super::kernels::{Shared, finish, of, scale_at, zeros};
use super::normalise::Normed;
use super::plan::{Part, Plan, STEP};
use super::ring::Ring;
use super::{integers, mma};
use crate::cube::fragments::PLANE;
use crate::decode::projections::Form;

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
    scales: &Sequence<Array<u32>>,
    own: usize,
    #[comptime] i: usize,
    #[comptime] part: Part,
    #[comptime] plan: Plan,
) {
    let turns = turns_of(own, part, plan);
    let place = mma::place(plan);
    for turn in 0..comptime!(plan.stages - 1) {
        begin_row(
            ring, weight_oi, scales, own, place, turn, turns, turn, i, part, plan,
        );
    }
}

/// All rows of one weight that fall to the cube, `own` among those of the weight, with vectors that are normalised.
#[cube]
pub(super) fn rows<W: Numeric, P: Float, N: Size, X: Size>(
    ring: &mut Ring<W, N, X>,
    weight_oi: &Array<Vector<W, N>>,
    normed: &Normed<X>,
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
    let vector = mma::vector_of_unit(plan);
    let begin = vector * comptime!(plan.stride(d));
    let mut units = zeros(comptime!(plan.chunks().max(1)));
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
            scales,
            own,
            place,
            next,
            turns,
            next % stages,
            i,
            part,
            plan,
        );
        ring.wait(round, stage, plan);
        let step = step(place, turn % steps, plan);
        if comptime!(plan.integers()) {
            if is_one(step, part, plan) {
                let chunk = vector * comptime!(plan.units_of(d)) + step * comptime!(plan.chunks());
                #[unroll]
                for of_step in 0..comptime!(plan.chunks()) {
                    units[of_step] = normed.units[chunk + of_step];
                }
                let begin = begin + step * comptime!(plan.step_width());
                integers::multiply(
                    &mut sums,
                    ring,
                    &normed.vectors,
                    &units,
                    begin,
                    vector,
                    stage,
                    plan,
                );
            }
        } else {
            let begin = begin + step * STEP;
            mma::multiply(&mut sums, ring, &normed.vectors, begin, apart, stage, plan);
        }
        if turn % steps == comptime!(steps - 1) {
            #[unroll]
            for r in 0..comptime!(2 * mma::TILES) {
                rows[r] = take_row(&mut sums, r, plan);
            }
            mma::reduce(&rows, place, shared, plan);
            let first = first_row(own, turn / steps, part, plan);
            finish(output_bo, shared, first, biases, scales, i, part, plan);
        }
    }
}

/// The sum of the row that [`mma::row_of`] says, which begins anew.
#[cube]
fn take_row(sums: &mut Array<f32>, #[comptime] r: usize, #[comptime] plan: Plan) -> f32 {
    if comptime!(plan.integers()) {
        integers::take_row(sums, r, plan)
    } else {
        mma::take_row(sums, r, plan)
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

/// Whether the row has such a step: the last turn may be one of some planes alone.
#[cube]
fn is_one(step: usize, #[comptime] part: Part, #[comptime] plan: Plan) -> bool {
    let all = comptime!(plan.all_steps(part.d_in));
    comptime!(all % plan.shares() == 0) || step < all
}

/// Starts to copy what the plane multiplies in its turn `turn`, if there are so many.
#[cube]
fn begin_row<W: Numeric, N: Size, X: Size>(
    ring: &mut Ring<W, N, X>,
    weight_oi: &Array<Vector<W, N>>,
    scales: &Sequence<Array<u32>>,
    own: usize,
    place: mma::Place,
    turn: usize,
    turns: usize,
    stage: usize,
    #[comptime] i: usize,
    #[comptime] part: Part,
    #[comptime] plan: Plan,
) {
    let steps = comptime!(plan.steps(part.d_in));
    if turn < turns {
        let first = first_row(own, turn / steps, part, plan) + place.row;
        let step = step(place, turn % steps, plan);
        if is_one(step, part, plan) {
            ring.copy_rows(weight_oi, first, step, stage, part, plan);
            if comptime!(plan.form == Form::Int4) {
                ring.copy_scales(&scales[i], first, step, stage, part, plan);
            }
        }
        ring.started(stage, plan);
    }
}

/// The cube's rows from `first` on of all weights, each with its own input, or the product of that and its gate, into
/// the totals: of the cube's shares of these rows, where cubes are in groups.
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
    // The digits of each maker's vectors for one step, and their units.
    let mut vectors = SharedMemory::<Vector<f32, X>>::new_aligned(
        comptime!(plan.digits_of_cube().max(1)),
        16usize,
    );
    let mut digit_units = SharedMemory::<f32>::new(comptime!(plan.digit_units_of_cube().max(1)));
    for turn in 0..comptime!(stages - 1) {
        let parts = comptime!(parts.clone());
        begin_input(
            &mut ring, inputs, gates, weights, scales, first, place, turn, turn, parts, plan,
        );
    }
    let mut sums = zeros(comptime!(plan.sums()));
    let mut rows = zeros(comptime!(2 * mma::TILES));
    for turn in 0..turns {
        let (round, stage) = (turn / stages, turn % stages);
        // All units have read what is overwritten now.
        sync_makers(plan);
        let next = turn + comptime!(stages - 1);
        let all = comptime!(parts.clone());
        begin_input(
            &mut ring,
            inputs,
            gates,
            weights,
            scales,
            first,
            place,
            next,
            next % stages,
            all,
            plan,
        );
        if comptime!(plan.integers()) {
            // While the step's rows are on their way.
            let mut has_step = false;
            #[unroll]
            for i in 0..comptime!(parts.len()) {
                let part = comptime!(of(&parts, i));
                let begin = comptime!(begin_of(&parts, i, plan));
                if turn >= begin && turn < comptime!(begin_of(&parts, i + 1, plan)) {
                    let step = step(place, turn - begin, plan);
                    has_step = is_one(step, part, plan);
                    if has_step {
                        write_digits(
                            &mut vectors,
                            &mut digit_units,
                            &inputs[i],
                            gates,
                            step,
                            i,
                            part,
                            plan,
                        );
                    }
                }
            }
            sync_makers(plan);
            ring.wait(round, stage, plan);
            let vector = mma::vector_of_unit(plan);
            let begin = digits_begin(plan) + vector * comptime!(plan.step_width());
            if has_step {
                let chunk = digit_units_begin(plan) + vector * comptime!(plan.chunks());
                let mut units = zeros(comptime!(plan.chunks()));
                #[unroll]
                for of_step in 0..comptime!(plan.chunks()) {
                    units[of_step] = digit_units[chunk + of_step];
                }
                integers::multiply(
                    &mut sums, &ring, &vectors, &units, begin, vector, stage, plan,
                );
            }
        } else {
            ring.wait(round, stage, plan);
            mma::multiply(&mut sums, &ring, &vectors, 0usize, 0usize, stage, plan);
        }
        #[unroll]
        for i in 0..comptime!(parts.len()) {
            let d_out = comptime!(of(&parts, i).d_out);
            if turn == comptime!(begin_of(&parts, i + 1, plan) - 1) {
                #[unroll]
                for r in 0..comptime!(2 * mma::TILES) {
                    let row = first + place.row + mma::row_of(r);
                    let row = clamp_max(row, comptime!(d_out - 1));
                    let scale = scale_at(scales, row, i, plan.form);
                    rows[r] = fma(take_row(&mut sums, r, plan), scale, rows[r]);
                }
            }
        }
    }
    mma::reduce(&rows, place, shared, plan);
}

/// Waits for the units that multiply with the same digits.
#[cube]
fn sync_makers(#[comptime] plan: Plan) {
    if comptime!(plan.planes_of_maker() > 1) {
        sync_cube();
    } else {
        sync_plane();
    }
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
    scales: &Sequence<Array<u32>>,
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
            let row = first + place.row;
            if is_one(step, part, plan) {
                ring.copy_rows(&weights[i], row, step, stage, part, plan);
                if comptime!(plan.form == Form::Int4) {
                    ring.copy_scales(&scales[i], row, step, stage, part, plan);
                }
            }
            if comptime!(plan.integers()) {
                // The digits are written in the turn itself.
            } else if comptime!(plan.gated) {
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

/// Which of the digits the plane multiplies with, of as many as there are [makers](Plan::makers).
#[cube]
fn maker(#[comptime] plan: Plan) -> usize {
    UNIT_POS as usize / PLANE % comptime!(plan.makers())
}

/// The plane's place among those that make the same digits.
#[cube]
fn place_in_maker(#[comptime] plan: Plan) -> usize {
    if comptime!(plan.planes_of_maker() > 1) {
        UNIT_POS as usize / PLANE / comptime!(plan.makers())
    } else {
        0usize.runtime()
    }
}

/// Where the digits of the plane's vectors begin.
#[cube]
fn digits_begin(#[comptime] plan: Plan) -> usize {
    maker(plan) * comptime!(plan.batch * plan.step_width())
}

/// Where their units begin.
#[cube]
fn digit_units_begin(#[comptime] plan: Plan) -> usize {
    maker(plan) * comptime!(plan.batch * plan.chunks())
}

/// Writes the digits that a step is multiplied with, of `x` or of `x` times its gate, and their units. Planes that
/// multiply with the same digits write a part each. The gate is that of the weight `i`.
#[cube]
fn write_digits<X: Size>(
    vectors: &mut SharedMemory<Vector<f32, X>>,
    units: &mut SharedMemory<f32>,
    x_bi: &Array<Vector<f32, X>>,
    gates: &Sequence<Array<Vector<f32, X>>>,
    step: usize,
    #[comptime] i: usize,
    #[comptime] part: Part,
    #[comptime] plan: Plan,
) {
    let (width, chunks) = comptime!((plan.step_width(), plan.chunks()));
    let (all, planes) = comptime!((plan.batch * plan.chunks(), plan.planes_of_maker()));
    let turns = comptime!(all.div_ceil(planes));
    let unit = UNIT_POS_PLANE as usize;
    let own = place_in_maker(plan);
    let mut read = Array::<Vector<f32, X>>::new(turns);
    #[unroll]
    for turn in 0..turns {
        // A plane that has nothing more to write reads the last chunk once more.
        let n = clamp_max(comptime!(turn * planes) + own, comptime!(all - 1));
        let vector = n / chunks * comptime!(part.d_in / plan.input);
        let at = vector + step * width + n % chunks * QUADS + unit;
        read[turn] = x_bi[at];
        if comptime!(plan.gated) {
            read[turn] *= gates[i][at];
        }
    }
    #[unroll]
    for turn in 0..turns {
        let n = comptime!(turn * planes) + own;
        let digits = digits(read[turn], plan.form);
        if comptime!((turn + 1) * planes <= all) || n < all {
            let vector = n / chunks;
            let begin = digits_begin(plan) + vector * width + n % chunks * QUADS;
            vectors[begin + place_of_unit(vector, plan.form)] = digits.words;
            if unit == 0 {
                units[digit_units_begin(plan) + n] = digits.unit;
            }
        }
    }
}
