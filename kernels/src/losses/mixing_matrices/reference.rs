//! The definition, in tensor operations, with the matrices whole.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::{AttentionParts, TransferParts};
use crate::dense::attention::reference::matrix as weights;
use crate::dtype::{narrow, sigmoid, widen};
use crate::groups::{to_groups, to_heads};
use crate::product::product;
use crate::scan::ssd::reference::{log_decay, segment_sums, suffix_sums};

/// The transfer matrix without its diagonal term, `C B^T`, and the decays: `[b, h, l, l]` each.
fn transfer<B: Backend>(student: &TransferParts<B>) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let [b, l, h] = student.a_log.dims();
    let per_head = |x: &Tensor<B, 4>| to_heads(widen(x.clone()), h).swap_dims(1, 2);
    let scores = product(per_head(&student.c), per_head(&student.b).swap_dims(2, 3));
    let log_decay = log_decay(widen(student.a_log.clone())).swap_dims(1, 2);
    let decay = segment_sums(log_decay.reshape([b, h, 1, l])).exp();
    (scores, decay.reshape([b, h, l, l]))
}

/// `d` on the diagonal: `[1, h, l, l]`.
fn diagonal<B: Backend>(d: &Tensor<B, 1>, l: usize) -> Tensor<B, 4> {
    let d = widen(d.clone());
    let ones = Tensor::<B, 2>::ones([l, l], (&d.device(), d.dtype()));
    ones.tril(0).triu(0).reshape([1, 1, l, l]) * d.reshape([1, -1, 1, 1])
}

/// `[b, h, l, l]`; see [`transfer_matrix`](crate::transfer_matrix).
pub fn transfer_matrix<B: Backend>(student: &TransferParts<B>) -> Tensor<B, 4> {
    let l = student.a_log.dims()[1];
    let (scores, decay) = transfer(student);
    scores * decay + diagonal(&student.d, l)
}

/// See [`mixing_distance`](super::mixing_distance).
pub fn forward<B: Backend>(student: TransferParts<B>, teacher: AttentionParts<B>) -> Tensor<B, 1> {
    let [b, l, h] = student.a_log.dims();
    let visible = teacher.visible();
    let difference = transfer_matrix(&student) - weights(teacher.q, teacher.k, visible);
    let squares = difference.powi_scalar(2).reshape([b * h, l * l]);
    squares.sum_dim(1).sqrt().mean()
}

/// The loss, and its gradients in the shapes of the student's parts.
pub fn with_gradients<B: Backend>(
    student: TransferParts<B>,
    teacher: AttentionParts<B>,
) -> (Tensor<B, 1>, TransferParts<B>) {
    let [b, l, h] = student.a_log.dims();
    let g = student.b.dims()[2];
    let dtypes = (student.a_log.dtype(), student.b.dtype(), student.d.dtype());
    let (scores, decay) = transfer(&student);
    let inside = scores * decay.clone();
    let visible = teacher.visible();
    let attention = weights(teacher.q, teacher.k, visible);
    let difference = inside.clone() + diagonal(&student.d, l) - attention;
    let squares = difference.clone().powi_scalar(2).reshape([b * h, l * l]);
    let norms = squares.sum_dim(1).sqrt();
    let loss = norms.clone().mean();

    // d||X|| = X / ||X||, and 0 at 0, where X is.
    let zero = norms.clone().equal_elem(0.0);
    let factor = norms.mask_fill(zero, 1.0).recip() * (1.0 / (b * h) as f64);
    let dtransfer = difference * factor.reshape([b, h, 1, 1]);
    let on_diagonal = dtransfer.clone() * diagonal(&student.d.ones_like(), l);
    let dd = on_diagonal.sum_dim(3).sum_dim(2).sum_dim(0).reshape([h]);
    let dscores = dtransfer.clone() * decay;
    let per_head = |x: &Tensor<B, 4>| to_heads(widen(x.clone()), h).swap_dims(1, 2);
    let dc = product(dscores.clone(), per_head(&student.b));
    let db = product(dscores.swap_dims(2, 3), per_head(&student.c));
    // As in the scan: the log-decay at t is in L[i, j] for j < t <= i.
    let dlog = (dtransfer * inside).tril(-1);
    let rows_minus_columns = dlog.clone().sum_dim(3) - dlog.sum_dim(2).swap_dims(2, 3);
    let dlog_decay = suffix_sums(rows_minus_columns.reshape([b, h, 1, l]));
    let dlog_decay = dlog_decay.reshape([b, h, l]).swap_dims(1, 2);
    let da_log = -dlog_decay * sigmoid(widen(student.a_log));
    let grouped = |x: Tensor<B, 4>| narrow(to_groups(x.swap_dims(1, 2), g), dtypes.1);
    let gradients = TransferParts {
        a_log: narrow(da_log, dtypes.0),
        b: grouped(db),
        c: grouped(dc),
        d: narrow(dd, dtypes.2),
    };
    (loss, gradients)
}
