//! Ring buffers that feed the tensor cores. Each plane has a ring of steps in shared memory: one step is multiplied
//! while the others are copied by `cp.async`. These copies need no registers, and the compiler does not move them.
//!
//! A step is 128 bytes of each of a plane's rows, copied by eight units side by side: memory gives less when a row is
//! read 64 bytes at a time. Where a unit finds its own 16 bytes is turned by half a row in every second row, so that
//! eight units read from different banks.

use burn::tensor::f16;
use cubecl::prelude::barrier::{Barrier, copy_async};
use cubecl::prelude::*;

use super::mma::{ROWS, TILES, UNITS};
use super::plan::{Part, Plan, STEP};
use crate::cube::fragments::{PLANE, Pair};
use crate::decode::projections::{Form, GROUP};

/// Where the ring's memory begins, in bytes. CubeCL puts arrays behind whatever stands before them, such as an 8-byte
/// barrier, and a copy whose 32-byte sectors land across a boundary takes up to twice as long.
const LINE: usize = 128;
/// Words of the scales that a step has for a row, in 4 bits: two scales a word, and a group for each vector.
const SCALES: usize = STEP / 2;

/// The steps of every plane.
#[derive(CubeType)]
pub(super) struct Ring<W: Numeric, N: Size, X: Size> {
    /// `[planes, stages, rows, STEP]`
    weights: SharedMemory<Vector<W, N>>,
    /// `[planes, stages, batch, Plan::step_width]`; unused where the vectors are normalised, or digits.
    x: SharedMemory<Vector<f32, X>>,
    /// `[planes, stages, rows, SCALES]`, in 4 bits.
    scales: SharedMemory<u32>,
    /// Of every stage: whether the planes' steps have come.
    here: Sequence<Shared<Barrier>>,
}

/// The place of the vector `column` of a row.
#[cube]
fn turned(row: usize, column: usize) -> usize {
    column ^ (row % 2 * comptime!(STEP / 2))
}

/// The place of the vector `column` of a weight's row. In 4 bits units read single words of eight rows at a time, so that
/// these are turned by four places; by eight, halves of a sector would no longer be side by side.
#[cube]
fn place_in_row(row: usize, column: usize, #[comptime] form: Form) -> usize {
    if comptime!(form == Form::Int4) {
        turned(row, column) ^ (row / 2 % 2 * 2)
    } else {
        turned(row, column)
    }
}

#[cube]
impl<W: Numeric, N: Size, X: Size> Ring<W, N, X> {
    pub(super) fn new(#[comptime] plan: Plan) -> Self {
        let steps = comptime!(UNITS / PLANE * plan.stages);
        let of_x = comptime!(if plan.normalises || plan.integers() {
            1
        } else {
            steps * plan.batch * plan.step_width()
        });
        let of_scales = comptime!(if plan.form == Form::Int4 {
            steps * TILES * ROWS * SCALES
        } else {
            1
        });
        let mut here = Sequence::<Shared<Barrier>>::new();
        #[unroll]
        for _ in 0..comptime!(plan.stages) {
            let barrier = Barrier::shared_uninit();
            if UNIT_POS == 0 {
                barrier.init_manual(comptime!((UNITS / PLANE) as u32).runtime());
            }
            here.push(barrier);
        }
        sync_cube();
        Ring::<W, N, X> {
            weights: SharedMemory::new_aligned(comptime!(steps * TILES * ROWS * STEP), LINE),
            x: SharedMemory::new_aligned(of_x, LINE),
            scales: SharedMemory::new_aligned(of_scales, LINE),
            here,
        }
    }

    /// Starts to copy a step of the plane's rows, which begin at `first`. Rows beyond the last are the last once
    /// more.
    pub(super) fn copy_rows(
        &mut self,
        weight_oi: &Array<Vector<W, N>>,
        first: usize,
        step: usize,
        stage: usize,
        #[comptime] part: Part,
        #[comptime] plan: Plan,
    ) {
        let vectors = comptime!(plan.vectors(part.d_in));
        let begin = rows_begin(stage, plan);
        #[unroll]
        for turn in 0..comptime!(TILES * ROWS * STEP / PLANE) {
            let at = comptime!(turn * PLANE) + UNIT_POS_PLANE as usize;
            let (row, column) = (at / STEP, at % STEP);
            let from = clamp_max(first + row, comptime!(part.d_out - 1)) * vectors;
            let from = from + step * STEP + column;
            let to = begin + row * STEP + place_in_row(row, column, plan.form);
            copy_async(
                &weight_oi.slice(from, from + 1),
                &mut self.weights.slice_mut(to, to + 1),
                comptime!(plan.elements() as u32),
            );
        }
    }

    /// Starts to copy the scales of that step, in 4 bits.
    pub(super) fn copy_scales(
        &mut self,
        scales: &Array<u32>,
        first: usize,
        step: usize,
        stage: usize,
        #[comptime] part: Part,
        #[comptime] plan: Plan,
    ) {
        let row = UNIT_POS_PLANE as usize;
        if row < comptime!(TILES * ROWS) {
            let from = clamp_max(first + row, comptime!(part.d_out - 1));
            let from = from * comptime!(part.d_in / GROUP / 2) + step * SCALES;
            let to = scales_begin(stage, plan) + row * SCALES;
            copy_async(
                &scales.slice(from, from + SCALES),
                &mut self.scales.slice_mut(to, to + SCALES),
                comptime!(SCALES as u32),
            );
        }
    }

    /// Starts to copy what that step is multiplied with.
    pub(super) fn copy_x(
        &mut self,
        x_bi: &Array<Vector<f32, X>>,
        step: usize,
        stage: usize,
        #[comptime] part: Part,
        #[comptime] plan: Plan,
    ) {
        let width = comptime!(plan.step_width());
        let all = comptime!(plan.batch * width);
        let begin = x_begin(stage, plan);
        #[unroll]
        for turn in 0..comptime!(all.div_ceil(PLANE)) {
            let at = comptime!(turn * PLANE) + UNIT_POS_PLANE as usize;
            if comptime!((turn + 1) * PLANE <= all) || at < all {
                let (vector, column) = (at / width, at % width);
                let from = vector * comptime!(part.d_in / plan.input) + step * width + column;
                let to = begin + vector * width + turned(vector, column);
                copy_async(
                    &x_bi.slice(from, from + 1),
                    &mut self.x.slice_mut(to, to + 1),
                    comptime!(plan.input as u32),
                );
            }
        }
    }

    /// Writes the products that the step is multiplied with, of `x` and `gate`. They wait for memory, which copies do
    /// not, but for little of it, while the step's rows are on their way; and they need no room beside the products.
    pub(super) fn write_products(
        &mut self,
        x_bi: &Array<Vector<f32, X>>,
        gate_bi: &Array<Vector<f32, X>>,
        step: usize,
        stage: usize,
        #[comptime] part: Part,
        #[comptime] plan: Plan,
    ) {
        let width = comptime!(plan.step_width());
        let all = comptime!(plan.batch * width);
        let begin = x_begin(stage, plan);
        #[unroll]
        for turn in 0..comptime!(all.div_ceil(PLANE)) {
            let at = comptime!(turn * PLANE) + UNIT_POS_PLANE as usize;
            if comptime!((turn + 1) * PLANE <= all) || at < all {
                let (vector, column) = (at / width, at % width);
                let from = vector * comptime!(part.d_in / plan.input) + step * width + column;
                let to = begin + vector * width + turned(vector, column);
                self.x[to] = x_bi[from] * gate_bi[from];
            }
        }
    }

    /// Says that the plane's copies to `stage` have all been started.
    pub(super) fn started(&self, stage: usize, #[comptime] plan: Plan) {
        #[unroll]
        for i in 0..comptime!(plan.stages) {
            if stage == i {
                let here = self.here.index(i);
                here.commit_copy_async();
                // Every unit's copies are counted before its plane has arrived.
                sync_plane();
                if UNIT_POS_PLANE == 0 {
                    let _ = here.arrive();
                }
            }
        }
    }

    /// Waits for the copies to `stage`, which is used for the `round`th time.
    pub(super) fn wait(&self, round: usize, stage: usize, #[comptime] plan: Plan) {
        #[unroll]
        for i in 0..comptime!(plan.stages) {
            if stage == i {
                self.here.index(i).wait_parity(round as u32 % 2);
            }
        }
    }

    /// The vector `column` of the plane's row `row` in `stage`.
    pub(super) fn weight(
        &self,
        row: usize,
        column: usize,
        stage: usize,
        #[comptime] plan: Plan,
    ) -> Vector<W, N> {
        let place = place_in_row(row, column, plan.form);
        self.weights[rows_begin(stage, plan) + row * STEP + place]
    }

    /// The word `word` of that vector.
    pub(super) fn word(
        &self,
        row: usize,
        column: usize,
        word: usize,
        stage: usize,
        #[comptime] plan: Plan,
    ) -> u32 {
        let place = rows_begin(stage, plan) + row * STEP + place_in_row(row, column, plan.form);
        let words = self.weights.to_slice().with_vector_size::<Const<1>>();
        u32::reinterpret(words[place * comptime!(plan.elements()) + word])
    }

    /// The scales of two neighbouring groups of the row in 4 bits, the pair `pair` of its step.
    pub(super) fn scales(
        &self,
        row: usize,
        #[comptime] pair: usize,
        stage: usize,
        #[comptime] plan: Plan,
    ) -> Vector<f16, Pair> {
        let word = self.scales[scales_begin(stage, plan) + row * SCALES + pair];
        Vector::<f16, Pair>::reinterpret(word)
    }

    /// The vector `column` of the input `vector` in `stage`.
    pub(super) fn input(
        &self,
        vector: usize,
        column: usize,
        stage: usize,
        #[comptime] plan: Plan,
    ) -> Vector<f32, X> {
        let width = comptime!(plan.step_width());
        self.x[x_begin(stage, plan) + vector * width + turned(vector, column)]
    }
}

/// Where the plane's rows of `stage` begin.
#[cube]
fn rows_begin(stage: usize, #[comptime] plan: Plan) -> usize {
    let plane = UNIT_POS as usize / PLANE;
    (plane * plan.stages + stage) * comptime!(TILES * ROWS * STEP)
}

/// Where the scales of the plane's rows of `stage` begin.
#[cube]
fn scales_begin(stage: usize, #[comptime] plan: Plan) -> usize {
    let plane = UNIT_POS as usize / PLANE;
    (plane * plan.stages + stage) * comptime!(TILES * ROWS * SCALES)
}

/// Where the plane's inputs of `stage` begin.
#[cube]
fn x_begin(stage: usize, #[comptime] plan: Plan) -> usize {
    let plane = UNIT_POS as usize / PLANE;
    (plane * plan.stages + stage) * comptime!(plan.batch * plan.step_width())
}
