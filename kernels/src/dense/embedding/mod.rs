//! Rows of a table by their ids, and the gradient to the table.

mod autodiff;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
pub mod reference;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use crate::profile::{Kind, timed};

/// The op, as backends compute it.
pub trait Embedding: Backend {
    /// See [`embedding()`].
    fn embedding_forward(table: Tensor<Self, 2>, ids: Tensor<Self, 2, Int>) -> Tensor<Self, 3> {
        reference::forward(table, ids)
    }

    /// Gradient of [`Embedding::embedding_forward`] to the table of `v` rows, from `dy [b, l, d]`.
    fn embedding_gradient(
        ids: Tensor<Self, 2, Int>,
        dy: Tensor<Self, 3>,
        v: usize,
    ) -> Tensor<Self, 2> {
        reference::gradient(ids, dy, v)
    }
}

by_default!(Embedding for ndarray, flex);

/// The rows `ids [b, l]` of `table [v, d]`: `[b, l, d]`, in the table's dtype.
///
/// Differentiable in `table`: a row's gradient is the sum over the places that have its id, in f32 for half precision,
/// always added in the same order. Ids must be below `v`; for other ids the result is undefined.
pub fn embedding<B: Embedding>(table: Tensor<B, 2>, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
    timed(Kind::Embedding, || B::embedding_forward(table, ids))
}
