//! Hidden-state alignment (stage 2 of the paper, section 4): each layer's output against the teacher's.
//!
//! # What a layer reads
//!
//! As published, every layer of the student reads the teacher's hidden state, so that no layer is affected by the
//! errors of another. In use, a layer reads the student's own hidden state, with the errors of all layers before it.
//! The last steps of a stage can train for that (`sequential`): layer `i` then reads the output of the student's layer
//! `i - 1`, the first layer reads the student's embedding, and the target of layer `i` is still the output of the
//! teacher's layer `i` on the teacher's own hidden state.
//!
//! In both cases the input of a layer is a constant for it: no gradient passes from a layer to the one before it, and
//! the loss of a layer trains only this layer. If gradients did pass, the first layers would learn from the sum of all
//! later losses, each a norm with its own scale, and would compensate for layers that are not trained yet. The stage of
//! predictions does that, with a loss that weights errors by their effect. And the graph of all layers would be in
//! memory at the same time.
//!
//! # Several layers as one
//!
//! With `every = n`, the layers are divided into groups of `n` consecutive blocks; the last group may be smaller. The
//! student's blocks of a group, each on the output of the one before, are compared at their end with the teacher's.
//! Gradients pass through all blocks of a group, and end at the input of its first block. This is only possible for
//! blocks (`target = "block"`): the output of a mixer does not contain the output of the layers before it.

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

/// The loss between outputs of mixers or of blocks: the L2 norm of the difference, the mean over tokens, and the sum
/// over layers or groups.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HiddenStates {
    /// Which outputs are compared.
    pub target: Target,
    /// The number of blocks in a group; 1 compares each layer.
    pub every: usize,
    /// Share of the steps, the last ones, in which every layer reads the student's own hidden state.
    pub sequential: f64,
    /// Share of the sequences of a batch in which the window's attention adds nothing to the student's mixers. Needs a
    /// student with such attention.
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

/// Which outputs are compared. In parallel blocks, both choices have the same loss as long as everything but the mixers
/// is the teacher's. In sequential blocks, the MLP reads the mixer's output, and the two losses always differ.
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

    /// From this step on, errors accumulate over the student's own hidden states.
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

    /// Layers that keep the teacher's mixer have distance zero and gradient zero from the start. In a group with other
    /// layers they train too.
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

    /// All of the teacher's layers except the last MLP, and three times the student's mixers.
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
        // These options are the same for all learners.
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

/// Consecutive layers of the teacher that are compared together.
struct Group<'a, B: TrainBackend> {
    /// The number of the group, from 0.
    number: usize,
    is_last: bool,
    teachers: &'a [Block<B::InnerBackend>],
    /// Their input.
    entering_bld: Tensor<B::InnerBackend, 3>,
    /// Their output.
    target_bld: Tensor<B::InnerBackend, 3>,
    documents: &'a Option<DocumentStarts<B::InnerBackend>>,
    of_student: &'a Option<DocumentStarts<B>>,
}

/// A student while it is computed layer by layer together with the teacher.
struct Walk<'a, 'b, B: TrainBackend> {
    learner: &'a mut Learner<'b, HiddenStates, B>,
    /// The student's own hidden state, if layers read that.
    own_bld: Option<Tensor<B::InnerBackend, 3>>,
    /// The losses of the layers so far that have a loss.
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

/// The output of consecutive `blocks`.
fn through<'a, B: KernelBackend>(
    blocks: impl IntoIterator<Item = &'a Block<B>>,
    x_bld: Tensor<B, 3>,
    documents: &Option<DocumentStarts<B>>,
) -> Tensor<B, 3> {
    (blocks.into_iter()).fold(x_bld, |x_bld, block| block.forward((x_bld, documents)))
}
