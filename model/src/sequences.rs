//! The inputs of a network and of its layers, with the documents that are packed into their rows.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use kernels::DocumentStarts;

/// Token ids, and where documents begin in their rows. Ids alone convert to this by `into`; then each row is one
/// document.
#[derive(Debug, Clone)]
pub struct TokenRows<B: Backend> {
    /// `[b, l]`.
    pub ids: Tensor<B, 2, Int>,
    /// The documents of the rows, if there are several in some: each gives what it gives alone.
    pub documents: Option<DocumentStarts<B>>,
}

impl<B: Backend> From<Tensor<B, 2, Int>> for TokenRows<B> {
    fn from(ids: Tensor<B, 2, Int>) -> Self {
        Self {
            ids,
            documents: None,
        }
    }
}

/// Vectors of tokens, and where documents begin in their rows. Vectors alone convert to this by `into`; then each row
/// is one document.
#[derive(Debug, Clone)]
pub struct Sequences<B: Backend> {
    /// `[b, l, d_model]`.
    pub u: Tensor<B, 3>,
    /// The documents of the rows, if there are several in some: each gives what it gives alone.
    pub documents: Option<DocumentStarts<B>>,
}

impl<B: Backend> From<Tensor<B, 3>> for Sequences<B> {
    fn from(u: Tensor<B, 3>) -> Self {
        Self { u, documents: None }
    }
}

impl<B: Backend> From<(Tensor<B, 3>, &Option<DocumentStarts<B>>)> for Sequences<B> {
    fn from((u, documents): (Tensor<B, 3>, &Option<DocumentStarts<B>>)) -> Self {
        Self {
            u,
            documents: documents.clone(),
        }
    }
}

impl<B: Backend> Sequences<B> {
    /// Other vectors for the same tokens.
    pub(crate) fn map(self, vectors: impl FnOnce(Tensor<B, 3>) -> Tensor<B, 3>) -> Self {
        Self {
            u: vectors(self.u),
            documents: self.documents,
        }
    }
}
