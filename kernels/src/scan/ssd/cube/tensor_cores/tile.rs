//! Matrices in shared memory that `cp.async` fills.

use cubecl::cmma::MmaDefinition;
use cubecl::ir::MatrixIdent;
use cubecl::prelude::barrier::copy_async;
use cubecl::prelude::*;

use super::product::{Eight, Pair};

/// Where a tile begins, in bytes: a copy is slow when the 32 bytes of a sector lie across a boundary of 32 there.
const LINE: usize = 128;

/// Rows of a 16-bit matrix in shared memory, without gaps, in vectors of eight.
///
/// The vectors of a row are in an order that differs from row to row: so the eight rows of a fragment lie in different
/// banks, and a sector of device memory stays one in shared memory, which it does not where rows have gaps of 16 bytes.
#[derive(CubeType)]
pub struct Tile<E: Float> {
    values: SharedMemory<Vector<E, Eight>>,
    #[cube(comptime)]
    width: usize,
}

#[cube]
impl<E: Float> Tile<E> {
    pub fn new(#[comptime] rows: usize, #[comptime] width: usize) -> Tile<E> {
        Tile::<E> {
            values: SharedMemory::<Vector<E, Eight>>::new_aligned(
                comptime!(rows * width / 8),
                LINE,
            ),
            width,
        }
    }

    /// What turns the order of a row's vectors: the same for every 16th row.
    fn order(&self, row: usize) -> usize {
        let across = comptime!(self.width / 8);
        // Rows that share the 128 bytes in which each bank comes once, and the orders that there are.
        let sharers = comptime!(8usize.div_ceil(across));
        row / sharers % comptime!(Ord::min(across, 8))
    }

    /// The place of the `vector`-th vector of a row. Its bits and those of the row's beginning are apart, so that one
    /// operation turns what all of a row's places have in common into each of them.
    fn place(&self, row: usize, vector: usize) -> usize {
        (row * comptime!(self.width / 8) + self.order(row)) ^ vector
    }

    /// The same for the pair that begins at `column`.
    fn place_of_pair(&self, row: usize, column: usize) -> usize {
        let first = (row * comptime!(self.width / 8) + self.order(row)) * 4;
        (first + column % 8 / 2) ^ (column / 8 * 4)
    }

    /// Starts to copy the vector `at` of a tensor to the `vector`-th one of a row.
    pub fn copy(&mut self, row: usize, vector: usize, from: &Tensor<Vector<E, Eight>>, at: usize) {
        let place = self.place(row, vector);
        let from = from.slice(at, at + 1);
        let mut to = self.values.slice_mut(place, place + 1);
        copy_async(&from, &mut to, 8u32);
    }

    /// The place of the vector `right` (0 or 1) of row `down` of the 16 x 16 fragment that begins at (`row`, `vector`):
    /// that of [`Tile::place`], since `row` is a multiple of 16 and `vector` is even.
    fn place_of_fragment(&self, row: usize, vector: usize, down: usize, right: usize) -> usize {
        let across = comptime!(self.width / 8);
        let unit = down * across + (self.order(down) ^ right);
        row * across + (unit ^ vector)
    }

    pub fn get(&self, row: usize, vector: usize) -> Vector<E, Eight> {
        self.values[self.place(row, vector)]
    }

    pub fn set(&mut self, row: usize, vector: usize, value: Vector<E, Eight>) {
        let place = self.place(row, vector);
        self.values[place] = value;
    }

    /// The two elements from (`row`, `column`) on.
    pub fn pair(&self, row: usize, column: usize) -> Vector<E, Pair> {
        let at = self.place_of_pair(row, column);
        self.values.to_slice().with_vector_size::<Pair>()[at]
    }

    pub fn set_pair(&mut self, row: usize, column: usize, value: Vector<E, Pair>) {
        let at = self.place_of_pair(row, column);
        let mut pairs = self.values.to_slice_mut().with_vector_size::<Pair>();
        pairs[at] = value;
    }

    /// The 16 x 16 fragment that begins at (`row`, `column`) as a left factor; of the transposed matrix if so said.
    pub fn left(
        &self,
        row: usize,
        column: usize,
        #[comptime] transposed: bool,
    ) -> Array<Vector<E, Pair>> {
        self.fragment(row, column, transposed, transposed)
    }

    /// The 16 x 16 fragment that begins at (`row`, `column`) as two right factors of width 8, one after the other.
    pub fn right(
        &self,
        row: usize,
        column: usize,
        #[comptime] transposed: bool,
    ) -> Array<Vector<E, Pair>> {
        // The instruction's own right factor is stored by columns.
        self.fragment(row, column, transposed, comptime!(!transposed))
    }

    fn fragment(
        &self,
        row: usize,
        column: usize,
        #[comptime] transposed: bool,
        #[comptime] turned: bool,
    ) -> Array<Vector<E, Pair>> {
        let mma = MmaDefinition::<E, E, f32>::new(16usize, 8usize, 16usize);
        let lane = UNIT_POS_PLANE as usize;
        let place = if comptime!(transposed) {
            self.place_of_fragment(column, row / 8, lane / 16 * 8 + lane % 8, lane / 8 % 2)
        } else {
            self.place_of_fragment(row, column / 8, lane % 16, lane / 16)
        };
        let slice = self.values.slice(place, place + 1);
        mma.load_matrix::<Vector<E, Eight>, Pair>(&slice, MatrixIdent::A, 4usize, turned)
    }
}
