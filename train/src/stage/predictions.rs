//! Stage 3, knowledge distillation: the student's next-token distribution against the teacher's.

use burn::tensor::Tensor;
use kernels::{DistillationWeights, TrainBackend, distillation_loss};
use model::{Phi, PhiMamba};

use super::TokenBatch;
use crate::gradients::Gradients;

/// The mean over tokens.
pub(super) fn pass<B: TrainBackend>(
    student: &PhiMamba<B>,
    teacher: &Phi<B::InnerBackend>,
    batch: TokenBatch<B>,
    weights: DistillationWeights,
    gradients: &mut Gradients<B::InnerBackend>,
) -> Tensor<B::InnerBackend, 1> {
    let [b, l] = batch.ids.dims();
    let teacher_blv = teacher.logits(teacher.features(batch.ids.clone()));
    let student_blv = student.logits(student.features(Tensor::from_inner(batch.ids)));
    let v = student_blv.dims()[2];
    let labels = (weights.hard > 0.0).then(|| Tensor::from_inner(batch.labels.reshape([b * l])));
    let loss = distillation_loss(
        student_blv.reshape([b * l, v]),
        Tensor::from_inner(teacher_blv.reshape([b * l, v])),
        labels,
        weights,
    );
    gradients.add::<B, _>(student, &loss.backward());
    loss.inner()
}
