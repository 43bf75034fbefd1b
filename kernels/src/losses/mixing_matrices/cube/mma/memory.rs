//! What a cube keeps in shared memory: tiles of both matrices' factors, and what is known of their tokens.

use cubecl::prelude::*;

use super::super::decay::{NORMALISER, REST, WHOLE};
use super::{SHARE, TILE, stages};
use crate::cube::fragments::{Eight, Matrix, PLANE, Pair};
use crate::cube::plane_products::{PLANES, copy};
use crate::cube::rows::Rows;

/// The logarithm of a denominator where there is no row: no attention is left.
const NOTHING: f32 = 1e30;

/// What is known of a row or column.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Statistics {
    pub whole: f32,
    pub rest: f32,
    pub normaliser: f32,
}

#[cube]
pub(super) fn statistics(stats: &Array<f32>, row: usize, t: usize, l: usize) -> Statistics {
    let t = clamp_max(t, l - 1);
    Statistics {
        whole: stats[row + WHOLE * l + t],
        rest: stats[row + REST * l + t],
        normaliser: stats[row + NORMALISER * l + t],
    }
}

/// Off the block's own tiles, a product of decays is one factor for the row times one for the column, which are the
/// decays from the block's edge to the row and from the column to the edge. Neither exceeds one.
#[cube]
pub(super) fn factor(of: Statistics, edge: Statistics, #[comptime] row: bool) -> f32 {
    let log = (of.whole - edge.whole) + (of.rest - edge.rest);
    let log = if comptime!(row) { log } else { -log };
    clamp_max(log, 0.0).exp()
}

/// Whether the `turn`-th tile is the plane's.
#[cube]
fn is_turn(turn: usize) -> bool {
    UNIT_POS as usize / PLANE == turn % PLANES
}

/// The unit's two tokens of a tile, of which a plane has all.
#[cube]
fn own_pair() -> usize {
    UNIT_POS_PLANE as usize % comptime!(TILE / 2)
}

/// What is known of two tokens of a tile. One plane has all of a tile, another one each time, so that schedulers share
/// the work.
#[derive(CubeType)]
pub(super) struct Known {
    whole: Vector<f32, Pair>,
    rest: Vector<f32, Pair>,
    normaliser: Vector<f32, Pair>,
}

#[cube]
impl Known {
    pub fn new() -> Known {
        Known {
            whole: Vector::new(0.0f32),
            rest: Vector::new(0.0f32),
            normaliser: Vector::new(0.0f32),
        }
    }

    /// Reads what is known of the unit's tokens of the tile that begins at `tile`, if it is the plane's `turn`.
    pub fn read(&mut self, stats: &Array<f32>, row: usize, turn: usize, tile: usize, l: usize) {
        if is_turn(turn) {
            #[unroll]
            for k in 0..2usize {
                let of = statistics(stats, row, tile + own_pair() * 2 + k, l);
                self.whole[k] = of.whole;
                self.rest[k] = of.rest;
                self.normaliser[k] = of.normaliser;
            }
        }
    }
}

/// What a cube has in shared memory: tiles, and of the tokens of two of them what is known, in pairs.
#[derive(CubeType)]
pub(super) struct Memory<E: Float> {
    pub student: Matrix<E, Eight>,
    pub teacher: Matrix<E, Eight>,
    pub whole: SharedMemory<Vector<f32, Pair>>,
    pub rest: SharedMemory<Vector<f32, Pair>>,
    pub factors: SharedMemory<Vector<f32, Pair>>,
    pub normalisers: SharedMemory<Vector<f32, Pair>>,
}

#[cube]
impl<E: Float> Memory<E> {
    pub fn new(#[comptime] n: usize, #[comptime] p: usize, #[comptime] down: usize) -> Memory<E> {
        let rows = comptime!(stages(down) * TILE);
        Memory::<E> {
            student: Matrix::<E, Eight>::new(rows, n, 8usize),
            teacher: Matrix::<E, Eight>::new(rows, p, 8usize),
            whole: SharedMemory::<Vector<f32, Pair>>::new_aligned(TILE, 16usize),
            rest: SharedMemory::<Vector<f32, Pair>>::new_aligned(TILE, 16usize),
            factors: SharedMemory::<Vector<f32, Pair>>::new_aligned(TILE, 16usize),
            normalisers: SharedMemory::<Vector<f32, Pair>>::new_aligned(TILE, 16usize),
        }
    }

    /// Stores what is known of the unit's tokens of the tile that begins at `tile` of `l` tokens, if it is the plane's
    /// `turn`, which also says where.
    pub fn set(
        &mut self,
        known: &Known,
        edge: Statistics,
        turn: usize,
        tile: usize,
        l: usize,
        #[comptime] columns: bool,
    ) {
        if is_turn(turn) {
            let mut factors = Vector::<f32, Pair>::new(0.0f32);
            let mut normalisers = Vector::<f32, Pair>::new(0.0f32);
            #[unroll]
            for k in 0..2usize {
                let of = Statistics {
                    whole: known.whole[k],
                    rest: known.rest[k],
                    normaliser: known.normaliser[k],
                };
                let there = tile + own_pair() * 2 + k < l;
                let normaliser = select(there, of.normaliser, NOTHING.runtime());
                // In a pass over columns these are rows.
                factors[k] = select(there, factor(of, edge, columns), 0.0f32);
                normalisers[k] = normaliser * SHARE.runtime();
            }
            let at = turn % 2 * comptime!(TILE / 2) + own_pair();
            self.whole[at] = known.whole;
            self.rest[at] = known.rest;
            self.factors[at] = factors;
            self.normalisers[at] = normalisers;
        }
    }
}

/// Starts to copy `count` rows of both matrices' factors from `first` on to the rows from `at` on.
#[cube]
pub(super) fn fetch<E: Float>(
    memory: &mut Memory<E>,
    student: &Array<Vector<E, Eight>>,
    student_rows: Rows,
    teacher: &Array<Vector<E, Eight>>,
    teacher_rows: Rows,
    first: usize,
    at: usize,
    #[comptime] count: usize,
    #[comptime] n: usize,
    #[comptime] p: usize,
) {
    copy(
        student,
        student_rows,
        first,
        &mut memory.student,
        at,
        count,
        n,
    );
    copy(
        teacher,
        teacher_rows,
        first,
        &mut memory.teacher,
        at,
        count,
        p,
    );
}
