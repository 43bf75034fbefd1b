//! Causal language models for MOHAWK (arXiv 2408.10189): Transformers, Phi-Mamba and the hybrids between
//! them, their files, and the losses that turn the one into the other.
//!
//! # One network
//!
//! MOHAWK replaces the attention of a Transformer by a state-space mixer and leaves the rest of the network as it is.
//! So there is only one network type here, [`CausalLm`]: a list of blocks, each with a [`Mixer`]. With several network
//! types, the embedding, the blocks, the head, the taps, decoding and the file handling would exist several times, and
//! a hybrid would fit none of the types. If the network were generic over a mixer trait, every user would have to be
//! generic too, although files choose the mixer for each layer.
//!
//! What differs between networks is a value of [`NetworkConfig`]: the order of a block's halves, the normalisation, the
//! MLP, the head, and the mixer of each layer. Everything that belongs to one family of checkpoints, its `config.json`
//! and the names of its tensors, is in one file of [`arch`]. Everything that belongs to one mixer is in one folder of
//! [`mixers`].
//!
//! # Two ways through it
//!
//! - [`CausalLm::forward`] over whole sequences, with [`Taps`] on what distillation compares: each is computed only if
//!   it is asked for, because the matrices of all layers together are too large for any memory. This is the plain form,
//!   for tests and tools: the stages of training call the methods of [`Block`] themselves.
//! - [`CausalLm::prefill`] reads a piece of a sequence into a [`State`], and [`CausalLm::step`] reads one token.
//!   However a sequence is split into pieces, the outputs and the state are those of the whole. Sequences of different
//!   lengths take their steps together in a [`Batch`].
//!
//! ```
//! use burn::tensor::{Int, Tensor};
//! use burn_flex::Flex;
//! use model::{AttentionConfig, CausalLm, DiscreteMamba2Config, Family, PhiConfig};
//!
//! let teacher = PhiConfig {
//!     vocab_size: 64,
//!     hidden_size: 32,
//!     intermediate_size: 64,
//!     num_hidden_layers: 2,
//!     attention: AttentionConfig::with_heads(2),
//!     ..PhiConfig::default()
//! };
//! // Its student: the mixer in layer 0, the teacher's attention in layer 1.
//! let student = teacher.student(&DiscreteMamba2Config::with_heads(2).into(), &[1])?;
//! let device = Default::default();
//! let network = CausalLm::<Flex>::init(&student, 1, &device);
//!
//! let ids = Tensor::<Flex, 2, Int>::from_data([[1, 2, 3]], &device);
//! let mut state = network.new_state(1, &device);
//! let logits = network.prefill(ids, &mut state);
//! let next = logits.argmax(1).reshape([1]);
//! assert_eq!(network.step(next, &mut state).dims(), [1, 64]);
//! # Ok::<(), model::ConfigError>(())
//! ```
//!
//! # Parameters as in the files
//!
//! Linear weights are `[d_out, d_in]` as in PyTorch, and modules are nested as the published ones are, so reading and
//! writing ([`weights`]) only renames tensors by a family's [`Layout`]. Inside the program, a parameter is identified
//! by its path in the network, and by the [`Part`] that it belongs to. Parameters that do not come from a file are
//! drawn on the host from the seed alone, so they are the same on every backend.
//!
//! # What is generic
//!
//! Everything is generic over [`kernels::KernelBackend`], whose ops (projections, scan, attention, losses and others)
//! do the heavy work; no code here depends on a particular backend. In half-precision networks, normalisation, scan,
//! softmax and losses are computed in f32.

#![deny(missing_docs)]

pub mod arch;
pub mod atomic_file;
mod batch;
mod block;
mod config_error;
mod decoding;
mod head_outputs;
pub mod hub;
mod init;
mod initialise;
mod layers;
mod lm;
pub mod manifest;
pub mod mixers;
mod mlp;
mod model_hash;
pub mod mohawk;
mod parameters;
mod precision;
mod sequences;
pub mod signals;
mod steps;
mod transfer;
pub mod weights;

pub use arch::{
    BlockConfig, BlockOrder, Family, HeadConfig, Layout, LlamaConfig, LlamaFamily,
    LlamaMambaConfig, MlpConfig, MlpKind, ModelConfig, NetworkConfig, NormConfig, NormKind,
    PhiConfig, PhiMambaConfig, PythonModule,
};
pub use kernels::decode::projections::Form as WeightForm;

pub use batch::Batch;
pub use block::{Block, BlockOutputs};
pub use config_error::ConfigError;
pub use decoding::State;
pub use head_outputs::{HeadOutputs, HeadSight};
pub use hub::{Hub, locate};
pub use initialise::{Fit, InitError, Initialisation};
pub use layers::{Linear, Norm};
pub use lm::{Backbone, CausalLm, Embedding, Outputs, Phi, PhiMamba, Taps};
pub use mixers::attention::{Attention, AttentionConfig, KvCache};
pub use mixers::beside_attention::{BesideAttention, BesideAttentionConfig, BesideState, Joined};
pub use mixers::discrete_mamba2::{
    Activation, DepthwiseConv, DiscreteMamba2, DiscreteMamba2Config, FeatureMap, Mamba2State,
    MixerRotary, Turned,
};
pub use mixers::low_rank::{LowRank, LowRankConfig, LowRankState};
pub use mixers::toeplitz::{Toeplitz, ToeplitzConfig, ToeplitzState, toeplitz_matrix};
pub use mixers::{
    DecodingState, MatrixOperations, Mixer, MixerConfig, MixerOptions, MixerState, RopeScaling,
    StateError, StateSize, StepOutput, StudentMixer, TokenMixer, rotary_frequencies,
};
pub use mlp::Mlp;
pub use model_hash::ModelHash;
pub use parameters::{NamedParameter, Part, named_parameters};
pub use precision::widen;
pub use sequences::{Sequences, TokenRows};
pub use transfer::{TransferError, pad_vocabulary, transfer_weights};
pub use weights::{
    BESIDE_TOKENIZER, CONFIG, FileTensor, GENERATION, HostModel, HostTensor, SmallFile, TOKENIZER,
    WeightsError, describe, has_model, is_model, load_any, load_any_as, load_config,
    load_packed_as, model_files, read_config_file, save, save_in_shards, save_packed,
    save_random_teacher, small_file, stored_dtype, tokenizer_json,
};

/// The README's examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
