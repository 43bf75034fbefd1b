//! Hugging Face's `PhiForCausalLM` configuration.

use serde::{Deserialize, Serialize};

use super::{
    AttentionConfig, ConfigError, MixerConfig, NetworkConfig, check_layers, check_positive,
    check_sizes,
};

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
            attention: AttentionConfig {
                n_heads: 32,
                n_kv_heads: 32,
                partial_rotary_factor: 0.5,
                rope_theta: 10000.0,
            },
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

/// What is written: version 4's keys, which version 5 reads too.
#[derive(Serialize)]
struct Written<'a> {
    architectures: [&'static str; 1],
    model_type: &'static str,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    #[serde(flatten)]
    attention: &'a AttentionConfig,
    hidden_act: &'static str,
    max_position_embeddings: usize,
    layer_norm_eps: f64,
    qk_layernorm: bool,
    tie_word_embeddings: bool,
}

/// That `key`, where present, has the one value that is implemented.
fn only<T: PartialEq + ToString>(
    key: &str,
    value: Option<T>,
    accepted: T,
    supported: &'static str,
) -> Result<(), ConfigError> {
    match value {
        Some(value) if value != accepted => Err(ConfigError::Unsupported {
            key: key.into(),
            value: value.to_string(),
            supported,
        }),
        _ => Ok(()),
    }
}

impl PhiConfig {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// [`ConfigError`] if it is not such a file, asks for what is not implemented (another
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
            },
            layer_norm_eps: file.layer_norm_eps.unwrap_or(default.layer_norm_eps),
            max_position_embeddings: file
                .max_position_embeddings
                .unwrap_or(default.max_position_embeddings),
        };
        config.validate()?;
        Ok(config)
    }

    /// The text of a `config.json` that [`from_json`](Self::from_json) and transformers read.
    pub fn to_json(&self) -> String {
        let written = Written {
            architectures: ["PhiForCausalLM"],
            model_type: "phi",
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            attention: &self.attention,
            hidden_act: "gelu_new",
            max_position_embeddings: self.max_position_embeddings,
            layer_norm_eps: self.layer_norm_eps,
            qk_layernorm: false,
            tie_word_embeddings: false,
        };
        // A struct of numbers and fixed strings always has a JSON form.
        serde_json::to_string_pretty(&written).unwrap_or_default()
    }

    /// That the sizes fit together.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the values at odds.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
        ])?;
        check_layers("num_hidden_layers", self.num_hidden_layers)?;
        check_positive("layer_norm_eps", self.layer_norm_eps)?;
        self.attention.validate(self.hidden_size)
    }
}

impl From<&PhiConfig> for NetworkConfig {
    fn from(config: &PhiConfig) -> Self {
        Self {
            vocab_size: config.vocab_size,
            d_model: config.hidden_size,
            intermediate_size: config.intermediate_size,
            layer_norm_eps: config.layer_norm_eps,
            mixers: vec![
                MixerConfig::Attention(config.attention.clone());
                config.num_hidden_layers
            ],
        }
    }
}
