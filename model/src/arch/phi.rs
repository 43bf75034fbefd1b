//! Hugging Face's `PhiForCausalLM`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    BlockOrder, Family, FamilyFile, HeadConfig, Layout, MlpConfig, MlpKind, ModelConfig,
    NetworkConfig, NormConfig, NormKind, PhiMambaConfig,
};
use crate::config_error::{ConfigError, check_layers, check_positive, check_sizes};
use crate::mixers::attention::AttentionConfig;
use crate::mixers::{MixerConfig, MixerOptions};

/// A teacher's configuration: the keys of `config.json` that change what the network computes.
///
/// Both of transformers' forms are read: version 4's, with `rope_theta` and `partial_rotary_factor`
/// at the top, and version 5's, with both under `rope_parameters`. Dropout rates and dtypes are not
/// kept: a teacher never trains here, and tensors carry their own dtype.
#[derive(Debug, Clone, PartialEq)]
pub struct PhiConfig {
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP's hidden layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// The attention's sizes.
    pub attention: AttentionConfig,
    /// Added to the variance by every layer normalisation.
    pub layer_norm_eps: f64,
    /// The context length it was trained with; nothing here depends on it.
    pub max_position_embeddings: usize,
}

/// Hugging Face's defaults for keys that a file leaves out: those of phi-1.
impl Default for PhiConfig {
    fn default() -> Self {
        Self {
            vocab_size: 51200,
            hidden_size: 2048,
            intermediate_size: 8192,
            num_hidden_layers: 24,
            attention: AttentionConfig::with_heads(32),
            layer_norm_eps: 1e-5,
            max_position_embeddings: 2048,
        }
    }
}

/// The file, as far as it matters.
#[derive(Deserialize)]
struct File {
    model_type: Option<String>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    hidden_act: Option<String>,
    max_position_embeddings: Option<usize>,
    layer_norm_eps: Option<f64>,
    qk_layernorm: Option<bool>,
    tie_word_embeddings: Option<bool>,
    partial_rotary_factor: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<Rope>,
}

#[derive(Deserialize)]
struct Rope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    partial_rotary_factor: Option<f64>,
    rope_theta: Option<f64>,
}

/// Attention's options in Phi's format: the other options have Phi's values.
pub(super) const ATTENTION_KEYS: [&str; 4] = [
    "num_attention_heads",
    "num_key_value_heads",
    "partial_rotary_factor",
    "rope_theta",
];

/// Checks that `key`, if it is present, has the one value that is implemented.
fn only<T: PartialEq + ToString>(
    key: &str,
    value: Option<T>,
    accepted: T,
    supported: &str,
) -> Result<(), ConfigError> {
    match value {
        Some(value) if value != accepted => Err(ConfigError::Unsupported {
            key: key.into(),
            value: value.to_string(),
            supported: supported.into(),
        }),
        _ => Ok(()),
    }
}

impl PhiConfig {
    /// What its tensors are called.
    pub const LAYOUT: Layout = Layout::new(&[
        ("backbone.embedding.", "model.embed_tokens."),
        (
            "backbone.layers.#.mixer.Attention.",
            "model.layers.#.self_attn.",
        ),
        ("backbone.layers.#.mlp.up.", "model.layers.#.mlp.fc1."),
        ("backbone.layers.#.mlp.down.", "model.layers.#.mlp.fc2."),
        ("backbone.", "model."),
    ]);

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// [`ConfigError`] if it is not such a file, asks for a feature that is not implemented (another
    /// `model_type`, activation or rotary type, normalised queries and keys, tied embeddings), or
    /// its sizes do not fit together.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let file: File = serde_json::from_str(text)?;
        only("model_type", file.model_type, "phi".into(), "phi")?;
        only("hidden_act", file.hidden_act, "gelu_new".into(), "gelu_new")?;
        only("qk_layernorm", file.qk_layernorm, false, "false")?;
        only(
            "tie_word_embeddings",
            file.tie_word_embeddings,
            false,
            "false",
        )?;
        let nested = file.rope_parameters.unwrap_or(Rope {
            rope_type: None,
            partial_rotary_factor: None,
            rope_theta: None,
        });
        let scaling = file
            .rope_scaling
            .map(|rope| rope.rope_type.unwrap_or_else(|| "absent".into()));
        for (key, kind) in [
            ("rope_parameters.rope_type", nested.rope_type),
            ("rope_scaling.type", scaling),
        ] {
            only(key, kind, "default".into(), "default")?;
        }

        let default = Self::default();
        let n_heads = file
            .num_attention_heads
            .unwrap_or(default.attention.n_heads);
        let config = Self {
            vocab_size: file.vocab_size.unwrap_or(default.vocab_size),
            hidden_size: file.hidden_size.unwrap_or(default.hidden_size),
            intermediate_size: file.intermediate_size.unwrap_or(default.intermediate_size),
            num_hidden_layers: file.num_hidden_layers.unwrap_or(default.num_hidden_layers),
            attention: AttentionConfig {
                n_heads,
                n_kv_heads: file.num_key_value_heads.unwrap_or(n_heads),
                partial_rotary_factor: nested
                    .partial_rotary_factor
                    .or(file.partial_rotary_factor)
                    .unwrap_or(default.attention.partial_rotary_factor),
                rope_theta: nested
                    .rope_theta
                    .or(file.rope_theta)
                    .unwrap_or(default.attention.rope_theta),
                ..default.attention
            },
            layer_norm_eps: file.layer_norm_eps.unwrap_or(default.layer_norm_eps),
            max_position_embeddings: file
                .max_position_embeddings
                .unwrap_or(default.max_position_embeddings),
        };
        config.validate()?;
        Ok(config)
    }
}

impl FamilyFile for PhiConfig {
    /// By its `model_type`, which old files leave out.
    fn recognises(root: &Value) -> bool {
        root.get("model_type").is_none_or(|name| name == "phi")
    }

    fn parse(text: &str) -> Result<Self, ConfigError> {
        Self::from_json(text)
    }
}

impl Family for PhiConfig {
    fn name(&self) -> &'static str {
        "Phi"
    }

    fn network(&self) -> NetworkConfig {
        let attention = MixerConfig::Attention(self.attention.clone());
        NetworkConfig {
            vocab_size: self.vocab_size,
            d_model: self.hidden_size,
            block_order: BlockOrder::Parallel,
            norm: NormConfig {
                kind: NormKind::LayerNorm,
                epsilon: self.layer_norm_eps,
            },
            mlp: MlpConfig {
                kind: MlpKind::GeluNew,
                intermediate_size: self.intermediate_size,
                bias: true,
            },
            head: HeadConfig::Own { bias: true },
            mixers: vec![attention; self.num_hidden_layers],
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
        let mut root = json!({
            "architectures": ["PhiForCausalLM"],
            "model_type": "phi",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
        });
        let rest = json!({
            "hidden_act": "gelu_new",
            "max_position_embeddings": self.max_position_embeddings,
            "layer_norm_eps": self.layer_norm_eps,
            "qk_layernorm": false,
            "tie_word_embeddings": false,
        });
        if let (Value::Object(root), Value::Object(rest)) = (&mut root, rest) {
            let attention = self.attention.to_json();
            let value = |key: &str| (key.to_owned(), attention[key].clone());
            root.extend(ATTENTION_KEYS.map(value));
            root.extend(rest);
        }
        format!("{root:#}")
    }

    fn validate(&self) -> Result<(), ConfigError> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
        ])?;
        check_layers("num_hidden_layers", self.num_hidden_layers)?;
        check_positive("layer_norm_eps", self.layer_norm_eps)?;
        let plain = AttentionConfig {
            n_kv_heads: self.attention.n_kv_heads,
            partial_rotary_factor: self.attention.partial_rotary_factor,
            rope_theta: self.attention.rope_theta,
            ..AttentionConfig::with_heads(self.attention.n_heads)
        };
        if self.attention != plain {
            return Err(ConfigError::Invalid(
                "a Phi has biases everywhere, heads that share its width, and no other options of attention"
                    .into(),
            ));
        }
        self.attention.validate(self.hidden_size)
    }

    fn student_with(&self, mixers: Vec<MixerConfig>) -> Result<ModelConfig, ConfigError> {
        Ok(PhiMambaConfig::student_with(self, mixers)?.into())
    }
}
