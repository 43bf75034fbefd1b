//! Square f32 tiles in shared memory and their products, with nothing but barriers.
//!
//! A cube of `(size / 4)^2` units holds a `size x size` product in registers: the unit at (`row`,
//! `column`) of the units' square has the 16 elements whose rows are `row` and whose columns are
//! `column` modulo `size / 4`, so that neighbours in a plane read neighbours in shared memory.

use cubecl::prelude::*;

/// Rows and columns that a unit has of a product.
pub const MICRO: usize = 4;

/// A square tile, its rows one longer than it is wide so that columns lie in different banks.
#[derive(CubeType)]
pub struct Tile {
    values: SharedMemory<f32>,
    #[cube(comptime)]
    size: usize,
}

/// This unit's part of a product.
#[derive(CubeType)]
pub struct Micro {
    values: Array<f32>,
    /// The unit's own row and column in the units' square.
    row: usize,
    column: usize,
    #[cube(comptime)]
    size: usize,
}

/// Where a tile lies in a matrix, and how much of it exists.
#[derive(CubeType)]
pub struct Window {
    /// The index of the tile's first element.
    pub first: usize,
    pub row_stride: usize,
    pub column_stride: usize,
    /// Rows and columns from the first on; those beyond read as 0.
    pub rows: usize,
    pub columns: usize,
}

/// The tokens of a chunk, which head of theirs, and the features from the first that a tile wants: of
/// a tensor `[b, l, heads, features]` with any strides.
#[cube]
pub fn tokens<E: Float>(
    of: &Tensor<E>,
    batch: usize,
    first_token: usize,
    present: usize,
    head: usize,
    first_feature: usize,
) -> Window {
    Window {
        first: batch * of.stride(0)
            + first_token * of.stride(1)
            + head * of.stride(2)
            + first_feature * of.stride(3),
        row_stride: of.stride(1),
        column_stride: of.stride(3),
        rows: present,
        columns: of.shape(3) - first_feature,
    }
}

#[cube]
impl Tile {
    pub fn new(#[comptime] size: usize) -> Tile {
        Tile {
            values: SharedMemory::<f32>::new(comptime!(size * (size + 1))),
            size,
        }
    }

    pub fn get(&self, row: usize, column: usize) -> f32 {
        self.values[row * comptime!(self.size + 1) + column]
    }

    pub fn set(&mut self, row: usize, column: usize, value: f32) {
        self.values[row * comptime!(self.size + 1) + column] = value;
    }

    /// Reads a window of a tensor. Barriers before and after are the caller's.
    pub fn stage<E: Float>(&mut self, from: &Tensor<E>, window: Window) {
        let size = comptime!(self.size);
        let units = comptime!((size / MICRO) * (size / MICRO));
        #[unroll]
        for i in 0..comptime!(MICRO * MICRO) {
            let at = UNIT_POS as usize + i * units;
            let row = at / size;
            let column = at % size;
            let mut value = 0.0f32;
            if row < window.rows && column < window.columns {
                let index = window.first + row * window.row_stride + column * window.column_stride;
                value = f32::cast_from(from[index]);
            }
            self.set(row, column, value);
        }
    }
}

#[cube]
impl Micro {
    pub fn new(#[comptime] size: usize) -> Micro {
        let width = comptime!(size / MICRO);
        let mut micro = Micro {
            values: Array::<f32>::new(comptime!(MICRO * MICRO)),
            row: UNIT_POS as usize / width,
            column: UNIT_POS as usize % width,
            size,
        };
        micro.clear();
        micro
    }

    pub fn clear(&mut self) {
        #[unroll]
        for i in 0..comptime!(MICRO * MICRO) {
            self.values[i] = 0.0f32;
        }
    }

    pub fn get(&self, #[comptime] i: usize, #[comptime] j: usize) -> f32 {
        self.values[comptime!(i * MICRO + j)]
    }

    pub fn set(&mut self, #[comptime] i: usize, #[comptime] j: usize, value: f32) {
        self.values[comptime!(i * MICRO + j)] = value;
    }

    /// The row in the tile of this unit's `i`-th row.
    pub fn row(&self, #[comptime] i: usize) -> usize {
        self.row + comptime!(i * (self.size / MICRO))
    }

    /// The column in the tile of this unit's `j`-th column.
    pub fn column(&self, #[comptime] j: usize) -> usize {
        self.column + comptime!(j * (self.size / MICRO))
    }

    /// Adds the product of two tiles, either of them transposed where said so.
    pub fn add_product(
        &mut self,
        left: &Tile,
        right: &Tile,
        #[comptime] transpose_left: bool,
        #[comptime] transpose_right: bool,
    ) {
        let mut lefts = Array::<f32>::new(MICRO);
        let mut rights = Array::<f32>::new(MICRO);
        for k in 0..comptime!(self.size) {
            #[unroll]
            for i in 0..MICRO {
                let row = self.row(i);
                let column = self.column(i);
                if transpose_left {
                    lefts[i] = left.get(k, row);
                } else {
                    lefts[i] = left.get(row, k);
                }
                if transpose_right {
                    rights[i] = right.get(column, k);
                } else {
                    rights[i] = right.get(k, column);
                }
            }
            #[unroll]
            for i in 0..MICRO {
                #[unroll]
                for j in 0..MICRO {
                    let at = comptime!(i * MICRO + j);
                    self.values[at] += lefts[i] * rights[j];
                }
            }
        }
    }
}
