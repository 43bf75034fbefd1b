//! What a folder's `config.json` says, for teachers and students.
//!
//! [`PhiConfig`] and [`PhiMambaConfig`] are the two file formats. Both reduce to [`NetworkConfig`],
//! the sizes from which the one network type, [`CausalLm`](crate::CausalLm), is built.

mod discrete_mamba2;
mod phi;
mod phi_mamba;

pub use discrete_mamba2::{Activation, DiscreteMamba2Config};
pub use phi::PhiConfig;
pub use phi_mamba::{BlockConfig, PhiMambaConfig};

use serde::{Deserialize, Serialize};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or not of the expected structure.
    #[error("not a valid model configuration: {0}")]
    Json(#[from] serde_json::Error),
    /// A key is absent that has no default.
    #[error("the key `{key}` is missing")]
    Missing {
        /// The key's path, such as `MixerModel.input.d_model`.
        key: String,
    },
    /// A value is valid where it comes from, but this implementation has not got it.
    #[error("`{key}` is {value}, which is not implemented (only {supported})")]
    Unsupported {
        /// The key's path.
        key: String,
        /// Its value.
        value: String,
        /// What would have been accepted.
        supported: &'static str,
    },
    /// Values that do not fit together, or are out of range.
    #[error("{0}")]
    Invalid(String),
}

/// No size in a configuration may exceed this, so that no file makes a size computation overflow.
const LARGEST_SIZE: usize = 1 << 24;
/// Nor may the number of layers exceed this.
const MOST_LAYERS: usize = 1 << 12;

/// That every named size lies in `1..=LARGEST_SIZE`.
fn check_sizes(sizes: &[(&str, usize)]) -> Result<(), ConfigError> {
    match sizes.iter().find(|(_, n)| !(1..=LARGEST_SIZE).contains(n)) {
        Some((key, n)) => Err(ConfigError::Invalid(format!(
            "`{key}` is {n}; it must lie between 1 and {LARGEST_SIZE}"
        ))),
        None => Ok(()),
    }
}

/// That a model has at least one layer, and not absurdly many.
fn check_layers(key: &str, n: usize) -> Result<(), ConfigError> {
    if (1..=MOST_LAYERS).contains(&n) {
        return Ok(());
    }
    Err(ConfigError::Invalid(format!(
        "`{key}` is {n}; it must lie between 1 and {MOST_LAYERS}"
    )))
}

/// That `key` is positive and finite.
fn check_positive(key: &str, value: f64) -> Result<(), ConfigError> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(ConfigError::Invalid(format!(
        "`{key}` is {value}; it must be positive"
    )))
}

/// Phi's attention, under the names that Hugging Face gives its sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttentionConfig {
    /// Query heads; the head dimension is `d_model` divided by it.
    #[serde(rename = "num_attention_heads")]
    pub n_heads: usize,
    /// Key and value heads, a divisor of `n_heads`.
    #[serde(rename = "num_key_value_heads")]
    pub n_kv_heads: usize,
    /// Share of each head's dimensions that is rotated by its position.
    pub partial_rotary_factor: f64,
    /// Base of the rotation's frequencies.
    pub rope_theta: f64,
}

impl AttentionConfig {
    /// Dimensions of each head that are rotated, the first ones: `factor * head_dim`, truncated.
    pub fn rotary_dim(&self, d_model: usize) -> usize {
        (self.partial_rotary_factor * (d_model / self.n_heads) as f64) as usize
    }

    /// That the sizes fit together in a network `d_model` wide.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the values at odds.
    pub fn validate(&self, d_model: usize) -> Result<(), ConfigError> {
        check_sizes(&[
            ("hidden size", d_model),
            ("num_attention_heads", self.n_heads),
            ("num_key_value_heads", self.n_kv_heads),
        ])?;
        check_positive("rope_theta", self.rope_theta)?;
        if !d_model.is_multiple_of(self.n_heads) || !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Err(ConfigError::Invalid(format!(
                "{} key and value heads must divide {} heads, which must divide the hidden size {d_model}",
                self.n_kv_heads, self.n_heads
            )));
        }
        let (rotary, head) = (self.rotary_dim(d_model), d_model / self.n_heads);
        if !(0.0..=1.0).contains(&self.partial_rotary_factor)
            || rotary == 0
            || !rotary.is_multiple_of(2)
        {
            return Err(ConfigError::Invalid(format!(
                "`partial_rotary_factor` is {}, which rotates {rotary} of {head} dimensions; it must be an even, positive number of them",
                self.partial_rotary_factor
            )));
        }
        Ok(())
    }
}

/// The mixer of one layer or of a run of layers.
#[derive(Debug, Clone, PartialEq)]
pub enum MixerConfig {
    /// Phi-Mamba's state-space mixer.
    DiscreteMamba2(DiscreteMamba2Config),
    /// Phi's attention.
    Attention(AttentionConfig),
}

impl MixerConfig {
    fn validate(&self, d_model: usize) -> Result<(), ConfigError> {
        match self {
            Self::DiscreteMamba2(mixer) => mixer.validate(d_model),
            Self::Attention(attention) => attention.validate(d_model),
        }
    }
}

/// The sizes of a network, whichever file format they came in.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkConfig {
    /// Rows of the embedding and of the head, padding included.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of the MLP's hidden layer.
    pub intermediate_size: usize,
    /// Added to the variance by every layer normalisation.
    pub layer_norm_eps: f64,
    /// One mixer a layer.
    pub mixers: Vec<MixerConfig>,
}
