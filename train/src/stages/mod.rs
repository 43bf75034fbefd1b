//! The kinds of stage, one in a file, which holds all that is known of this kind.
//!
//! A stage is an entry of a run's list. What all entries have (tokens, batch, learning rates, schedule) is
//! in [`StageConfig`](crate::config::StageConfig); what makes a kind is a [`Stage`]: its options, its pass,
//! the parts of the student that its loss reaches, the layers that it cannot train, its arithmetic, and the
//! words of its row and its panel in the report. [`Kind`] is the list of them: a new kind is a file here, a
//! line in that list, and a stage in a preset.
//!
//! A pass gets a batch, the teacher, a student or several of them and the number of its step, and gives each one's
//! gradients and loss; it knows no files, no clock and no schedule. The teacher computes once what all students of the
//! pass are compared with. In the kinds that compare layer by layer every layer of the student reads the
//! teacher's hidden state, unless an option says otherwise. Teacher and students walk through the layers side by side,
//! and a layer's graph and matrices are freed before the pass makes the next layer's.

mod arithmetic;
mod body;
pub(crate) mod head;
pub mod hidden_states;
mod layers;
pub mod mixing_matrices;
mod parts;
pub mod predictions;
mod student;
mod window_dropout;

use std::fmt;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use kernels::{DocumentStarts, KernelBackend, TopClasses, TrainBackend, likeliest};
use model::{NetworkConfig, Part, Phi, TokenRows};
use serde::{Deserialize, Serialize};

pub use arithmetic::Arithmetic;
pub use layers::Untrainable;
pub use parts::{Rates, in_dtype, on_graph_of_its_own, parts_of, train_parts};
pub use student::{Parts, PassStudent};
pub(crate) use window_dropout::left_out;

use crate::gradients::Sink;
use crate::limits::OutOfRange;
use crate::teacher_cache::TopK;

/// Token ids and, for each, the one that follows: both `[b, l]`.
#[derive(Debug, Clone)]
pub struct TokenBatch<B: TrainBackend> {
    /// What both networks read.
    pub ids: Tensor<B::InnerBackend, 2, Int>,
    /// The next tokens, for hard labels. Below 0 for a token that ends its document, after which none follows.
    pub labels: Tensor<B::InnerBackend, 2, Int>,
    /// Whether there are such tokens.
    pub has_ends: bool,
    /// The documents of the rows, where some row has several that are apart.
    pub documents: Option<DocumentStarts<B::InnerBackend>>,
}

impl<B: TrainBackend> TokenBatch<B> {
    /// What the teacher reads.
    pub fn tokens(&self) -> TokenRows<B::InnerBackend> {
        TokenRows {
            ids: self.ids.clone(),
            documents: self.documents.clone(),
        }
    }

    /// The documents, for the student.
    pub fn documents_of_student(&self) -> Option<DocumentStarts<B>> {
        self.documents.clone().map(DocumentStarts::from_inner)
    }
}

/// Where in its stage a pass is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageStep {
    /// The optimizer step, from 0.
    pub number: usize,
    /// The steps of the stage.
    pub of: usize,
}

impl StageStep {
    /// Whether the step is among the last, which are this share of the stage, rounded to whole steps.
    pub fn is_in_last(self, share: f64) -> bool {
        let last = (share * self.of as f64).round() as usize;
        self.of.saturating_sub(self.number) <= last
    }

    /// Whether the step is the first of those, and others came before it.
    pub fn begins_last(self, share: f64) -> bool {
        let number = self.number.checked_sub(1);
        let before = number.map(|number| Self { number, ..self });
        self.is_in_last(share) && before.is_some_and(|before| !before.is_in_last(share))
    }
}

/// A student of a pass.
pub struct Learner<'a, S, B: TrainBackend> {
    /// The stage's options for it.
    pub stage: &'a S,
    /// The student.
    pub student: &'a PassStudent<'a, B>,
    /// What takes its gradients.
    pub gradients: &'a mut dyn Sink<B::InnerBackend>,
}

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

/// Makes [`Kind`] of a list of names and [`Stage`]s.
macro_rules! kinds {
    ($($name:literal => $module:ident::$kind:ident),+ $(,)?) => {
        /// A kind of stage and its options; [`Stage`] says what the methods return.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind")]
        #[allow(missing_docs)]
        pub enum Kind {
            $(#[serde(rename = $name)] $kind($module::$kind)),+
        }

        impl Kind {
            /// The names of all kinds, as `kind` in a configuration.
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            /// The kind called `name`, with its defaults.
            pub fn named(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$kind(Default::default())),)+
                    _ => None,
                }
            }

            /// The kind's name.
            pub fn name(&self) -> &'static str {
                match self { $(Self::$kind(_) => $name),+ }
            }

            /// [`Stage::DESCRIPTION`].
            pub fn description(&self) -> Description {
                match self { $(Self::$kind(_) => $module::$kind::DESCRIPTION),+ }
            }

            /// [`Stage::TRAINS`].
            pub fn trains(&self) -> &'static [Part] {
                match self { $(Self::$kind(_) => $module::$kind::TRAINS),+ }
            }

            /// [`Stage::CHOICES`].
            pub fn choices(&self) -> Choices {
                match self { $(Self::$kind(_) => $module::$kind::CHOICES),+ }
            }

            /// [`Stage::validate`].
            ///
            /// # Errors
            /// As there.
            pub fn validate(&self) -> Result<(), OutOfRange> {
                match self { $(Self::$kind(stage) => stage.validate()),+ }
            }

            /// [`Stage::changes_loss`].
            pub fn changes_loss(&self, at: StageStep) -> bool {
                match self { $(Self::$kind(stage) => stage.changes_loss(at)),+ }
            }

            /// [`Stage::window_dropout`].
            pub fn window_dropout(&self) -> f64 {
                match self { $(Self::$kind(stage) => stage.window_dropout()),+ }
            }

            /// [`Stage::reached`].
            pub fn reached(&self) -> &'static [Part] {
                match self { $(Self::$kind(stage) => stage.reached()),+ }
            }

            /// [`Stage::idle_layers`].
            ///
            /// # Errors
            /// As there.
            pub fn idle_layers(
                &self,
                teacher: &NetworkConfig,
                student: &NetworkConfig,
            ) -> Result<Vec<usize>, Untrainable> {
                match self { $(Self::$kind(stage) => stage.idle_layers(teacher, student)),+ }
            }

            /// [`Stage::layers_at_once`].
            pub fn layers_at_once(&self, layers: usize) -> usize {
                match self { $(Self::$kind(stage) => stage.layers_at_once(layers)),+ }
            }

            /// [`Stage::arithmetic`].
            pub fn arithmetic(
                &self,
                l: usize,
                teacher: &NetworkConfig,
                student: &NetworkConfig,
            ) -> Arithmetic {
                match self { $(Self::$kind(stage) => stage.arithmetic(l, teacher, student)),+ }
            }

            /// [`Stage::shares_teacher`]; false for another kind.
            pub fn shares_teacher(&self, other: &Self) -> bool {
                match (self, other) {
                    $((Self::$kind(own), Self::$kind(other)) => own.shares_teacher(other),)+
                    _ => false,
                }
            }

            /// [`Stage::pass`] of one student: gives `gradients` its gradients, and returns the loss, `[1]`.
            pub fn pass<B: TrainBackend>(
                &self,
                student: &PassStudent<'_, B>,
                teacher: &Phi<B::InnerBackend>,
                batch: TokenBatch<B>,
                at: StageStep,
                gradients: &mut dyn Sink<B::InnerBackend>,
            ) -> Tensor<B::InnerBackend, 1> {
                let learner = Learner { stage: self, student, gradients };
                Self::pass_together(vec![learner], teacher, batch, at).swap_remove(0)
            }

            /// [`Stage::pass`].
            ///
            /// # Panics
            /// If the stages of `learners` do not [share the teacher](Self::shares_teacher).
            pub fn pass_together<B: TrainBackend>(
                learners: Vec<Learner<'_, Self, B>>,
                teacher: &Phi<B::InnerBackend>,
                batch: TokenBatch<B>,
                at: StageStep,
            ) -> Vec<Tensor<B::InnerBackend, 1>> {
                let Some(first) = learners.first() else {
                    return vec![];
                };
                let first = first.stage;
                let shares = |learner: &Learner<'_, Self, B>| first.shares_teacher(learner.stage);
                assert!(learners.iter().all(shares), "stages that do not share the teacher");
                match first {
                    $(Self::$kind(_) => {
                        let learners = learners.into_iter().filter_map(|learner| {
                            let Learner { stage, student, gradients } = learner;
                            match stage {
                                Self::$kind(stage) => Some(Learner { stage, student, gradients }),
                                _ => None,
                            }
                        });
                        let mut learners: Vec<_> = learners.collect();
                        $module::$kind::pass(&mut learners, teacher, batch, at)
                    }),+
                }
            }

            /// [`Stage::teacher_cache`].
            pub fn teacher_cache(&self) -> &str {
                match self { $(Self::$kind(stage) => stage.teacher_cache()),+ }
            }

            /// [`Stage::teacher_cache_mut`].
            pub fn teacher_cache_mut(&mut self) -> Option<&mut String> {
                match self { $(Self::$kind(stage) => stage.teacher_cache_mut()),+ }
            }

            /// [`Stage::cached_ids`].
            pub fn cached_ids(&self) -> usize {
                match self { $(Self::$kind(stage) => stage.cached_ids()),+ }
            }

            /// [`Stage::cached_pass`].
            ///
            /// # Panics
            /// As there.
            pub fn cached_pass<B: TrainBackend>(
                &self,
                student: &PassStudent<'_, B>,
                teacher: TopClasses<B::InnerBackend>,
                batch: TokenBatch<B>,
                gradients: &mut dyn Sink<B::InnerBackend>,
            ) -> Tensor<B::InnerBackend, 1> {
                match self { $(Self::$kind(stage) => stage.cached_pass(student, teacher, batch, gradients)),+ }
            }

            /// [`Stage::cached_floor`].
            pub fn cached_floor(&self, entropy: f64) -> Option<f64> {
                match self { $(Self::$kind(stage) => stage.cached_floor(entropy)),+ }
            }
        }
    };
}

kinds! {
    "matrices" => mixing_matrices::Matrices,
    "hidden_states" => hidden_states::HiddenStates,
    "predictions" => predictions::Predictions,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The teacher's part of knowledge distillation alone: its logits for `ids [b, l]`, made as there and dropped.
pub fn teacher_alone<B: KernelBackend>(teacher: &Phi<B>, ids: Tensor<B, 2, Int>) {
    let features = teacher.features(ids);
    let [b, l, _] = features.dims();
    let block = head::block(b * l, teacher.vocab_size(), features.dtype());
    head::forward(&teacher.head(), features, block, |_, logits| {
        drop(logits);
    });
}

/// The same, of which the `k` likeliest ids of each token are kept.
pub(crate) fn top_of_teacher<B: KernelBackend>(
    teacher: &Phi<B>,
    ids: Tensor<B, 2, Int>,
    k: usize,
) -> TopK {
    let (features, v) = (teacher.features(ids), teacher.vocab_size());
    // All is on its way before the first is waited for.
    let mut blocks = vec![];
    let block = head::block_in_f32(v);
    head::forward(&teacher.head(), features, block, |_, logits_nv| {
        blocks.push(likeliest(logits_nv, k));
    });
    let mut all = TopK::default();
    for block in blocks {
        all.append(TopK::read(block));
    }
    all
}

/// The sum of one element for each layer that has a loss; zero if none has.
fn sum_over_layers<B: Backend>(losses: Vec<Tensor<B, 1>>, device: &B::Device) -> Tensor<B, 1> {
    if losses.is_empty() {
        Tensor::zeros([1], device)
    } else {
        Tensor::cat(losses, 0).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a configuration says and what the kind says of itself are the same words.
    #[test]
    fn kinds_and_their_options_read_back() {
        for name in Kind::NAMES {
            let kind = Kind::named(name).expect("a kind");
            assert_eq!(kind.name(), *name);
            kind.validate().expect("defaults in their ranges");
            assert!(
                kind.trains()
                    .iter()
                    .all(|part| kind.reached().contains(part)),
                "{name} trains what its loss does not reach"
            );
            let table = toml::Table::try_from(&kind).expect("a table");
            assert_eq!(table["kind"].as_str(), Some(*name));
            assert_eq!(table.clone().try_into::<Kind>().unwrap(), kind);
            for (key, words) in kind.choices() {
                for word in words.iter().chain(&["nonsense"]) {
                    let mut table = table.clone();
                    table.insert((*key).into(), (*word).into());
                    let taken = table.try_into::<Kind>().is_ok();
                    assert_eq!(taken, *word != "nonsense", "{name}: {key} = {word}");
                }
            }
        }
        assert_eq!(Kind::named("logits"), None);
    }

    #[test]
    fn the_last_steps_are_a_share_of_all() {
        let last = |share, of| {
            let steps = (0..of).filter(|&number| StageStep { number, of }.is_in_last(share));
            steps.collect::<Vec<_>>()
        };
        assert_eq!(last(0.0, 4), [0usize; 0]);
        assert_eq!(last(0.25, 8), [6, 7]);
        assert_eq!(last(0.3, 5), [3, 4]);
        assert_eq!(last(0.1, 4), [0usize; 0]);
        assert_eq!(last(1.0, 3), [0, 1, 2]);
        let begins = |share, of| {
            let mut steps = (0..of).map(|number| StageStep { number, of });
            steps.find(|step| step.begins_last(share))
        };
        assert_eq!(begins(0.25, 8), Some(StageStep { number: 6, of: 8 }));
        assert_eq!(begins(0.0, 4), None);
        assert_eq!(begins(1.0, 3), None);
    }
}
