//! On tensor cores: a plane multiplies rows of a weight, 8 at a time, with 8 vectors, by the manual `mma` of
//! 16 by 8 by 8 in TF32.
//!
//! The left factor is the vectors in two digits: its rows 0 to 7 are the first 11 bits of every number, rows 8
//! to 15 the next 11. Both parts of a sum then lie in one unit, which adds them up. The right factor is the
//! weight's rows, whose 16-bit floats TF32 holds as they are; f32 is two digits once more, and two products. Packed
//! weights have [products](super::integers) of their own.
//!
//! Of both factors unit `4 g + t` has row `g` at positions `t` and `t + 4` of the 8 that are contracted. Any order
//! of positions will do that both factors share, so these are two neighbours in what the unit reads at once.

use cubecl::cmma::MmaDefinition;
use cubecl::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use super::kernels::Shared;
use super::numbers::number;
use super::plan::{Plan, STEP};
use super::ring::Ring;
use crate::cube::fragments::{PLANE, Pair};

/// Units of a cube.
pub(super) const UNITS: usize = 512;
/// Rows of a weight that a plane multiplies at a time, and vectors.
pub(super) const ROWS: usize = 8;
/// Times so many rows that a plane works on: more, and fewer units read the vectors; fewer, and there is less to wait
/// for.
pub(super) const TILES: usize = 2;
/// Units of a plane that share a row.
pub(super) const SHARERS: usize = PLANE / ROWS;
/// Units of a cube that share a row, at least: of four planes, so that a sum's parts stay short. Tensor cores cut
/// off what a sum in f32 has no room for.
pub(super) const FEWEST_LANES: usize = 4 * SHARERS;
/// Sums of a unit for each of its rows: a digit's two rows of the weight, then the other digit's.
pub(super) const SUMS: usize = 4;
/// Sums that a row's products go to in turn, as one product waits for the one before in the same sum.
const TURNS: usize = 2;
/// The bits of a number that are its first digit. An infinite one has no second: its products are NaN.
const FIRST_DIGIT: u32 = 0xffff_e000;

/// What a device must be able to do.
pub(super) fn config() -> MmaConfig {
    let tf32 = ElemType::Float(FloatKind::TF32).into();
    MmaConfig {
        a_type: tf32,
        b_type: tf32,
        cd_type: ElemType::Float(FloatKind::F32).into(),
        m: 16,
        n: 8,
        k: 8,
    }
}

/// Sums of a row, [`SUMS`] each, that are added up in the end.
pub(super) fn chains(plan: Plan) -> usize {
    TURNS * plan.digits()
}

/// Where a plane works.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Place {
    /// The first of its rows among those of the cube.
    pub(super) row: usize,
    /// Its place among the planes that share them, in all cubes of a group.
    pub(super) share: usize,
}

/// The plane's place.
#[cube]
pub(super) fn place(#[comptime] plan: Plan) -> Place {
    let plane = UNIT_POS as usize / PLANE;
    let shares = comptime!(plan.shares_of_cube());
    let mut share = plane % shares;
    if comptime!(plan.cubes_of_group > 1) {
        share += CUBE_POS_X as usize % plan.cubes_of_group * shares;
    }
    Place {
        row: plane / shares * comptime!(TILES * ROWS),
        share,
    }
}

/// The unit's vector. Where there are fewer than a plane has, the last stands for the rest, whose sums are not used.
#[cube]
pub(super) fn vector_of_unit(#[comptime] plan: Plan) -> usize {
    let vector = UNIT_POS_PLANE as usize / comptime!(plan.units_of_vector());
    clamp_max(vector, comptime!(plan.batch - 1))
}

/// Adds to `sums` the products of the step in `stage` with the ring's inputs or, from `begin` on and with neighbours
/// of a weight's vector `apart`, with the normalised ones.
#[cube]
pub(super) fn multiply<W: Numeric, N: Size, X: Size>(
    sums: &mut Array<f32>,
    ring: &Ring<W, N, X>,
    normed: &SharedMemory<Vector<f32, X>>,
    begin: usize,
    #[comptime] apart: usize,
    stage: usize,
    #[comptime] plan: Plan,
) {
    let lane = UNIT_POS_PLANE as usize;
    let (row, sharer) = (lane / SHARERS, lane % SHARERS);
    let vector = vector_of_unit(plan);
    #[unroll]
    for turn in 0..comptime!(STEP / SHARERS) {
        let column = comptime!(turn * SHARERS) + sharer;
        let mut weights = Array::<Vector<W, N>>::new(TILES);
        #[unroll]
        for tile in 0..TILES {
            weights[tile] = ring.weight(comptime!(tile * ROWS) + row, column, stage, plan);
        }
        #[unroll]
        for piece in 0..comptime!(plan.pieces()) {
            let x = if comptime!(plan.normalises) {
                normed[begin + comptime!(piece * apart) + column]
            } else {
                ring.input(
                    vector,
                    column * comptime!(plan.pieces()) + piece,
                    stage,
                    plan,
                )
            };
            #[unroll]
            for pair in 0..comptime!(plan.input / 2) {
                let left = digits_of_vectors(x, pair);
                #[unroll]
                for tile in 0..TILES {
                    let element = comptime!(piece * plan.input + pair * 2);
                    let first = number(weights[tile], element, plan.form);
                    let second = number(weights[tile], comptime!(element + 1), plan.form);
                    let chain = comptime!((tile * TURNS + pair % TURNS) * plan.digits());
                    if comptime!(plan.digits() == 1) {
                        add_product(sums, &left, first, second, chain);
                    } else {
                        let (digit, other) = (first_digit(first), first_digit(second));
                        add_product(sums, &left, digit, other, chain);
                        let next = comptime!(chain + 1);
                        add_product(sums, &left, first - digit, second - other, next);
                    }
                }
            }
        }
    }
}

/// The first digit of a number. The second is what it lacks.
#[cube]
fn first_digit(value: f32) -> f32 {
    f32::reinterpret(u32::reinterpret(value) & FIRST_DIGIT)
}

/// Two neighbours of `x` as a left factor.
#[cube]
fn digits_of_vectors<X: Size>(
    x: Vector<f32, X>,
    #[comptime] pair: usize,
) -> Array<Vector<tf32, Const<1>>> {
    let mut digits = Array::<Vector<tf32, Const<1>>>::new(4usize);
    #[unroll]
    for j in 0..2usize {
        let value = x[comptime!(pair * 2 + j)];
        let first = first_digit(value);
        digits[comptime!(j * 2)] = as_tf32(first);
        digits[comptime!(j * 2 + 1)] = as_tf32(value - first);
    }
    digits
}

/// Adds a product of 8 positions, of which the unit has two neighbours of its row of the weight.
#[cube]
fn add_product(
    sums: &mut Array<f32>,
    left: &Array<Vector<tf32, Const<1>>>,
    first: f32,
    second: f32,
    #[comptime] chain: usize,
) {
    let mma = MmaDefinition::<tf32, tf32, f32>::new(16usize, 8usize, 8usize);
    let mut right = Array::<Vector<tf32, Const<1>>>::new(2usize);
    right[0] = as_tf32(first);
    right[1] = as_tf32(second);
    let mut before = Array::<Vector<f32, Pair>>::new(2usize);
    #[unroll]
    for digit in 0..2usize {
        let mut two = Vector::<f32, Pair>::empty();
        two[0] = sums[comptime!(chain * SUMS + digit * 2)];
        two[1] = sums[comptime!(chain * SUMS + digit * 2 + 1)];
        before[digit] = two;
    }
    let after = mma.execute(left, &right, &before);
    #[unroll]
    for digit in 0..2usize {
        sums[comptime!(chain * SUMS + digit * 2)] = after[digit][0];
        sums[comptime!(chain * SUMS + digit * 2 + 1)] = after[digit][1];
    }
}

/// The same bits, of which the last 13 are not looked at.
#[cube]
fn as_tf32(value: f32) -> Vector<tf32, Const<1>> {
    Vector::<tf32, Const<1>>::reinterpret(value)
}

/// The row among the plane's that the unit's sum `r` of `[TILES, 2]` is for.
#[cube]
pub(super) fn row_of(#[comptime] r: usize) -> usize {
    comptime!(r / 2 * ROWS + r % 2) + UNIT_POS_PLANE as usize % SHARERS * 2
}

/// The sum of that row, of its digits and chains, which begin anew.
#[cube]
pub(super) fn take_row(sums: &mut Array<f32>, #[comptime] r: usize, #[comptime] plan: Plan) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..comptime!(chains(plan)) {
        let at = comptime!((r / 2 * chains(plan) + i) * SUMS + r % 2);
        let other = comptime!(at + 2);
        sum += sums[at] + sums[other];
        sums[at] = 0.0;
        sums[other] = 0.0;
    }
    sum
}

/// Every plane's sums of rows, `[TILES, 2]`, into the totals of its rows, one share a plane.
#[cube]
pub(super) fn reduce(rows: &Array<f32>, place: Place, shared: &mut Shared, #[comptime] plan: Plan) {
    let lane = UNIT_POS_PLANE as usize;
    let units = comptime!(plan.units_of_vector());
    let vector = lane / units;
    let shares = comptime!(plan.shares_of_cube());
    // All units have read the totals from before.
    sync_cube();
    if vector < plan.batch && lane % units < SHARERS {
        #[unroll]
        for r in 0..comptime!(2 * TILES) {
            let output = (place.row + row_of(r)) * plan.batch + vector;
            shared.totals[output * shares + place.share % shares] = rows[r];
        }
    }
    sync_cube();
}
