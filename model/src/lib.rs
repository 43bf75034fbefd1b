//! Phi, Phi-Mamba and the hybrid between them: the networks, their files, and MOHAWK's losses.
//!
//! # One network
//!
//! MOHAWK (arXiv 2408.10189) replaces the attention of a Phi Transformer by a state-space mixer and
//! leaves the rest of the network as it is. So there is one network here, [`CausalLm`]: Phi's
//! parallel blocks, each with a [`Mixer`] that is either [`PhiAttention`] or [`DiscreteMamba2`].
//! [`Phi`], [`PhiMamba`] and [`HybridPhiMamba`] are names for it. Three types would have repeated
//! the embedding, the blocks, the head, the taps, decoding and the file handling three times, and a
//! hybrid would have been none of them; a trait over mixers would have made every user generic over
//! what is, in a file, a choice for each layer.
//!
//! # Two ways through it
//!
//! - [`CausalLm::forward`] over whole sequences, with [`Taps`] on what distillation compares: each
//!   is computed only when asked for, since the matrices of all layers at once do not fit anywhere.
//!   It is the plain form, for tests and tools: the stages of training call the methods of
//!   [`PhiBlock`] themselves.
//! - [`CausalLm::prefill`] of a piece of a sequence into a [`State`], and [`CausalLm::step`] of one
//!   token. Any split, for any batch, gives the outputs and the state of the whole. Sequences of
//!   different lengths take their steps together in a [`Batch`].
//!
//! # Parameters as in the files
//!
//! Linear weights are `[d_out, d_in]` as in PyTorch, and modules are nested and named as the
//! published ones are, so reading and writing ([`weights`]) is renaming in a few places, and a
//! parameter's published name ([`named_parameters`]) is the one way to speak about it elsewhere.
//! [`config`] reads and writes both formats of `config.json`. Parameters that no file gave are
//! drawn on the host from the seed alone, the same for every backend.
//!
//! # What is generic
//!
//! Everything is generic over [`kernels::KernelBackend`], whose ops (projections, scan, attention,
//! losses and their neighbours) do the heavy work; nothing here knows which backends exist.
//! Half-precision networks are normalised, scanned, softmaxed and compared in f32.

#![deny(missing_docs)]

pub mod arch;
pub mod atomic_file;
mod batch;
mod block;
mod config_error;
mod decoding;
pub mod hub;
mod init;
mod layers;
mod lm;
pub mod mixers;
mod mlp;
pub mod mohawk;
mod parameters;
mod precision;
mod transfer;
pub mod weights;

pub use arch::{
    BlockConfig, BlockOrder, Family, HeadConfig, Layout, MlpConfig, MlpKind, ModelConfig,
    NetworkConfig, NormConfig, NormKind, PhiConfig, PhiMambaConfig,
};
pub use batch::Batch;
pub use block::{Block, BlockOutputs};
pub use config_error::ConfigError;
pub use decoding::State;
pub use hub::{Hub, locate};
pub use layers::{Linear, Norm};
pub use lm::{Backbone, CausalLm, Embedding, HybridPhiMamba, Outputs, Phi, PhiMamba, Taps};
pub use mixers::attention::{Attention, AttentionConfig, KvCache};
pub use mixers::discrete_mamba2::{
    Activation, DepthwiseConv, DiscreteMamba2, DiscreteMamba2Config, Mamba2State,
};
pub use mixers::{
    DecodingState, MatrixOperations, Mixer, MixerConfig, MixerOptions, MixerState, StateError,
    StateSize, TokenMixer,
};
pub use mlp::Mlp;
pub use parameters::{NamedParameter, Part, named_parameters};
pub use precision::widen;
pub use transfer::{TransferError, pad_vocabulary, transfer_weights};
pub use weights::{
    FileTensor, WeightsError, describe, load_any, load_any_as, load_config, model_files,
    read_config_file, save, save_in_shards, save_random_teacher,
};
// The same for both roles.
pub use weights::save_in_shards as save_teacher_in_shards;
pub use weights::{load_any as load_student, load_any as load_teacher};
pub use weights::{save as save_student, save as save_teacher};
