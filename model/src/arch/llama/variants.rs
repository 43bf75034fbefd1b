//! What differs between the families of Llama's shape, as data.

use super::LlamaConfig;
use crate::mixers::attention::AttentionConfig;

/// The families whose networks are Llama's, but for a few options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LlamaFamily {
    /// `LlamaForCausalLM`: Llama 2, 3 and 3.x, SmolLM2 and many more.
    Llama,
    /// `MistralForCausalLM`.
    Mistral,
    /// `Qwen2ForCausalLM`: Qwen2 and Qwen2.5.
    Qwen2,
    /// `Qwen3ForCausalLM`, with a norm of each query and key.
    Qwen3,
}

impl LlamaFamily {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];

    pub(super) fn variant(self) -> &'static Variant {
        match self {
            Self::Llama => &LLAMA,
            Self::Mistral => &MISTRAL,
            Self::Qwen2 => &QWEN2,
            Self::Qwen3 => &QWEN3,
        }
    }

    /// The configuration with transformers' defaults for keys that a file leaves out.
    pub(super) fn default_config(self) -> LlamaConfig {
        let variant = self.variant();
        LlamaConfig {
            family: self,
            vocab_size: variant.vocab_size,
            hidden_size: 4096,
            intermediate_size: variant.intermediate_size,
            num_hidden_layers: 32,
            attention: AttentionConfig {
                n_heads: 32,
                n_kv_heads: variant.n_kv_heads.unwrap_or(32),
                head_dim: variant.head_dim,
                qkv_bias: variant.attention_bias == AttentionBias::QueriesKeysValues,
                dense_bias: false,
                partial_rotary_factor: 1.0,
                rope_theta: 10000.0,
                rope_scaling: None,
                qk_norm: variant.qk_norm.then_some(1e-6),
                window: None,
            },
            mlp_bias: false,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            max_position_embeddings: variant.max_position_embeddings,
            sliding_window: variant.window.default(),
            max_window_layers: 0,
        }
    }
}

/// Where attention's projections have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttentionBias {
    /// Everywhere or nowhere, as the key `attention_bias` says.
    ByKey,
    /// In those of queries, keys and values, whatever the file says.
    QueriesKeysValues,
    /// Nowhere, whatever the file says.
    None,
}

/// Whether layers attend to the last tokens only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SlidingWindow {
    /// In no layer, and no key speaks of it.
    Never,
    /// In every layer, unless the key `sliding_window` is `null`.
    EveryLayer,
    /// Where `use_sliding_window` is true, in the layers from `max_window_layers` on.
    Switched,
}

impl SlidingWindow {
    /// The window of a file without keys for it.
    fn default(self) -> Option<usize> {
        (self == Self::EveryLayer).then_some(WINDOW)
    }
}

/// The default of the key `sliding_window`.
pub(super) const WINDOW: usize = 4096;

/// One family. Its defaults are those of transformers' configuration class, in versions 4 and 5; the others are
/// the same for all families.
#[derive(Debug)]
pub(super) struct Variant {
    pub name: &'static str,
    pub model_type: &'static str,
    pub class: &'static str,
    pub attention_bias: AttentionBias,
    /// Whether the key `mlp_bias` is known.
    pub mlp_bias: bool,
    pub qk_norm: bool,
    pub window: SlidingWindow,
    pub vocab_size: usize,
    pub intermediate_size: usize,
    /// `None`: as many as query heads.
    pub n_kv_heads: Option<usize>,
    /// `None`: the width divided by the heads.
    pub head_dim: Option<usize>,
    pub max_position_embeddings: usize,
}

const LLAMA: Variant = Variant {
    name: "Llama",
    model_type: "llama",
    class: "LlamaForCausalLM",
    attention_bias: AttentionBias::ByKey,
    mlp_bias: true,
    qk_norm: false,
    window: SlidingWindow::Never,
    vocab_size: 32000,
    intermediate_size: 11008,
    n_kv_heads: None,
    head_dim: None,
    max_position_embeddings: 2048,
};

const MISTRAL: Variant = Variant {
    name: "Mistral",
    model_type: "mistral",
    class: "MistralForCausalLM",
    attention_bias: AttentionBias::None,
    mlp_bias: false,
    qk_norm: false,
    window: SlidingWindow::EveryLayer,
    vocab_size: 32000,
    intermediate_size: 14336,
    n_kv_heads: Some(8),
    head_dim: None,
    max_position_embeddings: 4096 * 32,
};

const QWEN2: Variant = Variant {
    name: "Qwen2",
    model_type: "qwen2",
    class: "Qwen2ForCausalLM",
    attention_bias: AttentionBias::QueriesKeysValues,
    mlp_bias: false,
    qk_norm: false,
    window: SlidingWindow::Switched,
    vocab_size: 151936,
    intermediate_size: 22016,
    n_kv_heads: Some(32),
    head_dim: None,
    max_position_embeddings: 32768,
};

const QWEN3: Variant = Variant {
    name: "Qwen3",
    model_type: "qwen3",
    class: "Qwen3ForCausalLM",
    attention_bias: AttentionBias::ByKey,
    mlp_bias: false,
    qk_norm: true,
    window: SlidingWindow::Switched,
    vocab_size: 151936,
    intermediate_size: 22016,
    n_kv_heads: Some(32),
    head_dim: Some(128),
    max_position_embeddings: 32768,
};
