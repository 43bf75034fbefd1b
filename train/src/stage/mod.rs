//! The three stages: each says only what one forward and backward pass computes.
//!
//! A pass is handed a batch and both networks and returns the loss and the gradients; it knows no
//! files, no clock and no schedule. In stages 1 and 2 every student layer reads the teacher's hidden
//! state, so teacher and student walk through the layers side by side, and a layer's graph and
//! matrices are gone before the pass makes the next layer's.

pub(crate) mod head;
mod hidden_states;
mod matrices;
mod parts;
mod predictions;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use kernels::{DistillationWeights, KernelBackend, TrainBackend};
use model::{Phi, PhiMamba};

pub use parts::{in_dtype, on_graph_of_its_own, train_parts};

use crate::config::{Config, Target};
use crate::gradients::Gradients;

/// Token ids and, for each, the one that follows: both `[b, l]`.
#[derive(Debug, Clone)]
pub struct TokenBatch<B: TrainBackend> {
    /// What both networks read.
    pub ids: Tensor<B::InnerBackend, 2, Int>,
    /// The next tokens, for hard labels.
    pub labels: Tensor<B::InnerBackend, 2, Int>,
}

/// What a stage computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Objective {
    /// Stage 1: transfer matrices against attention matrices.
    Matrices,
    /// Stage 2: mixer or block outputs.
    HiddenStates(Target),
    /// Stage 3: next-token distributions.
    Predictions {
        /// How the parts of the loss are weighed.
        weights: DistillationWeights,
        /// Whether the backward pass computes each block again, from its input.
        recompute: bool,
    },
}

impl Objective {
    /// That of stage `number`.
    ///
    /// # Panics
    /// Unless `number` is 1, 2 or 3.
    pub fn of(config: &Config, number: u8) -> Self {
        match number {
            1 => Self::Matrices,
            2 => Self::HiddenStates(config.stage2.target),
            3 => Self::Predictions {
                weights: DistillationWeights {
                    temperature: config.stage3.temperature,
                    hard: config.stage3.hard_weight,
                },
                recompute: config.stage3.recompute,
            },
            _ => panic!("MOHAWK has stages 1, 2 and 3, not {number}"),
        }
    }

    /// One pass: adds to `gradients`, and returns the loss as one element. In stages 1 and 2 that is
    /// the sum over layers.
    pub fn pass<B: TrainBackend>(
        self,
        student: &PhiMamba<B>,
        teacher: &Phi<B::InnerBackend>,
        batch: TokenBatch<B>,
        gradients: &mut Gradients<B::InnerBackend>,
    ) -> Tensor<B::InnerBackend, 1> {
        match self {
            Self::Matrices => matrices::pass(student, teacher, batch.ids, gradients),
            Self::HiddenStates(target) => {
                hidden_states::pass(student, teacher, batch.ids, target, gradients)
            }
            Self::Predictions { weights, recompute } => {
                predictions::pass(student, teacher, batch, weights, recompute, gradients)
            }
        }
    }
}

/// The teacher's part of stage 3 alone: its logits for `ids [b, l]`, made as there and dropped.
pub fn teacher_alone<B: KernelBackend>(teacher: &Phi<B>, ids: Tensor<B, 2, Int>) {
    let features = teacher.features(ids);
    head::forward(&teacher.head(), features, head::BLOCK, |_, logits| {
        drop(logits);
    });
}

/// The sum of one element for each layer that has a loss; zero if none has.
fn sum_over_layers<B: Backend>(losses: Vec<Tensor<B, 1>>, device: &B::Device) -> Tensor<B, 1> {
    match losses.is_empty() {
        true => Tensor::zeros([1], device),
        false => Tensor::cat(losses, 0).sum(),
    }
}
