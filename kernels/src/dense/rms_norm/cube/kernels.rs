//! The kernels: the units of a row, a power of two of them side by side, hold its vectors in registers.

use cubecl::prelude::*;

use crate::cube::row_teams::{
    Plan, Shared, across, add_up, column, has, parameter, place, read_row, write_share,
};

/// `y = x / sqrt(mean(x^2) + epsilon) * gamma`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn forward_kernel<F: Float, W: Float, N: Size, M: Size>(
    x_td: &Array<Vector<F, N>>,
    gamma_d: &Array<Vector<W, M>>,
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
    let mut squares = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for i in 0..comptime!(plan.held()) {
        if has(place, i, plan) {
            let x = Vector::<f32, N>::cast_from(x[i]);
            squares += x * x;
        }
    }
    let mut numbers = Array::<f32>::new(1usize);
    numbers[0] = across(squares, plan.n);
    add_up(&mut numbers, &mut shared, place, 1usize, plan);
    let root = f32::sqrt(numbers[0] / comptime!(plan.width() as f32) + epsilon);
    let inverse = Vector::<f32, N>::new(1.0f32 / root);
    if row < t {
        let start = row * comptime!(plan.vectors);
        #[unroll]
        for i in 0..comptime!(plan.held()) {
            if has(place, i, plan) {
                let at = column(place, i, plan);
                let gamma = parameter::<W, M, N>(gamma_d, at, plan);
                y_td[start + at] =
                    Vector::cast_from(Vector::<f32, N>::cast_from(x[i]) * inverse * gamma);
            }
        }
    }
}

/// The gradient to x, and the contributions `[teams, 1, d]` to the gradient of gamma, one for the `rows` rows of each
/// team of units. Only those that have an output are computed.
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
    #[comptime] wanted: [bool; 2],
    #[define(F)] _dtype: StorageType,
    #[define(W)] _parameter_dtype: StorageType,
) {
    let t = t as usize;
    let place = place(plan);
    let team = CUBE_POS * comptime!(plan.teams()) + place.team;
    let held = comptime!(plan.held());
    let width = comptime!(plan.width() as f32);
    let mut shared = Shared::new(2usize);
    let mut x = Array::<Vector<F, N>>::new(held);
    let mut dy = Array::<Vector<F, N>>::new(held);
    let mut dgamma = Array::<Vector<f32, N>>::new(held);
    #[unroll]
    for i in 0..held {
        dgamma[i] = Vector::new(0.0f32);
    }
    for r in 0..rows as usize {
        let row = team * rows as usize + r;
        let within = row < t;
        // As forward.
        let from = clamp_max(row, t - 1);
        read_row(x_td, from, x_stride, place, &mut x, plan);
        read_row(dy_td, from, dy_stride, place, &mut dy, plan);

        // Of the squares, and of `g * x` with `g = dy * gamma`.
        let mut squares = Vector::<f32, N>::new(0.0f32);
        let mut along = Vector::<f32, N>::new(0.0f32);
        #[unroll]
        for i in 0..held {
            if has(place, i, plan) {
                let x = Vector::<f32, N>::cast_from(x[i]);
                squares += x * x;
                if comptime!(wanted[0]) {
                    let gamma = parameter::<W, M, N>(gamma_d, column(place, i, plan), plan);
                    along += Vector::<f32, N>::cast_from(dy[i]) * gamma * x;
                }
            }
        }
        let mut numbers = Array::<f32>::new(2usize);
        numbers[0] = across(squares, plan.n);
        numbers[1] = across(along, plan.n);
        let count = comptime!(if wanted[0] { 2usize } else { 1usize });
        add_up(&mut numbers, &mut shared, place, count, plan);
        let inverse = 1.0f32 / f32::sqrt(numbers[0] / width + epsilon);
        let inverse_n = Vector::<f32, N>::new(inverse);
        if within {
            #[comptime]
            match dx_td {
                ComptimeOption::Some(dx) => {
                    let along = Vector::<f32, N>::new(numbers[1] / width * inverse * inverse);
                    let start = row * comptime!(plan.vectors);
                    #[unroll]
                    for i in 0..held {
                        if has(place, i, plan) {
                            let at = column(place, i, plan);
                            let gamma = parameter::<W, M, N>(gamma_d, at, plan);
                            let g = Vector::<f32, N>::cast_from(dy[i]) * gamma;
                            let x = Vector::<f32, N>::cast_from(x[i]);
                            dx[start + at] = Vector::cast_from((g - x * along) * inverse_n);
                        }
                    }
                }
                ComptimeOption::None => {}
            }
            if comptime!(wanted[1]) {
                #[unroll]
                for i in 0..held {
                    let x = Vector::<f32, N>::cast_from(x[i]);
                    dgamma[i] += Vector::<f32, N>::cast_from(dy[i]) * x * inverse_n;
                }
            }
        }
    }
    #[comptime]
    match shares {
        // The host has a share for every team, those without rows included.
        ComptimeOption::Some(shares) => write_share(&dgamma, shares, team, place, plan),
        ComptimeOption::None => {}
    }
}
