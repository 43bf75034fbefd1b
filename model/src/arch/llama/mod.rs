//! Hugging Face's `LlamaForCausalLM`, and the families that differ from it in little: Mistral, Qwen2, Qwen3.
//!
//! One network for all: sequential blocks, RMSNorm, SwiGLU, grouped keys and values, rotary positions over the
//! whole head. What differs between the families stands in `variants.rs`, as data; `config.json` is read and
//! written in `file.rs`; `foreign.rs` has the keys that belong to networks of other families.

mod file;
mod foreign;
mod variants;

use kernels::Window;
use serde_json::Value;

use super::{
    BlockOrder, Family, FamilyFile, HeadConfig, Layout, LlamaMambaConfig, MlpConfig, MlpKind,
    ModelConfig, NetworkConfig, NormConfig, NormKind,
};
use crate::config_error::{ConfigError, check_layers, check_positive, check_sizes};
use crate::mixers::attention::AttentionConfig;
use crate::mixers::{MixerConfig, MixerOptions};

pub use variants::LlamaFamily;

/// A teacher's configuration: the keys of `config.json` that change what the network computes.
///
/// Both of transformers' forms are read: version 4's flat keys with `rope_theta` and `rope_scaling`, and version
/// 5's `rope_parameters`. Dropout rates and dtypes are not kept: a teacher never trains here, and tensors carry
/// their own dtype. Keys that a file leaves out have the defaults of transformers' class of the family.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Which of the families it is.
    pub family: LlamaFamily,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP's hidden layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// The attention's options, but for the window.
    pub attention: AttentionConfig,
    /// Whether the MLP's projections have biases.
    pub mlp_bias: bool,
    /// Added to the mean square by every normalisation.
    pub rms_norm_eps: f64,
    /// Whether the head's weight is the embedding's.
    pub tie_word_embeddings: bool,
    /// The context length it was trained with; nothing here depends on it.
    pub max_position_embeddings: usize,
    /// How many tokens a layer attends to, itself included; `None` where it is all of them.
    pub sliding_window: Option<usize>,
    /// The first layer with that window; those before attend to all tokens. 0 without a window.
    pub max_window_layers: usize,
}

impl LlamaConfig {
    /// What its tensors are called.
    pub const LAYOUT: Layout = Layout::new(&[
        ("backbone.embedding.", "model.embed_tokens."),
        (
            "backbone.layers.#.mixer.Attention.dense.",
            "model.layers.#.self_attn.o_proj.",
        ),
        (
            "backbone.layers.#.mixer.Attention.",
            "model.layers.#.self_attn.",
        ),
        (
            "backbone.layers.#.post_mixer_layernorm.",
            "model.layers.#.post_attention_layernorm.",
        ),
        (
            "backbone.layers.#.mlp.gate.",
            "model.layers.#.mlp.gate_proj.",
        ),
        ("backbone.layers.#.mlp.up.", "model.layers.#.mlp.up_proj."),
        (
            "backbone.layers.#.mlp.down.",
            "model.layers.#.mlp.down_proj.",
        ),
        ("backbone.final_layernorm.", "model.norm."),
        ("backbone.", "model."),
    ]);

    /// The configuration that an empty `config.json` of this family means: transformers' defaults.
    pub fn default_of(family: LlamaFamily) -> Self {
        family.default_config()
    }

    /// Reads the text of a `config.json` of any of the families.
    ///
    /// # Errors
    /// [`ConfigError`] if it is not such a file, asks for a feature that is not implemented (another activation or rotary
    /// type, quantised weights, and so on: each by key and value), or its sizes do not fit together.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let config = file::read(&serde_json::from_str(text)?)?;
        config.validate()?;
        Ok(config)
    }
}

impl FamilyFile for LlamaConfig {
    fn recognises(root: &Value) -> bool {
        file::family(root).is_some()
    }

    fn parse(text: &str) -> Result<Self, ConfigError> {
        Self::from_json(text)
    }
}

impl Family for LlamaConfig {
    fn name(&self) -> &'static str {
        self.family.variant().name
    }

    fn network(&self) -> NetworkConfig {
        let mixer = |layer: usize| {
            let has_window = layer >= self.max_window_layers;
            let window = self.sliding_window.filter(|_| has_window);
            let mut attention = self.attention.clone();
            attention.window = window.map(|window| Window { window, sinks: 0 });
            MixerConfig::from(attention)
        };
        NetworkConfig {
            vocab_size: self.vocab_size,
            d_model: self.hidden_size,
            block_order: BlockOrder::Sequential,
            norm: NormConfig {
                kind: NormKind::RmsNorm,
                epsilon: self.rms_norm_eps,
            },
            mlp: MlpConfig {
                kind: MlpKind::SwiGlu,
                intermediate_size: self.intermediate_size,
                bias: self.mlp_bias,
            },
            head: if self.tie_word_embeddings {
                HeadConfig::Tied
            } else {
                HeadConfig::Own { bias: false }
            },
            mixers: (0..self.num_hidden_layers).map(mixer).collect(),
        }
    }

    fn max_positions(&self) -> Option<usize> {
        Some(self.max_position_embeddings)
    }

    fn layout(&self) -> Layout {
        Self::LAYOUT
    }

    /// Version 4's keys, which version 5 of transformers reads too.
    fn to_json(&self) -> String {
        format!("{:#}", file::write(self))
    }

    fn validate(&self) -> Result<(), ConfigError> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
        ])?;
        check_layers("num_hidden_layers", self.num_hidden_layers)?;
        check_positive("rms_norm_eps", self.rms_norm_eps)?;
        self.attention.validate(self.hidden_size)?;
        if let Some(window) = self.sliding_window {
            check_sizes(&[("sliding_window", window)])?;
        }
        if file::read(&file::write(self))? == *self {
            return Ok(());
        }
        Err(ConfigError::Invalid(format!(
            "the format of {} has no words for these options: {self:?}",
            self.name()
        )))
    }

    fn student_with(&self, mixers: Vec<MixerConfig>) -> Result<ModelConfig, ConfigError> {
        let family = self.family.variant().model_type;
        Ok(LlamaMambaConfig::student_with(self, family, mixers)?.into())
    }
}
