//! The kernels: the units of a row, a power of two of them side by side, hold its vectors in registers.

use cubecl::prelude::*;

use crate::cube::row_teams::{
    Place, Plan, Shared, across, add_up, column, has, parameter, place, read_row, write_share,
};

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
    x_td: &Array<Vector<F, N>>,
    gamma_d: &Array<Vector<W, M>>,
    beta_d: &Array<Vector<W, M>>,
    y_td: &mut Array<Vector<F, N>>,
    // Rows, and vectors from one to the next.
    t: u32,
    x_stride: u32,
    epsilon: f32,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
    #[define(W)] _parameter_dtype: StorageType,
) {
    let t = t as usize;
    let place = place(plan);
    let row = CUBE_POS * comptime!(plan.teams()) + place.team;
    let mut shared = Shared::new(1usize);
    let mut x = Array::<Vector<F, N>>::new(comptime!(plan.held()));
    // Rows beyond the last are the last once more, as all units of a cube meet at its barriers.
    read_row(x_td, clamp_max(row, t - 1), x_stride, place, &mut x, plan);
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

/// The gradient to x, and the contributions `[teams, 1 or 2, d]` to the gradients of gamma and beta, one for the `rows`
/// rows of each team of units. Only those that have an output are computed.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn backward_kernel<F: Float, W: Float, N: Size, M: Size, P: Size>(
    x_td: &Array<Vector<F, N>>,
    gamma_d: &Array<Vector<W, M>>,
    dy_td: &Array<Vector<F, N>>,
    dx_td: &mut ComptimeOption<Array<Vector<F, N>>>,
    shares: &mut ComptimeOption<Array<Vector<f32, P>>>,
    // Rows, vectors from one to the next, and rows of a team.
    t: u32,
    x_stride: u32,
    dy_stride: u32,
    rows: u32,
    epsilon: f32,
    #[comptime] plan: Plan,
    #[comptime] wanted: [bool; 3],
    #[define(F)] _dtype: StorageType,
    #[define(W)] _parameter_dtype: StorageType,
) {
    let t = t as usize;
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
        read_row(x_td, from, x_stride, place, &mut x, plan);
        read_row(dy_td, from, dy_stride, place, &mut dy, plan);
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
