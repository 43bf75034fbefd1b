//! The gradients on Burn's graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::Tensor;

use super::{AttentionParts, MixingMatrices, TransferParts};
use crate::autodiff::{input, primitive, record};
use crate::documents::DocumentStarts;

impl<B: MixingMatrices, C: CheckpointStrategy> MixingMatrices for Autodiff<B, C> {
    fn mixing_distance_forward(
        student: TransferParts<Self>,
        teacher: AttentionParts<Self>,
    ) -> Tensor<Self, 1> {
        let inputs = [
            input(&student.a_log),
            input(&student.b),
            input(&student.c),
            input(&student.d),
        ];
        let student = TransferParts {
            a_log: student.a_log.inner(),
            b: student.b.inner(),
            c: student.c.inner(),
            d: student.d.inner(),
        };
        let teacher = AttentionParts {
            q: teacher.q.inner(),
            k: teacher.k.inner(),
            window: teacher.window,
            documents: teacher.documents.map(DocumentStarts::inner),
        };
        let (loss, gradients) = B::mixing_distance_with_gradients(student, teacher);
        record(inputs, loss, gradients, |gradients, dloss, _| {
            [
                Some(primitive(B::scaled(gradients.a_log, dloss.clone()))),
                Some(primitive(B::scaled(gradients.b, dloss.clone()))),
                Some(primitive(B::scaled(gradients.c, dloss.clone()))),
                Some(primitive(B::scaled(gradients.d, dloss))),
            ]
        })
    }
}
