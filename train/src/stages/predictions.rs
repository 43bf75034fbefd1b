//! Knowledge distillation (stage 3 of the paper, section 4): the student's next-token distribution against
//! the teacher's.
//!
//! A pass has two halves, before and after the head's input. `head` computes logits, loss and gradient for a block of
//! tokens at a time, since arrays as wide as the vocabulary are the largest ones. From the gradient of the head's
//! input, the layers go backward block by block. Each block has its own graph, which was kept or is built again, and is
//! freed as soon as its gradients are computed. These are passed on before those of the next block are computed.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use kernels::{
    Comparison, DistillationWeights, Divergence, TopClasses, TopClassesInputs, TrainBackend,
    distillation_block, divergence_block, top_classes_block,
};
use model::{NetworkConfig, Part, Phi};
use serde::{Deserialize, Serialize};

use super::arithmetic::{self, Arithmetic};
use super::body::Body;
use super::head::{self, TeacherLogits};
use super::layers::Untrainable;
use super::{Choices, Description, Learner, PassStudent, Stage, StageStep, TokenBatch};
use crate::gradients::Sink;
use crate::limits::{OutOfRange, positive, within};

/// The published loss, which has its own op.
const PUBLISHED: Comparison = Comparison {
    divergence: Divergence::ForwardKl,
    top_k: 0,
};

/// Next-token distributions: the student's against the teacher's, mean over tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Predictions {
    /// How the two are compared.
    pub loss: Loss,
    /// If `k` is not 0, the teacher's `k` likeliest tokens are compared separately, and all other tokens together as
    /// one class; 0 compares every token. [`Comparison::top_k`] has the definition.
    pub top_k: usize,
    /// Divides the student's logits.
    pub temperature: f64,
    /// Weight of the cross-entropy against the true next token, from 0 to 1.
    pub hard_weight: f64,
    /// Whether the backward pass computes each block's forward pass again instead of keeping it.
    pub recompute: bool,
    /// Share of the sequences of a batch in which the window's attention adds nothing to the student's mixers. Needs a
    /// student with such attention.
    pub window_dropout: f64,
    /// The folder of the teacher's predictions that `train cache-teacher` wrote for this stage; if empty, the teacher
    /// is computed. With a cache, the ids that it has, or the likeliest `top_k` of them, are compared separately, and
    /// all other ids together.
    pub teacher_cache: String,
}

/// How the student's distribution `p` is compared with the teacher's `q`; [`Divergence`] has the equations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// The cross-entropy of `p` relative to `q`, which is KL(q || p) plus a constant.
    #[default]
    ForwardKl,
    /// KL(p || q).
    ReverseKl,
}

impl Loss {
    fn divergence(self) -> Divergence {
        match self {
            Self::ForwardKl => Divergence::ForwardKl,
            Self::ReverseKl => Divergence::ReverseKl,
        }
    }
}

impl Default for Predictions {
    fn default() -> Self {
        Self {
            loss: Loss::ForwardKl,
            top_k: 0,
            temperature: 1.0,
            hard_weight: 0.0,
            recompute: false,
            window_dropout: 0.0,
            teacher_cache: String::new(),
        }
    }
}

impl Stage for Predictions {
    const DESCRIPTION: Description = Description {
        title: "knowledge distillation",
        loss: "The student's next-token distribution against the teacher's, in nats a token: with the loss \
               forward_kl their cross-entropy, which cannot fall below the entropy of the teacher; with \
               reverse_kl their divergence, which is 0 where they agree.",
        axis: "loss (nats)",
    };
    const TRAINS: &'static [Part] = &Part::ALL;
    const CHOICES: Choices = &[("loss", &["forward_kl", "reverse_kl"])];

    fn validate(&self) -> Result<(), OutOfRange> {
        positive("temperature", self.temperature)?;
        within(0.0..=1.0, "hard_weight", self.hard_weight)?;
        within(0.0..=1.0, "window_dropout", self.window_dropout)
    }

    fn window_dropout(&self) -> f64 {
        self.window_dropout
    }

    fn reached(&self) -> &'static [Part] {
        &Part::ALL
    }

    fn idle_layers(
        &self,
        _teacher: &NetworkConfig,
        _student: &NetworkConfig,
    ) -> Result<Vec<usize>, Untrainable> {
        Ok(vec![])
    }

    fn layers_at_once(&self, layers: usize) -> usize {
        if self.recompute { 1 } else { layers }
    }

    /// The teacher's layers and head, unless its predictions are read from a cache; three times the student's.
    fn arithmetic(&self, l: usize, teacher: &NetworkConfig, student: &NetworkConfig) -> Arithmetic {
        Arithmetic {
            teacher: if self.teacher_cache.is_empty() {
                arithmetic::forward(teacher, l)
            } else {
                0.0
            },
            student: 3.0 * arithmetic::forward(student, l),
        }
    }

    /// All options concern only the student's part, unless the teacher's part is read from a cache.
    fn shares_teacher(&self, other: &Self) -> bool {
        self.teacher_cache.is_empty() && other.teacher_cache.is_empty()
    }

    fn pass<B: TrainBackend>(
        learners: &mut [Learner<'_, Self, B>],
        teacher: &Phi<B::InnerBackend>,
        batch: TokenBatch<B>,
        _at: StageStep,
    ) -> Vec<Tensor<B::InnerBackend, 1>> {
        let (head, features) = (teacher.head(), teacher.features(batch.tokens()));
        let mut teacher = TeacherLogits::new(&head, features, learners.len() > 1);
        // One student after the other, so that only one graph of layers exists at a time.
        let of_one = |learner: &mut Learner<'_, Self, B>| {
            let Learner {
                stage,
                student,
                gradients,
            } = learner;
            stage.pass_of_student(student, &mut teacher, batch.clone(), &mut **gradients)
        };
        learners.iter_mut().map(of_one).collect()
    }

    fn teacher_cache(&self) -> &str {
        &self.teacher_cache
    }

    fn teacher_cache_mut(&mut self) -> Option<&mut String> {
        Some(&mut self.teacher_cache)
    }

    fn cached_ids(&self) -> usize {
        self.top_k
    }

    fn cached_pass<B: TrainBackend>(
        &self,
        student: &PassStudent<'_, B>,
        teacher: TopClasses<B::InnerBackend>,
        batch: TokenBatch<B>,
        gradients: &mut dyn Sink<B::InnerBackend>,
    ) -> Tensor<B::InnerBackend, 1> {
        let student = student.whole();
        let TokenBatch { ids, labels, .. } = batch;
        let [b, l] = ids.dims();
        let weights = DistillationWeights {
            temperature: self.temperature,
            hard: self.hard_weight,
        };
        let labels = (weights.hard > 0.0).then(|| labels.reshape([b * l]));
        let body = Body::forward(student, ids.into(), self.recompute);
        let loss = |start: usize, student: Tensor<B::InnerBackend, 2>| {
            let n = student.dims()[0];
            let inputs = TopClassesInputs {
                student,
                teacher: teacher.narrow(start, n),
                labels: labels.clone().map(|labels| labels.narrow(0, start, n)),
                weights,
                divergence: self.loss.divergence(),
            };
            top_classes_block(inputs, b * l)
        };
        let (head, features) = (student.head(), body.features());
        let block = head::block(b * l, student.vocab_size(), features.dtype());
        let (loss, dfeatures) = head::pass_of_student(&head, features, loss, block, gradients);
        body.backward(student, dfeatures, gradients);
        loss
    }

    /// The cached logarithms are those at temperature 1, and the probabilities of the true next tokens are not known.
    fn cached_floor(&self, entropy: f64) -> Option<f64> {
        let follows = self.temperature == 1.0 && self.hard_weight == 0.0;
        follows.then_some(match self.loss {
            Loss::ForwardKl => entropy,
            Loss::ReverseKl => 0.0,
        })
    }
}

impl Predictions {
    /// [`Stage::pass`] of one student.
    fn pass_of_student<B: TrainBackend>(
        &self,
        student: &PassStudent<'_, B>,
        teacher: &mut TeacherLogits<'_, B::InnerBackend>,
        batch: TokenBatch<B>,
        gradients: &mut dyn Sink<B::InnerBackend>,
    ) -> Tensor<B::InnerBackend, 1> {
        let [b, l] = batch.ids.dims();
        let (tokens, has_ends) = (batch.tokens(), batch.has_ends);
        let weights = DistillationWeights {
            temperature: self.temperature,
            hard: self.hard_weight,
        };
        let labels = (weights.hard > 0.0).then(|| batch.labels.reshape([b * l]));
        let student = student.whole();
        let body = Body::forward(student, tokens, self.recompute);
        let features = body.features();
        let (head, v) = (student.head(), student.vocab_size());
        let heads = (&*head, teacher);
        let comparison = Comparison {
            divergence: self.loss.divergence(),
            top_k: self.top_k,
        };
        let (loss, dfeatures) = if comparison == PUBLISHED {
            let block = head::block(b * l, v, features.dtype());
            let loss = |student, teacher, labels| {
                let block = |student, teacher, labels, weights| {
                    distillation_block(student, teacher, labels, weights, b * l)
                };
                loss_of_block(student, teacher, labels, weights, has_ends, block)
            };
            head::pass(heads, features, labels, loss, block, gradients)
        } else {
            let loss = |student, teacher, labels| {
                let block = |student, teacher, labels, weights| {
                    divergence_block(student, teacher, labels, weights, comparison, b * l)
                };
                loss_of_block(student, teacher, labels, weights, has_ends, block)
            };
            let block = head::block_in_f32(v);
            head::pass(heads, features, labels, loss, block, gradients)
        };
        body.backward(student, dfeatures, gradients);
        loss
    }
}

/// A block's part of the loss, and its gradient with respect to the student's logits.
type LossAndGradient<B> = (Tensor<B, 1>, Tensor<B, 2>);

/// The `loss` of a block of tokens under `weights`. Some of the tokens may end their documents. The next token then
/// belongs to another document and does not depend on what the networks have read, so such tokens have no hard label.
/// The teacher's prediction at the end of a document depends only on that document, and is compared like all others.
/// The mean is over all tokens in both cases.
fn loss_of_block<B: Backend>(
    student: Tensor<B, 2>,
    teacher: Tensor<B, 2>,
    labels: Option<Tensor<B, 1, Int>>,
    weights: DistillationWeights,
    has_ends: bool,
    loss: impl Fn(
        Tensor<B, 2>,
        Tensor<B, 2>,
        Option<Tensor<B, 1, Int>>,
        DistillationWeights,
    ) -> LossAndGradient<B>,
) -> LossAndGradient<B> {
    let labels_n = match labels {
        Some(labels_n) if has_ends => labels_n,
        labels => return loss(student, teacher, labels, weights),
    };
    let [n, v] = student.dims();
    let DistillationWeights { temperature, hard } = weights;
    let with = |hard| DistillationWeights { temperature, hard };
    // The hard loss of a token without a label is replaced by that of a certain and correct prediction, whose loss and
    // gradient are zero.
    let is_end_n = labels_n.clone().lower_elem(0);
    let is_end_n1 = is_end_n.clone().reshape([n, 1]);
    let labels_n = labels_n.mask_fill(is_end_n, 0);
    let first_n1 = student.clone().narrow(1, 0, 1);
    let first_n1 = first_n1.mask_fill(is_end_n1.clone(), CERTAIN * temperature.max(1.0));
    let certain_nv = (student.clone())
        .mask_fill(is_end_n1.expand([n, v]), 0.0)
        .slice_assign([0..n, 0..1], first_n1);
    let (of_labels, dlogits_nv) = loss(certain_nv, teacher.clone(), Some(labels_n), with(1.0));
    if hard == 1.0 {
        return (of_labels, dlogits_nv);
    }
    let (of_teacher, dsoft_nv) = loss(student, teacher, None, with(0.0));
    let mix = (hard, 1.0 - hard);
    (
        of_labels * mix.0 + of_teacher * mix.1,
        dlogits_nv * mix.0 + dsoft_nv * mix.1,
    )
}

/// A logit whose softmax probability, beside zeros and at temperature 1, is 1 in every dtype.
const CERTAIN: f64 = 1e4;
