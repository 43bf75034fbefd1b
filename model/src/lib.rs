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

pub mod atomic_file;
mod attention;
mod batch;
mod block;
pub mod config;
mod init;
mod layers;
mod lm;
mod mixer;
mod mlp;
pub mod mohawk;
mod precision;
mod rotary;
mod snapshot;
mod state;
mod transfer;
pub mod weights;

pub use attention::PhiAttention;
pub use batch::Batch;
pub use block::{BlockOutputs, Mixer, PhiBlock};
pub use config::{
    Activation, AttentionConfig, BlockConfig, ConfigError, DiscreteMamba2Config, MixerConfig,
    NetworkConfig, PhiConfig, PhiMambaConfig,
};
pub use layers::{LayerNorm, Linear};
pub use lm::{Backbone, CausalLm, Embedding, HybridPhiMamba, Outputs, Phi, PhiMamba, Taps};
pub use mixer::{DepthwiseConv, DiscreteMamba2};
pub use mlp::PhiMlp;
pub use precision::widen;
pub use snapshot::StateError;
pub use state::{KvCache, Mamba2State, MixerState, State};
pub use transfer::{TransferError, pad_vocabulary, transfer_weights};
pub use weights::{
    FileTensor, Hub, Layout, ModelConfig, NamedParameter, WeightsError, describe, load_any,
    load_any_as, load_config, load_student, load_teacher, locate, model_files, named_parameters,
    read_config_file, save_random_teacher, save_student, save_teacher, save_teacher_in_shards,
};
