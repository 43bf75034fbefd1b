//! The passes over the matrices.

use cubecl::prelude::barrier::Barrier;
use cubecl::prelude::*;

use super::super::decay::{DIAGONAL, LOG_COLUMNS, LOG_ROWS, ON_DIAGONAL, SQUARES};
use super::super::{STATS, SUMS};
use super::memory::{Known, Memory, Statistics, factor, fetch, statistics};
use super::{SHARE, TILE, has, met, own, stages};
use crate::cube::documents::{RowTokens, row_tokens, start_of};
use crate::cube::fragments::{Eight, PLANE, Pair};
use crate::cube::plane_products::{
    PLANES, left_factors, multiply, power, products, write_row, zeros,
};
use crate::cube::rows::{View, rows_of};
use crate::cube::tiles::longest_first;

/// A plane's rows, and what is known of a unit's own of them, `g` and `g + 8` of every 16.
#[derive(CubeType)]
struct Own<E: Float> {
    student: Sequence<Array<Vector<E, Pair>>>,
    teacher: Sequence<Array<Vector<E, Pair>>>,
    factors: Array<f32>,
    /// Logarithms of denominators, as shares.
    normalisers: Array<f32>,
}

/// The results of a plane's rows.
#[derive(CubeType)]
struct Results {
    gradient: Array<Vector<f32, Pair>>,
    /// Sums along a unit's rows.
    logs: Array<f32>,
    squares: Array<f32>,
}

/// Where a plane's rows and the tile that they meet lie.
#[derive(CubeType, Clone, Copy)]
struct Place {
    tokens: RowTokens,
    /// The plane's first row.
    own: usize,
    /// The tile's first row.
    other: usize,
    /// The tile's first row in shared memory, and the first pair of what is known.
    at: usize,
    at_known: usize,
    /// The head's statistics and sums.
    stats: usize,
    sums: usize,
}

/// Adds what the plane's rows have of a tile. Near the diagonal, or where documents meet, decays are `exact`, and
/// elements that the matrices lack are left out.
#[cube]
fn add<E: Float>(
    own: &Own<E>,
    memory: &Memory<E>,
    place: Place,
    results: &mut Results,
    stats: &Array<f32>,
    sums: &mut Array<f32>,
    scale: f32,
    starts_bl: &ComptimeOption<Array<i32>>,
    #[comptime] exact: bool,
    #[comptime] columns: bool,
    #[comptime] gradients: bool,
    #[comptime] n: usize,
    #[comptime] p: usize,
    #[comptime] down: usize,
) {
    let lane = UNIT_POS_PLANE as usize;
    let l = place.tokens.count;
    // Read here, because few tiles need them.
    let mut exactly = Sequence::<Statistics>::new();
    let mut d = 0.0f32;
    if comptime!(exact) {
        d = stats[place.stats + DIAGONAL * l];
        #[unroll]
        for r in 0..comptime!(2 * down) {
            let t = place.own + comptime!(r / 2 * 16 + r % 2 * 8) + lane / 4;
            exactly.push(statistics(stats, place.stats, t, l));
        }
    }
    #[unroll]
    for step in 0..comptime!(TILE / 16) {
        let at = place.at + comptime!(step * 16);
        // Of every 16 rows four pairs: rows g and g + 8 of 8 columns, and of the next 8.
        let mut mixed = products(&own.student, &memory.student, at, 16usize, n, down);
        let scores = products(&own.teacher, &memory.teacher, at, 16usize, p, down);
        #[unroll]
        for half in 0..2usize {
            let s = lane % 4 * 2 + comptime!(step * 16 + half * 8);
            let known = place.at_known + lane % 4 + comptime!(step * 8 + half * 4);
            let factors = memory.factors[known];
            let normalisers = memory.normalisers[known];
            #[unroll]
            for r in 0..comptime!(2 * down) {
                let i = comptime!(r / 2 * 4 + half * 2 + r % 2);
                let mut pair = mixed[i];
                let score = scores[i];
                #[unroll]
                for k in 0..2usize {
                    let of_row = if comptime!(columns) {
                        normalisers[k]
                    } else {
                        own.normalisers[r]
                    };
                    let attention = power(score[k] * scale - of_row);
                    let mut decay = own.factors[r] * factors[k];
                    if comptime!(exact) {
                        let of = *exactly.index(r);
                        let whole = of.whole - memory.whole[known][k];
                        let log = whole + (of.rest - memory.rest[known][k]);
                        let log = if comptime!(columns) { -log } else { log };
                        decay = clamp_max(log, 0.0).exp();
                    }
                    let mut inside = pair[k] * decay;
                    let mut difference = inside - attention;
                    if comptime!(exact) {
                        let own_at = place.own + comptime!(r / 2 * 16 + r % 2 * 8) + lane / 4;
                        let other_at = place.other + s + k;
                        let (row, column) = if comptime!(columns) {
                            (other_at, own_at)
                        } else {
                            (own_at, other_at)
                        };
                        let has = has(starts_bl, place.tokens, row, column);
                        difference = select(has, difference, 0.0f32);
                        if row == column && row < l {
                            difference += d;
                            inside = 0.0; // no decay in it
                            if comptime!(!columns) {
                                sums[place.sums + ON_DIAGONAL * l + row] = difference;
                            }
                        }
                    }
                    results.logs[r] += difference * inside;
                    if comptime!(!columns) {
                        results.squares[r] += difference * difference;
                    }
                    pair[k] = difference * decay;
                }
                mixed[i] = pair;
            }
        }
        if comptime!(gradients) {
            let mut slopes = Sequence::<Array<Vector<E, Pair>>>::new();
            #[unroll]
            for i in 0..down {
                let mut left = Array::<Vector<E, Pair>>::new(4usize);
                #[unroll]
                for part in 0..4usize {
                    left[part] = Vector::cast_from(mixed[comptime!(i * 4 + part)]);
                }
                slopes.push(left);
            }
            #[unroll]
            for j in 0..comptime!(n / 16) {
                let both = memory.student.right(at, comptime!(j * 16), false);
                #[unroll]
                for i in 0..down {
                    let to = comptime!((i * n / 8 + j * 2) * 2);
                    multiply(slopes.index(i), &both, &mut results.gradient, to);
                }
            }
        }
    }
}

/// The sum over the four units that share a row.
#[cube]
fn row_sum(value: f32) -> f32 {
    let pairs = value + plane_shuffle_xor(value, 1u32);
    pairs + plane_shuffle_xor(pairs, 2u32)
}

/// As the portable [`pass_kernel`](super::super::tiles::pass_kernel). `scale` is the scores' times [`SHARE`].
///
/// Cubes: heads, batch, blocks of rows or columns, those that meet the most tiles first.
#[cube(
    launch_unchecked,
    address_type = "dynamic",
    fast_math = FastMath::ReducedPrecision | FastMath::NotNaN | FastMath::NotInf
)]
pub(in super::super) fn pass_kernel<E: Float>(
    own_student: &Array<Vector<E, Eight>>,
    other_student: &Array<Vector<E, Eight>>,
    own_teacher: &Array<Vector<E, Eight>>,
    other_teacher: &Array<Vector<E, Eight>>,
    stats: &Array<f32>,
    starts_bl: &ComptimeOption<Array<i32>>,
    gradient_bhln: &mut Array<Vector<f32, Pair>>,
    sums: &mut Array<f32>,
    scale: f32,
    own_student_view: View,
    other_student_view: View,
    own_teacher_view: View,
    other_teacher_view: View,
    #[comptime] n: usize,
    #[comptime] p: usize,
    #[comptime] down: usize,
    #[comptime] columns: bool,
    #[comptime] gradients: bool,
    #[define(E)] _dtype: StorageType,
) {
    let (head, batch) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let h = CUBE_COUNT_X as usize;
    let own_s = rows_of(&own_student_view, batch, head, h);
    let other_s = rows_of(&other_student_view, batch, head, h);
    let own_t = rows_of(&own_teacher_view, batch, head, h);
    let other_t = rows_of(&other_teacher_view, batch, head, h);
    let l = own_s.count;
    let tokens = row_tokens(batch, l);
    let pair = batch * h + head;
    let row = pair * STATS * l;

    let rows = comptime!(own(down));
    let block = longest_first(CUBE_POS_Z as usize, CUBE_COUNT_Z as usize, columns);
    let first = block * rows;
    let lane = UNIT_POS_PLANE as usize;
    let plane_row = UNIT_POS as usize / PLANE * comptime!(16 * down);
    let own_first = first + plane_row;
    let own_last = own_first + comptime!(16 * down - 1);
    let met = met(starts_bl, tokens, first, rows, columns);
    let edge = if comptime!(columns) {
        first + comptime!(rows - 1)
    } else {
        first
    };
    let edge = statistics(stats, row, edge, l);

    let mut memory = Memory::<E>::new(n, p, down);
    let barrier = Barrier::shared(comptime!((PLANES * PLANE) as u32).runtime(), UNIT_POS == 0);
    fetch(
        &mut memory,
        own_student,
        own_s,
        own_teacher,
        own_t,
        first,
        TILE,
        rows,
        n,
        p,
    );
    let other = met.first * TILE;
    fetch(
        &mut memory,
        other_student,
        other_s,
        other_teacher,
        other_t,
        other,
        0,
        TILE,
        n,
        p,
    );
    barrier.commit_copy_async();
    let mut known = Known::new();
    known.read(stats, row, 0, other, l);
    memory.set(&known, edge, 0, other, l, columns);
    barrier.arrive_and_wait();
    let mut own = Own::<E> {
        student: left_factors(&memory.student, plane_row + TILE, n, down),
        teacher: left_factors(&memory.teacher, plane_row + TILE, p, down),
        factors: Array::new(comptime!(2 * down)),
        normalisers: Array::new(comptime!(2 * down)),
    };
    let mut results = Results {
        gradient: zeros(comptime!(down * n / 8)),
        logs: Array::new(comptime!(2 * down)),
        squares: Array::new(comptime!(2 * down)),
    };
    #[unroll]
    for r in 0..comptime!(2 * down) {
        let t = own_first + comptime!(r / 2 * 16 + r % 2 * 8) + lane / 4;
        let of = statistics(stats, row, t, l);
        own.factors[r] = factor(of, edge, comptime!(!columns));
        own.normalisers[r] = of.normaliser * SHARE.runtime();
        results.logs[r] = 0.0;
        results.squares[r] = 0.0;
    }

    for i in 0..met.count {
        // All units are done with the tile before this one, and this one has come.
        barrier.arrive_and_wait();
        let other = (met.first + i) * TILE;
        let next = i + 1;
        if next < met.count {
            let at = next % comptime!(stages(down)) * TILE;
            fetch(
                &mut memory,
                other_student,
                other_s,
                other_teacher,
                other_t,
                other + TILE,
                at,
                TILE,
                n,
                p,
            );
        }
        barrier.commit_copy_async();
        // Read now, so that they have come when they are stored.
        known.read(stats, row, next, other + TILE, l);

        let place = Place {
            tokens,
            own: own_first,
            other,
            at: i % comptime!(stages(down)) * TILE,
            at_known: i % 2 * comptime!(TILE / 2),
            stats: row,
            sums: pair * SUMS * l,
        };
        let other_last = other + comptime!(TILE - 1);
        let mut meets = own_first < l && other <= own_last;
        let mut exact = first <= other_last;
        if comptime!(columns) {
            meets = own_first < l && own_first <= other_last;
            exact = other < first + rows;
        }
        if comptime!(starts_bl.is_some()) {
            let (last_row, first_column) = if comptime!(columns) {
                (other_last, own_first)
            } else {
                (own_last, other)
            };
            exact = exact || start_of(starts_bl, tokens, last_row) > first_column;
        }
        if meets {
            if exact {
                add(
                    &own,
                    &memory,
                    place,
                    &mut results,
                    stats,
                    sums,
                    scale,
                    starts_bl,
                    true,
                    columns,
                    gradients,
                    n,
                    p,
                    down,
                );
            } else {
                add(
                    &own,
                    &memory,
                    place,
                    &mut results,
                    stats,
                    sums,
                    scale,
                    starts_bl,
                    false,
                    columns,
                    gradients,
                    n,
                    p,
                    down,
                );
            }
        }
        memory.set(&known, edge, next, other + TILE, l, columns);
    }

    let row = pair * SUMS * l;
    #[unroll]
    for r in 0..comptime!(2 * down) {
        let t = own_first + comptime!(r / 2 * 16 + r % 2 * 8) + lane / 4;
        let log = row_sum(results.logs[r]);
        let square = row_sum(results.squares[r]);
        let column = lane % 4;
        if column == 0 && t < l {
            if comptime!(columns) {
                sums[row + LOG_COLUMNS * l + t] = log;
            } else {
                sums[row + LOG_ROWS * l + t] = log;
                sums[row + SQUARES * l + t] = square;
            }
        }
    }
    if comptime!(gradients) {
        #[unroll]
        for r in 0..comptime!(2 * down) {
            let t = own_first + comptime!(r / 2 * 16 + r % 2 * 8) + lane / 4;
            if t < l {
                let to = (pair * l + t) * n;
                write_row(&results.gradient, r, 1.0f32, gradient_bhln, to, n);
            }
        }
    }
}
