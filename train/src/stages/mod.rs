//! The kinds of stages. Each kind is one file, which has all that is specific to it.
//!
//! A stage is an entry of a run's list. [`StageConfig`](crate::config::StageConfig) has what all entries share (tokens,
//! batch, learning rates, schedule). A [`Stage`] defines a kind: its options, its pass, the parts of the student that
//! its loss reaches, the layers that it cannot train, its floating-point operations, and the texts for tables and for
//! the report. [`Kind`] is the list of all kinds: a new kind is a file here, a line in that list, and a stage in a
//! preset.
//!
//! A pass gets a batch, the teacher, one or several students, and the number of its step. It returns the loss of each
//! student and passes on the gradients; it knows no files, no clock and no schedule. The teacher's part of a pass is
//! computed once for all of its students. In the kinds that compare layer by layer, every layer of the student reads
//! the teacher's hidden state, unless an option changes that. Teacher and students are computed side by side, layer by
//! layer, and a layer's graph and matrices are freed before those of the next layer are computed.

mod arithmetic;
mod body;
pub(crate) mod head;
pub mod hidden_states;
mod layers;
pub mod mixing_matrices;
mod parts;
mod pass;
pub mod predictions;
mod stage;
mod student;
mod teacher;
mod window_dropout;

use std::fmt;

use burn::tensor::Tensor;
use kernels::{TopClasses, TrainBackend};
use model::{NetworkConfig, Part, Phi};
use serde::{Deserialize, Serialize};

pub use arithmetic::Arithmetic;
pub use layers::Untrainable;
pub use parts::{Rates, in_dtype, on_graph_of_its_own, parts_of, train_parts};
pub use pass::{Learner, StageStep, TokenBatch};
pub use stage::{Choices, Description, Stage};
pub use student::{Parts, PassStudent};
pub use teacher::teacher_alone;
pub(crate) use teacher::top_of_teacher;
pub(crate) use window_dropout::left_out;

use crate::gradients::Sink;
use crate::limits::OutOfRange;

/// Makes [`Kind`] from a list of names and [`Stage`]s.
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

            /// [`Stage::pass`] of one student: passes the gradients on to `gradients`, and returns the loss, `[1]`.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A kind and its options read back from a configuration to the same value.
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
}
