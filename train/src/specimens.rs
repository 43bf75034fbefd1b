//! Examples from both models for the report: mixing matrices and texts.

use burn::tensor::Tensor;
use datasets::{TokenWindows, Tokenizer};
use kernels::KernelBackend;
use model::CausalLm;

use crate::error::TrainError;
use crate::evaluate::{continuation, ids};
use crate::report::{MatrixPair, Sample};

/// Positions of a matrix shown.
const POSITIONS: usize = 64;
/// Matrices shown at most.
const MATRICES: usize = 6;
/// Tokens of the prompt, taken from the held-out text.
const PROMPT: usize = 24;
/// Tokens that each model adds.
const WRITTEN: usize = 48;

/// Both models, in one dtype, and the text that the specimens are taken from.
pub struct Specimens<'a, B: KernelBackend> {
    /// The teacher.
    pub teacher: &'a CausalLm<B>,
    /// The student.
    pub student: &'a CausalLm<B>,
    /// The tokenizer of both.
    pub tokenizer: &'a Tokenizer,
    /// Text neither has trained on.
    pub held_out: &'a TokenWindows,
    /// Where both are.
    pub device: &'a B::Device,
}

impl<B: KernelBackend> Specimens<'_, B> {
    /// For a few heads, spread over the layers: the transfer matrix beside the attention matrix, both
    /// computed from the teacher's hidden state as in matrix orientation.
    ///
    /// # Errors
    /// [`TrainError::Data`] if the held-out text cannot be read.
    pub fn matrices(&self) -> Result<Vec<MatrixPair>, TrainError> {
        let Some(batch) = self.held_out.sequential(1).next() else {
            return Ok(vec![]);
        };
        let batch = batch?;
        let size = POSITIONS.min(batch.context);
        let ids = ids::<B>(&batch.ids[..size], size, self.device);
        let mut x_bld = self.teacher.backbone.embedding.forward(ids);
        let mut pairs = vec![];
        let layers = (self.student.backbone.layers.iter()).zip(&self.teacher.backbone.layers);
        let count = self.student.backbone.layers.len();
        // All heads of a small model, or one head of every few layers of a large one.
        let per_layer = MATRICES.div_ceil(count);
        let every = count.div_ceil(MATRICES);
        for (layer, (student, teacher)) in layers.enumerate() {
            if layer % every == 0 && !student.mixer.is_kept_from(&teacher.mixer) {
                let transfer = student.mixing_matrix(x_bld.clone());
                let attention = teacher.mixing_matrix(x_bld.clone());
                let heads = transfer.dims()[1].min(attention.dims()[1]);
                for head in 0..per_layer.min(heads) {
                    let values = |matrices: &Tensor<B, 4>| {
                        let matrix = matrices.clone().narrow(1, head, 1);
                        matrix.into_data().iter::<f32>().collect()
                    };
                    pairs.push(MatrixPair {
                        layer,
                        head,
                        size,
                        student: values(&transfer),
                        teacher: values(&attention),
                    });
                }
            }
            x_bld = teacher.forward(x_bld);
        }
        pairs.truncate(MATRICES);
        Ok(pairs)
    }

    /// The continuations of the beginnings of two held-out windows by both models.
    ///
    /// # Errors
    /// [`TrainError::Data`] if the held-out text cannot be read or decoded.
    pub fn samples(&self) -> Result<Vec<Sample>, TrainError> {
        let count = self.held_out.count();
        let chosen = if count > 1 {
            vec![0, count / 2]
        } else {
            vec![0]
        };
        let sample = |window| {
            let start = self.held_out.window(window)?.ids;
            let start: Vec<u32> = start.iter().take(PROMPT).map(|&id| id as u32).collect();
            let prompt = self.tokenizer.decode(&start)?;
            let written =
                |model| continuation(model, self.tokenizer, &prompt, WRITTEN, self.device);
            let (teacher, student) = (written(self.teacher)?, written(self.student)?);
            Ok(Sample {
                prompt,
                teacher,
                student,
            })
        };
        chosen.into_iter().map(sample).collect()
    }
}
