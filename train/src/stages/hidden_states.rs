//! Hidden-state alignment (stage 2 of the paper, section 4): each layer's output against the teacher's.

use burn::tensor::Tensor;
use kernels::TrainBackend;
use model::mohawk::hidden_state_loss;
use model::{NetworkConfig, Part, Phi, PhiMamba};
use serde::{Deserialize, Serialize};

use super::arithmetic::{self, Arithmetic};
use super::layers::{self, Untrainable};
use super::{Choices, Description, Stage, TokenBatch, sum_over_layers};
use crate::gradients::Gradients;

/// Outputs of mixers or of blocks: the L2 norm of the difference, mean over tokens, summed over layers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct HiddenStates {
    /// Which outputs are compared.
    pub target: Target,
}

/// The outputs that are compared. In parallel blocks, both give the same loss while everything but the mixers is the
/// teacher's; in sequential ones, the MLP reads the mixer's output, and the two losses differ even then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Mixer output against attention output: needs no MLP.
    #[default]
    Mixer,
    /// Block output against block output, before the final norm.
    Block,
}

impl Stage for HiddenStates {
    const DESCRIPTION: Description = Description {
        title: "hidden-state alignment",
        loss: "L2 norm of student output minus teacher output, mean over tokens, summed over layers. \
               Every layer reads the teacher's hidden state.",
        axis: "hidden-state distance",
    };
    const TRAINS: &'static [Part] = &[Part::Mixer];
    const CHOICES: Choices = &[("target", &["mixer", "block"])];

    fn reached(&self) -> &'static [Part] {
        match self.target {
            Target::Mixer => &[Part::Mixer, Part::Norm],
            Target::Block => &[Part::Mixer, Part::Norm, Part::Mlp],
        }
    }

    /// Layers that keep the teacher's mixer start at distance zero, where the gradient is zero too.
    fn idle_layers(
        &self,
        teacher: &NetworkConfig,
        student: &NetworkConfig,
    ) -> Result<Vec<usize>, Untrainable> {
        layers::idle(teacher, student, |_, _| Ok(()))
    }

    /// The teacher's layers but for the last MLP; three times the student's mixers.
    fn arithmetic(&self, l: usize, teacher: &NetworkConfig, student: &NetworkConfig) -> Arithmetic {
        let mixers = layers::learning(teacher, student);
        let mixers = mixers.map(|(_, mixer)| mixer.operations(student.d_model, l));
        Arithmetic {
            teacher: arithmetic::to_last_mixer(teacher, l),
            student: 3.0 * mixers.sum::<f64>(),
        }
    }

    fn pass<B: TrainBackend>(
        &self,
        student: &PhiMamba<B>,
        teacher: &Phi<B::InnerBackend>,
        batch: TokenBatch<B>,
        gradients: &mut Gradients<B::InnerBackend>,
    ) -> Tensor<B::InnerBackend, 1> {
        let device = batch.ids.device();
        let mut x_bld = teacher.backbone.embedding.forward(batch.ids);
        let mut losses = vec![];
        let layers = student.backbone.layers.iter().zip(&teacher.backbone.layers);
        let last = student.backbone.layers.len() - 1;
        for (i, (student, teacher)) in layers.enumerate() {
            let entering = Tensor::from_inner(x_bld.clone());
            let target_bld = if i == last && self.target == Target::Mixer {
                // The last layer's output is not needed.
                teacher.mixer_output(x_bld.clone())
            } else {
                let outputs = teacher.forward_tapped(x_bld, false);
                x_bld = outputs.hidden_state;
                match self.target {
                    Target::Mixer => outputs.mixer_output,
                    Target::Block => x_bld.clone(),
                }
            };
            if !student.mixer.is_kept_from(&teacher.mixer) {
                let output_bld = match self.target {
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
}
