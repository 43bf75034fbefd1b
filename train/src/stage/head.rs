//! The two heads and the loss between them, a block of tokens at a time.
//!
//! The logits of Phi-1.5 are 51,200 wide: at 8,192 tokens those of both networks and their gradient
//! would be 5 GB in f32, for numbers that are read once. Of a block, everything is gone before the
//! next one is made; what stays is the gradient to the features and the sum of the weight's.

use burn::module::AutodiffModule;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use kernels::meter::{Kind, timed};
use kernels::{DistillationWeights, KernelBackend, TrainBackend};
use model::Linear;

use crate::gradients::{Gradients, widened};

/// Tokens whose logits are there at a time: enough to fill a GPU with one product.
const BLOCK: usize = 2048;

/// What the heads read, `[b, l, d]` each.
pub(super) struct Features<B: Backend> {
    pub(super) student: Tensor<B, 3>,
    pub(super) teacher: Tensor<B, 3>,
}

/// The mean loss over all tokens, `[1]`, and its gradient to the student's features; adds those of
/// the student's head. `labels [b * l]` are needed with hard labels only.
pub(super) fn pass<B: TrainBackend>(
    student: &Linear<B>,
    teacher: &Linear<B::InnerBackend>,
    features: Features<B::InnerBackend>,
    labels: Option<Tensor<B::InnerBackend, 1, Int>>,
    weights: DistillationWeights,
    gradients: &mut Gradients<B::InnerBackend>,
) -> (Tensor<B::InnerBackend, 1>, Tensor<B::InnerBackend, 3>) {
    let [b, l, d] = features.student.dims();
    let t = b * l;
    let student_td = features.student.reshape([t, d]);
    let teacher_td = features.teacher.reshape([t, d]);
    let bias = student.bias.as_ref();
    // The gradient to the features is always wanted: whether anything below trains is not known here.
    let wanted = [
        true,
        student.weight.val().is_require_grad(),
        bias.is_some_and(|bias| bias.val().is_require_grad()),
    ];
    let head = student.valid();
    let (mut loss, mut dfeatures) = (None, vec![]);
    let (mut dweight, mut dbias) = (None, None);
    for start in (0..t).step_by(BLOCK) {
        let n = BLOCK.min(t - start);
        let x_nd = student_td.clone().narrow(0, start, n);
        let student_nv = head.forward(x_nd.clone());
        let teacher_nv = teacher.forward(teacher_td.clone().narrow(0, start, n));
        let labels = labels.clone().map(|labels| labels.narrow(0, start, n));
        let (part, dlogits_nv) =
            kernels::distillation::distillation_block(student_nv, teacher_nv, labels, weights, t);
        let (dx_nd, dw, db) = timed(Kind::Products, || {
            B::InnerBackend::linear_backward(x_nd, head.weight.val(), dlogits_nv, wanted)
        });
        loss = added(loss, Some(part));
        dfeatures.extend(dx_nd);
        dweight = added(dweight, dw);
        dbias = added(dbias, db);
    }
    if let Some(dweight) = dweight {
        gradients.add_parameter(student.weight.id, dweight);
    }
    if let (Some(bias), Some(dbias)) = (bias, dbias) {
        gradients.add_parameter(bias.id, dbias);
    }
    let dfeatures = match dfeatures.len() {
        1 => dfeatures.swap_remove(0),
        _ => Tensor::cat(dfeatures, 0),
    };
    let loss = loss.expect("a batch has tokens");
    (loss, dfeatures.reshape([b, l, d]))
}

/// The logits alone, block by block, each gone when the next is made.
pub(super) fn forward<B: KernelBackend>(head: &Linear<B>, features: Tensor<B, 3>) {
    let [b, l, d] = features.dims();
    let features_td = features.reshape([b * l, d]);
    for start in (0..b * l).step_by(BLOCK) {
        let n = BLOCK.min(b * l - start);
        drop(head.forward(features_td.clone().narrow(0, start, n)));
    }
}

/// The sum, in f32 where one of several is in half precision.
fn added<B: KernelBackend, const D: usize>(
    sum: Option<Tensor<B, D>>,
    part: Option<Tensor<B, D>>,
) -> Option<Tensor<B, D>> {
    match (sum, part) {
        (Some(sum), Some(part)) => Some(widened(sum) + widened(part)),
        (sum, part) => sum.or(part),
    }
}
