//! Square f32 tiles in shared memory and their products, with nothing but barriers.
//!
//! A cube holds a `size x size` product in registers, 8 x 4 elements a unit: 12 loads for 32
//! multiplications. A unit's rows lie below each other, so that a product known to be 0 beyond the diagonal
//! can be cut short; its columns lie `size / 4` apart, so that neighbours in a plane read neighbours in
//! shared memory.

use cubecl::prelude::*;

/// Rows that a unit has of a product.
pub const DOWN: usize = 8;
/// Columns that a unit has of a product.
pub const ACROSS: usize = 4;

/// Units of a cube whose tiles are `size x size`.
pub const fn units(size: usize) -> usize {
    size * size / (DOWN * ACROSS)
}

/// Where a product's left factor, or the product, is known to be 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Zeros {
    /// Right of the diagonal.
    Above,
    /// Left of the diagonal.
    Below,
}

/// Which way the factors of a product are read, and for which of a unit's columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Part {
    transpose_left: bool,
    transpose_right: bool,
    first: usize,
    last: usize,
}

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
    /// The unit's own row and column in the units' rectangle.
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
        #[unroll]
        for i in 0..comptime!(DOWN * ACROSS) {
            let at = UNIT_POS as usize + comptime!(i * units(size));
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
        let width = comptime!(size / ACROSS);
        let mut micro = Micro {
            values: Array::<f32>::new(comptime!(DOWN * ACROSS)),
            row: UNIT_POS as usize / width,
            column: UNIT_POS as usize % width,
            size,
        };
        micro.clear();
        micro
    }

    pub fn clear(&mut self) {
        #[unroll]
        for i in 0..comptime!(DOWN * ACROSS) {
            self.values[i] = 0.0f32;
        }
    }

    pub fn get(&self, #[comptime] i: usize, #[comptime] j: usize) -> f32 {
        self.values[comptime!(i * ACROSS + j)]
    }

    pub fn set(&mut self, #[comptime] i: usize, #[comptime] j: usize, value: f32) {
        self.values[comptime!(i * ACROSS + j)] = value;
    }

    /// The row in the tile of this unit's `i`-th row.
    pub fn row(&self, #[comptime] i: usize) -> usize {
        self.row * DOWN + i
    }

    /// The column in the tile of this unit's `j`-th column.
    pub fn column(&self, #[comptime] j: usize) -> usize {
        self.column + comptime!(j * (self.size / ACROSS))
    }

    /// Adds the product of two tiles, either of them transposed where said so.
    pub fn add_product(
        &mut self,
        left: &Tile,
        right: &Tile,
        #[comptime] transpose_left: bool,
        #[comptime] transpose_right: bool,
    ) {
        let size = comptime!(self.size);
        let part = comptime!(Part {
            transpose_left,
            transpose_right,
            first: 0,
            last: ACROSS,
        });
        self.add(left, right, 0usize, size, part);
    }

    /// [`Micro::add_product`] of a left factor with such zeros.
    pub fn add_triangle(&mut self, left: &Tile, right: &Tile, #[comptime] zeros: Zeros) {
        let mut from = 0usize;
        let mut to = self.size.runtime();
        if comptime!(zeros == Zeros::Above) {
            to = self.row * DOWN + DOWN;
        } else {
            from = self.row * DOWN;
        }
        let part = comptime!(Part {
            transpose_left: false,
            transpose_right: false,
            first: 0,
            last: ACROSS,
        });
        self.add(left, right, from, to, part);
    }

    /// [`Micro::add_product`], with the right factor transposed, for a product of which the part with such
    /// zeros is not wanted: it becomes anything.
    pub fn add_scores(&mut self, left: &Tile, right: &Tile, #[comptime] zeros: Zeros) {
        let size = comptime!(self.size);
        // The columns of a unit are in as many bands; the diagonal of its rows is in one of them.
        let band = self.row * DOWN / comptime!(size / ACROSS);
        #[unroll]
        for at in 0..ACROSS {
            if band == at {
                let above = comptime!(zeros == Zeros::Above);
                let part = comptime!(Part {
                    transpose_left: false,
                    transpose_right: true,
                    first: if above { 0 } else { at },
                    last: if above { at + 1 } else { ACROSS },
                });
                self.add(left, right, 0usize, size, part);
            }
        }
    }

    /// Adds the terms `from..to` of the product's sums, as `part` says.
    fn add(&mut self, left: &Tile, right: &Tile, from: usize, to: usize, #[comptime] part: Part) {
        let mut lefts = Array::<f32>::new(DOWN);
        let mut rights = Array::<f32>::new(ACROSS);
        for k in from..to {
            #[unroll]
            for i in 0..DOWN {
                let row = self.row(i);
                if comptime!(part.transpose_left) {
                    lefts[i] = left.get(k, row);
                } else {
                    lefts[i] = left.get(row, k);
                }
            }
            #[unroll]
            for j in part.first..part.last {
                let column = self.column(j);
                if comptime!(part.transpose_right) {
                    rights[j] = right.get(column, k);
                } else {
                    rights[j] = right.get(k, column);
                }
            }
            #[unroll]
            for i in 0..DOWN {
                #[unroll]
                for j in part.first..part.last {
                    let at = comptime!(i * ACROSS + j);
                    self.values[at] += lefts[i] * rights[j];
                }
            }
        }
    }
}
