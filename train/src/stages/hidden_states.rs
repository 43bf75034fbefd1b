//! Hidden-state alignment (stage 2 of the paper, section 4): each layer's output against the teacher's.
//!
//! # What a layer reads
//!
//! As published, every layer of the student reads the teacher's hidden state, so that no layer has to do with the
//! mistakes of another. In use it reads the student's own, with all mistakes of the layers before: the last steps of a
//! stage may train it on these (`sequential`). Then layer `i` reads what layer `i - 1` of the student has just made, the
//! first one the student's embedding, and is still compared with what the teacher's layer `i` makes of the teacher's
//! own hidden state.
//!
//! No gradient passes from a layer to the one before it: what a layer reads is a constant to it, in both ways. So the
//! loss of a layer trains this layer alone. With gradients, the first layers would learn from the sum of all losses
//! after them, each a norm of its own size, to make up for layers that are still to learn; that is what the
//! predictions are for, whose loss says what matters. And the graph of all layers would be in memory at once.
//!
//! # Several layers as one
//!
//! With `every = n`, `n` blocks of the student in a row, each on the output of the one before, are compared at their
//! end with `n` of the teacher's: a group, of which the last may be smaller. Gradients pass through the group to all of
//! its blocks, and end at what its first block reads. Only blocks can be compared so (`target = "block"`): the output of
//! a mixer does not have those of the layers before in it.

use burn::module::AutodiffModule;
use burn::tensor::Tensor;
use kernels::{DocumentStarts, KernelBackend, TrainBackend};
use model::mohawk::hidden_state_loss;
use model::{Block, NetworkConfig, Part, Phi};
use serde::{Deserialize, Serialize};

use super::arithmetic::{self, Arithmetic};
use super::layers::{self, Untrainable};
use super::{Choices, Description, Learner, Stage, StageStep, TokenBatch};
use crate::limits::{OutOfRange, at_least, require, within};

/// Outputs of mixers or of blocks: the L2 norm of the difference, mean over tokens, summed over what is compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HiddenStates {
    /// Which outputs are compared.
    pub target: Target,
    /// How many blocks lie between two outputs that are compared; 1 compares each layer.
    pub every: usize,
    /// Share of the steps, the last ones, in which every layer reads the student's own hidden state.
    pub sequential: f64,
    /// Share of the sequences of a batch in which attention within a window adds nothing to the student's mixers; needs
    /// a student with such attention.
    pub window_dropout: f64,
}

impl Default for HiddenStates {
    fn default() -> Self {
        Self {
            target: Target::Mixer,
            every: 1,
            sequential: 0.0,
            window_dropout: 0.0,
        }
    }
}

/// The outputs that are compared. In parallel blocks, both give the same loss while everything but the mixers is the
/// teacher's; in sequential ones, the MLP reads the mixer's output, and the two losses differ even then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Mixer output against attention output: needs no MLP.
    Mixer,
    /// Block output against block output, before the final norm.
    Block,
}

impl Stage for HiddenStates {
    const DESCRIPTION: Description = Description {
        title: "hidden-state alignment",
        loss: "L2 norm of student output minus teacher output, mean over tokens, summed over layers. \
               Every layer reads the teacher's hidden state; in the last steps, whose share is the option \
               sequential, it reads the student's own.",
        axis: "hidden-state distance",
    };
    const TRAINS: &'static [Part] = &[Part::Mixer];
    const CHOICES: Choices = &[("target", &["mixer", "block"])];

    fn validate(&self) -> Result<(), OutOfRange> {
        at_least(1, "every", self.every)?;
        require(
            self.every == 1 || self.target == Target::Block,
            "every",
            self.every,
            "1 with target = \"mixer\"; the outputs of several layers as one are compared with target = \"block\"",
        )?;
        within(0.0..=1.0, "sequential", self.sequential)?;
        within(0.0..=1.0, "window_dropout", self.window_dropout)
    }

    /// Mistakes add up over the student's own hidden states.
    fn changes_loss(&self, at: StageStep) -> bool {
        at.begins_last(self.sequential)
    }

    fn window_dropout(&self) -> f64 {
        self.window_dropout
    }

    fn reached(&self) -> &'static [Part] {
        match self.target {
            Target::Mixer => &[Part::Mixer, Part::Norm],
            Target::Block => &[Part::Mixer, Part::Norm, Part::Mlp],
        }
    }

    /// Layers that keep the teacher's mixer start at distance zero, where the gradient is zero too. In a group with
    /// others they learn with these.
    fn idle_layers(
        &self,
        teacher: &NetworkConfig,
        student: &NetworkConfig,
    ) -> Result<Vec<usize>, Untrainable> {
        let kept = layers::idle(teacher, student, |_, _| Ok(()))?;
        let layers: Vec<usize> = (0..student.mixers.len()).collect();
        let groups = layers.chunks(self.every);
        let idle = groups.filter(|group| group.iter().all(|layer| kept.contains(layer)));
        Ok(idle.flatten().copied().collect())
    }

    fn layers_at_once(&self, _layers: usize) -> usize {
        self.every
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

    fn shares_teacher(&self, other: &Self) -> bool {
        (self.target, self.every) == (other.target, other.every)
    }

    fn pass<B: TrainBackend>(
        learners: &mut [Learner<'_, Self, B>],
        teacher: &Phi<B::InnerBackend>,
        batch: TokenBatch<B>,
        at: StageStep,
    ) -> Vec<Tensor<B::InnerBackend, 1>> {
        let device = batch.ids.device();
        let (documents, of_student) = (batch.documents.clone(), batch.documents_of_student());
        // As all of them have it.
        let Self { target, every, .. } = *learners[0].stage;
        let walk = |learner| Walk::begin(learner, &batch, at);
        let mut walks: Vec<_> = learners.iter_mut().map(walk).collect();
        let mut x_bld = teacher.backbone.embedding.forward(batch.ids.clone());
        let groups = teacher.backbone.layers.chunks(every);
        let last = groups.len() - 1;
        for (number, teachers) in groups.enumerate() {
            let entering_bld = x_bld.clone();
            let target_bld = match target {
                // The last layer's output is not needed.
                Target::Mixer if number == last => {
                    teachers[0].mixer_output((x_bld.clone(), &documents))
                }
                Target::Mixer => {
                    let outputs = teachers[0].forward_tapped((x_bld, &documents), false);
                    x_bld = outputs.hidden_state;
                    outputs.mixer_output
                }
                Target::Block => {
                    x_bld = through(teachers, x_bld, &documents);
                    x_bld.clone()
                }
            };
            let group = Group {
                number,
                is_last: number == last,
                teachers,
                entering_bld,
                target_bld,
                documents: &documents,
                of_student: &of_student,
            };
            for walk in &mut walks {
                walk.pass(&group);
            }
        }
        let losses = walks.into_iter().map(|walk| walk.losses);
        losses
            .map(|losses| layers::sum_over_layers(losses, &device))
            .collect()
    }
}

/// Layers of the teacher that are compared as one.
struct Group<'a, B: TrainBackend> {
    /// Which one, from 0.
    number: usize,
    is_last: bool,
    teachers: &'a [Block<B::InnerBackend>],
    /// What they read.
    entering_bld: Tensor<B::InnerBackend, 3>,
    /// What they give.
    target_bld: Tensor<B::InnerBackend, 3>,
    documents: &'a Option<DocumentStarts<B::InnerBackend>>,
    of_student: &'a Option<DocumentStarts<B>>,
}

/// A student on its way through the layers, beside the teacher.
struct Walk<'a, 'b, B: TrainBackend> {
    learner: &'a mut Learner<'b, HiddenStates, B>,
    /// Its own hidden state, where it reads that.
    own_bld: Option<Tensor<B::InnerBackend, 3>>,
    /// Of the layers so far that have one.
    losses: Vec<Tensor<B::InnerBackend, 1>>,
}

impl<'a, 'b, B: TrainBackend> Walk<'a, 'b, B> {
    fn begin(
        learner: &'a mut Learner<'b, HiddenStates, B>,
        batch: &TokenBatch<B>,
        at: StageStep,
    ) -> Self {
        let reads_own = at.is_in_last(learner.stage.sequential);
        let own_bld = reads_own.then(|| {
            let embedding = learner.student.whole().backbone.embedding.valid();
            embedding.forward(batch.ids.clone())
        });
        Self {
            learner,
            own_bld,
            losses: vec![],
        }
    }

    /// One forward and backward pass of the student's layers of `group`.
    fn pass(&mut self, group: &Group<'_, B>) {
        let stage = self.learner.stage;
        let start = group.number * stage.every;
        let student = self.learner.student;
        let students = start..start + group.teachers.len();
        let students: Vec<_> = students.map(|number| student.layer(number)).collect();
        let teachers_bld = || group.entering_bld.clone();
        let entering_bld = self.own_bld.clone().unwrap_or_else(teachers_bld);
        let goes_on = self.own_bld.is_some() && !group.is_last;
        let mut pairs = students.iter().zip(group.teachers);
        if pairs.all(|(student, teacher)| student.mixer.is_kept_from(&teacher.mixer)) {
            if goes_on {
                let blocks: Vec<_> = students.iter().map(|block| block.valid()).collect();
                self.own_bld = Some(through(&blocks, entering_bld, group.documents));
            }
            return;
        }
        let entering_bld = Tensor::from_inner(entering_bld);
        let output_bld = match stage.target {
            Target::Mixer if goes_on => {
                let outputs = students[0].forward_tapped((entering_bld, group.of_student), false);
                self.own_bld = Some(outputs.hidden_state.inner());
                outputs.mixer_output
            }
            Target::Mixer => students[0].mixer_output((entering_bld, group.of_student)),
            Target::Block => {
                let output_bld = through(students.iter().copied(), entering_bld, group.of_student);
                if goes_on {
                    self.own_bld = Some(output_bld.clone().inner());
                }
                output_bld
            }
        };
        let loss = hidden_state_loss(output_bld, Tensor::from_inner(group.target_bld.clone()));
        let reached = loss.backward();
        for student in students {
            self.learner.gradients.add::<B, _>(student, &reached);
        }
        self.losses.push(loss.inner());
    }
}

/// The output of `blocks` in a row.
fn through<'a, B: KernelBackend>(
    blocks: impl IntoIterator<Item = &'a Block<B>>,
    x_bld: Tensor<B, 3>,
    documents: &Option<DocumentStarts<B>>,
) -> Tensor<B, 3> {
    (blocks.into_iter()).fold(x_bld, |x_bld, block| block.forward((x_bld, documents)))
}
