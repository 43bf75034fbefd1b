//! The trait of a kind of stage.

use burn::tensor::Tensor;
use kernels::{TopClasses, TrainBackend};
use model::{NetworkConfig, Part, Phi};

use super::{Arithmetic, Learner, PassStudent, StageStep, TokenBatch, Untrainable};
use crate::gradients::Sink;
use crate::limits::OutOfRange;

/// The texts for a kind of stage in tables and in the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Description {
    /// The name of the stage in the paper.
    pub title: &'static str,
    /// The definition of its loss, in full sentences.
    pub loss: &'static str,
    /// The loss as the label of an axis, with its unit.
    pub axis: &'static str,
}

/// The allowed words of each option that is a word, by the option's key.
pub type Choices = &'static [(&'static str, &'static [&'static str])];

/// A kind of stage. The value that implements it holds the kind's options: its fields are keys of the
/// stage's table in a configuration, its `Default` their defaults.
pub trait Stage: Default {
    /// Its words.
    const DESCRIPTION: Description;
    /// The parts that train if a configuration gives no rates by part.
    const TRAINS: &'static [Part];
    /// The options whose values are words.
    const CHOICES: Choices = &[];

    /// Checks the options.
    ///
    /// # Errors
    /// [`OutOfRange`] names the first option that makes no sense, by its bare key.
    fn validate(&self) -> Result<(), OutOfRange> {
        Ok(())
    }

    /// Whether the loss is defined differently from step `at` on, so that earlier losses cannot be compared with it.
    fn changes_loss(&self, _at: StageStep) -> bool {
        false
    }

    /// The share of a batch's sequences in which the window's attention adds nothing to the student's mixers.
    fn window_dropout(&self) -> f64 {
        0.0
    }

    /// The parts of the student that the loss depends on.
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

    /// How many of a student's `layers` have their graph in memory at the same time.
    fn layers_at_once(&self, layers: usize) -> usize;

    /// The floating-point operations for a token, in sequences of `l` tokens. Idle layers take none.
    fn arithmetic(&self, l: usize, teacher: &NetworkConfig, student: &NetworkConfig) -> Arithmetic;

    /// Whether a student with these options and one with the options `other` may be in the same [`pass`](Self::pass):
    /// both are compared with the same outputs of the teacher.
    fn shares_teacher(&self, other: &Self) -> bool;

    /// One forward and backward pass of step `at` for each of `learners`, at least one, whose stages all [share the
    /// teacher](Self::shares_teacher). It passes on their gradients, those of each block as soon as they are computed,
    /// and returns their losses, `[1]` each. It asks for a student, or for a layer, only after it has queued the work
    /// that does not need it. A student's loss and gradients have the same bits with any other students in the pass.
    ///
    /// The students' parameters must not be in a graph yet, as after `on_graph_of_its_own`: graphs that were joined
    /// cannot go backward block by block.
    fn pass<B: TrainBackend>(
        learners: &mut [Learner<'_, Self, B>],
        teacher: &Phi<B::InnerBackend>,
        batch: TokenBatch<B>,
        at: StageStep,
    ) -> Vec<Tensor<B::InnerBackend, 1>>;

    /// The folder of the [`teacher_cache`](crate::teacher_cache) from which the stage reads the teacher's part of its
    /// passes; empty if the stage computes it.
    fn teacher_cache(&self) -> &str {
        ""
    }

    /// The option that names that folder, if the kind has one.
    fn teacher_cache_mut(&mut self) -> Option<&mut String> {
        None
    }

    /// How many of the cached ids are compared separately; 0 for all.
    fn cached_ids(&self) -> usize {
        0
    }

    /// [`pass`](Self::pass) for a stage with a [`teacher_cache`](Self::teacher_cache): it uses the cached predictions
    /// of the batch instead of the teacher.
    ///
    /// # Panics
    /// If the kind has no such cache.
    fn cached_pass<B: TrainBackend>(
        &self,
        _student: &PassStudent<'_, B>,
        _teacher: TopClasses<B::InnerBackend>,
        _batch: TokenBatch<B>,
        _gradients: &mut dyn Sink<B::InnerBackend>,
    ) -> Tensor<B::InnerBackend, 1> {
        panic!("a kind of stage that reads a cache has a pass of its own for it")
    }

    /// The loss of a student that predicts exactly what the cache has, given the mean `entropy` of its classes; `None`
    /// if the loss does not follow from that.
    fn cached_floor(&self, _entropy: f64) -> Option<f64> {
        None
    }
}
