//! Products of the rows of two heads in tiles, with nothing but shared memory and barriers.
//!
//! A cube of 16 by 16 units computes a square tile at a time, each unit `r` by `r` elements of it that are 16
//! apart, from slices of [`DEPTH`] columns of the factors in shared memory.

use cubecl::prelude::*;

use super::rows::Rows;

/// Units along each side of a tile.
pub(crate) const SIDE: usize = 16;
/// Units of a cube.
pub(crate) const UNITS: usize = SIDE * SIDE;
/// Columns of the factors in shared memory at a time.
pub(crate) const DEPTH: usize = 32;
/// Rows of shared memory are longer by one, so that neighbours are in different banks.
pub(crate) const PITCH: usize = DEPTH + 1;

/// Bytes of shared memory for `r` by `r` elements a unit, with a tile of products beside the factors.
pub(crate) const fn shared_bytes(r: usize) -> usize {
    let tile = r * SIDE;
    4 * (2 * tile * PITCH + tile * (tile + 1))
}

/// Columns `from..from + DEPTH` of the tile's rows from `first` on to shared memory, zeros where there
/// are none.
#[cube]
pub(crate) fn stage<F: Float>(
    x: &Array<F>,
    rows: Rows,
    first: usize,
    from: usize,
    shared: &mut SharedMemory<f32>,
    at: usize,
    #[comptime] width: usize,
    #[comptime] r: usize,
) {
    #[unroll]
    for round in 0..comptime!(r * SIDE * DEPTH / UNITS) {
        let element = round * UNITS + UNIT_POS as usize;
        let (row, k) = (element / DEPTH, element % DEPTH);
        let (t, column) = (first + row, from + k);
        let mut value = 0.0f32;
        if t < rows.count && column < width {
            value = f32::cast_from(x[rows.base + t * rows.step + column * rows.column]);
        }
        shared[at + row * PITCH + k] = value;
    }
}

/// The products of the tile's rows of `own` with those of `other`.
#[cube]
pub(crate) fn products<F: Float>(
    own: &Array<F>,
    own_rows: Rows,
    own_first: usize,
    other: &Array<F>,
    other_rows: Rows,
    other_first: usize,
    staged: &mut SharedMemory<f32>,
    #[comptime] width: usize,
    #[comptime] r: usize,
) -> Array<f32> {
    let at_other = comptime!(r * SIDE * PITCH);
    let mut sums = Array::<f32>::new(r * r);
    #[unroll]
    for i in 0..r * r {
        sums[i] = 0.0;
    }
    for slice in 0..comptime!(width.div_ceil(DEPTH)) {
        let from = slice * DEPTH;
        sync_cube();
        stage(own, own_rows, own_first, from, staged, 0, width, r);
        stage(
            other,
            other_rows,
            other_first,
            from,
            staged,
            at_other,
            width,
            r,
        );
        sync_cube();
        for k in 0..DEPTH {
            let mut columns = Array::<f32>::new(r);
            #[unroll]
            for j in 0..r {
                columns[j] = staged[at_other + (UNIT_POS_X as usize + j * SIDE) * PITCH + k];
            }
            #[unroll]
            for i in 0..r {
                let row = staged[(UNIT_POS_Y as usize + i * SIDE) * PITCH + k];
                #[unroll]
                for j in 0..r {
                    sums[i * r + j] += row * columns[j];
                }
            }
        }
    }
    sums
}

/// The block of rows or columns that the cube works on. Blocks with the most work come first, so that the short ones
/// fill the gaps at the end.
#[cube]
pub(crate) fn longest_first(cube: usize, cubes: usize, #[comptime] columns: bool) -> usize {
    let mut block = cube;
    if !columns {
        block = cubes - 1 - cube;
    }
    block
}
