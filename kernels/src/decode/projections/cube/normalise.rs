//! Vectors normalised: by every cube that multiplies them, or by a launch before.

use cubecl::prelude::*;

use super::digits::{QUADS, digits, place_of_unit};
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

/// Vectors that are normalised.
#[derive(CubeType)]
pub(super) struct Normed<X: Size> {
    /// Each where [`kept`] says, or their digits, where weights are multiplied as whole numbers.
    pub(super) vectors: SharedMemory<Vector<f32, X>>,
    /// Of digits, `[batch, chunks]`.
    pub(super) units: SharedMemory<f32>,
}

#[cube]
impl<X: Size> Normed<X> {
    /// For vectors of `d` numbers, or none.
    pub(super) fn new(#[comptime] d: usize, #[comptime] plan: Plan) -> Self {
        let vectors = comptime!((plan.batch * plan.stride(d)).max(1));
        let units = comptime!(plan.batch * plan.units_of(d));
        Normed::<X> {
            vectors: SharedMemory::new_aligned(vectors, 16usize),
            units: SharedMemory::new(comptime!(units.max(1))),
        }
    }
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

/// The vectors that were read, normalised.
#[cube]
pub(super) fn normalise<P: Float, X: Size>(
    fetched: &mut Fetched<P, X>,
    epsilon: f32,
    normed: &mut Normed<X>,
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
                let value = if comptime!(plan.centred) {
                    fma(scaled, gamma, Vector::cast_from(fetched.beta[turn]))
                } else {
                    scaled * gamma
                };
                let begin = comptime!(b * plan.stride(d));
                if comptime!(plan.integers()) {
                    // A plane has a chunk.
                    let digits = digits(value, plan.form);
                    let chunk = at / QUADS;
                    let place = place_of_unit(comptime!(b).runtime(), plan.form);
                    normed.vectors[begin + chunk * QUADS + place] = digits.words;
                    if UNIT_POS_PLANE == 0 {
                        normed.units[comptime!(b * plan.units_of(d)) + chunk] = digits.unit;
                    }
                } else {
                    normed.vectors[begin + kept(at, d, plan)] = value;
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
    let mut normed = Normed::<X>::new(d, alone);
    let mut x = fetch(x_bi, begin, gamma, beta, d, alone);
    normalise(&mut x, epsilon, &mut normed, &mut shared, d, alone);
    for turn in 0..comptime!(vectors.div_ceil(plan.units())) {
        let at = turn * comptime!(plan.units()) + UNIT_POS as usize;
        if at < vectors {
            normed_bi[begin + at] = normed.vectors[kept(at, d, alone)];
        }
    }
}
