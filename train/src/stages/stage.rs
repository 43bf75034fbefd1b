//! What a kind of stage is.

use burn::tensor::Tensor;
use kernels::{TopClasses, TrainBackend};
use model::{NetworkConfig, Part, Phi};

use super::{Arithmetic, Learner, PassStudent, StageStep, TokenBatch, Untrainable};
use crate::gradients::Sink;
use crate::limits::OutOfRange;

/// The words for a kind of stage in tables and in the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Description {
    /// What the stage is called in the paper.
    pub title: &'static str,
    /// What its loss is, in full sentences.
    pub loss: &'static str,
    /// The same as the label of an axis, with its unit.
    pub axis: &'static str,
}

/// The words that the value of an option may be, by the option's key.
pub type Choices = &'static [(&'static str, &'static [&'static str])];

/// A kind of stage. The value that implements it holds the kind's options: its fields are keys of the
/// stage's table in a configuration, its `Default` their defaults.
pub trait Stage: Default {
    /// Its words.
    const DESCRIPTION: Description;
    /// The parts that train where a configuration gives no rates by part.
    const TRAINS: &'static [Part];
    /// Those of its options whose values are words.
    const CHOICES: Choices = &[];

    /// Checks the options.
    ///
    /// # Errors
    /// [`OutOfRange`] names the first option that makes no sense, by its bare key.
    fn validate(&self) -> Result<(), OutOfRange> {
        Ok(())
    }

    /// Whether the loss is of another kind from step `at` on, so that those before are no measure of it.
    fn changes_loss(&self, _at: StageStep) -> bool {
        false
    }

    /// The share of a batch's sequences for which attention within a window adds nothing to the student's mixers.
    fn window_dropout(&self) -> f64 {
        0.0
    }

    /// The parts that the loss depends on.
    fn reached(&self) -> &'static [Part];

    /// The layers, from 0, that have nothing to learn in this stage; none where the whole network is trained
    /// at once.
    ///
    /// # Errors
    /// [`Untrainable`] if a layer should learn and cannot, or if no layer can.
    fn idle_layers(
        &self,
        teacher: &NetworkConfig,
        student: &NetworkConfig,
    ) -> Result<Vec<usize>, Untrainable>;

    /// How many of a student's `layers` have their graph in memory at once.
    fn layers_at_once(&self, layers: usize) -> usize;

    /// The operations that a token takes, in sequences of `l` tokens. Idle layers take none.
    fn arithmetic(&self, l: usize, teacher: &NetworkConfig, student: &NetworkConfig) -> Arithmetic;

    /// Whether a student of these options and one of `other` may be in one [`pass`](Self::pass): they are compared with
    /// the same outputs of the teacher.
    fn shares_teacher(&self, other: &Self) -> bool;

    /// One forward and backward pass of step `at`, of each of `learners`, whose stages all
    /// [share the teacher](Self::shares_teacher): gives their gradients, those of each block as soon as it has them, and
    /// returns their losses, `[1]` each. There is at least one. It asks for a student, or for each layer, when it has
    /// queued what needs nothing of it. A student's loss and gradients have the same bits whatever students are beside it.
    ///
    /// The students' parameters must be in no graph yet, as those of `on_graph_of_its_own` are not: what has met in one
    /// graph cannot go back block by block.
    fn pass<B: TrainBackend>(
        learners: &mut [Learner<'_, Self, B>],
        teacher: &Phi<B::InnerBackend>,
        batch: TokenBatch<B>,
        at: StageStep,
    ) -> Vec<Tensor<B::InnerBackend, 1>>;

    /// The folder of the [`teacher_cache`](crate::teacher_cache) from which the stage reads the teacher's part of its
    /// passes, in place of computing it; empty if it computes it.
    fn teacher_cache(&self) -> &str {
        ""
    }

    /// The option that names that folder, if the kind has one.
    fn teacher_cache_mut(&mut self) -> Option<&mut String> {
        None
    }

    /// How many of the ids in the cache are compared by themselves; 0 for all.
    fn cached_ids(&self) -> usize {
        0
    }

    /// [`pass`](Self::pass) of a stage with a [`teacher_cache`](Self::teacher_cache), with what that has of the batch in
    /// the teacher's place.
    ///
    /// # Panics
    /// If the stage has none.
    fn cached_pass<B: TrainBackend>(
        &self,
        _student: &PassStudent<'_, B>,
        _teacher: TopClasses<B::InnerBackend>,
        _batch: TokenBatch<B>,
        _gradients: &mut dyn Sink<B::InnerBackend>,
    ) -> Tensor<B::InnerBackend, 1> {
        panic!("a kind of stage that reads a cache has a pass of its own for it")
    }

    /// The loss of a student that predicts what the cache has, whose classes have this mean `entropy`; `None` if that
    /// does not follow from it.
    fn cached_floor(&self, _entropy: f64) -> Option<f64> {
        None
    }
}
