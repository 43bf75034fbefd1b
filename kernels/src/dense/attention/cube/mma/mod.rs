//! Attention on tensor cores, by `mma` of 16 by 8 by 16. The layout of its elements in registers is known. So scores
//! become weights in the same registers, and these are, after a conversion of the dtype, already the left factor of the
//! product with the values. In the same way, in the backward pass, the gradients of the weights become those of the
//! scores.
//!
//! Each plane holds its own rows and their results in registers. The rows that these are multiplied with pass through
//! shared memory in tiles; one tile is used while the next is copied. In a plane, unit `4 g + t` has rows `g` and
//! `g + 8` of 16, and columns `2 t` and `2 t + 1` of every 8.

mod backward_keys;
mod backward_queries;
mod forward;

pub(super) use backward_keys::key_gradients;
pub(super) use backward_queries::query_gradients;
pub(super) use forward::{attend, down, queries};

/// Weights are powers of two.
use crate::cube::plane_products::power as weight;
pub(super) use crate::cube::plane_products::{FLOOR, PLANES};
use crate::cube::plane_products::{
    add_products, copy, left_factors, multiply, product, products, write_row, zeros,
};

/// Rows of a tile.
const TILE: usize = 64;
/// Rows of a cube in a backward pass: queries, or keys.
pub(super) const OWN: usize = 16 * PLANES;
/// Rows of shared memory for a tile of two matrices.
const STAGE: usize = 2 * TILE;
/// Bytes of shared memory for the barrier, aligned.
const BARRIER: usize = 16;

/// Bytes of shared memory of the forward pass for heads of `p`.
pub(super) const fn forward_bytes(p: usize) -> usize {
    2 * 2 * STAGE * (p + 8) + BARRIER
}

/// The same of a backward pass.
pub(super) const fn backward_bytes(p: usize) -> usize {
    let (to_queries, to_keys) = (forward_bytes(p), backward_keys::shared_bytes(p));
    if to_queries > to_keys {
        to_queries
    } else {
        to_keys
    }
}
