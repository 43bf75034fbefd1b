//! Rows of a table by their ids, and the gradient to the table.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) mod cube;
pub mod reference;

use burn::tensor::{Int, Tensor};

use crate::KernelBackend;
use crate::meter::{Kind, timed};

/// The rows `ids [b, l]` of `table [v, d]`: `[b, l, d]`, in the table's dtype.
///
/// Differentiable in `table`: a row's gradient is the sum over the places that have its id, in f32 for half
/// precision, always added in the same order. Ids must be below `v`: what else they give is not defined.
pub fn embedding<B: KernelBackend>(table: Tensor<B, 2>, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
    timed(Kind::Embedding, || B::embedding_forward(table, ids))
}
