//! The mixers, which mix the tokens of a layer: softmax attention, state-space mixers, and others.
//!
//! Each mixer has its own folder with four types, each of which implements a trait of this module: its options
//! ([`MixerOptions`]), its parameters and computation ([`TokenMixer`]), its state in decoding ([`DecodingState`]), and
//! the states of the rows of a batch ([`StateRows`]). The list at the end of this file defines the enums
//! [`MixerConfig`], [`Mixer`], [`MixerState`] and [`MixerRows`] from these types: a new mixer is a folder, its `mod`
//! line, and one entry of that list. Code outside this folder does not depend on the kind of mixer; the only exceptions
//! are the families that write its options into their files.

// The large variants of `Mixer` and of its record hold only handles of tensors, and a network has only some dozens of
// mixers.
#![allow(clippy::large_enum_variant)]

pub mod attention;
pub mod beside_attention;
mod decoding_state;
pub mod discrete_mamba2;
pub mod low_rank;
mod options;
mod rotary;
mod state_tensors;
mod student;
pub mod toeplitz;
mod token_mixer;

use std::ops::{Deref, DerefMut};

use burn::module::Module;
use burn::tensor::backend::Backend;
use kernels::KernelBackend;

use self::attention::{Attention, AttentionConfig, KvCache, KvCaches};
use self::beside_attention::{BesideAttention, BesideAttentionConfig, BesideRows, BesideState};
use self::discrete_mamba2::{DiscreteMamba2, DiscreteMamba2Config, Mamba2Rows, Mamba2State};
use self::low_rank::{LowRank, LowRankConfig, LowRankRows, LowRankState};
use self::toeplitz::{Toeplitz, ToeplitzConfig, ToeplitzRows, ToeplitzState};
use crate::init::Init;

use decoding_state::bytes_of;
pub use decoding_state::{DecodingState, StateRows};
pub(crate) use options::F32;
pub use options::{MatrixOperations, MixerOptions, StateSize};
pub use rotary::{RopeScaling, rotary_frequencies};
pub(crate) use state_tensors::state_name;
pub use state_tensors::{StateError, StateTensors};
pub use student::StudentMixer;
pub use token_mixer::{StepOutput, TokenMixer};

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
    /// A mixing matrix that depends only on the distance of two tokens, for comparison.
    Toeplitz: Toeplitz, ToeplitzConfig, ToeplitzState, ToeplitzRows;
    /// The causal part of a matrix of low rank, for comparison.
    LowRank: LowRank, LowRankConfig, LowRankState, LowRankRows;
}

impl MixerConfig {
    /// Whether a student's layer with this mixer is the same as its teacher's layer. If both mixers are of the same
    /// kind, [`transfer_weights`](crate::transfer_weights) copies the teacher's, and a stage that compares layer with
    /// layer has nothing left to learn.
    pub fn is_kept_from(&self, teacher: &Self) -> bool {
        self.kind() == teacher.kind()
    }

    /// Whether this student's mixing matrix can be compared with the teacher's. The student must have
    /// [`TransferParts`](kernels::TransferParts) or a whole matrix, the teacher must have
    /// [`AttentionParts`](kernels::AttentionParts), and both must have the same number of heads.
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
