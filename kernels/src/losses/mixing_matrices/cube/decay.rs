//! The logarithms of the decays: their running sums before the passes over the matrices, and the
//! gradient back through them after.

use cubecl::prelude::*;

use super::{STATS, SUMS, UNITS};
use crate::cube::rows::View;

/// Slots of the statistics, `[b * h, STATS, l]`: the running sum of the log-decays in two parts, the
/// logarithm of the softmax's denominator, and `D`.
pub(super) const WHOLE: usize = 0;
pub(super) const REST: usize = 1;
pub(super) const NORMALISER: usize = 2;
pub(super) const DIAGONAL: usize = 3;

/// A running sum as a multiple of `1 / grid`, a power of two, and a remainder of at most half of that.
///
/// The products of decays, and their gradients, are differences of running sums: in one f32 the small
/// differences would lose their digits to the large sums. The differences of the multiples are exact.
/// (Compensated summation would do, if no compiler took it for a sum of zeros.)
#[derive(CubeType, Clone, Copy)]
struct RunningSum {
    whole: f32,
    rest: f32,
}

/// The finest grid on which the sum of `count` values up to `largest` takes fewer than 2^24 steps.
#[cube]
fn grid_for(count: usize, largest: f32) -> f32 {
    let bound = count as f32 * largest;
    let mut grid = 1.0f32;
    while bound * grid > 16_777_216.0 {
        grid *= 0.5;
    }
    while bound * grid < 8_388_608.0 && grid < 16_777_216.0 {
        grid *= 2.0;
    }
    grid
}

#[cube]
fn add(sum: &mut RunningSum, whole: f32, rest: f32, grid: f32) {
    let rest = sum.rest + rest;
    let carried = (rest * grid).round() / grid;
    sum.whole += whole + carried;
    sum.rest = rest - carried;
}

/// The least logarithm of a decay: any less changes no product of decays in f32.
const LEAST_LOG: f32 = -128.0;

/// `-softplus(a_log)`, but for [`LEAST_LOG`].
#[cube]
fn log_decay(a_log: f32) -> f32 {
    let x = (-a_log.abs()).exp();
    let mut log = (1.0 + x).ln();
    if x < 0.1 {
        // 1 + x has lost the digits of x.
        let series = 1.0 / 4.0 - x * (1.0 / 5.0 - x * (1.0 / 6.0 - x / 7.0));
        log = x * (1.0 - x * (0.5 - x * (1.0 / 3.0 - x * series)));
    }
    clamp_min(-(clamp_min(a_log, 0.0) + log), LEAST_LOG)
}

/// What the units before this one have in all; with `after`, those after it. In each round, what a unit has becomes the
/// sum of twice as many units.
#[cube]
fn sum_of_others(
    own: &RunningSum,
    grid: f32,
    whole: &mut SharedMemory<f32>,
    rest: &mut SharedMemory<f32>,
    #[comptime] after: bool,
) -> RunningSum {
    // Units in the order in which they are added.
    let unit = if comptime!(after) {
        comptime!(UNITS - 1) - UNIT_POS as usize
    } else {
        UNIT_POS as usize
    };
    let mut sum = RunningSum {
        whole: own.whole,
        rest: own.rest,
    };
    sync_cube();
    whole[unit] = sum.whole;
    rest[unit] = sum.rest;
    sync_cube();
    #[unroll]
    for level in 0..comptime!(UNITS.ilog2()) {
        let distance = comptime!(1usize << level);
        if unit >= distance {
            add(
                &mut sum,
                whole[unit - distance],
                rest[unit - distance],
                grid,
            );
        }
        sync_cube();
        whole[unit] = sum.whole;
        rest[unit] = sum.rest;
        sync_cube();
    }
    let mut others = RunningSum {
        whole: 0.0,
        rest: 0.0,
    };
    if unit > 0 {
        others.whole = whole[unit - 1];
        others.rest = rest[unit - 1];
    }
    others
}

/// Elements of a unit where a cube has `l` of them.
#[cube]
fn share(l: usize) -> usize {
    l.div_ceil(UNITS)
}

/// One cube a batch and head: the running sums, and `D` beside them.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn statistics_kernel<A: Float, D: Float>(
    a_log_blh: &Array<A>,
    d_h: &Array<D>,
    stats: &mut Array<f32>,
    view: View,
    #[define(A)] _a_log: StorageType,
    #[define(D)] _d: StorageType,
) {
    let (l, h) = (view.count, view.groups);
    let (batch, head) = (CUBE_POS_X as usize / h, CUBE_POS_X as usize % h);
    let unit = UNIT_POS as usize;
    let mut whole = SharedMemory::<f32>::new(UNITS);
    let mut rest = SharedMemory::<f32>::new(UNITS);
    let first = clamp_max(unit * share(l), l);
    let last = clamp_max(first + share(l), l);
    let base = batch * view.batch + head * view.group;
    let grid = grid_for(l, -LEAST_LOG);

    let mut sum = RunningSum {
        whole: 0.0,
        rest: 0.0,
    };
    for t in first..last {
        let a_log = f32::cast_from(a_log_blh[base + t * view.row]);
        add(&mut sum, 0.0, log_decay(a_log), grid);
    }
    let mut sum = sum_of_others(&sum, grid, &mut whole, &mut rest, false);
    let row = CUBE_POS_X as usize * STATS * l;
    let d = f32::cast_from(d_h[head]);
    for t in first..last {
        let a_log = f32::cast_from(a_log_blh[base + t * view.row]);
        add(&mut sum, 0.0, log_decay(a_log), grid);
        stats[row + WHOLE * l + t] = sum.whole;
        stats[row + REST * l + t] = sum.rest;
        stats[row + DIAGONAL * l + t] = d;
    }
}

/// Slots of the sums over a matrix's rows or columns, `[b * h, SUMS, l]`: of the gradient to the decays'
/// logarithms along the rows, of the squares, the diagonal, and the first along the columns.
pub(super) const LOG_ROWS: usize = 0;
pub(super) const SQUARES: usize = 1;
pub(super) const ON_DIAGONAL: usize = 2;
pub(super) const LOG_COLUMNS: usize = 3;

/// Slots of what is known of a head, `[HEADS, b * h]`: its distance, the factor of its gradients, and
/// its gradient to `D`.
pub(super) const HEADS: usize = 3;
const DISTANCE: usize = 0;
const FACTOR: usize = 1;
const D_GRADIENT: usize = 2;

/// What the logarithm of the decay at `t` gets more along its row than along its column.
#[cube]
fn rows_minus_columns(sums: &Array<f32>, row: usize, t: usize, l: usize) -> f32 {
    sums[row + LOG_ROWS * l + t] - sums[row + LOG_COLUMNS * l + t]
}

/// The sum of the units' values or, with `largest`, the largest of them; the same in all units.
#[cube]
fn of_cube(value: f32, shared: &mut SharedMemory<f32>, #[comptime] largest: bool) -> f32 {
    let unit = UNIT_POS as usize;
    sync_cube();
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for level in 0..comptime!(UNITS.ilog2()) {
        let half = comptime!(UNITS >> (level + 1));
        if unit < half {
            let other = shared[unit + half];
            if comptime!(largest) {
                shared[unit] = max(shared[unit], other);
            } else {
                shared[unit] = shared[unit] + other;
            }
        }
        sync_cube();
    }
    shared[0]
}

#[cube]
fn cube_sum(value: f32, shared: &mut SharedMemory<f32>) -> f32 {
    of_cube(value, shared, false)
}

/// One cube a batch and head: its distance, the factor that follows from it, and the gradients that
/// are sums over a whole head.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn head_kernel<A: Float>(
    a_log_blh: &Array<A>,
    sums: &Array<f32>,
    heads: &mut Array<f32>,
    da_log_blh: &mut Array<A>,
    view: View,
    #[comptime] gradients: bool,
    #[define(A)] _a_log: StorageType,
) {
    let (l, h) = (view.count, view.groups);
    let count = CUBE_COUNT_X as usize;
    let pair = CUBE_POS_X as usize;
    let (batch, head) = (pair / h, pair % h);
    let unit = UNIT_POS as usize;
    let row = pair * SUMS * l;
    let mut shared = SharedMemory::<f32>::new(UNITS);
    let first = clamp_max(unit * share(l), l);
    let last = clamp_max(first + share(l), l);

    let mut squares = 0.0f32;
    let mut diagonal = 0.0f32;
    for t in first..last {
        squares += sums[row + SQUARES * l + t];
        diagonal += sums[row + ON_DIAGONAL * l + t];
    }
    let distance = cube_sum(squares, &mut shared).sqrt();
    let diagonal = cube_sum(diagonal, &mut shared);
    let mut factor = 0.0f32;
    if distance > 0.0 {
        factor = 1.0 / (distance * count as f32);
    }
    if unit == 0 {
        heads[DISTANCE * count + pair] = distance;
        heads[FACTOR * count + pair] = factor;
        heads[D_GRADIENT * count + pair] = factor * diagonal;
    }

    if gradients {
        // The log-decay at t is in L[i, j] for j < t <= i: of the rows from t on, all but what is in the
        // columns from t on.
        let mut largest = 0.0f32;
        for t in first..last {
            largest = max(largest, rows_minus_columns(sums, row, t, l).abs());
        }
        let grid = grid_for(l, of_cube(largest, &mut shared, true));
        let mut sum = RunningSum {
            whole: 0.0,
            rest: 0.0,
        };
        for t in first..last {
            add(&mut sum, 0.0, rows_minus_columns(sums, row, t, l), grid);
        }
        let mut rest = SharedMemory::<f32>::new(UNITS);
        let mut from_here = sum_of_others(&sum, grid, &mut shared, &mut rest, true);
        for step in first..last {
            let t = first + last - 1 - step;
            add(
                &mut from_here,
                0.0,
                rows_minus_columns(sums, row, t, l),
                grid,
            );
            let at = batch * view.batch + t * view.row + head * view.group;
            let a_log = f32::cast_from(a_log_blh[at]);
            let slope = -1.0 / (1.0 + (-a_log).exp());
            let gradient = factor * (from_here.whole + from_here.rest) * slope;
            da_log_blh[(batch * l + t) * h + head] = A::cast_from(gradient);
        }
    }
}

/// One cube: the loss, and the gradient to `D`.
#[cube(launch_unchecked)]
pub(super) fn loss_kernel<D: Float>(
    heads: &Array<f32>,
    loss: &mut Array<f32>,
    dd_h: &mut Array<D>,
    count: usize,
    h: usize,
    #[define(D)] _d: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(UNITS);
    let mut distances = 0.0f32;
    for pair in range_stepped(UNIT_POS as usize, count, UNITS) {
        distances += heads[DISTANCE * count + pair];
    }
    let distances = cube_sum(distances, &mut shared);
    if UNIT_POS == 0 {
        loss[0] = distances / count as f32;
    }
    for head in range_stepped(UNIT_POS as usize, h, UNITS) {
        let mut gradient = 0.0f32;
        for batch in 0..count / h {
            gradient += heads[D_GRADIENT * count + batch * h + head];
        }
        dd_h[head] = D::cast_from(gradient);
    }
}

/// The gradients of a group: those of its heads times their factors, added up. A row has `across` vectors.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn group_kernel<F: Float, N: Size>(
    per_head_bhln: &Array<Vector<f32, N>>,
    heads: &Array<f32>,
    gradient_blgn: &mut Array<Vector<F, N>>,
    count: usize,
    h: usize,
    l: usize,
    g: usize,
    #[comptime] across: usize,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= count / h * l * g * across {
        terminate!();
    }
    let (vector, row) = (ABSOLUTE_POS % across, ABSOLUTE_POS / across);
    let (group, row) = (row % g, row / g);
    let (t, batch) = (row % l, row / l);
    let mut sum = Vector::<f32, N>::new(0.0);
    for head in group * (h / g)..(group + 1) * (h / g) {
        let pair = batch * h + head;
        let factor = Vector::new(heads[FACTOR * count + pair]);
        sum += factor * per_head_bhln[(pair * l + t) * across + vector];
    }
    gradient_blgn[ABSOLUTE_POS] = Vector::cast_from(sum);
}
