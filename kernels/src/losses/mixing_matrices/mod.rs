//! Stage 1's loss: the distance of each head's transfer matrix from the teacher's attention matrix.
//!
//! The op takes the factors of both matrices, so that a backend need never hold a whole matrix: a kernel computes the
//! matrices tile by tile. One pass computes the loss and the gradients, because the gradients are known from the tiles
//! up to one factor for each head, which depends on the head's whole distance.

mod autodiff;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
#[cfg(feature = "flex")]
mod flex;
pub mod reference;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::scale::Scale;
use crate::dense::attention::{Visible, Window};
use crate::documents::DocumentStarts;
use crate::dtype::assert_one_width;
use crate::profile::{Kind, timed};

/// What the student's transfer matrices are computed from; see [`ssd_scan`](crate::scan::ssd::ssd_scan).
#[derive(Debug, Clone)]
pub struct TransferParts<B: Backend> {
    /// `[b, l, h]`.
    pub a_log: Tensor<B, 3>,
    /// `[b, l, g, n]`.
    pub b: Tensor<B, 4>,
    /// `[b, l, g, n]`.
    pub c: Tensor<B, 4>,
    /// `[h]`.
    pub d: Tensor<B, 1>,
}

/// What the teacher's attention matrices are computed from; see [`attention`](crate::dense::attention::attention()).
#[derive(Debug, Clone)]
pub struct AttentionParts<B: Backend> {
    /// Queries after the rotary embedding, `[b, l, h, p]`.
    pub q: Tensor<B, 4>,
    /// Keys after the rotary embedding, `[b, l, k, p]`, with `k` dividing `h`.
    pub k: Tensor<B, 4>,
    /// The window of the teacher's attention, if it has one.
    pub window: Option<Window>,
    /// Where documents begin, if a row holds several: no query sees a key of another.
    pub documents: Option<DocumentStarts<B>>,
}

impl<B: Backend> AttentionParts<B> {
    /// What the queries see.
    pub fn visible(&self) -> Visible<B> {
        Visible {
            window: self.window,
            documents: self.documents.clone(),
        }
    }
}

/// The op, as backends compute it. If there are documents, the decays are already cut. On GPUs no backend has a fast path
/// for a teacher's window that hides keys; they use the reference then, which holds the whole matrices.
pub trait MixingMatrices: Scale {
    /// See [`mixing_distance`].
    fn mixing_distance_forward(
        student: TransferParts<Self>,
        teacher: AttentionParts<Self>,
    ) -> Tensor<Self, 1> {
        reference::forward(student, teacher)
    }

    /// [`MixingMatrices::mixing_distance_forward`] with its gradients to the student's parts, each in
    /// that part's shape.
    fn mixing_distance_with_gradients(
        student: TransferParts<Self>,
        teacher: AttentionParts<Self>,
    ) -> (Tensor<Self, 1>, TransferParts<Self>) {
        reference::with_gradients(student, teacher)
    }
}

by_default!(MixingMatrices for ndarray);

/// The mean over batch and heads of `||T - A||_F`, as one element, with
/// `T[i, j] = (C_i . B_j) * (decays in (j, i]) + D [i = j]` and `A = softmax(q k^T / sqrt(p))`, both
/// causal, and `A` within the teacher's window.
///
/// Between the documents of the teacher's parts both matrices are zero: the student's decays are
/// [cut](DocumentStarts::cut) there, if they are not yet. The norm is that of a row's matrix, so that the square of a
/// row's distance is the sum of the squares of its documents'.
///
/// Differentiable in the student's parts; the teacher's are constants. The gradient of a distance
/// of zero is zero.
///
/// # Panics
/// If the shapes do not fit together as above, or some inputs are f64 and others not.
pub fn mixing_distance<B: MixingMatrices>(
    mut student: TransferParts<B>,
    mut teacher: AttentionParts<B>,
) -> Tensor<B, 1> {
    let [b, l, h] = check("mixing_distance", &student);
    let [_, _, g, _] = student.b.dims();
    let [_, _, _, p] = teacher.q.dims();
    let [_, _, k, _] = teacher.k.dims();
    let dtypes = [student.b.dtype(), teacher.q.dtype(), teacher.k.dtype()];
    assert_one_width("mixing_distance", &dtypes);
    assert_eq!(
        teacher.q.dims(),
        [b, l, h, p],
        "mixing_distance: q must be [b, l, h, p]"
    );
    assert_eq!(
        teacher.k.dims(),
        [b, l, k, p],
        "mixing_distance: k must be [b, l, k, p]"
    );
    assert!(
        g > 0 && h.is_multiple_of(g),
        "mixing_distance: {g} groups must divide {h} heads"
    );
    assert!(
        k > 0 && h.is_multiple_of(k),
        "mixing_distance: {k} groups must divide {h} heads"
    );
    teacher.window = teacher.window.and_then(|window| window.within(l));
    if let Some(documents) = &teacher.documents {
        documents.check("mixing_distance", [b, l]);
        student.a_log = documents.cut(student.a_log);
    }
    timed(Kind::Losses, || {
        B::mixing_distance_forward(student, teacher)
    })
}

/// The transfer matrix of every head, `[b, h, l, l]`: the `T` of [`mixing_distance`]; f32 for half-precision parts.
/// Differentiable; the backward pass keeps several matrices.
///
/// # Panics
/// If the shapes do not fit together as in [`TransferParts`], or some parts are f64 and others not.
pub fn transfer_matrix<B: Backend>(student: TransferParts<B>) -> Tensor<B, 4> {
    check("transfer_matrix", &student);
    reference::transfer_matrix(&student)
}

/// Asserts that the shapes fit together, and returns `[b, l, h]`.
fn check<B: Backend>(op: &str, student: &TransferParts<B>) -> [usize; 3] {
    let [b, l, h] = student.a_log.dims();
    let [_, _, g, n] = student.b.dims();
    let TransferParts {
        a_log,
        b: input,
        c,
        d,
    } = student;
    assert_one_width(op, &[a_log.dtype(), input.dtype(), c.dtype(), d.dtype()]);
    assert_eq!(
        student.b.dims(),
        [b, l, g, n],
        "{op}: B must be [b, l, g, n]"
    );
    assert_eq!(
        student.c.dims(),
        [b, l, g, n],
        "{op}: C must have the shape of B"
    );
    assert_eq!(
        student.d.dims(),
        [h],
        "{op}: D must have one element a head"
    );
    [b, l, h]
}
