//! The kernels for tensor cores. A plane holds its own rows of the factors in registers, 32 of them where the widths
//! allow: then a right factor that is loaded from shared memory serves four products of 16 by 8 by 16. The tiles that
//! these rows meet pass through shared memory, and one tile is used while the next is copied. Of a tile, a plane takes
//! 16 rows at a time: elements of both matrices, their difference, and its product, all in the same registers.
//!
//! In a pass over columns, the rows of a plane are columns of the matrices.

mod memory;
mod normaliser;
mod pass;

use std::f32::consts::LOG2_E;

use cubecl::prelude::*;

pub(super) use self::normaliser::normaliser_kernel;
pub(super) use self::pass::pass_kernel;
use crate::cube::documents::{RowTokens, start_of};
use crate::cube::plane_products::FLOOR;
pub(super) use crate::cube::plane_products::PLANES;

/// Rows of a tile.
const TILE: usize = 64;
/// Bytes of shared memory for the barrier, aligned.
const BARRIER: usize = 16;
/// The logarithm of a weight times this is the share of [`FLOOR`] that [`power`](crate::cube::plane_products::power)
/// takes.
pub(super) const SHARE: f32 = LOG2_E / FLOOR;

/// How many times 16 rows a plane has, of `l` in all, with factors of these widths: registers allow 32 to narrow ones.
pub(super) fn down(l: usize, n: usize, p: usize) -> usize {
    if n <= 64 && p <= 64 && l > own(1) {
        2
    } else {
        1
    }
}

/// Rows of a cube whose planes have `down` times 16.
pub(super) const fn own(down: usize) -> usize {
    PLANES * 16 * down
}

/// Tiles in shared memory. At first the cube's own rows lie in all but the first.
const fn stages(down: usize) -> usize {
    1 + own(down) / TILE
}

/// Bytes of shared memory.
pub(super) const fn shared_bytes(n: usize, p: usize, down: usize) -> usize {
    let rows = stages(down) * TILE;
    2 * rows * (n + p + 16) + 4 * 4 * 2 * TILE + BARRIER
}

/// The tiles that a block of rows or, with `columns`, of columns meets.
#[derive(CubeType, Clone, Copy)]
struct Met {
    first: usize,
    count: usize,
}

/// Of the block from `first` on: tiles with a token on and before the diagonal, or on and after it; in kernels that are
/// compiled for documents, as far as documents with a token in the block go.
#[cube]
fn met(
    starts_bl: &ComptimeOption<Array<i32>>,
    tokens: RowTokens,
    first: usize,
    #[comptime] own: usize,
    #[comptime] columns: bool,
) -> Met {
    let l = tokens.count;
    let end = clamp_max(first + own, l).div_ceil(TILE);
    let mut from = 0usize;
    let mut to = end;
    if comptime!(columns) {
        from = first / TILE;
        let tiles = l.div_ceil(TILE);
        if comptime!(starts_bl.is_some()) {
            for tile in end..tiles {
                if start_of(starts_bl, tokens, tile * TILE) < first + own {
                    to = tile + 1;
                }
            }
        } else {
            to = tiles;
        }
    } else {
        if comptime!(starts_bl.is_some()) {
            from = start_of(starts_bl, tokens, first) / TILE;
        }
    }
    Met {
        first: from,
        count: to - from,
    }
}

/// Whether the matrices have an element here: on or below the diagonal, and within one document.
#[cube]
fn has(
    starts_bl: &ComptimeOption<Array<i32>>,
    tokens: RowTokens,
    row: usize,
    column: usize,
) -> bool {
    let mut has = column <= row && row < tokens.count;
    if comptime!(starts_bl.is_some()) {
        has = has && start_of(starts_bl, tokens, row) <= column;
    }
    has
}
