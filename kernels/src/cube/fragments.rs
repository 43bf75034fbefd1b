//! Matrices in shared memory as the manual `mma` of 16 x 8 x 16 takes them.

use cubecl::cmma::MmaDefinition;
use cubecl::ir::MatrixIdent;
use cubecl::prelude::barrier::copy_async;
use cubecl::prelude::*;

/// Units of a plane.
pub const PLANE: usize = 32;

/// Elements of one load from device memory: 16 bytes of a 16-bit dtype.
pub type Eight = Const<8>;
/// Elements of one register.
pub type Pair = Const<2>;

/// Rows of a 16-bit matrix in shared memory, accessed in vectors of `V`. Eight elements more than its
/// width make a row's stride: then the eight rows of a fragment lie in different banks.
#[derive(CubeType)]
pub struct Matrix<E: Float, V: Size> {
    values: SharedMemory<Vector<E, V>>,
    #[cube(comptime)]
    width: usize,
    #[cube(comptime)]
    vector: usize,
}

#[cube]
impl<E: Float, V: Size> Matrix<E, V> {
    pub fn new(
        #[comptime] rows: usize,
        #[comptime] width: usize,
        #[comptime] vector: usize,
    ) -> Matrix<E, V> {
        let length = comptime!(rows * (width + 8) / vector);
        Matrix::<E, V> {
            values: SharedMemory::<Vector<E, V>>::new_aligned(length, 16usize),
            width,
            vector,
        }
    }

    /// The place of the vector that begins at (`row`, `column`).
    fn index(&self, row: usize, column: usize) -> usize {
        row * comptime!((self.width + 8) / self.vector) + column / comptime!(self.vector)
    }

    /// Where this unit finds its row of the 16 x 16 fragment that begins at (`row`, `column`), or that does in the
    /// transposed matrix. A unit's place and the fragment's are apart, so that constants end up in the load's address.
    fn fragment(&self, row: usize, column: usize, #[comptime] transposed: bool) -> usize {
        let lane = UNIT_POS_PLANE as usize;
        if comptime!(transposed) {
            self.index(lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8) + self.index(column, row)
        } else {
            self.index(lane % 16, lane / 16 * 8) + self.index(row, column)
        }
    }

    pub fn set(&mut self, row: usize, column: usize, value: Vector<E, V>) {
        let index = self.index(row, column);
        self.values[index] = value;
    }

    /// Starts to copy the vector `at` of an array to (`row`, `column`). The data are visible to units that wait at a
    /// barrier to which this unit has committed its copies.
    pub fn copy(&mut self, row: usize, column: usize, from: &Array<Vector<E, V>>, at: usize) {
        let index = self.index(row, column);
        let from = from.slice(at, at + 1);
        let mut to = self.values.slice_mut(index, index + 1);
        copy_async(&from, &mut to, comptime!(self.vector as u32));
    }

    /// The two elements from (`row`, `column`) on.
    pub fn pair(&self, row: usize, column: usize) -> Vector<E, Pair> {
        let pairs = self.values.to_slice().with_vector_size::<Pair>();
        pairs[(row * comptime!(self.width + 8) + column) / 2]
    }

    /// The 16 x 16 fragment that begins at (`row`, `column`) as a left factor; of the transposed matrix
    /// if so said.
    pub fn left(
        &self,
        row: usize,
        column: usize,
        #[comptime] transposed: bool,
    ) -> Array<Vector<E, Pair>> {
        let mma = MmaDefinition::<E, E, f32>::new(16usize, 8usize, 16usize);
        let index = self.fragment(row, column, transposed);
        let slice = self.values.slice(index, index + comptime!(8 / self.vector));
        mma.load_matrix::<Vector<E, V>, Pair>(&slice, MatrixIdent::A, 4usize, transposed)
    }

    /// The 16 x 16 fragment that begins at (`row`, `column`) as two right factors of width 8, one after
    /// the other.
    pub fn right(
        &self,
        row: usize,
        column: usize,
        #[comptime] transposed: bool,
    ) -> Array<Vector<E, Pair>> {
        let mma = MmaDefinition::<E, E, f32>::new(16usize, 8usize, 16usize);
        let index = self.fragment(row, column, transposed);
        let slice = self.values.slice(index, index + comptime!(8 / self.vector));
        // The instruction's own right factor is stored by columns.
        let stored_by_rows = comptime!(!transposed);
        mma.load_matrix::<Vector<E, V>, Pair>(&slice, MatrixIdent::A, 4usize, stored_by_rows)
    }
}
