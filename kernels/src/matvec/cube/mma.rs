//! On tensor cores: a plane multiplies rows of a weight, 8 at a time, with 8 vectors, by the manual `mma` of
//! 16 by 8 by 8 in TF32.
//!
//! The left factor is the vectors in two digits: its rows 0 to 7 are the first 11 bits of every number, rows 8
//! to 15 the next 11. Both parts of a sum then lie in one unit, which adds them up. The right factor is the
//! weight's rows, whose 16-bit floats and 8-bit numbers TF32 holds as they are.
//!
//! Of both factors unit `4 g + t` has row `g` at positions `t` and `t + 4` of the 8 that are contracted. Any order
//! of positions will do that both factors share, so these are two neighbours in what the unit reads at once.

use cubecl::cmma::MmaDefinition;
use cubecl::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use super::kernels::{Place, Shared};
use super::multiply::number;
use super::plan::{Part, Plan, UNITS};
use crate::cube::matrix::{PLANE, Pair};

/// Rows of a weight that a plane multiplies at a time, and vectors.
const ROWS: usize = 8;
/// Rows of a unit, at most.
pub(super) const MOST_ROWS: usize = 4;
/// Units of a plane that share a row.
const SHARERS: usize = PLANE / ROWS;
/// Units of a cube that share a row.
pub(super) const LANES: usize = UNITS / PLANE * SHARERS;
/// Sums of a unit for each of its rows: a digit's two rows of the weight, then the other digit's.
pub(super) const SUMS: usize = 4;
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

/// Of the weight's rows from `first` on, the unit's first, and its place among the units of all planes that
/// share it.
#[cube]
pub(super) fn place(first: usize) -> Place {
    let (plane, unit) = (UNIT_POS as usize / PLANE, UNIT_POS_PLANE as usize);
    Place {
        row: first + unit / SHARERS,
        lane: plane * SHARERS + unit % SHARERS,
    }
}

/// The row, counted from the cube's first, that the unit's sum `s` is for.
#[cube]
pub(super) fn row_of(#[comptime] s: usize) -> usize {
    let unit = UNIT_POS_PLANE as usize;
    comptime!(s / SUMS * ROWS + s % 2) + unit % SHARERS * 2
}

/// Turns of a step. Two steps are in registers at a time: of so many that two cubes fit on a multiprocessor
/// where there are many cubes, which have more rows, and of twice as many where there is one for each.
pub(super) fn block(plan: Plan) -> usize {
    let registers = if plan.rows == MOST_ROWS { 32 } else { 64 };
    // A vector of 16 bytes has 4; of the inputs, each number has one.
    let of_x = if plan.normalises { 0 } else { plan.together };
    let most = registers / (4 * plan.rows + of_x);
    1 << most.max(1).ilog2()
}

/// What a unit reads for a step.
#[derive(CubeType)]
pub(super) struct Step<W: Numeric, N: Size, X: Size> {
    /// `[turns, rows]`
    weights: Array<Vector<W, N>>,
    /// `[turns, pieces]`; unused where the vectors are in shared memory.
    x: Array<Vector<f32, X>>,
    /// The first of its turns.
    first: usize,
}

#[cube]
impl<W: Numeric, N: Size, X: Size> Step<W, N, X> {
    /// With room for what is read.
    pub(super) fn new(#[comptime] plan: Plan) -> Self {
        let pieces = comptime!(if plan.normalises {
            1
        } else {
            plan.pieces() * plan.block()
        });
        Step::<W, N, X> {
            weights: Array::new(comptime!(plan.block() * plan.rows)),
            x: Array::new(pieces),
            first: 0usize.runtime(),
        }
    }

    /// Starts to read the turns from `first` on. Rows beyond the last are the last once more, and what lies
    /// beyond a row is its last vector.
    pub(super) fn read(
        &mut self,
        weight_oi: &Array<Vector<W, N>>,
        x_bi: &Slice<Vector<f32, X>>,
        place: Place,
        first: usize,
        #[comptime] part: Part,
        #[comptime] plan: Plan,
    ) {
        let (vectors, pieces) = comptime!((plan.vectors(part.d_in), plan.pieces()));
        let begin = begin_of_x(part, plan);
        self.first = first;
        #[unroll]
        for turn in 0..comptime!(plan.block()) {
            let mut at = (first + turn) * plan.lanes + place.lane;
            if comptime!(!plan.even(part.d_in)) {
                at = clamp_max(at, comptime!(vectors - 1));
            }
            #[unroll]
            for r in 0..plan.rows {
                let row = place.row + comptime!(r * ROWS);
                let row = clamp_max(row, comptime!(part.d_out - 1));
                self.weights[comptime!(turn * plan.rows + r)] = weight_oi[row * vectors + at];
            }
            if comptime!(!plan.normalises) {
                #[unroll]
                for piece in 0..pieces {
                    self.x[comptime!(turn * pieces + piece)] = x_bi[begin + at * pieces + piece];
                }
            }
        }
    }

    /// Takes what `next` has read.
    pub(super) fn follow(&mut self, next: &Step<W, N, X>, #[comptime] plan: Plan) {
        #[unroll]
        for i in 0..comptime!(plan.block() * plan.rows) {
            self.weights[i] = next.weights[i];
        }
        if comptime!(!plan.normalises) {
            #[unroll]
            for i in 0..comptime!(plan.block() * plan.pieces()) {
                self.x[i] = next.x[i];
            }
        }
        self.first = next.first;
    }

    /// Adds to `sums [rows, SUMS]` the products of what was read.
    pub(super) fn multiply(
        &self,
        sums: &mut Array<f32>,
        x_bi: &Slice<Vector<f32, X>>,
        place: Place,
        #[comptime] part: Part,
        #[comptime] plan: Plan,
    ) {
        let (vectors, pieces) = comptime!((plan.vectors(part.d_in), plan.pieces()));
        let begin = begin_of_x(part, plan);
        #[unroll]
        for turn in 0..comptime!(plan.block()) {
            let at = (self.first + turn) * plan.lanes + place.lane;
            #[unroll]
            for piece in 0..pieces {
                let mut x = if comptime!(plan.normalises) {
                    let near = clamp_max(at, comptime!(vectors - 1));
                    x_bi[begin + piece * vectors + near]
                } else {
                    self.x[comptime!(turn * pieces + piece)]
                };
                if comptime!(!plan.even(part.d_in)) && at >= vectors {
                    x = Vector::new(0.0f32);
                }
                #[unroll]
                for pair in 0..comptime!(plan.input / 2) {
                    let digits = digits(x, pair);
                    #[unroll]
                    for r in 0..plan.rows {
                        let vector = self.weights[comptime!(turn * plan.rows + r)];
                        let mut weights = Array::<Vector<tf32, Const<1>>>::new(2usize);
                        #[unroll]
                        for j in 0..2usize {
                            let element = comptime!(piece * plan.input + pair * 2 + j);
                            weights[j] = as_tf32(number(vector, element, plan.packed));
                        }
                        add_product(sums, &digits, &weights, r);
                    }
                }
            }
        }
    }
}

/// Where the unit's vector of `x` begins. Where there are fewer vectors than 8, the last stands for the rest,
/// whose sums nobody wants.
#[cube]
fn begin_of_x(#[comptime] part: Part, #[comptime] plan: Plan) -> usize {
    let vector = UNIT_POS_PLANE as usize / SHARERS;
    clamp_max(vector, comptime!(plan.batch - 1)) * comptime!(part.d_in / plan.input)
}

/// Two neighbours of `x` as a left factor.
#[cube]
fn digits<X: Size>(x: Vector<f32, X>, #[comptime] pair: usize) -> Array<Vector<tf32, Const<1>>> {
    let mut digits = Array::<Vector<tf32, Const<1>>>::new(4usize);
    #[unroll]
    for j in 0..2usize {
        let value = x[comptime!(pair * 2 + j)];
        let first = f32::reinterpret(u32::reinterpret(value) & FIRST_DIGIT);
        digits[comptime!(j * 2)] = as_tf32(first);
        digits[comptime!(j * 2 + 1)] = as_tf32(value - first);
    }
    digits
}

/// Adds to the sums of the unit's row `r` a product of 8 positions.
#[cube]
fn add_product(
    sums: &mut Array<f32>,
    left: &Array<Vector<tf32, Const<1>>>,
    right: &Array<Vector<tf32, Const<1>>>,
    #[comptime] r: usize,
) {
    let mma = MmaDefinition::<tf32, tf32, f32>::new(16usize, 8usize, 8usize);
    let mut before = Array::<Vector<f32, Pair>>::new(2usize);
    #[unroll]
    for digit in 0..2usize {
        let mut two = Vector::<f32, Pair>::empty();
        two[0] = sums[comptime!(r * SUMS + digit * 2)];
        two[1] = sums[comptime!(r * SUMS + digit * 2 + 1)];
        before[digit] = two;
    }
    let after = mma.execute(left, right, &before);
    #[unroll]
    for digit in 0..2usize {
        sums[comptime!(r * SUMS + digit * 2)] = after[digit][0];
        sums[comptime!(r * SUMS + digit * 2 + 1)] = after[digit][1];
    }
}

/// Adds the products of the steps of a weight but the last, of which `step` is the first and then the last.
#[cube]
pub(super) fn multiply_but_last<W: Numeric, N: Size, X: Size>(
    step: &mut Step<W, N, X>,
    sums: &mut Array<f32>,
    weight_oi: &Array<Vector<W, N>>,
    x_bi: &Slice<Vector<f32, X>>,
    shared_x_bi: &Slice<Vector<f32, X>>,
    place: Place,
    #[comptime] part: Part,
    #[comptime] plan: Plan,
) {
    // As the compiler does not know it: it would unroll the loop.
    let vectors = x_bi.len() / comptime!(plan.batch * plan.pieces());
    for i in 1..vectors.div_ceil(comptime!(plan.lanes * plan.block())) {
        let mut next = Step::<W, N, X>::new(plan);
        next.read(
            weight_oi,
            x_bi,
            place,
            i * comptime!(plan.block()),
            part,
            plan,
        );
        step.multiply(sums, shared_x_bi, place, part, plan);
        step.follow(&next, plan);
    }
}

/// The same bits, of which the last 13 are not looked at.
#[cube]
fn as_tf32(value: f32) -> Vector<tf32, Const<1>> {
    Vector::<tf32, Const<1>>::reinterpret(value)
}

/// Every plane's sums into the totals, one share a plane.
#[cube]
pub(super) fn reduce(sums: &Array<f32>, shared: &mut Shared, #[comptime] plan: Plan) {
    let (plane, unit) = (UNIT_POS as usize / PLANE, UNIT_POS_PLANE as usize);
    let vector = unit / SHARERS;
    if vector < plan.batch {
        #[unroll]
        for r in 0..plan.rows {
            #[unroll]
            for half in 0..2usize {
                let s = comptime!(r * SUMS + half);
                let output = row_of(s) * plan.batch + vector;
                shared.totals[output * comptime!(UNITS / PLANE) + plane] =
                    sums[s] + sums[comptime!(s + 2)];
            }
        }
    }
    sync_cube();
}
