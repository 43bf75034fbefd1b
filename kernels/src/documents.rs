//! Rows that hold several documents, one after the other.
//!
//! Training text is packed: a row of `l` tokens holds as many documents as fit. What mixes tokens (the scan, the
//! convolution, attention, rotary positions) takes [`DocumentStarts`] where each document is to be computed as if it
//! were alone: no token reads what came before the first token of its document.
//!
//! - Attention and the convolution leave out what lies before the start of a token's document:
//!   [`Visible`](crate::Visible), [`ConvInputs`](crate::scan::causal_conv::ConvInputs).
//! - The scan, and the student's matrix of stage 1, need no argument: [`DocumentStarts::cut`] gives the first token of
//!   each document a decay of zero, so that nothing of the state before it is left. Every backend's kernels form the
//!   product of the decays between two tokens so that a strong decay outside costs no digits of it (NOTES.md of the
//!   scan).
//! - Rotary positions count from the start of the document: [`DocumentStarts::positions`].

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Bool, Int, Tensor};

/// The decay `exp(-softplus(A_log))` of this `A_log` is 0 in every dtype, and sums of many of its logarithms are finite
/// in f32.
const NO_STATE_LEFT: f64 = 1e4;

/// Where the documents of packed rows begin. Tensors of integers and of booleans, of the batch and not of a layer: they
/// are made once and cloned by handle.
#[derive(Debug, Clone)]
pub struct DocumentStarts<B: Backend> {
    /// `[b, l]`, see [`DocumentStarts::starts`].
    starts_bl: Tensor<B, 2, Int>,
    /// `[b, l]`, see [`DocumentStarts::positions`].
    positions_bl: Tensor<B, 2, Int>,
    /// `[b, l]`: whether a document begins here, other than the row's first.
    begins_bl: Tensor<B, 2, Bool>,
}

impl<B: Backend> DocumentStarts<B> {
    /// From `starts [b, l]`: for each token the place in its row, from 0, of its document's first token. So they never
    /// decrease along a row, and a document has equal ones. A row that begins inside a document begins with 0 too.
    ///
    /// The values are not checked, as that would wait for the device: other values than these have no meaning.
    pub fn new(starts_bl: Tensor<B, 2, Int>) -> Self {
        let [b, l] = starts_bl.dims();
        let options = (&starts_bl.device(), starts_bl.dtype());
        let places_1l = Tensor::<B, 1, Int>::arange(0..l as i64, options).reshape([1, l]);
        let positions_bl = places_1l.expand([b, l]) - starts_bl.clone();
        let is_first = positions_bl.clone().equal_elem(0);
        Self {
            begins_bl: is_first.bool_and(starts_bl.clone().greater_elem(0)),
            starts_bl,
            positions_bl,
        }
    }

    /// For each token the place in its row, from 0, of its document's first token: `[b, l]`.
    pub fn starts(&self) -> Tensor<B, 2, Int> {
        self.starts_bl.clone()
    }

    /// For each token its place in its document, from 0: `[b, l]`.
    pub fn positions(&self) -> Tensor<B, 2, Int> {
        self.positions_bl.clone()
    }

    /// The place of each token `j` in the document of each token `i`, below 0 before its start: `[b, l, l]`, at
    /// `(i, j)`.
    pub(crate) fn places(&self) -> Tensor<B, 3, Int> {
        let ([b, l], starts_bl) = (self.dims(), self.starts());
        let options = (&starts_bl.device(), starts_bl.dtype());
        let columns = Tensor::<B, 1, Int>::arange(0..l as i64, options).reshape([1, 1, l]);
        columns.expand([b, l, l]) - starts_bl.unsqueeze_dim::<3>(2).expand([b, l, l])
    }

    /// Whether token `j` lies before the document of token `i`: `[b, l, l]`, at `(i, j)`.
    pub fn hidden(&self) -> Tensor<B, 3, Bool> {
        self.places().lower_elem(0)
    }

    /// `[b, l]`.
    pub fn dims(&self) -> [usize; 2] {
        self.starts_bl.dims()
    }

    /// `a_log [b, l, h]`, with a decay of zero at the first token of each document but the row's first. The scan of it
    /// begins anew there, and the transfer matrix of it has zeros between documents. A gradient does not pass through
    /// what is replaced: no output depends on that.
    ///
    /// # Panics
    /// If there is not one token of `a_log` for each of these.
    pub fn cut(&self, a_log: Tensor<B, 3>) -> Tensor<B, 3> {
        let [b, l, h] = a_log.dims();
        self.check("cut", [b, l]);
        let begins_blh = self.begins_bl.clone().reshape([b, l, 1]);
        a_log.mask_fill(begins_blh.expand([b, l, h]), NO_STATE_LEFT)
    }

    /// The tokens, `[b, l]`, for which that `distance` before belongs to another document of the row. What came before
    /// the row belongs to its first document.
    pub(crate) fn are_beyond(&self, distance: usize) -> Tensor<B, 2, Bool> {
        let starts_later = self.starts_bl.clone().greater_elem(0);
        let is_near = self.positions_bl.clone().lower_elem(distance as i64);
        starts_later.bool_and(is_near)
    }

    /// Asserts that they are those of `[b, l]` tokens.
    pub(crate) fn check(&self, op: &str, tokens: [usize; 2]) {
        assert_eq!(
            self.dims(),
            tokens,
            "{op}: the starts of documents must be [b, l]"
        );
    }
}

impl<B: AutodiffBackend> DocumentStarts<B> {
    /// The same on the inner backend.
    pub fn inner(self) -> DocumentStarts<B::InnerBackend> {
        DocumentStarts {
            starts_bl: self.starts_bl.inner(),
            positions_bl: self.positions_bl.inner(),
            begins_bl: self.begins_bl.inner(),
        }
    }

    /// Those of the inner backend on this one.
    pub fn from_inner(documents: DocumentStarts<B::InnerBackend>) -> Self {
        Self {
            starts_bl: Tensor::from_inner(documents.starts_bl),
            positions_bl: Tensor::from_inner(documents.positions_bl),
            begins_bl: Tensor::from_inner(documents.begins_bl),
        }
    }
}
