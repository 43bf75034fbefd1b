//! Vectors normalised: by every cube that multiplies them, or by a launch of their own.

use cubecl::prelude::*;

use super::kernels::Shared;
use super::plan::{Plan, UNITS};
use crate::cube::matrix::PLANE;
use crate::cube::reduce::{Fold, of_cube};

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
            shared.planes[unit / PLANE] = share;
        }
        sync_cube();
        #[unroll]
        for i in 0..comptime!(UNITS / PLANE) {
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
pub(super) fn normalise<P: Float, X: Size>(
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
