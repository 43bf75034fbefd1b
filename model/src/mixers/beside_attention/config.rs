//! The options of a mixer with attention beside it.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config_error::ConfigError;
use crate::mixers::attention::AttentionConfig;
use crate::mixers::discrete_mamba2::DiscreteMamba2Config;
use crate::mixers::{MatrixOperations, MixerOptions, StateSize};

/// Options of a discrete Mamba-2 with attention beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct BesideAttentionConfig {
    /// The state-space mixer.
    pub ssm: DiscreteMamba2Config,
    /// The attention beside it; `None` in a layer that keeps no head.
    pub attention: Option<AttentionConfig>,
    /// Which of the teacher's query heads these are, where that is known; empty where it is not, or where they are
    /// all of them.
    pub heads: Vec<usize>,
    /// How their outputs become one.
    pub joined: Joined,
}

/// How the outputs of both become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Joined {
    /// They are added, as in the published `DoubleBlockVanilla`.
    Sum,
    /// Attention's is given the mean and the deviation of the other, goes through a projection, and the mean of both
    /// is taken, as in the published `DoubleBlockAdapter`.
    Adapter,
}

impl BesideAttentionConfig {
    /// Whether there is a projection between attention and the sum.
    pub(super) fn has_adapter(&self) -> bool {
        self.attention.is_some() && self.joined == Joined::Adapter
    }
}

impl MixerOptions for BesideAttentionConfig {
    fn kind(&self) -> &'static str {
        "mamba2_beside_attention"
    }

    fn validate(&self, d_model: usize) -> Result<(), ConfigError> {
        self.ssm.validate(d_model)?;
        let kept = self.attention.as_ref();
        let (n, named) = (kept.map_or(0, |a| a.n_heads), self.heads.len());
        if named > 0 && named != n {
            return Err(ConfigError::Invalid(format!(
                "{named} of the teacher's heads are named, and {n} are kept"
            )));
        }
        kept.map_or(Ok(()), |attention| attention.validate(d_model))
    }

    /// Those of the state-space mixer: its matrices are what stage 1 compares.
    fn n_heads(&self) -> usize {
        self.ssm.n_heads()
    }

    fn describe(&self, d_model: usize) -> String {
        let ssm = self.ssm.describe(d_model);
        match &self.attention {
            Some(attention) => format!("{ssm}, beside {}", attention.describe(d_model)),
            None => ssm,
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "ssm": self.ssm.to_json(),
            "attention": self.attention.as_ref().map(AttentionConfig::to_json),
            "heads": self.heads,
            "joined": self.joined,
        })
    }

    fn state_size(&self, d_model: usize) -> StateSize {
        let attention = self.attention.as_ref();
        let attention = attention.map_or(StateSize::default(), |a| a.state_size(d_model));
        self.ssm.state_size(d_model).plus(attention)
    }

    /// Of both, and `2 d d` of the adapter.
    fn operations(&self, d_model: usize, l: usize) -> f64 {
        let attention = self.attention.as_ref();
        let attention = attention.map_or(0.0, |attention| attention.operations(d_model, l));
        let adapter = if self.has_adapter() {
            2.0 * (d_model as f64).powi(2)
        } else {
            0.0
        };
        self.ssm.operations(d_model, l) + attention + adapter
    }

    fn matrix_operations(&self, d_model: usize, l: usize) -> MatrixOperations {
        self.ssm.matrix_operations(d_model, l)
    }

    fn has_transfer_parts(&self) -> bool {
        true
    }

    fn mamba_mut(&mut self) -> Option<&mut DiscreteMamba2Config> {
        Some(&mut self.ssm)
    }
}
