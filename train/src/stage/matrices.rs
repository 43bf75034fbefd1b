//! Stage 1, matrix orientation: each layer's transfer matrix against the attention matrix.

use burn::tensor::{Int, Tensor};
use kernels::{AttentionParts, TrainBackend, mixing_distance};
use model::{Phi, PhiMamba};

use super::sum_over_layers;
use crate::gradients::Gradients;

/// The sum over layers. Layers that keep attention have nothing to learn and are passed through.
///
/// Both matrices are given by what they are made of, so that the backend need not hold them.
pub(super) fn pass<B: TrainBackend>(
    student: &PhiMamba<B>,
    teacher: &Phi<B::InnerBackend>,
    ids: Tensor<B::InnerBackend, 2, Int>,
    gradients: &mut Gradients<B::InnerBackend>,
) -> Tensor<B::InnerBackend, 1> {
    let device = ids.device();
    let mut x_bld = teacher.backbone.embedding.forward(ids);
    let mut losses = vec![];
    let layers = student.backbone.layers.iter().zip(&teacher.backbone.layers);
    let last = student.backbone.layers.len() - 1;
    for (i, (student, teacher)) in layers.enumerate() {
        let entering = x_bld.clone();
        let attention = if i == last {
            // Nobody reads the last layer's output.
            teacher.attention_parts(x_bld.clone())
        } else {
            let (output, attention) = teacher.forward_with_attention_parts(x_bld);
            x_bld = output;
            attention
        };
        if student.mixer.is_kept_from(&teacher.mixer) {
            continue;
        }
        let transfer = student.transfer_parts(Tensor::from_inner(entering));
        if let (Some(transfer), Some(attention)) = (transfer, attention) {
            let attention = AttentionParts {
                q: Tensor::from_inner(attention.q),
                k: Tensor::from_inner(attention.k),
            };
            let loss = mixing_distance(transfer, attention);
            gradients.add::<B, _>(student, &loss.backward());
            losses.push(loss.inner());
        }
    }
    sum_over_layers(losses, &device)
}
