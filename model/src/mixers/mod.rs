//! What mixes the tokens of a layer: softmax attention, state-space mixers, and what a layer may hold next.
//!
//! A mixer is one folder. It holds four types, each with a trait of this module that says what it answers:
//! its options ([`MixerOptions`]), its parameters and computation ([`TokenMixer`]), its state in decoding
//! ([`DecodingState`]), and the states of the rows of a batch ([`StateRows`]). The list at the end of this
//! file makes the enums [`MixerConfig`], [`Mixer`], [`MixerState`] and [`MixerRows`] of them: a new mixer is
//! a folder, its `mod` line, and one entry of that list. Nothing outside this folder asks which mixer a layer has,
//! but for the families that write its options into their files.

// Of `Mixer` and of its record: handles of tensors, of which a network has some dozens.
#![allow(clippy::large_enum_variant)]

pub mod attention;
pub mod beside_attention;
pub mod discrete_mamba2;
pub mod low_rank;
mod rotary;
mod state_tensors;
mod student;
pub mod toeplitz;

use std::fmt::Debug;
use std::ops::{Deref, DerefMut};

use burn::module::Module;
use burn::tensor::backend::{Backend, ExecutionError};
use burn::tensor::{Tensor, TensorData};
use kernels::{AttentionParts, KernelBackend, TransferParts, Window};
use serde::Serialize;
use serde_json::Value;

use self::attention::{Attention, AttentionConfig, KvCache, KvCaches};
use self::beside_attention::{BesideAttention, BesideAttentionConfig, BesideRows, BesideState};
use self::discrete_mamba2::{DiscreteMamba2, DiscreteMamba2Config, Mamba2Rows, Mamba2State};
use self::low_rank::{LowRank, LowRankConfig, LowRankRows, LowRankState};
use self::toeplitz::{Toeplitz, ToeplitzConfig, ToeplitzRows, ToeplitzState};
use crate::config_error::ConfigError;
use crate::init::Init;
use crate::layers::Linear;
use crate::sequences::Sequences;

pub use rotary::{RopeScaling, rotary_frequencies};
pub(crate) use state_tensors::state_name;
pub use state_tensors::{StateError, StateTensors};
pub use student::StudentMixer;

/// Bytes of a number in f32.
pub(crate) const F32: usize = 4;

/// What the options of a mixer answer: the questions that need no parameters and no device.
pub trait MixerOptions: Debug {
    /// What programs call the kind of mixer, such as `attention`.
    fn kind(&self) -> &'static str;

    /// That the sizes fit together in a network `d_model` wide.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the values at odds.
    fn validate(&self, d_model: usize) -> Result<(), ConfigError>;

    /// Heads of the output, each with its own mixing matrix.
    fn n_heads(&self) -> usize;

    /// The mixer in a few words, such as `attention, 32 heads of 64, 32 of keys and values`.
    fn describe(&self, d_model: usize) -> String;

    /// The options as JSON, under the keys of published configurations.
    fn to_json(&self) -> Value;

    /// What the state of one sequence takes in f32, without overflow for sizes that
    /// [`validate`](Self::validate) accepts.
    fn state_size(&self, d_model: usize) -> StateSize;

    /// Floating-point operations of the forward pass for one token of a sequence of `l`, an addition and a
    /// multiplication counting as two. The average over the sequence: of attention, half of the keys.
    fn operations(&self, d_model: usize, l: usize) -> f64;

    /// The same for what [`kernels::mixing_distance`] computes of the mixing matrix.
    fn matrix_operations(&self, d_model: usize, l: usize) -> MatrixOperations;

    /// Whether the mixing matrix can be the student's in [`kernels::mixing_distance`]: whether
    /// [`TokenMixer::transfer_parts`] gives anything.
    fn has_transfer_parts(&self) -> bool {
        false
    }

    /// Whether the student's mixing matrix is compared as a whole, since it has no such factors: with
    /// [`crate::mohawk::matrix_orientation_loss`] of [`TokenMixer::mixing_matrix`], which holds the matrices of a layer.
    fn has_whole_matrix(&self) -> bool {
        false
    }

    /// The options of the discrete Mamba-2 in it, to be changed.
    fn mamba_mut(&mut self) -> Option<&mut DiscreteMamba2Config> {
        None
    }

    /// Whether it can be the teacher's there: whether [`TokenMixer::attention_parts`] gives anything.
    fn has_attention_parts(&self) -> bool {
        false
    }
}

/// Floating-point operations of a mixing matrix, for one token.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MatrixOperations {
    /// Of the projections that give its factors.
    pub projections: f64,
    /// Of its entries, of which half are below the diagonal.
    pub scores: f64,
}

/// Bytes of the decoding state of one sequence in f32: `fixed + per_token * tokens`.
///
/// In half precision, recurrent states stay in f32, while convolutions' windows and cached keys and values
/// may take half of what is said here. Sums saturate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct StateSize {
    /// Whatever the length of the sequence.
    pub fixed: usize,
    /// For each token that was read.
    pub per_token: usize,
}

impl StateSize {
    /// Bytes after `tokens` tokens.
    pub fn bytes(self, tokens: usize) -> usize {
        let growing = self.per_token.saturating_mul(tokens);
        self.fixed.saturating_add(growing)
    }

    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            fixed: self.fixed.saturating_add(other.fixed),
            per_token: self.per_token.saturating_add(other.per_token),
        }
    }

    /// `n` of them.
    pub fn times(self, n: usize) -> Self {
        Self {
            fixed: self.fixed.saturating_mul(n),
            per_token: self.per_token.saturating_mul(n),
        }
    }
}

/// What the mixer of a layer computes. Letters in shapes: b sequences, l tokens, h heads.
pub trait TokenMixer<B: KernelBackend>: Debug {
    /// What decoding `batch` sequences starts from.
    fn new_state(&self, batch: usize, device: &B::Device) -> MixerState<B>;

    /// The states of `rows` sequences that decode together, all free.
    fn new_rows(&self, rows: usize, device: &B::Device) -> MixerRows<B>;

    /// The state of one sequence of `position` tokens, from what [`DecodingState::tensors`] gave.
    ///
    /// # Errors
    /// [`StateError`] for the first tensor that is not what this mixer needs.
    fn state_from_tensors(
        &self,
        position: usize,
        tensors: &mut StateTensors<'_>,
        device: &B::Device,
    ) -> Result<MixerState<B>, StateError>;

    /// The projections that read the layer's normalised input, in the order in which [`step`](Self::step)
    /// takes their outputs.
    fn entries(&self) -> Vec<&Linear<B>>;

    /// Every projection, for packing.
    fn linears_mut(&mut self) -> Vec<&mut Linear<B>>;

    /// Turns several projections of the same input into one product, where the mixer has such: faster on a
    /// GPU. A mixer after that can be neither cast nor packed, trained nor saved.
    fn fuse_projections(&mut self) {}

    /// `u [b, l, d_model]` to the same shape, from an empty state.
    fn forward(&self, u: Tensor<B, 3>) -> Tensor<B, 3> {
        self.forward_of(u.into())
    }

    /// [`forward`](Self::forward) of rows that may hold several documents, each of which gives what it gives alone: no
    /// token reads what came before the first of its document, and positions count from there.
    fn forward_of(&self, sequences: Sequences<B>) -> Tensor<B, 3>;

    /// `residual + forward_of(sequences)`, all `[b, l, d_model]`.
    fn forward_onto(&self, residual: Tensor<B, 3>, sequences: Sequences<B>) -> Tensor<B, 3>;

    /// The matrix `T [b, h, l, l]` with which each head mixes the tokens of `u [b, l, d_model]`; zero above
    /// the diagonal, and in f32 for half-precision input.
    fn mixing_matrix(&self, u: Tensor<B, 3>) -> Tensor<B, 4> {
        self.mixing_matrix_of(u.into())
    }

    /// [`mixing_matrix`](Self::mixing_matrix) of rows that may hold several documents: zero between these.
    fn mixing_matrix_of(&self, sequences: Sequences<B>) -> Tensor<B, 4>;

    /// [`forward_of`](Self::forward_of) and [`mixing_matrix_of`](Self::mixing_matrix_of), shared work done once. The
    /// plain form, for tests and tools: training does without the matrix.
    fn forward_with_matrix(&self, sequences: Sequences<B>) -> (Tensor<B, 3>, Tensor<B, 4>) {
        let matrix = self.mixing_matrix_of(sequences.clone());
        (self.forward_of(sequences), matrix)
    }

    /// The factors of the mixing matrix where it is a state-space one, for [`kernels::mixing_distance`].
    fn transfer_parts(&self, u: Tensor<B, 3>) -> Option<TransferParts<B>> {
        self.transfer_parts_of(u.into())
    }

    /// [`transfer_parts`](Self::transfer_parts) of rows that may hold several documents.
    fn transfer_parts_of(&self, _sequences: Sequences<B>) -> Option<TransferParts<B>> {
        None
    }

    /// The factors of the mixing matrix where it is softmax attention, for [`kernels::mixing_distance`].
    fn attention_parts(&self, u: Tensor<B, 3>) -> Option<AttentionParts<B>> {
        self.attention_parts_of(u.into())
    }

    /// [`attention_parts`](Self::attention_parts) of rows that may hold several documents.
    fn attention_parts_of(&self, _sequences: Sequences<B>) -> Option<AttentionParts<B>> {
        None
    }

    /// [`forward_of`](Self::forward_of) and [`attention_parts_of`](Self::attention_parts_of), shared work done once.
    fn forward_with_attention_parts(
        &self,
        sequences: Sequences<B>,
    ) -> (Tensor<B, 3>, Option<AttentionParts<B>>) {
        (self.forward_of(sequences), None)
    }

    /// `u [b, l, d_model]`, the tokens after those that `state` holds, to the same shape; `state` then holds
    /// them too. Any split of a sequence, down to single tokens, gives the outputs and the state of the whole.
    ///
    /// # Panics
    /// If `state` is that of another kind of mixer.
    fn prefill(&self, u: Tensor<B, 3>, state: &mut MixerState<B>) -> Tensor<B, 3>;

    /// What stands between the projections for one token after those that `state` holds: from the outputs of
    /// [`entries`](Self::entries), `[b, d]` each.
    ///
    /// # Panics
    /// If `state` is that of another kind of mixer.
    fn step(&self, projected: Vec<Tensor<B, 2>>, state: &mut MixerState<B>) -> StepOutput<'_, B>;

    /// [`step`](Self::step) for the rows of a batch, each at its own position. What a row gives that is not
    /// `occupied` has no meaning.
    ///
    /// # Panics
    /// If `rows` are those of another kind of mixer.
    fn step_rows(
        &self,
        projected: Vec<Tensor<B, 2>>,
        rows: &mut MixerRows<B>,
        occupied: &[bool],
    ) -> StepOutput<'_, B>;

    /// Whether each [`step`](Self::step) makes the same launches on the same memory, however many tokens were read
    /// before, and so does each [`step_rows`](Self::step_rows), whichever rows are occupied. A state that counts tokens
    /// must then have [`set_position`](DecodingState::set_position); rows may not count, as a step that a device has
    /// repeated does not.
    fn repeats_its_steps(&self) -> bool {
        false
    }

    /// How many [steps](Self::step) from `_state` on make the same launches on the same memory: all of them where the mixer
    /// [`repeats_its_steps`](Self::repeats_its_steps), and otherwise none, or as many as a cache has room for.
    fn steps_alike(&self, _state: &MixerState<B>) -> usize {
        if self.repeats_its_steps() {
            usize::MAX
        } else {
            0
        }
    }

    /// The discrete Mamba-2 in it, whose parameters an initialisation sets.
    fn mamba(&self) -> Option<&DiscreteMamba2<B>> {
        None
    }

    /// The same, to be changed.
    fn mamba_mut(&mut self) -> Option<&mut DiscreteMamba2<B>> {
        None
    }

    /// The softmax attention in it.
    fn softmax(&self) -> Option<&Attention<B>> {
        None
    }

    /// From now on its attention sees no more than `_window`: an attention whose own window has as many last tokens or
    /// fewer stays as it is. Whether there is attention in it.
    fn narrow_attention(&mut self, _window: Window) -> bool {
        false
    }

    /// From now on its attention adds nothing, not even a bias. Whether there is attention in it. The mixer can then
    /// be neither trained nor saved.
    fn silence_attention(&mut self) -> bool {
        false
    }

    /// From now on its state-space mixer adds nothing, not even a bias. Whether there is one in it. The mixer can then
    /// be neither trained nor saved.
    fn silence_ssm(&mut self) -> bool {
        false
    }

    /// From now on the state of its state-space mixer is emptied before each token whose position is a multiple of
    /// `_tokens`. The window of its convolution stays, and positions count on. Whether there is such a mixer in it. For inference: [`mixing_matrix`](Self::mixing_matrix) and its factors stay those of the whole sequence.
    fn reset_state_every(&mut self, _tokens: usize) -> bool {
        false
    }

    /// From now on its attention within a window, where it stands beside a state-space mixer and is added to it, adds
    /// nothing to the rows of a batch for which `_rows` says so; none of them says so of an empty list. Whether there is
    /// such attention. For [`forward`](Self::forward) and [`forward_onto`](Self::forward_onto), on batches of as many
    /// rows: in training, so that the state-space mixer learns to do without.
    fn leave_out_window(&mut self, _rows: &[bool]) -> bool {
        false
    }

    /// Whether its output is the state-space mixer's and what attention adds to it, and nothing comes between.
    fn is_sum(&self) -> bool {
        true
    }

    /// Copies the teacher's attention, `_theirs`, into the attention beside a state-space mixer: the heads that this
    /// mixer keeps.
    fn take_over(&mut self, _theirs: &Attention<B>) {}

    /// What attention beside a state-space mixer adds to the context of each of the teacher's `heads` heads, of
    /// `u [b, l, d_model]`: `[b, l, heads, p]`; `None` where it adds to none of them.
    fn added_context(&self, _u: Tensor<B, 3>, _heads: usize) -> Option<Tensor<B, 4>> {
        None
    }

    /// What it adds to the mixer's output, `[b, l, d_model]`.
    fn added_output(&self, _u: Tensor<B, 3>) -> Option<Tensor<B, 3>> {
        None
    }
}

/// What a mixer adds to the residual stream in a step of decoding.
pub struct StepOutput<'a, B: Backend> {
    /// Vectors `[b, d]`, and the projection that takes each to the residual stream.
    pub through: Vec<(Tensor<B, 2>, &'a Linear<B>)>,
    /// `[b, d_model]`, added as it is.
    pub plain: Option<Tensor<B, 2>>,
}

impl<'a, B: Backend> StepOutput<'a, B> {
    /// `y [b, d]` through one projection.
    pub fn through(y: Tensor<B, 2>, linear: &'a Linear<B>) -> Self {
        Self {
            through: vec![(y, linear)],
            plain: None,
        }
    }
}

/// What a mixer carries from one token to the next, for one batch of sequences of one length.
pub trait DecodingState {
    /// Bytes that its tensors hold.
    fn bytes(&self) -> usize;

    /// Bytes that a step reads and writes.
    fn step_traffic(&self) -> usize;

    /// Counts the tokens read so far as `_position`, where they are counted: a step that a device has repeated was not
    /// counted, and one that was taken again to be recorded was counted twice. Needed where there are [`TokenMixer::steps_alike`].
    fn set_position(&mut self, _position: usize) {}

    /// Its tensors with their names within the layer, such as `ssm`; none before the first token where the
    /// state is then empty.
    ///
    /// # Errors
    /// The backend's, if they cannot be read from the device.
    fn tensors(&self) -> Result<Vec<(&'static str, TensorData)>, ExecutionError>;
}

/// The states of sequences that decode together, one a row, each at its own position.
pub trait StateRows<B: Backend>: Debug {
    /// Puts the state of one sequence into `row`, over what was there.
    ///
    /// # Panics
    /// If there is no such row, or `state` is that of another kind of mixer or of several sequences.
    fn put(&mut self, row: usize, state: MixerState<B>);

    /// Forgets what is in `row`, if that frees memory.
    ///
    /// # Panics
    /// If there is no such row.
    fn free(&mut self, row: usize);

    /// Bytes that its tensors hold, those of free rows included.
    fn bytes(&self) -> usize;
}

/// Bytes that `x` holds.
fn bytes_of<B: Backend, const D: usize>(x: &Tensor<B, D>) -> usize {
    x.shape().num_elements() * x.dtype().size()
}

/// Makes the four enums, and gives each the methods of its trait.
macro_rules! mixers {
    ($($(#[$doc:meta])* $kind:ident: $mixer:ident, $config:ident, $state:ident, $rows:ident;)*) => {
        /// The mixer of a layer, with its parameters. Its methods are those of [`TokenMixer`].
        #[derive(Module, Debug)]
        pub enum Mixer<B: Backend> {
            $($(#[$doc])* $kind($mixer<B>),)*
        }

        /// The options of the mixer of a layer. Its methods are those of [`MixerOptions`].
        #[derive(Debug, Clone, PartialEq)]
        pub enum MixerConfig {
            $($(#[$doc])* $kind($config),)*
        }

        /// The decoding state of one mixer, for a batch of sequences of one length: what it must remember of
        /// the tokens before. Its methods are those of [`DecodingState`]; shapes and dtypes stand at each
        /// mixer's own state.
        #[derive(Debug, Clone)]
        pub enum MixerState<B: Backend> {
            $($(#[$doc])* $kind($state<B>),)*
        }

        /// The decoding states of the rows of a batch in one layer. Its methods are those of [`StateRows`].
        #[derive(Debug)]
        pub enum MixerRows<B: Backend> {
            $($(#[$doc])* $kind($rows<B>),)*
        }

        impl<B: Backend> Mixer<B> {
            pub(crate) fn new(init: &mut Init<B>, config: &MixerConfig, d_model: usize) -> Self {
                match config {
                    $(MixerConfig::$kind(config) => Self::$kind($mixer::draw(init, config, d_model)),)*
                }
            }

            /// The options it was made with.
            pub fn config(&self) -> MixerConfig {
                match self {
                    $(Self::$kind(mixer) => MixerConfig::$kind(mixer.config().clone()),)*
                }
            }
        }

        impl<B: KernelBackend> Deref for Mixer<B> {
            type Target = dyn TokenMixer<B>;

            fn deref(&self) -> &Self::Target {
                match self {
                    $(Self::$kind(mixer) => mixer,)*
                }
            }
        }

        impl<B: KernelBackend> DerefMut for Mixer<B> {
            fn deref_mut(&mut self) -> &mut Self::Target {
                match self {
                    $(Self::$kind(mixer) => mixer,)*
                }
            }
        }

        impl Deref for MixerConfig {
            type Target = dyn MixerOptions;

            fn deref(&self) -> &Self::Target {
                match self {
                    $(Self::$kind(config) => config,)*
                }
            }
        }

        impl DerefMut for MixerConfig {
            fn deref_mut(&mut self) -> &mut Self::Target {
                match self {
                    $(Self::$kind(config) => config,)*
                }
            }
        }

        impl<B: Backend> Deref for MixerState<B> {
            type Target = dyn DecodingState;

            fn deref(&self) -> &Self::Target {
                match self {
                    $(Self::$kind(state) => state,)*
                }
            }
        }

        impl<B: Backend> DerefMut for MixerState<B> {
            fn deref_mut(&mut self) -> &mut Self::Target {
                match self {
                    $(Self::$kind(state) => state,)*
                }
            }
        }

        impl<B: Backend> Deref for MixerRows<B> {
            type Target = dyn StateRows<B>;

            fn deref(&self) -> &Self::Target {
                match self {
                    $(Self::$kind(rows) => rows,)*
                }
            }
        }

        impl<B: Backend> DerefMut for MixerRows<B> {
            fn deref_mut(&mut self) -> &mut Self::Target {
                match self {
                    $(Self::$kind(rows) => rows,)*
                }
            }
        }

        $(
            impl From<$config> for MixerConfig {
                fn from(config: $config) -> Self {
                    Self::$kind(config)
                }
            }

            impl<B: Backend> $state<B> {
                /// The state that the mixer which owns this type expects.
                fn within(state: &mut MixerState<B>) -> &mut Self {
                    match state {
                        MixerState::$kind(state) => state,
                        _ => panic!("the state belongs to another network: its mixer is of another kind"),
                    }
                }
            }

            impl<B: Backend> $rows<B> {
                /// The rows that the mixer which owns this type expects.
                fn within(rows: &mut MixerRows<B>) -> &mut Self {
                    match rows {
                        MixerRows::$kind(rows) => rows,
                        _ => panic!("the batch belongs to another network: its mixer is of another kind"),
                    }
                }
            }
        )*
    };
}

mixers! {
    /// The state-space mixer that takes the place of attention.
    DiscreteMamba2: DiscreteMamba2, DiscreteMamba2Config, Mamba2State, Mamba2Rows;
    /// Softmax attention.
    Attention: Attention, AttentionConfig, KvCache, KvCaches;
    /// The state-space mixer with some attention beside it.
    BesideAttention: BesideAttention, BesideAttentionConfig, BesideState, BesideRows;
    /// A matrix of the distance alone, for comparison.
    Toeplitz: Toeplitz, ToeplitzConfig, ToeplitzState, ToeplitzRows;
    /// The causal part of a matrix of low rank, for comparison.
    LowRank: LowRank, LowRankConfig, LowRankState, LowRankRows;
}

impl MixerConfig {
    /// Whether a student's layer with this mixer is its teacher's layer: both mixers are of the same kind, so
    /// that [`transfer_weights`](crate::transfer_weights) copies the teacher's, and nothing is left to learn
    /// for a stage that compares layer with layer.
    pub fn is_kept_from(&self, teacher: &Self) -> bool {
        self.kind() == teacher.kind()
    }

    /// Whether this student's mixing matrix can be compared with the teacher's: that needs the [`TransferParts`] or
    /// the whole matrix of the one, the [`AttentionParts`] of the other, and as many heads in both.
    pub fn has_matrices_to_match(&self, teacher: &Self) -> bool {
        (self.has_transfer_parts() || self.has_whole_matrix())
            && teacher.has_attention_parts()
            && self.n_heads() == teacher.n_heads()
    }
}

impl<B: Backend> Mixer<B> {
    /// [`MixerConfig::is_kept_from`] of the mixers themselves.
    pub fn is_kept_from<T: Backend>(&self, teacher: &Mixer<T>) -> bool {
        self.config().is_kept_from(&teacher.config())
    }
}
