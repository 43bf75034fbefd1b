//! Matrix orientation (stage 1 of the paper, section 4): each layer's transfer matrix against the
//! attention matrix of the layer that it replaces.

use burn::tensor::Tensor;
use kernels::{AttentionParts, DocumentStarts, TrainBackend, mixing_distance};
use model::mohawk::matrix_orientation_loss;
use model::{NetworkConfig, Part, Phi};
use serde::{Deserialize, Serialize};

use super::arithmetic::{self, Arithmetic};
use super::layers::{self, Untrainable};
use super::{Description, Learner, Stage, StageStep, TokenBatch};

/// The loss between transfer matrices and attention matrices: the Frobenius norm of the difference, the mean over batch
/// and heads, and the sum over layers. This kind has no options.
///
/// If the documents of a sequence are separate, both matrices are zero between documents, and the squared norm of a
/// sequence is the sum of the squared norms of its documents.
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
            if student.has_matrices_to_match(teacher) {
                return Ok(());
            }
            let (heads, of_teacher) = (student.n_heads(), teacher.n_heads());
            if heads != of_teacher {
                return Err(format!(
                    "the matrices of every head are compared, and it has {heads} heads where the teacher has \
                     {of_teacher}; set student.n_v_heads to {of_teacher} or leave the stage out"
                ));
            }
            Err(format!(
                "it has no mixing matrix that can be compared with that of the teacher's {}",
                teacher.kind()
            ))
        })
    }

    fn layers_at_once(&self, _layers: usize) -> usize {
        1
    }

    /// The teacher's layers, but of the last layer only the factors of its matrix; three times the factors and the
    /// entries of the student's matrices; and the entries of the teacher's matrices once.
    fn arithmetic(&self, l: usize, teacher: &NetworkConfig, student: &NetworkConfig) -> Arithmetic {
        let (d_teacher, d) = (teacher.d_model, student.d_model);
        let last = teacher.mixers.last().map_or(0.0, |mixer| {
            mixer.operations(d_teacher, l) - mixer.matrix_operations(d_teacher, l).projections
        });
        let each = layers::learning(teacher, student).map(|(teacher, student)| {
            let matrix = student.matrix_operations(d, l);
            let scores = teacher.matrix_operations(d_teacher, l).scores;
            3.0 * (matrix.projections + matrix.scores) + scores
        });
        Arithmetic {
            teacher: arithmetic::to_last_mixer(teacher, l) - last,
            student: each.sum(),
        }
    }

    fn shares_teacher(&self, _other: &Self) -> bool {
        true
    }

    /// If the student's matrix has factors, both matrices are given by their factors, so that the backend need not hold
    /// whole matrices.
    fn pass<B: TrainBackend>(
        learners: &mut [Learner<'_, Self, B>],
        teacher: &Phi<B::InnerBackend>,
        batch: TokenBatch<B>,
        _at: StageStep,
    ) -> Vec<Tensor<B::InnerBackend, 1>> {
        let device = batch.ids.device();
        let (documents, of_student) = (batch.documents.clone(), batch.documents_of_student());
        let mut x_bld = teacher.backbone.embedding.forward(batch.ids);
        let mut losses = vec![vec![]; learners.len()];
        let last = teacher.backbone.layers.len() - 1;
        for (i, teacher) in teacher.backbone.layers.iter().enumerate() {
            let entering = x_bld.clone();
            let attention = if i == last {
                // The last layer's output is not needed.
                teacher.attention_parts((x_bld.clone(), &documents))
            } else {
                let (output, attention) = teacher.forward_with_attention_parts((x_bld, &documents));
                x_bld = output;
                attention
            };
            let mut whole = None;
            for (learner, losses) in learners.iter_mut().zip(&mut losses) {
                let student = learner.student.layer(i);
                if student.mixer.is_kept_from(&teacher.mixer) {
                    continue;
                }
                let read_bld = Tensor::<B, 3>::from_inner(entering.clone());
                let transfer = student.transfer_parts((read_bld.clone(), &of_student));
                let loss = match (transfer, attention.clone()) {
                    (Some(transfer), Some(attention)) => {
                        let attention = AttentionParts {
                            q: Tensor::from_inner(attention.q),
                            k: Tensor::from_inner(attention.k),
                            window: attention.window,
                            documents: attention.documents.map(DocumentStarts::from_inner),
                        };
                        mixing_distance(transfer, attention)
                    }
                    // A mixer without such factors: `idle_layers` has checked that it has a whole matrix.
                    _ => {
                        let transfer = student.mixing_matrix((read_bld, &of_student));
                        let of_teacher = || teacher.mixing_matrix((entering.clone(), &documents));
                        let attention = whole.get_or_insert_with(of_teacher).clone();
                        matrix_orientation_loss(transfer, Tensor::from_inner(attention))
                    }
                };
                learner.gradients.add::<B, _>(student, &loss.backward());
                losses.push(loss.inner());
            }
        }
        let losses = losses.into_iter();
        losses
            .map(|losses| layers::sum_over_layers(losses, &device))
            .collect()
    }
}
