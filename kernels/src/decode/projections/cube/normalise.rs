//! Vectors normalised: by every cube that multiplies them, or by a launch before.

use cubecl::prelude::*;

use super::kernels::{Shared, zeros};
use super::plan::Plan;
use crate::cube::fragments::PLANE;
use crate::cube::reduce::{Fold, of_cube};

/// For each of some values of every unit, the sum over the cube's units.
#[cube]
fn sum_of_cube(values: &mut Array<f32>, shared: &mut Shared, #[comptime] plan: Plan) {
    let unit = UNIT_POS as usize;
    let planes = comptime!(plan.units() / PLANE);
    if comptime!(plan.planes) {
        // All units have read the shares of the sums from before.
        sync_cube();
        #[unroll]
        for b in 0..plan.batch {
            let share = plane_sum(values[b]);
            if UNIT_POS_PLANE == 0 {
                shared.planes[b * planes + unit / PLANE] = share;
            }
        }
        sync_cube();
        #[unroll]
        for b in 0..plan.batch {
            let mut sum = 0.0f32;
            #[unroll]
            for i in 0..planes {
                sum += shared.planes[b * planes + i];
            }
            values[b] = sum;
        }
    } else {
        #[unroll]
        for b in 0..plan.batch {
            values[b] = of_cube(
                values[b],
                &mut shared.partials,
                Fold::Sum,
                comptime!(plan.units()),
            );
        }
    }
}

/// Where the vector `at` of a row of `x` is kept: neighbours in a weight's vector lie apart, so that
/// neighbouring units find theirs side by side.
#[cube]
fn kept(at: usize, #[comptime] d: usize, #[comptime] plan: Plan) -> usize {
    let pieces = comptime!(plan.pieces());
    at % pieces * comptime!(d / plan.together) + at / pieces
}

/// What a unit has read of the vectors and of what normalises them: it may wait for something else meanwhile.
#[derive(CubeType)]
pub(super) struct Fetched<P: Float, X: Size> {
    /// `[batch, turns]`
    x: Array<Vector<f32, X>>,
    /// `[turns]`
    gamma: Array<Vector<P, X>>,
    /// `[turns]`; unused where the mean stays.
    beta: Array<Vector<P, X>>,
}

/// Reads the unit's share of the vectors `x [batch, d]`, the first of which begins at the vector `begin`.
#[cube]
pub(super) fn fetch<P: Float, X: Size>(
    x_bi: &Array<Vector<f32, X>>,
    begin: usize,
    gamma: &Array<Vector<P, X>>,
    beta: &ComptimeOption<Array<Vector<P, X>>>,
    #[comptime] d: usize,
    #[comptime] plan: Plan,
) -> Fetched<P, X> {
    let vectors = comptime!(d / plan.input);
    let turns = comptime!(vectors.div_ceil(plan.units()));
    let mut fetched = Fetched::<P, X> {
        x: Array::new(comptime!(plan.batch * turns)),
        gamma: Array::new(turns),
        beta: Array::new(comptime!(if plan.centred { turns } else { 1 })),
    };
    #[unroll]
    for turn in 0..turns {
        // A unit that has nothing more to read reads the last vector once more.
        let at = comptime!(turn * plan.units()) + UNIT_POS as usize;
        let at = clamp_max(at, comptime!(vectors - 1));
        #[unroll]
        for b in 0..plan.batch {
            fetched.x[comptime!(b * turns + turn)] = x_bi[begin + b * vectors + at];
        }
        fetched.gamma[turn] = gamma[at];
        #[comptime]
        match beta {
            ComptimeOption::Some(beta) => {
                fetched.beta[turn] = beta[at];
            }
            ComptimeOption::None => {}
        }
    }
    fetched
}

/// The vectors that were read, normalised, each where [`kept`] says.
#[cube]
pub(super) fn normalise<P: Float, X: Size>(
    fetched: &mut Fetched<P, X>,
    epsilon: f32,
    normed: &mut SharedMemory<Vector<f32, X>>,
    shared: &mut Shared,
    #[comptime] d: usize,
    #[comptime] plan: Plan,
) {
    let unit = UNIT_POS as usize;
    let vectors = comptime!(d / plan.input);
    let turns = comptime!(vectors.div_ceil(plan.units()));
    let mut sums = zeros(plan.batch);
    if comptime!(plan.centred) {
        #[unroll]
        for b in 0..plan.batch {
            #[unroll]
            for turn in 0..turns {
                if comptime!(turn * plan.units()) + unit < vectors {
                    #[unroll]
                    for j in 0..plan.input {
                        sums[b] += fetched.x[comptime!(b * turns + turn)][j];
                    }
                }
            }
        }
        sum_of_cube(&mut sums, shared, plan);
    }
    #[unroll]
    for b in 0..plan.batch {
        let mean = sums[b] / comptime!(d as f32);
        sums[b] = 0.0;
        #[unroll]
        for turn in 0..turns {
            let i = comptime!(b * turns + turn);
            if comptime!(plan.centred) {
                fetched.x[i] -= Vector::new(mean);
            }
            if comptime!(turn * plan.units()) + unit < vectors {
                #[unroll]
                for j in 0..plan.input {
                    sums[b] = fma(fetched.x[i][j], fetched.x[i][j], sums[b]);
                }
            }
        }
    }
    sum_of_cube(&mut sums, shared, plan);
    #[unroll]
    for b in 0..plan.batch {
        let variance = sums[b] / comptime!(d as f32);
        let scale = 1.0 / (variance + epsilon).sqrt();
        #[unroll]
        for turn in 0..turns {
            let at = comptime!(turn * plan.units()) + unit;
            if at < vectors {
                let scaled = fetched.x[comptime!(b * turns + turn)] * Vector::new(scale);
                let gamma = Vector::cast_from(fetched.gamma[turn]);
                let place = comptime!(b * plan.stride(d)) + kept(at, d, plan);
                if comptime!(plan.centred) {
                    let beta = Vector::cast_from(fetched.beta[turn]);
                    normed[place] = fma(scaled, gamma, beta);
                } else {
                    normed[place] = scaled * gamma;
                }
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
    beta: &ComptimeOption<Array<Vector<P, X>>>,
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
    let mut x = fetch(x_bi, begin, gamma, beta, d, alone);
    normalise(&mut x, epsilon, &mut normed, &mut shared, d, alone);
    for turn in 0..comptime!(vectors.div_ceil(plan.units())) {
        let at = turn * comptime!(plan.units()) + UNIT_POS as usize;
        if at < vectors {
            normed_bi[begin + at] = normed[kept(at, d, alone)];
        }
    }
}
