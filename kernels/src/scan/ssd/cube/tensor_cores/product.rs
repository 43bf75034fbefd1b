//! Matrices in shared memory and their products on tensor cores, by the manual `mma` of 16 x 8 x 16 with
//! 16-bit factors and f32 sums, whose registers' places are known: decays multiply them where they are.

use cubecl::cmma::MmaDefinition;
use cubecl::prelude::*;

use super::super::decay::Decays;
use super::chunk_decays::ChunkDecays;
use super::tile::Tile;
pub use crate::cube::fragments::{Eight, Matrix, PLANE, Pair};

/// A product's elements, each plane holding a rectangle of them in fragments of 16 x 8: of a fragment, a
/// unit has two pairs, eight rows apart.
#[derive(CubeType)]
pub struct Product {
    values: Array<Vector<f32, Pair>>,
    /// The first row and column of the plane's rectangle, and how many planes further right it lies.
    row: usize,
    column: usize,
    slot: usize,
    /// Small products leave planes idle.
    pub busy: bool,
    #[cube(comptime)]
    pub slots: usize,
    #[cube(comptime)]
    down: usize,
    #[cube(comptime)]
    across: usize,
}

/// The 16 x 16 fragment that begins at (`row`, `column`) of a left factor with ones on and right of the
/// diagonal.
#[cube]
fn ones<E: Float>(row: usize, column: usize) -> Array<Vector<E, Pair>> {
    let lane = UNIT_POS_PLANE as usize;
    let mut fragment = Array::<Vector<E, Pair>>::new(4usize);
    #[unroll]
    for i in 0..4usize {
        let row = row + lane / 4 + comptime!(i % 2 * 8);
        let column = column + lane % 4 * 2 + comptime!(i / 2 * 8);
        let mut pair = Vector::<E, Pair>::empty();
        pair[0] = select(row <= column, E::new(1.0), E::new(0.0));
        pair[1] = select(row <= column + 1, E::new(1.0), E::new(0.0));
        fragment[i] = pair;
    }
    fragment
}

#[cube]
impl Product {
    /// Zeros, `rows` by `columns`, both multiples of 16, in a cube of `planes`.
    pub fn new(
        #[comptime] rows: usize,
        #[comptime] columns: usize,
        #[comptime] planes: usize,
    ) -> Product {
        // Planes down and across: never a rectangle narrower than 16, which is how right factors come.
        let planes_down = comptime!(if rows >= 64 { 4 } else { rows / 16 });
        let planes_across = comptime!(Ord::min(planes / planes_down, columns / 16));
        let down = comptime!(rows / planes_down / 16);
        let across = comptime!(columns / planes_across / 8);
        let plane = UNIT_POS as usize / PLANE;
        let length = comptime!(2 * down * across);
        let mut product = Product {
            values: Array::<Vector<f32, Pair>>::new(length),
            row: plane / planes_across * comptime!(down * 16),
            column: plane % planes_across * comptime!(across * 8),
            slot: plane % planes_across,
            slots: planes_across,
            busy: plane < comptime!(planes_down * planes_across),
            down,
            across,
        };
        #[unroll]
        for i in 0..length {
            product.values[i] = Vector::new(0.0f32);
        }
        product
    }

    /// Zeros, the 16 rows of a plane from `row` on by `columns`, a multiple of 16.
    pub fn of_plane(row: usize, #[comptime] columns: usize) -> Product {
        let across = comptime!(columns / 8);
        let length = comptime!(2 * across);
        let mut product = Product {
            values: Array::<Vector<f32, Pair>>::new(length),
            row,
            column: 0usize.runtime(),
            slot: 0usize.runtime(),
            slots: 1usize,
            busy: true.runtime(),
            down: 1usize,
            across,
        };
        #[unroll]
        for i in 0..length {
            product.values[i] = Vector::new(0.0f32);
        }
        product
    }

    /// The first row of the plane's rectangle.
    pub fn first_row(&self) -> usize {
        self.row
    }

    /// The first column of the plane's rectangle.
    pub fn first_column(&self) -> usize {
        self.column
    }

    /// How many times 16 columns the plane's rectangle has.
    pub fn steps_across(&self) -> comptime_type!(usize) {
        comptime!(self.across / 2)
    }

    /// How many fragments lie below each other in a plane's rectangle.
    pub fn down(&self) -> comptime_type!(usize) {
        comptime!(self.down)
    }

    /// Pairs that a unit holds.
    pub fn pairs(&self) -> comptime_type!(usize) {
        comptime!(2 * self.down * self.across)
    }

    /// Fragments that lie beside each other in a plane's rectangle.
    pub fn across(&self) -> comptime_type!(usize) {
        comptime!(self.across)
    }

    /// The row of the `i`-th pair.
    pub fn row(&self, #[comptime] i: usize) -> usize {
        let lane = UNIT_POS_PLANE as usize;
        self.row + comptime!(i / 2 / self.across * 16 + i % 2 * 8) + lane / 4
    }

    /// The column of the `i`-th pair's first element.
    pub fn column(&self, #[comptime] i: usize) -> usize {
        let lane = UNIT_POS_PLANE as usize;
        self.column + comptime!(i / 2 % self.across * 8) + lane % 4 * 2
    }

    pub fn get(&self, #[comptime] i: usize) -> Vector<f32, Pair> {
        self.values[i]
    }

    pub fn set(&mut self, #[comptime] i: usize, value: Vector<f32, Pair>) {
        self.values[i] = value;
    }

    pub fn scale(&mut self, by: f32) {
        #[unroll]
        for i in 0..comptime!(2 * self.down * self.across) {
            self.values[i] *= Vector::new(by);
        }
    }

    /// Adds the product of two matrices, either of them transposed where so said, `inner` long.
    pub fn add<E: Float, VL: Size, VR: Size>(
        &mut self,
        left: &Matrix<E, VL>,
        right: &Matrix<E, VR>,
        #[comptime] transpose_left: bool,
        #[comptime] transpose_right: bool,
        #[comptime] inner: usize,
    ) {
        if self.busy {
            #[unroll]
            for step in 0..comptime!(inner / 16) {
                let k = comptime!(step * 16);
                let mut lefts = Sequence::<Array<Vector<E, Pair>>>::new();
                #[unroll]
                for i in 0..comptime!(self.down) {
                    lefts.push(left.left(self.row + comptime!(i * 16), k, transpose_left));
                }
                self.add_step(&lefts, right, k, transpose_right);
            }
        }
    }

    /// Adds, at each place, the sum of the `inner` rows of `right` in its column from its row on: the
    /// product with a left factor of ones, which needs no memory.
    pub fn add_from_row_on<E: Float, VR: Size>(
        &mut self,
        right: &Matrix<E, VR>,
        #[comptime] inner: usize,
    ) {
        if self.busy {
            #[unroll]
            for step in 0..comptime!(inner / 16) {
                let k = comptime!(step * 16);
                let mut lefts = Sequence::<Array<Vector<E, Pair>>>::new();
                #[unroll]
                for i in 0..comptime!(self.down) {
                    lefts.push(ones::<E>(self.row + comptime!(i * 16), k));
                }
                self.add_step(&lefts, right, k, false);
            }
        }
    }

    /// [`Product::add`] for tiles, whose matrices begin at the rows `left_at` and `right_at`; which of the two are
    /// `transposed`.
    pub fn add_tiles<E: Float>(
        &mut self,
        left: &Tile<E>,
        left_at: usize,
        right: &Tile<E>,
        right_at: usize,
        #[comptime] transposed: [bool; 2],
        #[comptime] inner: usize,
    ) {
        if self.busy {
            #[unroll]
            for step in 0..comptime!(inner / 16) {
                let k = comptime!(step * 16);
                let mut lefts = Sequence::<Array<Vector<E, Pair>>>::new();
                #[unroll]
                for i in 0..comptime!(self.down) {
                    let row = self.row + comptime!(i * 16);
                    if comptime!(transposed[0]) {
                        lefts.push(left.left(row, left_at + k, true));
                    } else {
                        lefts.push(left.left(left_at + row, k, false));
                    }
                }
                #[unroll]
                for j in 0..comptime!(self.across / 2) {
                    let column = self.column + comptime!(j * 16);
                    let both = if comptime!(transposed[1]) {
                        right.right(k, right_at + column, true)
                    } else {
                        right.right(right_at + k, column, false)
                    };
                    self.add_fragments(&lefts, 0usize, &both, j);
                }
            }
        }
    }

    /// [`Product::add_from_row_on`] for a tile.
    pub fn add_tile_from_row_on<E: Float>(&mut self, right: &Tile<E>, #[comptime] inner: usize) {
        if self.busy {
            #[unroll]
            for step in 0..comptime!(inner / 16) {
                let k = comptime!(step * 16);
                let mut lefts = Sequence::<Array<Vector<E, Pair>>>::new();
                #[unroll]
                for i in 0..comptime!(self.down) {
                    lefts.push(ones::<E>(self.row + comptime!(i * 16), k));
                }
                #[unroll]
                for j in 0..comptime!(self.across / 2) {
                    let both = right.right(k, self.column + comptime!(j * 16), false);
                    self.add_fragments(&lefts, 0usize, &both, j);
                }
            }
        }
    }

    /// Multiplies each row of a product of a chunk's 64 tokens by the decays from the chunk's start through its token, or
    /// those after it to the chunk's end, and gives this unit's part of the sums of its two rows times those of a tile
    /// from `other_at` on. The decays are those at `at`.
    pub fn decay_rows_of_tile<E: Float>(
        &mut self,
        decays: &ChunkDecays,
        at: usize,
        other: &Tile<E>,
        other_at: usize,
        #[comptime] enter: bool,
    ) -> Array<f32> {
        let mut sums = Array::<f32>::new(2usize);
        sums[0] = 0.0f32;
        sums[1] = 0.0f32;
        if self.busy {
            #[unroll]
            for half in 0..2usize {
                let t = self.row(half);
                let decay = if comptime!(enter) {
                    decays.enter(at, t)
                } else {
                    decays.leave(at, t)
                };
                let decay = Vector::<f32, Pair>::new(decay);
                #[unroll]
                for j in 0..comptime!(self.across) {
                    let i = comptime!(2 * j + half);
                    let value = self.values[i] * decay;
                    self.values[i] = value;
                    let other = other.pair(other_at + t, self.column(i));
                    let other = Vector::<f32, Pair>::cast_from(other);
                    sums[half] += value[0] * other[0] + value[1] * other[1];
                }
            }
        }
        sums
    }

    /// Adds the terms from `k` on that a fragment is wide, of left factors one below the other.
    fn add_step<E: Float, VR: Size>(
        &mut self,
        lefts: &Sequence<Array<Vector<E, Pair>>>,
        right: &Matrix<E, VR>,
        #[comptime] k: usize,
        #[comptime] transpose_right: bool,
    ) {
        #[unroll]
        for j in 0..comptime!(self.across / 2) {
            let both = right.right(k, self.column + comptime!(j * 16), transpose_right);
            self.add_fragments(lefts, 0usize, &both, j);
        }
    }

    /// Adds the products of left factors, one below the other from the `first` on, with the two right factors of the
    /// `j`-th 16 columns of the plane's rectangle.
    pub fn add_fragments<E: Float>(
        &mut self,
        lefts: &Sequence<Array<Vector<E, Pair>>>,
        #[comptime] first: usize,
        both: &Array<Vector<E, Pair>>,
        #[comptime] j: usize,
    ) {
        let mma = MmaDefinition::<E, E, f32>::new(16usize, 8usize, 16usize);
        #[unroll]
        for half in 0..2usize {
            let mut factor = Array::<Vector<E, Pair>>::new(2usize);
            factor[0] = both[comptime!(half * 2)];
            factor[1] = both[comptime!(half * 2 + 1)];
            #[unroll]
            for i in 0..comptime!(self.down) {
                let at = comptime!(2 * (i * self.across + j * 2 + half));
                let mut sums = Array::<Vector<f32, Pair>>::new(2usize);
                sums[0] = self.values[at];
                sums[1] = self.values[comptime!(at + 1)];
                let sums = mma.execute(lefts.index(comptime!(first + i)), &factor, &sums);
                self.values[at] = sums[0];
                self.values[comptime!(at + 1)] = sums[1];
            }
        }
    }

    /// Multiplies each row of a product of 64 rows by the decays from its token on, and gives this unit's
    /// part of the sums of its two rows times those of `other`.
    pub fn decay_rows<E: Float>(
        &mut self,
        decays: &Decays,
        other: &Matrix<E, Eight>,
        #[comptime] backwards: bool,
    ) -> Array<f32> {
        let mut sums = Array::<f32>::new(2usize);
        sums[0] = 0.0f32;
        sums[1] = 0.0f32;
        if self.busy {
            #[unroll]
            for i in 0..comptime!(2 * self.down * self.across) {
                let t = self.row(i);
                let value = self.values[i] * Vector::new(decays.towards(t, backwards));
                self.values[i] = value;
                let other = Vector::<f32, Pair>::cast_from(other.pair(t, self.column(i)));
                sums[comptime!(i % 2)] += value[0] * other[0] + value[1] * other[1];
            }
        }
        sums
    }

    /// Adds up what the four units of each row have, and leaves it in `to` at `slot * 64 + row`, one slot
    /// for each plane across.
    pub fn store_row_sums(&self, sums: &Array<f32>, to: &mut SharedMemory<f32>, first: usize) {
        #[unroll]
        for i in 0..2usize {
            let mut sum = sums[i];
            sum += plane_shuffle_xor(sum, 1u32);
            sum += plane_shuffle_xor(sum, 2u32);
            let of_row = UNIT_POS_PLANE % 4;
            if self.busy && of_row == 0 {
                to[first + self.slot * 64 + self.row(i)] = sum;
            }
        }
    }

    /// Writes the elements to a matrix, rounded.
    pub fn store<E: Float>(&self, to: &mut Matrix<E, Pair>) {
        if self.busy {
            #[unroll]
            for i in 0..comptime!(2 * self.down * self.across) {
                to.set(
                    self.row(i),
                    self.column(i),
                    Vector::cast_from(self.values[i]),
                );
            }
        }
    }
}
