//! Matrix orientation (stage 1 of the paper, section 4): each layer's transfer matrix against the
//! attention matrix of the layer that it replaces.

use burn::tensor::{Int, Tensor};
use kernels::{AttentionParts, TrainBackend, mixing_distance};
use model::{MixerConfig, NetworkConfig, Phi, PhiMamba};
use serde::{Deserialize, Serialize};

use super::arithmetic::{self, Arithmetic};
use super::layers::{self, Untrainable};
use super::{Description, Part, Stage, TokenBatch, sum_over_layers};
use crate::gradients::Gradients;

/// Transfer matrices against attention matrices: the Frobenius norm of the difference, mean over batch and
/// heads, summed over layers. It has no options.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Matrices {}

impl Stage for Matrices {
    const DESCRIPTION: Description = Description {
        title: "matrix orientation",
        loss: "Frobenius norm of transfer matrix minus attention matrix, mean over batch and heads, \
               summed over layers. Every layer reads the teacher's hidden state.",
        axis: "matrix distance",
    };
    const TRAINS: &'static [Part] = &[Part::Mixer];

    fn reached(&self) -> &'static [Part] {
        &[Part::Mixer, Part::Norm]
    }

    fn idle_layers(
        &self,
        teacher: &NetworkConfig,
        student: &NetworkConfig,
    ) -> Result<Vec<usize>, Untrainable> {
        layers::idle(teacher, student, |teacher, student| {
            let (MixerConfig::Attention(attention), MixerConfig::DiscreteMamba2(mamba)) =
                (teacher, student)
            else {
                return Err(format!(
                    "it compares a transfer matrix with an attention matrix, and the teacher's mixer is {}",
                    layers::name(teacher)
                ));
            };
            if mamba.n_v_heads == attention.n_heads {
                return Ok(());
            }
            Err(format!(
                "it compares the matrices of every head; student.n_v_heads is {} and the teacher has {heads} \
                 heads: set it to {heads} or leave the stage out",
                mamba.n_v_heads,
                heads = attention.n_heads,
            ))
        })
    }

    /// The teacher's layers, of the last only queries and keys; of the student three times the rows of B, C
    /// and A_log; `l h p` for the teacher's scores once more and `3 l h n` for the student's.
    fn arithmetic(&self, l: usize, teacher: &NetworkConfig, student: &NetworkConfig) -> Arithmetic {
        let d = student.d_model as f64;
        let scores = |width: usize| l as f64 * width as f64;
        let last = (teacher.mixers.last()).map_or(0.0, |last| arithmetic::mixer(last, l, teacher));
        let of_student = student.mixers.iter().filter_map(|mixer| match mixer {
            MixerConfig::DiscreteMamba2(mamba) => {
                let rows = 2 * mamba.d_bc() + mamba.n_v_heads;
                let matrices = scores(mamba.n_v_heads * mamba.d_state);
                Some(3.0 * (2.0 * d * rows as f64 + matrices) + scores(student.d_model))
            }
            MixerConfig::Attention(_) => None,
        });
        Arithmetic {
            teacher: arithmetic::network(teacher, l)
                - arithmetic::head(teacher)
                - arithmetic::mlp(teacher)
                - last
                + 4.0 * d * d,
            student: of_student.sum(),
        }
    }

    /// Both matrices are given by what they are made of, so that the backend need not hold them.
    fn pass<B: TrainBackend>(
        &self,
        student: &PhiMamba<B>,
        teacher: &Phi<B::InnerBackend>,
        batch: TokenBatch<B>,
        gradients: &mut Gradients<B::InnerBackend>,
    ) -> Tensor<B::InnerBackend, 1> {
        let ids: Tensor<B::InnerBackend, 2, Int> = batch.ids;
        let device = ids.device();
        let mut x_bld = teacher.backbone.embedding.forward(ids);
        let mut losses = vec![];
        let layers = student.backbone.layers.iter().zip(&teacher.backbone.layers);
        let last = student.backbone.layers.len() - 1;
        for (i, (student, teacher)) in layers.enumerate() {
            let entering = x_bld.clone();
            let attention = if i == last {
                // The last layer's output is not needed.
                teacher.attention_parts(x_bld.clone())
            } else {
                let (output, attention) = teacher.forward_with_attention_parts(x_bld);
                x_bld = output;
                attention
            };
            // Idle layers have no transfer matrix.
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
}
