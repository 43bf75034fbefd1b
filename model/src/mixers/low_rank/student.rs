//! The mixer's options in the configuration of a run.

use serde::{Deserialize, Serialize};

use super::LowRankConfig;
use crate::config_error::ConfigError;
use crate::mixers::MixerConfig;
use crate::mixers::attention::AttentionConfig;
use crate::mixers::discrete_mamba2::DiscreteMamba2Config;
use crate::mixers::student::StudentOptions;

/// The options of a student's causal low-rank mixer, which has the teacher's heads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LowRankStudent {
    /// Size of a head's B and C: the rank, and one side of the state.
    pub d_state: usize,
    /// Taps of the causal convolution.
    pub d_conv: usize,
    /// Positions per chunk of the scan: speed and memory, not results.
    pub chunk_size: usize,
}

impl Default for LowRankStudent {
    fn default() -> Self {
        // As the state-space mixer with which it is compared.
        let DiscreteMamba2Config {
            d_state,
            d_conv,
            chunk_size,
            ..
        } = DiscreteMamba2Config::default();
        Self {
            d_state,
            d_conv,
            chunk_size,
        }
    }
}

impl StudentOptions for LowRankStudent {
    fn mixer(
        &self,
        _layer: usize,
        of_teacher: &AttentionConfig,
        d_model: usize,
    ) -> Result<MixerConfig, ConfigError> {
        let mixer = LowRankConfig {
            n_heads: of_teacher.n_heads,
            head_dim: of_teacher.head_dim(d_model),
            d_state: self.d_state,
            d_conv: self.d_conv,
            chunk_size: self.chunk_size,
        };
        Ok(mixer.into())
    }
}
