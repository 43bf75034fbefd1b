//! Products by `mma` of 16 by 8 by 16 for kernels whose planes each hold their own rows in registers. The layout of the
//! elements in registers is known, so that what follows a product happens where its results are, and these are, after a
//! conversion of the dtype, already the left factor of the next product.
//!
//! The rows that these are multiplied with pass through shared memory in tiles. In a plane, unit `4 g + t` has rows `g`
//! and `g + 8` of 16, and columns `2 t` and `2 t + 1` of every 8.

use cubecl::cmma::MmaDefinition;
use cubecl::prelude::*;

use super::fragments::{Eight, Matrix, PLANE, Pair};
use super::rows::Rows;

/// Planes of a cube.
pub(crate) const PLANES: usize = 4;
/// Powers of two that [`power`] computes have at least this exponent, and at most 0.
pub(crate) const FLOOR: f32 = -120.0;
/// Two to the power of `FLOOR`.
const LEAST: f32 = f32::from_bits((127 - 120) << 23);

/// Starts to copy `count` rows from `first` on to the rows of shared memory from `at` on; the last row stands
/// for those beyond it.
#[cube]
pub(crate) fn copy<E: Float>(
    x: &Array<Vector<E, Eight>>,
    rows: Rows,
    first: usize,
    to: &mut Matrix<E, Eight>,
    at: usize,
    #[comptime] count: usize,
    #[comptime] p: usize,
) {
    let units = comptime!(PLANES * PLANE);
    let across = comptime!(p / 8);
    let vectors = comptime!(count * across);
    let unit = UNIT_POS as usize;
    // Where a unit's vectors lie below each other, their addresses are a step apart.
    let even = comptime!(units.is_multiple_of(across) && vectors.is_multiple_of(units));
    if even && first + count <= rows.count {
        let (row, column) = (unit / across, unit % across);
        let from = (rows.base + (first + row) * rows.step) / 8 + column;
        let step = comptime!(units / across) * rows.step / 8;
        #[unroll]
        for round in 0..comptime!(vectors / units) {
            let down = comptime!(round * (units / across));
            to.copy(at + row + down, column * 8, x, from + round * step);
        }
    } else {
        #[unroll]
        for round in 0..comptime!(vectors.div_ceil(units)) {
            let vector = unit + comptime!(round * units);
            let (row, column) = (vector / across, vector % across);
            let token = clamp_max(first + row, rows.count - 1);
            let from = (rows.base + token * rows.step) / 8 + column;
            if comptime!((round + 1) * units <= vectors) || vector < vectors {
                to.copy(at + row, column * 8, x, from);
            }
        }
    }
}

/// A left factor's 16 rows by a right factor's 8 columns, which begins at `from` of `right`, added to the two
/// registers from `to` on.
#[cube]
pub(crate) fn product<E: Float>(
    left: &Array<Vector<E, Pair>>,
    right: &Array<Vector<E, Pair>>,
    #[comptime] from: usize,
    sums: &mut Array<Vector<f32, Pair>>,
    #[comptime] to: usize,
) {
    let mma = MmaDefinition::<E, E, f32>::new(16usize, 8usize, 16usize);
    let mut columns = Array::<Vector<E, Pair>>::new(2usize);
    columns[0] = right[from];
    columns[1] = right[comptime!(from + 1)];
    let mut sum = Array::<Vector<f32, Pair>>::new(2usize);
    sum[0] = sums[to];
    sum[1] = sums[comptime!(to + 1)];
    let sum = mma.execute(left, &columns, &sum);
    sums[to] = sum[0];
    sums[comptime!(to + 1)] = sum[1];
}

/// A left factor by two right factors, one after the other.
#[cube]
pub(crate) fn multiply<E: Float>(
    left: &Array<Vector<E, Pair>>,
    both: &Array<Vector<E, Pair>>,
    sums: &mut Array<Vector<f32, Pair>>,
    #[comptime] to: usize,
) {
    product(left, both, 0usize, sums, to);
    product(left, both, 2usize, sums, comptime!(to + 2));
}

/// Zeros: two pairs for every fragment of 16 by 8.
#[cube]
pub(crate) fn zeros(#[comptime] fragments: usize) -> Array<Vector<f32, Pair>> {
    let mut values = Array::<Vector<f32, Pair>>::new(comptime!(2 * fragments));
    #[unroll]
    for i in 0..comptime!(2 * fragments) {
        values[i] = Vector::new(0.0f32);
    }
    values
}

/// `16 * down` rows of shared memory from `row` on as left factors: for every 16 columns, those of 16 rows each.
#[cube]
pub(crate) fn left_factors<E: Float>(
    from: &Matrix<E, Eight>,
    row: usize,
    #[comptime] p: usize,
    #[comptime] down: usize,
) -> Sequence<Array<Vector<E, Pair>>> {
    let mut factors = Sequence::<Array<Vector<E, Pair>>>::new();
    #[unroll]
    for step in 0..comptime!(p / 16) {
        #[unroll]
        for i in 0..down {
            factors.push(from.left(row + comptime!(i * 16), comptime!(step * 16), false));
        }
    }
    factors
}

/// The products of a plane's rows with `tile` rows of shared memory from `at` on.
#[cube]
pub(crate) fn products<E: Float>(
    own: &Sequence<Array<Vector<E, Pair>>>,
    staged: &Matrix<E, Eight>,
    at: usize,
    #[comptime] tile: usize,
    #[comptime] p: usize,
    #[comptime] down: usize,
) -> Array<Vector<f32, Pair>> {
    let mut sums = zeros(comptime!(down * tile / 8));
    #[unroll]
    for step in 0..comptime!(p / 16) {
        #[unroll]
        for j in 0..comptime!(tile / 16) {
            let both = staged.right(comptime!(step * 16), at + comptime!(j * 16), true);
            #[unroll]
            for i in 0..down {
                let left = own.index(comptime!(step * down + i));
                multiply(left, &both, &mut sums, comptime!(i * tile / 4 + j * 4));
            }
        }
    }
    sums
}

/// Adds the products of `factors`, 16 rows and `tile` columns as [`products`] gives them, with `tile` rows of shared
/// memory from `at` on.
#[cube]
pub(crate) fn add_products<E: Float>(
    factors: &Array<Vector<f32, Pair>>,
    staged: &Matrix<E, Eight>,
    at: usize,
    sums: &mut Array<Vector<f32, Pair>>,
    #[comptime] tile: usize,
    #[comptime] p: usize,
) {
    #[unroll]
    for step in 0..comptime!(tile / 16) {
        let mut left = Array::<Vector<E, Pair>>::new(4usize);
        #[unroll]
        for part in 0..4usize {
            left[part] = Vector::cast_from(factors[comptime!(step * 4 + part)]);
        }
        #[unroll]
        for j in 0..comptime!(p / 16) {
            let both = staged.right(at + comptime!(step * 16), comptime!(j * 16), false);
            multiply(&left, &both, sums, comptime!(j * 4));
        }
    }
}

/// Two to the power of `FLOOR` times `share`, where `share` is clamped to 0..=1. On CUDA with fast mathematics, the
/// device's power function is sufficient: the exponent is never below -126, so no guard against subnormal results is
/// needed. NaN gives one.
#[cube]
pub(crate) fn power(share: f32) -> f32 {
    LEAST.runtime().powf(min(max(share, 0.0f32), 1.0f32))
}

/// Writes one of a unit's rows, of every 16 two, times `factor` to the row of `p` that begins at `at`.
#[cube]
pub(crate) fn write_row<E: Float>(
    sums: &Array<Vector<f32, Pair>>,
    #[comptime] row: usize,
    factor: f32,
    to: &mut Array<Vector<E, Pair>>,
    at: usize,
    #[comptime] p: usize,
) {
    let first = at + UNIT_POS_PLANE as usize % 4 * 2;
    #[unroll]
    for j in 0..comptime!(p / 8) {
        let from = comptime!((row / 2 * (p / 8) + j) * 2 + row % 2);
        let values = sums[from] * Vector::new(factor);
        to[first / 2 + comptime!(j * 4)] = Vector::cast_from(values);
    }
}
