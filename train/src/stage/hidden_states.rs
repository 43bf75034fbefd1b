//! Stage 2, hidden-state alignment: each layer's output against the teacher's.

use burn::tensor::{Int, Tensor};
use kernels::TrainBackend;
use model::mohawk::hidden_state_loss;
use model::{Phi, PhiMamba};

use super::sum_over_layers;
use crate::config::Target;
use crate::gradients::Gradients;

/// The sum over layers. Layers that keep attention start at distance zero, where the gradient is
/// zero too, and are passed through.
pub(super) fn pass<B: TrainBackend>(
    student: &PhiMamba<B>,
    teacher: &Phi<B::InnerBackend>,
    ids: Tensor<B::InnerBackend, 2, Int>,
    target: Target,
    gradients: &mut Gradients<B::InnerBackend>,
) -> Tensor<B::InnerBackend, 1> {
    let device = ids.device();
    let mut x_bld = teacher.backbone.embedding.forward(ids);
    let mut losses = vec![];
    let layers = student.backbone.layers.iter().zip(&teacher.backbone.layers);
    let last = student.backbone.layers.len() - 1;
    for (i, (student, teacher)) in layers.enumerate() {
        let entering = Tensor::from_inner(x_bld.clone());
        let target_bld = if i == last && target == Target::Mixer {
            // Nobody reads the last layer's output.
            teacher.mixer_output(x_bld.clone())
        } else {
            let outputs = teacher.forward_tapped(x_bld, false);
            x_bld = outputs.hidden_state;
            match target {
                Target::Mixer => outputs.mixer_output,
                Target::Block => x_bld.clone(),
            }
        };
        if !student.mixer.is_kept_from(&teacher.mixer) {
            let output_bld = match target {
                Target::Mixer => student.mixer_output(entering),
                Target::Block => student.forward(entering),
            };
            let loss = hidden_state_loss(output_bld, Tensor::from_inner(target_bld));
            gradients.add::<B, _>(student, &loss.backward());
            losses.push(loss.inner());
        }
    }
    sum_over_layers(losses, &device)
}
