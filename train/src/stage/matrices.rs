//! Stage 1, matrix orientation: each layer's transfer matrix against the attention matrix.

use burn::tensor::{Int, Tensor};
use kernels::TrainBackend;
use model::mohawk::matrix_orientation_loss;
use model::{Mixer, Phi, PhiMamba};

use crate::gradients::Gradients;

/// The sum over layers. Layers that keep attention have nothing to learn and are passed through.
pub(super) fn pass<B: TrainBackend>(
    student: &PhiMamba<B>,
    teacher: &Phi<B::InnerBackend>,
    ids: Tensor<B::InnerBackend, 2, Int>,
    gradients: &mut Gradients<B::InnerBackend>,
) -> Tensor<B::InnerBackend, 1> {
    let mut x_bld = teacher.backbone.embedding.forward(ids);
    let mut sum = Tensor::zeros([1], (&x_bld.device(), x_bld.dtype()));
    let layers = student.backbone.layers.iter().zip(&teacher.backbone.layers);
    let last = student.backbone.layers.len() - 1;
    for (i, (student, teacher)) in layers.enumerate() {
        let learns = matches!(student.mixer, Mixer::DiscreteMamba2(_));
        let entering = x_bld.clone();
        let attention_bhll = if i == last {
            // Nobody reads the last layer's output.
            learns.then(|| teacher.mixing_matrix(x_bld.clone()))
        } else {
            let outputs = teacher.forward_tapped(x_bld, learns);
            x_bld = outputs.hidden_state;
            outputs.mixing_matrix
        };
        if let Some(attention_bhll) = attention_bhll {
            let transfer_bhll = student.mixing_matrix(Tensor::from_inner(entering));
            let attention_bhll = Tensor::from_inner(attention_bhll);
            let loss = matrix_orientation_loss(transfer_bhll, attention_bhll);
            gradients.add::<B, _>(student, &loss.backward());
            sum = sum + loss.inner();
        }
    }
    sum
}
