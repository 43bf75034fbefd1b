//! Rows that hold several documents, one after the other.
//!
//! Training text is packed: a row of `l` tokens holds as many documents as fit. The ops that mix tokens (the scan,
//! the convolution, attention, rotary positions) take [`DocumentStarts`] if each document is to be computed as if it
//! were alone. Then no token reads anything before the first token of its own document.
//!
//! - Attention and the convolution leave out what lies before the start of a token's document:
//!   [`Visible`](crate::Visible), [`ConvInputs`](crate::scan::causal_conv::ConvInputs).
//! - The scan, and the student's matrix of stage 1, need no argument: [`DocumentStarts::cut`] gives the first token
//!   of each document a decay of zero, so that nothing of the earlier state remains. On every backend, the kernels
//!   compute the product of the decays between two tokens in such a way that a strong decay outside this range does
//!   not reduce its precision (NOTES.md of the scan).
//! - Rotary positions count from the start of the document: [`DocumentStarts::positions`].

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Bool, Int, Tensor};

/// The decay `exp(-softplus(A_log))` of this `A_log` is 0 in every dtype, and sums of many of its logarithms are finite
/// in f32.
const NO_STATE_LEFT: f64 = 1e4;

/// Where the documents of packed rows begin. The tensors (integers and booleans) belong to a batch and not to a
/// layer: they are made once for each batch, and a clone copies only their handles.
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
    /// Takes `starts [b, l]`: for each token, the index in its row (from 0) of the first token of its document. So
    /// the values never decrease along a row, and all tokens of a document have the same value. A row that begins
    /// inside a document also begins with 0.
    ///
    /// The values are not checked, because a check would have to wait for the device. With other values than these,
    /// the results have no meaning.
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

    /// For each token, the index in its row (from 0) of the first token of its document: `[b, l]`.
    pub fn starts(&self) -> Tensor<B, 2, Int> {
        self.starts_bl.clone()
    }

    /// For each token, its index in its document, from 0: `[b, l]`.
    pub fn positions(&self) -> Tensor<B, 2, Int> {
        self.positions_bl.clone()
    }

    /// At `(i, j)`, the index of token `j` in the document of token `i`; negative if `j` lies before that document:
    /// `[b, l, l]`.
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

    /// Returns `a_log [b, l, h]` with a decay of zero at the first token of each document, except the first document
    /// of the row. The scan of the result begins anew at these tokens, and its transfer matrix is zero between
    /// documents. No gradient flows to the replaced values, because no output depends on them.
    ///
    /// # Panics
    /// If `b` or `l` of `a_log` differs from that of the starts.
    pub fn cut(&self, a_log: Tensor<B, 3>) -> Tensor<B, 3> {
        let [b, l, h] = a_log.dims();
        self.check("cut", [b, l]);
        let begins_blh = self.begins_bl.clone().reshape([b, l, 1]);
        a_log.mask_fill(begins_blh.expand([b, l, h]), NO_STATE_LEFT)
    }

    /// A mask `[b, l]`: true for a token if the token `distance` positions before it belongs to another document of
    /// the row. Tokens before the row count as part of its first document.
    pub(crate) fn are_beyond(&self, distance: usize) -> Tensor<B, 2, Bool> {
        let starts_later = self.starts_bl.clone().greater_elem(0);
        let is_near = self.positions_bl.clone().lower_elem(distance as i64);
        starts_later.bool_and(is_near)
    }

    /// Asserts that the starts have the shape `tokens`, which is `[b, l]`.
    pub(crate) fn check(&self, op: &str, tokens: [usize; 2]) {
        assert_eq!(
            self.dims(),
            tokens,
            "{op}: the starts of documents must be [b, l]"
        );
    }
}

impl<B: AutodiffBackend> DocumentStarts<B> {
    /// The same starts on the inner backend.
    pub fn inner(self) -> DocumentStarts<B::InnerBackend> {
        DocumentStarts {
            starts_bl: self.starts_bl.inner(),
            positions_bl: self.positions_bl.inner(),
            begins_bl: self.begins_bl.inner(),
        }
    }

    /// Takes the starts of the inner backend to this backend.
    pub fn from_inner(documents: DocumentStarts<B::InnerBackend>) -> Self {
        Self {
            starts_bl: Tensor::from_inner(documents.starts_bl),
            positions_bl: Tensor::from_inner(documents.positions_bl),
            begins_bl: Tensor::from_inner(documents.begins_bl),
        }
    }
}
