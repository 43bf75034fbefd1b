//! On devices whose planes multiply matrices together: 16 by 16 by 16, factors of 16 bits, sums in f32.
//!
//! A plane has `down` by `across` fragments of sums. Slices of [`DEPTH`] of the factors pass through shared memory, each
//! as it lies in device memory: a fragment can be read along its rows or its columns. While a slice is multiplied, the
//! next one is on its way to registers. There is one buffer a cube, so that two cubes share a multiprocessor, and each
//! computes while the other waits at its barriers.

use cubecl::cmma;
use cubecl::cmma::{MatrixIdent, MatrixLayout};
use cubecl::prelude::*;

use super::epilogue::{Epilogue, put};
use super::factor::{Four, Order, View, four, place};
use crate::cube::fragments::PLANE;

/// Rows, columns and depth of a fragment.
pub(super) const SIDE: usize = 16;
/// Of the contracted axis in shared memory at a time.
pub(super) const DEPTH: usize = 32;
/// Elements between lines of shared memory, for the banks.
const GAP: usize = 8;
/// Vectors from one row to the next where sums pass through shared memory.
const PITCH: usize = SIDE / 4 + 1;
/// Vectors of each factor that a unit fetches of a slice: tiles have as many for each unit.
const FETCHED: usize = 4;

/// A cube's planes, and a plane's fragments.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Layout {
    planes_down: usize,
    planes_across: usize,
    down: usize,
    across: usize,
}

impl Layout {
    /// Tiles of 128 by 128.
    pub const LARGE: Self = Self {
        planes_down: 2,
        planes_across: 4,
        down: 4,
        across: 2,
    };
    /// Tiles of 64 by 64.
    pub const SMALL: Self = Self {
        planes_down: 2,
        planes_across: 2,
        down: 2,
        across: 2,
    };

    const fn planes(self) -> usize {
        self.planes_down * self.planes_across
    }

    pub const fn units(self) -> usize {
        self.planes() * PLANE
    }

    /// Rows and columns of a tile.
    pub const fn tile(self) -> usize {
        self.planes_down * self.down * SIDE
    }

    /// Bytes of shared memory, at most.
    pub const fn shared_bytes(self) -> usize {
        2 * 2 * self.tile() * (DEPTH + GAP) + self.planes() * SIDE * PITCH * 16
    }
}

/// Elements from one line of a slice in shared memory to the next, and lines.
fn lines(order: Order, tile: usize) -> [usize; 2] {
    match order {
        Order::Depth | Order::Single => [DEPTH + GAP, tile],
        Order::Rows => [tile + GAP, DEPTH],
    }
}

/// A slice of a factor's tile in shared memory.
#[derive(CubeType)]
struct Slice16<F: Float> {
    values: SharedMemory<Vector<F, Four>>,
    #[cube(comptime)]
    order: Order,
    #[cube(comptime)]
    tile: usize,
}

#[cube]
impl<F: Float> Slice16<F> {
    fn new(#[comptime] order: Order, #[comptime] tile: usize) -> Slice16<F> {
        let [pitch, count] = comptime!(lines(order, tile));
        let values =
            SharedMemory::<Vector<F, Four>>::new_aligned(comptime!(pitch * count / 4), 32usize);
        Slice16::<F> {
            values,
            order,
            tile,
        }
    }

    /// This unit's part of the slice from `k` on of the tile from row `first` on.
    fn fetch<N: Size>(
        &self,
        x: &Array<Vector<F, N>>,
        view: View,
        first: usize,
        k: usize,
        end: usize,
        to: &mut Array<Vector<F, Four>>,
    ) {
        let units = comptime!(self.tile * DEPTH / 4 / FETCHED);
        #[unroll]
        for round in 0..FETCHED {
            let vector = UNIT_POS as usize + comptime!(round * units);
            let (line, column) = self.position(vector);
            to[round] = if comptime!(self.order == Order::Rows) {
                four(
                    x,
                    view,
                    first + column,
                    k + line,
                    end,
                    comptime!(self.order),
                )
            } else {
                four(
                    x,
                    view,
                    first + line,
                    k + column,
                    end,
                    comptime!(self.order),
                )
            };
        }
    }

    /// Stores what [`Slice16::fetch`] brought.
    fn stage(&mut self, fetched: &Array<Vector<F, Four>>) {
        let units = comptime!(self.tile * DEPTH / 4 / FETCHED);
        let pitch = comptime!(lines(self.order, self.tile)[0]);
        #[unroll]
        for round in 0..FETCHED {
            let vector = UNIT_POS as usize + comptime!(round * units);
            let (line, column) = self.position(vector);
            self.values[(line * pitch + column) / 4] = fetched[round];
        }
    }

    /// The line and the first element of a vector.
    fn position(&self, vector: usize) -> (usize, usize) {
        let across = comptime!((lines(self.order, self.tile)[0] - GAP) / 4);
        (vector / across, vector % across * 4)
    }

    /// The fragment from row `row` and depth `k` on.
    fn fragment(
        &self,
        row: usize,
        #[comptime] k: usize,
        #[comptime] ident: MatrixIdent,
    ) -> cmma::Matrix<F> {
        let pitch = comptime!(lines(self.order, self.tile)[0]);
        // A left factor's rows are the tile's; those of a right factor are the contracted axis.
        let along_rows = comptime!((self.order == Order::Rows) != (ident == MatrixIdent::A));
        let layout = comptime!(if along_rows {
            MatrixLayout::RowMajor
        } else {
            MatrixLayout::ColMajor
        });
        // SAFETY: it is loaded before it is used.
        let fragment = unsafe { cmma::Matrix::<F>::uninitialized(ident, SIDE, SIDE, SIDE, layout) };
        let at = if comptime!(self.order == Order::Rows) {
            (comptime!(k * pitch) + row) / 4
        } else {
            (row * pitch + k) / 4
        };
        let values = self.values.slice(at, at + 1);
        cmma::load(&fragment, &values, comptime!(pitch as u32));
        fragment
    }
}

/// As [`multiply`](super::registers::multiply); `cut` is a multiple of [`DEPTH`] here.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn multiply<F: Float, O: Float, VA: Size, VB: Size, N: Size>(
    a: &Array<Vector<F, VA>>,
    b: &Array<Vector<F, VB>>,
    bias: &ComptimeOption<Array<Vector<F, N>>>,
    out: &mut Array<Vector<O, N>>,
    a_view: View,
    b_view: View,
    cut: usize,
    #[comptime] a_order: Order,
    #[comptime] b_order: Order,
    #[comptime] n: usize,
    #[comptime] layout: Layout,
    #[comptime] epilogue: Epilogue,
    #[define(F)] _dtype: StorageType,
    #[define(O)] _to: StorageType,
) {
    let (down, across) = comptime!((layout.down, layout.across));
    let mut a_slice = Slice16::<F>::new(a_order, comptime!(layout.tile()));
    let mut b_slice = Slice16::<F>::new(b_order, comptime!(layout.tile()));
    let length = comptime!(layout.planes() * SIDE * PITCH);
    let mut staged = SharedMemory::<Vector<f32, Four>>::new_aligned(length, 32usize);
    let plane = UNIT_POS as usize / PLANE;
    let lane = UNIT_POS as usize % PLANE;
    let plane_row = plane / layout.planes_across * comptime!(down * SIDE);
    let plane_column = plane % layout.planes_across * comptime!(across * SIDE);
    let place = place(
        a_view,
        b_view,
        cut,
        comptime!(layout.tile()),
        comptime!(layout.tile()),
    );
    if place.exists {
        let mut sums = Sequence::<cmma::Matrix<f32>>::new();
        #[unroll]
        for _ in 0..comptime!(down * across) {
            sums.push(cmma::Matrix::<f32>::from_value(
                MatrixIdent::Accumulator,
                SIDE,
                SIDE,
                SIDE,
                MatrixLayout::Undefined,
                0.0f32,
            ));
        }
        let mut of_a = Array::<Vector<F, Four>>::new(FETCHED);
        let mut of_b = Array::<Vector<F, Four>>::new(FETCHED);
        let (row, column, end) = (place.row, place.column, place.end);
        a_slice.fetch(a, a_view, row, place.from, end, &mut of_a);
        b_slice.fetch(b, b_view, column, place.from, end, &mut of_b);
        for slice in 0..(end - place.from).div_ceil(DEPTH) {
            // All units are done with the slice before this one.
            sync_cube();
            a_slice.stage(&of_a);
            b_slice.stage(&of_b);
            sync_cube();
            // Beyond the end, zeros that nothing reads.
            let next = place.from + (slice + 1) * DEPTH;
            a_slice.fetch(a, a_view, row, next, end, &mut of_a);
            b_slice.fetch(b, b_view, column, next, end, &mut of_b);
            #[unroll]
            for step in 0..comptime!(DEPTH / SIDE) {
                let k = comptime!(step * SIDE);
                let mut right = Sequence::<cmma::Matrix<F>>::new();
                #[unroll]
                for j in 0..across {
                    let column = plane_column + comptime!(j * SIDE);
                    right.push(b_slice.fragment(column, k, MatrixIdent::B));
                }
                #[unroll]
                for i in 0..down {
                    let row = plane_row + comptime!(i * SIDE);
                    let left = a_slice.fragment(row, k, MatrixIdent::A);
                    #[unroll]
                    for j in 0..across {
                        let sum = sums.index(comptime!(i * across + j));
                        cmma::execute::<F, F, f32, f32>(&left, right.index(j), sum, sum);
                    }
                }
            }
        }
        let own = plane * comptime!(SIDE * PITCH);
        #[unroll]
        for i in 0..down {
            #[unroll]
            for j in 0..across {
                // All units have read the fragment before this one.
                sync_cube();
                let sum = sums.index(comptime!(i * across + j));
                let mut to = staged.slice_mut(own, own + comptime!(SIDE * PITCH));
                cmma::store(
                    &mut to,
                    sum,
                    comptime!(4 * PITCH as u32),
                    MatrixLayout::RowMajor,
                );
                sync_cube();
                #[unroll]
                for round in 0..2usize {
                    let inside = comptime!(round * 8) + lane / 4;
                    let values = staged[own + inside * PITCH + lane % 4];
                    let row = row + plane_row + comptime!(i * SIDE) + inside;
                    let column = column + plane_column + comptime!(j * SIDE) + lane % 4 * 4;
                    put(
                        values,
                        row,
                        column,
                        a_view.rows,
                        b_view.rows,
                        bias,
                        out,
                        n,
                        epilogue,
                    );
                }
            }
        }
    }
}
