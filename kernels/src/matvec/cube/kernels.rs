//! The kernels.

use cubecl::prelude::*;

use super::mma::{self, Step};
use super::plan::{Part, Plan, UNITS};
use crate::cube::reduce::{Fold, of_cube};
use crate::gelu::cube::{CUBIC_F32, MINUS_TWICE_SCALE};
use crate::matvec::Activation;

/// A projection by the index of an unrolled loop, which chooses from several lists.
fn of(parts: &[Part], i: usize) -> Part {
    parts[i]
}

/// Where a unit works: a run of rows of a weight, and its place among the units that share them.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Place {
    pub(super) row: usize,
    pub(super) lane: usize,
}

/// The unit's place, where the cube's rows begin at `first`.
#[cube]
fn place(first: usize, #[comptime] plan: Plan) -> Place {
    if comptime!(plan.tensor_cores) {
        mma::place(first)
    } else {
        let unit = UNIT_POS as usize;
        Place {
            row: first + unit / plan.lanes * plan.rows,
            lane: unit % plan.lanes,
        }
    }
}

#[cube]
fn zeros(#[comptime] length: usize) -> Array<f32> {
    let mut values = Array::<f32>::new(length);
    #[unroll]
    for i in 0..length {
        values[i] = 0.0;
    }
    values
}

/// Reads a unit's vectors of a block of turns. Rows beyond the last are the last once more, and what lies
/// beyond a row is its last vector.
#[cube]
fn read<W: Numeric, N: Size>(
    weight_oi: &Array<Vector<W, N>>,
    held: &mut Array<Vector<W, N>>,
    place: Place,
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
        #[unroll]
        for r in 0..plan.rows {
            let row = clamp_max(place.row + r, comptime!(part.d_out - 1));
            held[turn * plan.rows + r] = weight_oi[row * vectors + at];
        }
    }
}

/// Adds to `sums [rows, batch]` the products of what was read with its places in `x`.
#[cube]
fn multiply<W: Numeric, N: Size, X: Size>(
    sums: &mut Array<f32>,
    held: &Array<Vector<W, N>>,
    x_bi: &Slice<Vector<f32, X>>,
    place: Place,
    #[comptime] first_turn: usize,
    #[comptime] turns: usize,
    #[comptime] part: Part,
    #[comptime] plan: Plan,
    #[comptime] strided: bool,
) {
    let vectors = comptime!(plan.vectors(part.d_in));
    let pieces = comptime!(plan.pieces());
    #[unroll]
    for turn in 0..turns {
        let at = (first_turn + turn) * plan.lanes + place.lane;
        if comptime!((first_turn + turn + 1) * plan.lanes <= vectors) || at < vectors {
            #[unroll]
            for piece in 0..pieces {
                let mut numbers = Array::<f32>::new(comptime!(plan.rows * plan.input));
                #[unroll]
                for r in 0..plan.rows {
                    #[unroll]
                    for j in 0..plan.input {
                        let element = comptime!(piece * plan.input + j);
                        let vector = held[turn * plan.rows + r];
                        numbers[r * plan.input + j] = number(vector, element, plan.packed);
                    }
                }
                #[unroll]
                for b in 0..plan.batch {
                    let first = comptime!(b * part.d_in / plan.input);
                    let mut place_in_x = first + at * pieces + piece;
                    if comptime!(strided) {
                        place_in_x = first + piece * vectors + at;
                    }
                    let x = x_bi[place_in_x];
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
    }
}

/// A number of a weight's vector; of 8 bits, without its scale.
#[cube]
pub(super) fn number<W: Numeric, N: Size>(
    vector: Vector<W, N>,
    #[comptime] element: usize,
    #[comptime] packed: bool,
) -> f32 {
    if comptime!(packed) {
        // As the last digits of 2^23, which takes a processor less than a conversion does.
        let word = u32::cast_from(vector[comptime!(element / 4)]) ^ 0x8080_8080u32;
        let byte = (word >> comptime!(8 * (element as u32 % 4))) & 0xffu32;
        f32::reinterpret(byte | 0x4b00_0000u32) - 8_388_736.0
    } else {
        f32::cast_from(vector[element])
    }
}

/// All of a unit's products with `x`, where its first block of vectors has been read.
#[cube]
fn accumulate<W: Numeric, N: Size, X: Size>(
    sums: &mut Array<f32>,
    weight_oi: &Array<Vector<W, N>>,
    held: &mut Array<Vector<W, N>>,
    x_bi: &Slice<Vector<f32, X>>,
    place: Place,
    #[comptime] part: Part,
    #[comptime] plan: Plan,
    #[comptime] strided: bool,
) {
    let (turns, block) = comptime!((plan.turns(part.d_in), plan.block()));
    #[unroll]
    for i in 0..comptime!(turns.div_ceil(block)) {
        let first = comptime!(i * block);
        let count = comptime!(block.min(turns - i * block));
        if comptime!(i > 0) {
            read(weight_oi, held, place, first, count, part, plan);
        }
        multiply(sums, held, x_bi, place, first, count, part, plan, strided);
    }
}

/// What the units of a cube tell each other.
#[derive(CubeType)]
pub(super) struct Shared {
    /// [`Plan::partials`] of every unit; unused where planes add up.
    partials: SharedMemory<f32>,
    /// One a plane.
    planes: SharedMemory<f32>,
    /// Of each output, [`Plan::shares`].
    pub(super) totals: SharedMemory<f32>,
}

#[cube]
impl Shared {
    fn new(#[comptime] plan: Plan) -> Self {
        Shared {
            partials: SharedMemory::<f32>::new(comptime!(UNITS * plan.partials())),
            planes: SharedMemory::<f32>::new(comptime!(UNITS / 32)),
            totals: SharedMemory::<f32>::new(comptime!(plan.totals())),
        }
    }
}

/// Adds up the sums of the units that share rows, into the totals: [`Plan::shares`] for each of the
/// cube's outputs, which are `[groups of lanes, rows, batch]`.
#[cube]
fn reduce(sums: &Array<f32>, shared: &mut Shared, #[comptime] plan: Plan) {
    let unit = UNIT_POS as usize;
    let (n, lanes, shares) = comptime!((plan.sums(), plan.lanes, plan.shares()));
    let (group, lane) = (unit / lanes, unit % lanes);
    if comptime!(plan.tensor_cores) {
        mma::reduce(sums, shared, plan);
    } else if comptime!(plan.planes) {
        #[unroll]
        for i in 0..n {
            let total = plane_sum(sums[i]);
            if UNIT_POS_PLANE == 0 {
                shared.totals[(group * n + i) * shares + lane / 32] = total;
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
                shared.partials[i * UNITS + unit] = sums[first + i];
            }
            sync_cube();
            let mut half = comptime!(lanes / 2).runtime();
            while half > 0 {
                if lane < half {
                    #[unroll]
                    for i in 0..count {
                        let other = shared.partials[i * UNITS + unit + half];
                        shared.partials[i * UNITS + unit] += other;
                    }
                }
                sync_cube();
                half /= 2;
            }
            if lane == 0 {
                #[unroll]
                for i in 0..count {
                    shared.totals[group * n + first + i] = shared.partials[i * UNITS + unit];
                }
            }
            sync_cube();
        }
    }
}

#[cube]
fn total(shared: &Shared, output: usize, #[comptime] plan: Plan) -> f32 {
    let shares = comptime!(plan.shares());
    let mut total = shared.totals[output * shares];
    #[unroll]
    for i in 1..shares {
        total += shared.totals[output * shares + i];
    }
    total
}

#[cube]
fn bias_at<P: Float>(
    biases: &Sequence<Array<P>>,
    row: usize,
    #[comptime] bias: Option<usize>,
) -> f32 {
    if comptime!(bias.is_some()) {
        let bias = biases.index(comptime!(bias.unwrap_or(0)));
        f32::cast_from(bias[row])
    } else {
        0.0f32.runtime()
    }
}

#[cube]
fn scale_at(scales: &Sequence<Array<f32>>, row: usize, i: usize, #[comptime] packed: bool) -> f32 {
    if comptime!(packed) {
        scales[i][row]
    } else {
        1.0f32.runtime()
    }
}

/// The sum of a value of every unit.
#[cube]
fn sum_of_cube(value: f32, shared: &mut Shared, #[comptime] planes: bool) -> f32 {
    let unit = UNIT_POS as usize;
    let mut sum = 0.0f32;
    if comptime!(planes) {
        let share = plane_sum(value);
        // Whoever still reads the shares of the sum before has done so.
        sync_cube();
        if UNIT_POS_PLANE == 0 {
            shared.planes[unit / 32] = share;
        }
        sync_cube();
        #[unroll]
        for i in 0..comptime!(UNITS / 32) {
            sum += shared.planes[i];
        }
    } else {
        sum = of_cube(value, &mut shared.partials, Fold::Sum, UNITS);
    }
    sum
}

/// Where the vector `at` of a row of `x` is kept: neighbours in a weight's vector lie apart, so that
/// neighbouring units find theirs side by side.
#[cube]
fn kept(at: usize, #[comptime] d: usize, #[comptime] plan: Plan) -> usize {
    let pieces = comptime!(plan.pieces());
    at % pieces * comptime!(d / plan.together) + at / pieces
}

/// The vectors `x [batch, d]` normalised, each where [`kept`] says; the first of them begins at the vector
/// `begin`.
#[cube]
fn normalise<P: Float, X: Size>(
    x_bi: &Array<Vector<f32, X>>,
    begin: usize,
    gamma: &Array<Vector<P, X>>,
    beta: &Array<Vector<P, X>>,
    epsilon: f32,
    normed: &mut SharedMemory<Vector<f32, X>>,
    shared: &mut Shared,
    #[comptime] d: usize,
    #[comptime] plan: Plan,
) {
    let unit = UNIT_POS as usize;
    let vectors = comptime!(d / plan.input);
    let turns = comptime!(vectors.div_ceil(UNITS));
    #[unroll]
    for b in 0..plan.batch {
        let mut sum = 0.0f32;
        for turn in 0..turns {
            let at = turn * UNITS + unit;
            if at < vectors {
                let x = x_bi[begin + b * vectors + at];
                normed[b * vectors + kept(at, d, plan)] = x;
                #[unroll]
                for j in 0..plan.input {
                    sum += x[j];
                }
            }
        }
        let mean = sum_of_cube(sum, shared, plan.planes) / comptime!(d as f32);
        let mut squares = 0.0f32;
        for turn in 0..turns {
            let at = turn * UNITS + unit;
            if at < vectors {
                let centred = normed[b * vectors + kept(at, d, plan)] - Vector::new(mean);
                #[unroll]
                for j in 0..plan.input {
                    squares = fma(centred[j], centred[j], squares);
                }
            }
        }
        let variance = sum_of_cube(squares, shared, plan.planes) / comptime!(d as f32);
        let scale = 1.0 / (variance + epsilon).sqrt();
        for turn in 0..turns {
            let at = turn * UNITS + unit;
            if at < vectors {
                let centred = normed[b * vectors + kept(at, d, plan)] - Vector::new(mean);
                let scaled = centred * Vector::new(scale);
                let (gamma, beta) = (Vector::cast_from(gamma[at]), Vector::cast_from(beta[at]));
                normed[b * vectors + kept(at, d, plan)] = fma(scaled, gamma, beta);
            }
        }
    }
    sync_cube();
}

/// The vectors `x [batch, d]` normalised, one a cube, each as a launch for it alone would do it, to the bit.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn normalise_each<P: Float, X: Size>(
    x_bi: &Array<Vector<f32, X>>,
    gamma: &Array<Vector<P, X>>,
    beta: &Array<Vector<P, X>>,
    epsilon: f32,
    normed_bi: &mut Array<Vector<f32, X>>,
    #[comptime] d: usize,
    #[comptime] plan: Plan,
    #[define(P)] _parameters: StorageType,
) {
    let alone = comptime!(Plan { batch: 1, ..plan });
    let vectors = comptime!(d / plan.input);
    let begin = CUBE_POS_X as usize * vectors;
    let mut shared = Shared::new(alone);
    let mut normed = SharedMemory::<Vector<f32, X>>::new(vectors);
    normalise(
        x_bi,
        begin,
        gamma,
        beta,
        epsilon,
        &mut normed,
        &mut shared,
        d,
        alone,
    );
    for turn in 0..comptime!(vectors.div_ceil(UNITS)) {
        let at = turn * UNITS + UNIT_POS as usize;
        if at < vectors {
            normed_bi[begin + at] = normed[kept(at, d, alone)];
        }
    }
}

/// By an exponential, which may be infinite: some devices have no `tanh` of large numbers.
#[cube]
fn gelu_new(v: f32) -> f32 {
    let cubic = v * v * v * f32::new(CUBIC_F32);
    v / (1.0 + ((v + cubic) * f32::new(MINUS_TWICE_SCALE)).exp())
}

/// Of `x` as it is, or normalised.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn fan_out<W: Numeric, P: Float, N: Size, X: Size>(
    x_bi: &Array<Vector<f32, X>>,
    gamma: &Array<Vector<P, X>>,
    beta: &Array<Vector<P, X>>,
    epsilon: f32,
    weights: &Sequence<Array<Vector<W, N>>>,
    scales: &Sequence<Array<f32>>,
    biases: &Sequence<Array<P>>,
    outputs: &mut Sequence<Array<f32>>,
    #[comptime] parts: Vec<Part>,
    #[comptime] plan: Plan,
    #[define(W)] _dtype: StorageType,
    #[define(P)] _parameters: StorageType,
) {
    let (cube, unit) = (CUBE_POS_X as usize, UNIT_POS as usize);
    let d = comptime!(parts[0].d_in);
    let mut shared = Shared::new(plan);
    let normalises = comptime!(plan.normalises);
    let mut normed = SharedMemory::<Vector<f32, X>>::new(comptime!(if normalises {
        plan.batch * d / plan.input
    } else {
        1
    }));
    #[unroll]
    for i in 0..comptime!(parts.len()) {
        let part = comptime!(of(&parts, i));
        let end = comptime!(part.first_cube + part.d_out.div_ceil(plan.cube_rows()));
        if cube >= comptime!(part.first_cube) && cube < end {
            let first = (cube - comptime!(part.first_cube)) * comptime!(plan.cube_rows());
            let place = place(first, plan);
            let mut sums = zeros(comptime!(plan.sums()));
            if comptime!(plan.tensor_cores) {
                // On its way while the vectors are normalised.
                let mut step = Step::<W, N, X>::new(plan);
                let x = x_bi.to_slice();
                step.read(&weights[i], &x, place, 0usize, part, plan);
                if comptime!(normalises) {
                    normalise(
                        x_bi,
                        0usize,
                        gamma,
                        beta,
                        epsilon,
                        &mut normed,
                        &mut shared,
                        d,
                        plan,
                    );
                }
                let shared_x = normed.to_slice();
                mma::multiply_but_last(
                    &mut step,
                    &mut sums,
                    &weights[i],
                    &x,
                    &shared_x,
                    place,
                    part,
                    plan,
                );
                step.multiply(&mut sums, &shared_x, place, part, plan);
            } else {
                // On their way while the vectors are normalised.
                let mut held = Array::<Vector<W, N>>::new(comptime!(plan.block() * plan.rows));
                let begun = comptime!(plan.block().min(plan.turns(d)));
                read(&weights[i], &mut held, place, 0usize, begun, part, plan);
                if comptime!(normalises) {
                    normalise(
                        x_bi,
                        0usize,
                        gamma,
                        beta,
                        epsilon,
                        &mut normed,
                        &mut shared,
                        d,
                        plan,
                    );
                }
                let x = if comptime!(normalises) {
                    normed.to_slice()
                } else {
                    x_bi.to_slice()
                };
                accumulate(
                    &mut sums,
                    &weights[i],
                    &mut held,
                    &x,
                    place,
                    part,
                    plan,
                    normalises,
                );
            }
            reduce(&sums, &mut shared, plan);
            if unit < comptime!(plan.outputs()) {
                let row = first + unit / plan.batch;
                if row < comptime!(part.d_out) {
                    let scale = scale_at(scales, row, i, plan.packed);
                    let bias = bias_at(biases, row, part.bias);
                    let mut value = total(&shared, unit, plan) * scale + bias;
                    if comptime!(part.activation == Activation::GeluNew) {
                        value = gelu_new(value);
                    }
                    let output = outputs.index_mut(i);
                    output[unit % plan.batch * comptime!(part.d_out) + row] = value;
                }
            }
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn fan_in<W: Numeric, P: Float, N: Size, X: Size>(
    x_bo: &Array<f32>,
    inputs: &Sequence<Array<Vector<f32, X>>>,
    weights: &Sequence<Array<Vector<W, N>>>,
    scales: &Sequence<Array<f32>>,
    biases: &Sequence<Array<P>>,
    output_bo: &mut Array<f32>,
    #[comptime] parts: Vec<Part>,
    #[comptime] plan: Plan,
    #[define(W)] _dtype: StorageType,
    #[define(P)] _parameters: StorageType,
) {
    let unit = UNIT_POS as usize;
    let (d, n) = comptime!((parts[0].d_out, plan.sums()));
    let first = CUBE_POS_X as usize * comptime!(plan.cube_rows());
    let place = place(first, plan);
    let mut shared = Shared::new(plan);
    let mut sums = zeros(n);
    if comptime!(plan.tensor_cores) {
        let mut step = Step::<W, N, X>::new(plan);
        let x = inputs[0].to_slice();
        let part = comptime!(of(&parts, 0));
        step.read(&weights[0], &x, place, 0usize, part, plan);
        #[unroll]
        for i in 0..comptime!(parts.len()) {
            let part = comptime!(of(&parts, i));
            let x = inputs[i].to_slice();
            let mut own = zeros(n);
            mma::multiply_but_last(&mut step, &mut own, &weights[i], &x, &x, place, part, plan);
            if comptime!(i + 1 < parts.len()) {
                // The next weight's reads are under way during the last step of this.
                let next_part = comptime!(of(&parts, i + 1));
                let next_x = inputs[comptime!(i + 1)].to_slice();
                let mut next = Step::<W, N, X>::new(plan);
                let weight = &weights[comptime!(i + 1)];
                next.read(weight, &next_x, place, 0usize, next_part, plan);
                step.multiply(&mut own, &x, place, part, plan);
                step.follow(&next, plan);
            } else {
                step.multiply(&mut own, &x, place, part, plan);
            }
            #[unroll]
            for s in 0..n {
                let row = clamp_max(first + mma::row_of(s), comptime!(d - 1));
                sums[s] = fma(own[s], scale_at(scales, row, i, plan.packed), sums[s]);
            }
        }
    } else {
        #[unroll]
        for i in 0..comptime!(parts.len()) {
            let part = comptime!(of(&parts, i));
            let x = inputs[i].to_slice();
            let mut held = Array::<Vector<W, N>>::new(comptime!(plan.block() * plan.rows));
            let begun = comptime!(plan.block().min(plan.turns(part.d_in)));
            read(&weights[i], &mut held, place, 0usize, begun, part, plan);
            if comptime!(plan.packed) {
                // Each weight has scales of its own.
                let mut own = zeros(n);
                accumulate(
                    &mut own,
                    &weights[i],
                    &mut held,
                    &x,
                    place,
                    part,
                    plan,
                    false,
                );
                #[unroll]
                for s in 0..n {
                    let row = clamp_max(place.row + comptime!(s / plan.batch), comptime!(d - 1));
                    sums[s] = fma(own[s], scales[i][row], sums[s]);
                }
            } else {
                accumulate(
                    &mut sums,
                    &weights[i],
                    &mut held,
                    &x,
                    place,
                    part,
                    plan,
                    false,
                );
            }
        }
    }
    reduce(&sums, &mut shared, plan);
    if unit < comptime!(plan.outputs()) {
        let row = first + unit / plan.batch;
        if row < d {
            let mut value = total(&shared, unit, plan);
            #[unroll]
            for i in 0..comptime!(parts.len()) {
                value += bias_at(biases, row, comptime!(of(&parts, i).bias));
            }
            let at = unit % plan.batch * d + row;
            output_bo[at] = x_bo[at] + value;
        }
    }
}

/// Rows of a table, in f32: a cube's units read neighbours of the row of its sequence.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn rows<W: Float>(
    table: &Array<W>,
    ids: &Array<i32>,
    output_bd: &mut Array<f32>,
    d: usize,
    #[define(W)] _dtype: StorageType,
) {
    let at = ABSOLUTE_POS_X as usize;
    if at < d {
        let id = ids[CUBE_POS_Y as usize] as usize;
        output_bd[CUBE_POS_Y as usize * d + at] = f32::cast_from(table[id * d + at]);
    }
}
