//! The mixer's options in the configuration of a run.

use serde::{Deserialize, Serialize};

use super::ToeplitzConfig;
use crate::config_error::ConfigError;
use crate::mixers::MixerConfig;
use crate::mixers::attention::AttentionConfig;
use crate::mixers::student::StudentOptions;

/// The options of a student's Toeplitz mixer, which has the teacher's heads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ToeplitzStudent {
    /// Taps of each head; no token that lies further back has a weight.
    pub length: usize,
}

impl Default for ToeplitzStudent {
    fn default() -> Self {
        // The paper's context: every token of a training sequence has a weight.
        Self { length: 2048 }
    }
}

impl StudentOptions for ToeplitzStudent {
    fn mixer(
        &self,
        _layer: usize,
        of_teacher: &AttentionConfig,
        d_model: usize,
    ) -> Result<MixerConfig, ConfigError> {
        let mixer = ToeplitzConfig {
            n_heads: of_teacher.n_heads,
            head_dim: of_teacher.head_dim(d_model),
            length: self.length,
        };
        Ok(mixer.into())
    }
}
