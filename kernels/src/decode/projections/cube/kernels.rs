//! The kernels.

use cubecl::prelude::*;

use super::group;
use super::multiply::{Held, accumulate, read, reduce};
use super::normalise::{Normed, fetch, normalise};
use super::plan::{Part, Plan};
use super::ring::Ring;
use super::walk;
use crate::cube::fragments::PLANE;
use crate::decode::projections::{Activation, Form};
use crate::dense::gelu::cube::{CUBIC_F32, MINUS_TWICE_SCALE};

/// A projection by the index of an unrolled loop, which chooses from several lists.
pub(super) fn of(parts: &[Part], i: usize) -> Part {
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
    let unit = UNIT_POS as usize;
    Place {
        row: first + unit / plan.lanes * plan.rows,
        lane: unit % plan.lanes,
    }
}

#[cube]
pub(super) fn zeros(#[comptime] length: usize) -> Array<f32> {
    let mut values = Array::<f32>::new(length);
    #[unroll]
    for i in 0..length {
        values[i] = 0.0;
    }
    values
}

/// What the units of a cube exchange.
#[derive(CubeType)]
pub(super) struct Shared {
    /// [`Plan::partials`] of every unit; unused where planes add up.
    pub(super) partials: SharedMemory<f32>,
    /// One of each vector a plane.
    pub(super) planes: SharedMemory<f32>,
    /// Of each output, [`Plan::shares`].
    pub(super) totals: SharedMemory<f32>,
}

#[cube]
impl Shared {
    pub(super) fn new(#[comptime] plan: Plan) -> Self {
        Shared {
            partials: SharedMemory::<f32>::new(comptime!(plan.all_partials())),
            planes: SharedMemory::<f32>::new(comptime!(plan.units() / PLANE * plan.batch)),
            totals: SharedMemory::<f32>::new(comptime!(plan.totals())),
        }
    }
}

/// The sum of the cube's shares of an output. Shares are added up in runs, so that the sum of several cubes, which have one
/// run each, is the same.
#[cube]
fn total(shared: &Shared, output: usize, #[comptime] plan: Plan) -> f32 {
    let (shares, all) = comptime!((plan.shares() / plan.runs(), plan.shares_of_cube()));
    let mut total = 0.0f32.runtime();
    #[unroll]
    for run in 0..comptime!(all / shares) {
        let first = output * all + comptime!(run * shares);
        let mut sum = shared.totals[first];
        #[unroll]
        for i in 1..shares {
            sum += shared.totals[first + i];
        }
        if comptime!(run == 0) {
            total = sum;
        } else {
            total += sum;
        }
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

/// What the sum of a row's products is multiplied with: the row's scale, where it has one.
#[cube]
pub(super) fn scale_at(
    scales: &Sequence<Array<u32>>,
    row: usize,
    i: usize,
    #[comptime] form: Form,
) -> f32 {
    if comptime!(form == Form::Int8) {
        f32::reinterpret(scales[i][row])
    } else {
        1.0f32.runtime()
    }
}

/// By an exponential, which is infinite where `v` is far below 0: then this is 0.
#[cube]
fn silu(v: f32) -> f32 {
    v / (1.0 + (-v).exp())
}

/// By an exponential, which may be infinite: some devices have no `tanh` of large numbers.
#[cube]
fn gelu_new(v: f32) -> f32 {
    let cubic = v * v * v * f32::new(CUBIC_F32);
    v / (1.0 + ((v + cubic) * f32::new(MINUS_TWICE_SCALE)).exp())
}

/// Of `x` as it is, or normalised.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn project_into<W: Numeric, P: Float, N: Size, X: Size>(
    x_bi: &Array<Vector<f32, X>>,
    gamma: &Array<Vector<P, X>>,
    beta: &ComptimeOption<Array<Vector<P, X>>>,
    epsilon: f32,
    weights: &Sequence<Array<Vector<W, N>>>,
    scales: &Sequence<Array<u32>>,
    biases: &Sequence<Array<P>>,
    outputs: &mut Sequence<Array<f32>>,
    #[comptime] parts: Vec<Part>,
    #[comptime] plan: Plan,
    #[define(W)] _dtype: StorageType,
    #[define(P)] _parameters: StorageType,
) {
    let cube = CUBE_POS_X as usize;
    let d = comptime!(parts[0].d_in);
    let mut shared = Shared::new(plan);
    let mut normed = Normed::<X>::new(comptime!(if plan.normalises { d } else { 0 }), plan);
    if comptime!(plan.tensor_cores) {
        let mut ring = Ring::<W, N, X>::new(plan);
        let mut x = fetch(x_bi, 0usize, gamma, beta, d, plan);
        // On their way while the vectors are normalised.
        #[unroll]
        for i in 0..comptime!(parts.len()) {
            let part = comptime!(of(&parts, i));
            if has(part, cube) {
                let own = cube - comptime!(part.first_cube);
                walk::begin_rows(&mut ring, &weights[i], scales, own, i, part, plan);
            }
        }
        normalise(&mut x, epsilon, &mut normed, &mut shared, d, plan);
        #[unroll]
        for i in 0..comptime!(parts.len()) {
            let part = comptime!(of(&parts, i));
            if has(part, cube) {
                let own = cube - comptime!(part.first_cube);
                let output = outputs.index_mut(i);
                walk::rows(
                    &mut ring,
                    &weights[i],
                    &normed,
                    &mut shared,
                    scales,
                    biases,
                    output,
                    own,
                    i,
                    part,
                    plan,
                );
            }
        }
    } else {
        #[unroll]
        for i in 0..comptime!(parts.len()) {
            let part = comptime!(of(&parts, i));
            if has(part, cube) {
                let first = (cube - comptime!(part.first_cube)) * comptime!(plan.cube_rows());
                let place = place(first, plan);
                let mut sums = zeros(comptime!(plan.sums()));
                // On their way while the vectors are normalised.
                let mut held = Held::<W, N>::new(plan);
                let begun = comptime!(plan.block().min(plan.turns(d)));
                read(
                    &weights[i],
                    scales,
                    &mut held,
                    place,
                    i,
                    0usize,
                    begun,
                    part,
                    plan,
                );
                if comptime!(plan.normalises) {
                    let mut x = fetch(x_bi, 0usize, gamma, beta, d, plan);
                    normalise(&mut x, epsilon, &mut normed, &mut shared, d, plan);
                }
                let x = if comptime!(plan.normalises) {
                    normed.vectors.to_slice()
                } else {
                    x_bi.to_slice()
                };
                accumulate(
                    &mut sums,
                    &weights[i],
                    scales,
                    &mut held,
                    &x,
                    &x,
                    place,
                    i,
                    part,
                    plan,
                );
                reduce(&sums, &mut shared, plan);
                let output = outputs.index_mut(i);
                finish(output, &shared, first, biases, scales, i, part, plan);
            }
        }
    }
}

/// Whether the cube `cube` works on a weight.
#[cube]
fn has(#[comptime] part: Part, cube: usize) -> bool {
    cube >= comptime!(part.first_cube) && cube < comptime!(part.first_cube + part.cubes)
}

/// Writes the cube's outputs, from the row `first` on.
#[cube]
pub(super) fn finish<P: Float>(
    output_bo: &mut Array<f32>,
    shared: &Shared,
    first: usize,
    biases: &Sequence<Array<P>>,
    scales: &Sequence<Array<u32>>,
    #[comptime] i: usize,
    #[comptime] part: Part,
    #[comptime] plan: Plan,
) {
    let unit = UNIT_POS as usize;
    let row = first + unit / plan.batch;
    if unit < comptime!(plan.outputs()) && row < comptime!(part.d_out) {
        let scale = scale_at(scales, row, i, plan.form);
        let bias = bias_at(biases, row, part.bias);
        let mut value = total(shared, unit, plan) * scale + bias;
        if comptime!(part.activation == Activation::GeluNew) {
            value = gelu_new(value);
        } else if comptime!(part.activation == Activation::Silu) {
            value = silu(value);
        }
        output_bo[unit % plan.batch * comptime!(part.d_out) + row] = value;
    }
}

/// The residual stream `x` and the products of all inputs. With cubes in groups, these exchange what they have by
/// [`exchange`](group::exchange).
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn project_out_of<W: Numeric, P: Float, N: Size, X: Size>(
    x_bo: &Array<f32>,
    inputs: &Sequence<Array<Vector<f32, X>>>,
    gates: &Sequence<Array<Vector<f32, X>>>,
    weights: &Sequence<Array<Vector<W, N>>>,
    scales: &Sequence<Array<u32>>,
    biases: &Sequence<Array<P>>,
    exchange: &Sequence<Array<Atomic<u32>>>,
    output_bo: &mut Array<f32>,
    #[comptime] parts: Vec<Part>,
    #[comptime] plan: Plan,
    #[define(W)] _dtype: StorageType,
    #[define(P)] _parameters: StorageType,
) {
    let unit = UNIT_POS as usize;
    let (d, n) = comptime!((parts[0].d_out, plan.sums()));
    let first = CUBE_POS_X as usize / plan.cubes_of_group * comptime!(plan.cube_rows());
    let mut shared = Shared::new(plan);
    if comptime!(plan.tensor_cores) {
        walk::inputs(
            inputs,
            gates,
            weights,
            scales,
            &mut shared,
            first,
            comptime!(parts.clone()),
            plan,
        );
    } else {
        let place = place(first, plan);
        let mut sums = zeros(n);
        #[unroll]
        for i in 0..comptime!(parts.len()) {
            let part = comptime!(of(&parts, i));
            let x = inputs[i].to_slice();
            let gate = if comptime!(plan.gated) {
                gates[i].to_slice()
            } else {
                x
            };
            let mut held = Held::<W, N>::new(plan);
            let begun = comptime!(plan.block().min(plan.turns(part.d_in)));
            read(
                &weights[i],
                scales,
                &mut held,
                place,
                i,
                0usize,
                begun,
                part,
                plan,
            );
            if comptime!(plan.form == Form::Int8) {
                // Each weight has other scales.
                let mut own = zeros(n);
                accumulate(
                    &mut own,
                    &weights[i],
                    scales,
                    &mut held,
                    &x,
                    &gate,
                    place,
                    i,
                    part,
                    plan,
                );
                #[unroll]
                for s in 0..n {
                    let row = clamp_max(place.row + comptime!(s / plan.batch), comptime!(d - 1));
                    sums[s] = fma(own[s], scale_at(scales, row, i, plan.form), sums[s]);
                }
            } else {
                accumulate(
                    &mut sums,
                    &weights[i],
                    scales,
                    &mut held,
                    &x,
                    &gate,
                    place,
                    i,
                    part,
                    plan,
                );
            }
        }
        reduce(&sums, &mut shared, plan);
    }
    let mut sum = 0.0f32.runtime();
    if unit < comptime!(plan.outputs()) {
        sum = total(&shared, unit, plan);
    }
    if comptime!(plan.cubes_of_group > 1) {
        let exchange = exchange.index(0usize);
        if !group::is_last(exchange, sum, plan) {
            terminate!();
        }
        sum = group::total(exchange, plan);
    }
    if unit < comptime!(plan.outputs()) {
        let row = first + unit / plan.batch;
        if row < d {
            let mut value = sum;
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
        // An id below 0 says why there is no token.
        let id = max(ids[CUBE_POS_Y as usize], 0i32) as usize;
        output_bd[CUBE_POS_Y as usize * d + at] = f32::cast_from(table[id * d + at]);
    }
}
