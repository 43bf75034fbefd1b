//! The kernels: the units of a row, a power of two of them side by side, hold its vectors in registers.

use cubecl::prelude::*;

use super::plan::{GROUP, Plan, UNITS};

/// Where a unit works: its place among the units of its row, and the row's among the rows of its cube.
#[derive(CubeType, Clone, Copy)]
struct Place {
    lane: usize,
    team: usize,
}

#[cube]
fn place(#[comptime] plan: Plan) -> Place {
    let unit = UNIT_POS as usize;
    Place {
        lane: unit % plan.lanes,
        team: unit / plan.lanes,
    }
}

/// What the units of a row exchange.
#[derive(CubeType)]
struct Shared {
    /// A few numbers of every unit.
    units: SharedMemory<f32>,
    /// As many of every [`GROUP`]th of a row's units.
    groups: SharedMemory<f32>,
}

#[cube]
impl Shared {
    fn new(#[comptime] numbers: usize) -> Self {
        Shared {
            units: SharedMemory::<f32>::new(comptime!(numbers * UNITS)),
            groups: SharedMemory::<f32>::new(comptime!(numbers * UNITS)),
        }
    }
}

/// Turns a few numbers of every unit into their sums over the units of its row, which all units of the cube
/// ask for together. Each unit adds up the same numbers in the same order.
#[cube]
fn add_up(
    numbers: &mut Array<f32>,
    shared: &mut Shared,
    place: Place,
    #[comptime] count: usize,
    #[comptime] plan: Plan,
) {
    let lanes = comptime!(plan.lanes);
    let row = place.team * lanes;
    #[unroll]
    for k in 0..count {
        shared.units[k * UNITS + row + place.lane] = numbers[k];
    }
    sync_cube();
    if comptime!(lanes <= GROUP) {
        #[unroll]
        for k in 0..count {
            let mut sum = 0.0f32;
            #[unroll]
            for i in 0..lanes {
                sum += shared.units[k * UNITS + row + i];
            }
            numbers[k] = sum;
        }
        // Before the next numbers are written there.
        sync_cube();
    } else {
        if place.lane < GROUP {
            #[unroll]
            for k in 0..count {
                let mut sum = 0.0f32;
                #[unroll]
                for i in 0..comptime!(lanes / GROUP) {
                    sum += shared.units[k * UNITS + row + i * GROUP + place.lane];
                }
                shared.groups[k * UNITS + row + place.lane] = sum;
            }
        }
        sync_cube();
        // Those of the next numbers are written after its first barrier, when all have read these.
        #[unroll]
        for k in 0..count {
            let mut sum = 0.0f32;
            #[unroll]
            for i in 0..GROUP {
                sum += shared.groups[k * UNITS + row + i];
            }
            numbers[k] = sum;
        }
    }
}

/// The sum of a vector's elements.
#[cube]
fn across<N: Size>(vector: Vector<f32, N>, #[comptime] n: usize) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..n {
        sum += vector[i];
    }
    sum
}

/// The place in a row of a unit's vector `i`, at most the last.
#[cube]
fn column(place: Place, #[comptime] i: usize, #[comptime] plan: Plan) -> usize {
    let at = comptime!(i * plan.lanes) + place.lane;
    if comptime!((i + 1) * plan.lanes > plan.vectors) {
        clamp_max(at, comptime!(plan.vectors - 1))
    } else {
        at
    }
}

/// Whether a unit has a vector `i`.
#[cube]
fn has(place: Place, #[comptime] i: usize, #[comptime] plan: Plan) -> bool {
    comptime!((i + 1) * plan.lanes <= plan.vectors)
        || comptime!(i * plan.lanes) + place.lane < comptime!(plan.vectors)
}

/// Reads a unit's vectors of a row; what lies beyond it is its last vector.
#[cube]
fn read_row<F: Float, N: Size>(
    of: &Tensor<Vector<F, N>>,
    row: usize,
    place: Place,
    held: &mut Array<Vector<F, N>>,
    #[comptime] plan: Plan,
) {
    let start = row * of.stride(0) / plan.n;
    #[unroll]
    for i in 0..comptime!(plan.held()) {
        held[i] = of[start + column(place, i, plan)];
    }
}

/// A vector of gamma or beta, at the place `at` of a row.
#[cube]
fn parameter<W: Float, M: Size, N: Size>(
    of_d: &Array<Vector<W, M>>,
    at: usize,
    #[comptime] plan: Plan,
) -> Vector<f32, N> {
    let mut value = Vector::<f32, N>::new(0.0f32);
    let pieces = comptime!(plan.n / plan.m);
    #[unroll]
    for piece in 0..pieces {
        let read = of_d[at * pieces + piece];
        #[unroll]
        for j in 0..plan.m {
            value[comptime!(piece * plan.m + j)] = f32::cast_from(read[j]);
        }
    }
    value
}

/// The mean of the row that its units hold.
#[cube]
fn mean_of<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    shared: &mut Shared,
    place: Place,
    #[comptime] plan: Plan,
) -> f32 {
    let mut sum = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for i in 0..comptime!(plan.held()) {
        if has(place, i, plan) {
            sum += Vector::<f32, N>::cast_from(x[i]);
        }
    }
    let mut numbers = Array::<f32>::new(1usize);
    numbers[0] = across(sum, plan.n);
    add_up(&mut numbers, shared, place, 1usize, plan);
    numbers[0] / comptime!(plan.width() as f32)
}

/// `y = (x - mean) / sqrt(var + epsilon) * gamma + beta`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn forward_kernel<F: Float, W: Float, N: Size, M: Size>(
    x_td: &Tensor<Vector<F, N>>,
    gamma_d: &Array<Vector<W, M>>,
    beta_d: &Array<Vector<W, M>>,
    y_td: &mut Tensor<Vector<F, N>>,
    epsilon: f32,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
    #[define(W)] _parameter_dtype: StorageType,
) {
    let t = x_td.shape(0);
    let place = place(plan);
    let row = CUBE_POS * comptime!(plan.teams()) + place.team;
    let mut shared = Shared::new(1usize);
    let mut x = Array::<Vector<F, N>>::new(comptime!(plan.held()));
    // Rows beyond the last are the last once more, as all units of a cube meet at its barriers.
    read_row(x_td, clamp_max(row, t - 1), place, &mut x, plan);
    let mean = Vector::<f32, N>::new(mean_of(&x, &mut shared, place, plan));
    let mut squares = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for i in 0..comptime!(plan.held()) {
        if has(place, i, plan) {
            let centred = Vector::<f32, N>::cast_from(x[i]) - mean;
            squares += centred * centred;
        }
    }
    let mut numbers = Array::<f32>::new(1usize);
    numbers[0] = across(squares, plan.n);
    add_up(&mut numbers, &mut shared, place, 1usize, plan);
    let deviation = f32::sqrt(numbers[0] / comptime!(plan.width() as f32) + epsilon);
    let inverse = Vector::<f32, N>::new(1.0f32 / deviation);
    if row < t {
        let start = row * comptime!(plan.vectors);
        #[unroll]
        for i in 0..comptime!(plan.held()) {
            if has(place, i, plan) {
                let at = column(place, i, plan);
                let normalised = (Vector::<f32, N>::cast_from(x[i]) - mean) * inverse;
                let gamma = parameter::<W, M, N>(gamma_d, at, plan);
                let beta = parameter::<W, M, N>(beta_d, at, plan);
                y_td[start + at] = Vector::cast_from(normalised * gamma + beta);
            }
        }
    }
}

/// Writes what a unit has added up for the columns of its vectors to a row of the shares.
#[cube]
fn write_share<N: Size, P: Size>(
    sums: &Array<Vector<f32, N>>,
    shares: &mut Tensor<Vector<f32, P>>,
    row: usize,
    place: Place,
    #[comptime] plan: Plan,
) {
    let pieces = comptime!(plan.n / plan.p);
    #[unroll]
    for i in 0..comptime!(plan.held()) {
        if has(place, i, plan) {
            let at = (row * plan.vectors + column(place, i, plan)) * pieces;
            let sum = sums[i];
            #[unroll]
            for piece in 0..pieces {
                let mut share = Vector::<f32, P>::new(0.0f32);
                #[unroll]
                for j in 0..plan.p {
                    share[j] = sum[comptime!(piece * plan.p + j)];
                }
                shares[at + piece] = share;
            }
        }
    }
}

/// The gradient to x, and of those to gamma and beta the share `[teams, 1 or 2, d]` of the `rows` rows that
/// a team of units walks over; what there is an output for.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn backward_kernel<F: Float, W: Float, N: Size, M: Size, P: Size>(
    x_td: &Tensor<Vector<F, N>>,
    gamma_d: &Array<Vector<W, M>>,
    dy_td: &Tensor<Vector<F, N>>,
    dx_td: &mut ComptimeOption<Tensor<Vector<F, N>>>,
    shares: &mut ComptimeOption<Tensor<Vector<f32, P>>>,
    rows: u32,
    epsilon: f32,
    #[comptime] plan: Plan,
    #[comptime] wanted: [bool; 3],
    #[define(F)] _dtype: StorageType,
    #[define(W)] _parameter_dtype: StorageType,
) {
    let t = x_td.shape(0);
    let place = place(plan);
    let team = CUBE_POS * comptime!(plan.teams()) + place.team;
    let held = comptime!(plan.held());
    let width = comptime!(plan.width() as f32);
    let zero = Vector::<f32, N>::new(0.0f32);
    let mut shared = Shared::new(3usize);
    let mut x = Array::<Vector<F, N>>::new(held);
    let mut dy = Array::<Vector<F, N>>::new(held);
    let mut dgamma = Array::<Vector<f32, N>>::new(held);
    let mut dbeta = Array::<Vector<f32, N>>::new(held);
    #[unroll]
    for i in 0..held {
        dgamma[i] = zero;
        dbeta[i] = zero;
    }
    for r in 0..rows as usize {
        let row = team * rows as usize + r;
        let within = row < t;
        // As forward.
        let from = clamp_max(row, t - 1);
        read_row(x_td, from, place, &mut x, plan);
        read_row(dy_td, from, place, &mut dy, plan);
        let mean = Vector::<f32, N>::new(mean_of(&x, &mut shared, place, plan));

        // Of the squares, of `g = dy * gamma` and of `g * (x - mean)`.
        let mut sums = Array::<Vector<f32, N>>::new(3usize);
        #[unroll]
        for k in 0..3usize {
            sums[k] = zero;
        }
        #[unroll]
        for i in 0..held {
            if has(place, i, plan) {
                let centred = Vector::<f32, N>::cast_from(x[i]) - mean;
                sums[0] += centred * centred;
                if comptime!(wanted[0]) {
                    let gamma = parameter::<W, M, N>(gamma_d, column(place, i, plan), plan);
                    let g = Vector::<f32, N>::cast_from(dy[i]) * gamma;
                    sums[1] += g;
                    sums[2] += g * centred;
                }
            }
        }
        let count = comptime!(if wanted[0] { 3usize } else { 1usize });
        let mut numbers = Array::<f32>::new(3usize);
        #[unroll]
        for k in 0..count {
            numbers[k] = across(sums[k], plan.n);
        }
        add_up(&mut numbers, &mut shared, place, count, plan);
        let inverse = 1.0f32 / f32::sqrt(numbers[0] / width + epsilon);
        let inverse_n = Vector::<f32, N>::new(inverse);
        if within {
            #[comptime]
            match dx_td {
                ComptimeOption::Some(dx) => {
                    let mean_g = Vector::<f32, N>::new(numbers[1] / width);
                    let along = Vector::<f32, N>::new(numbers[2] / width * inverse * inverse);
                    let start = row * comptime!(plan.vectors);
                    #[unroll]
                    for i in 0..held {
                        if has(place, i, plan) {
                            let at = column(place, i, plan);
                            let gamma = parameter::<W, M, N>(gamma_d, at, plan);
                            let g = Vector::<f32, N>::cast_from(dy[i]) * gamma;
                            let centred = Vector::<f32, N>::cast_from(x[i]) - mean;
                            let gradient = (g - mean_g - centred * along) * inverse_n;
                            dx[start + at] = Vector::cast_from(gradient);
                        }
                    }
                }
                ComptimeOption::None => {}
            }
            #[unroll]
            for i in 0..held {
                let dy = Vector::<f32, N>::cast_from(dy[i]);
                if comptime!(wanted[1]) {
                    let centred = Vector::<f32, N>::cast_from(x[i]) - mean;
                    dgamma[i] += dy * centred * inverse_n;
                }
                if comptime!(wanted[2]) {
                    dbeta[i] += dy;
                }
            }
        }
    }
    #[comptime]
    match shares {
        ComptimeOption::Some(shares) => {
            // The host has a share for every team, those without rows included.
            if comptime!(wanted[1] && wanted[2]) {
                write_share(&dgamma, shares, team * 2, place, plan);
                write_share(&dbeta, shares, team * 2 + 1, place, plan);
            } else if comptime!(wanted[1]) {
                write_share(&dgamma, shares, team, place, plan);
            } else {
                write_share(&dbeta, shares, team, place, plan);
            }
        }
        ComptimeOption::None => {}
    }
}
