//! The mixer's options in the configuration of a run.

use serde::{Deserialize, Serialize};

use super::{Activation, DiscreteMamba2Config, FeatureMap, MixerRotary, Turned};
use crate::config_error::ConfigError;
use crate::mixers::MixerConfig;
use crate::mixers::attention::AttentionConfig;
use crate::mixers::student::StudentOptions;

/// The epsilon of the norms of B and C where the teacher's queries and keys have none.
const EPSILON: f64 = 1e-6;

/// The options of a student's discrete Mamba-2; see [`DiscreteMamba2Config`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mamba2Student {
    /// Size of a head's B and C, and one side of its state.
    pub d_state: usize,
    /// Heads of B and C; divides `n_v_heads`.
    pub n_qk_heads: usize,
    /// Heads of x, z and the decay.
    pub n_v_heads: usize,
    /// Dimensions of a head of x; 0 is the inner width divided by the heads.
    pub head_dim: usize,
    /// Taps of the causal convolution.
    pub d_conv: usize,
    /// Whether the convolution has a bias.
    pub conv_bias: bool,
    /// Inner width over model width, where `head_dim` is 0.
    pub expand: usize,
    /// What follows the convolution.
    pub activation: Activation,
    /// Whether the two projections have a bias. Without, the gate alone has one.
    pub bias: bool,
    /// Whether A_log has a bias of its own.
    pub a_log_bias: bool,
    /// Whether B and C are normalised, head by head.
    pub bc_norm: bool,
    /// What B and C go through behind that.
    pub feature_map: FeatureMap,
    /// Whether each head's B has a gate.
    pub b_gate: bool,
    /// Whether B and C have the rotary positions of the teacher's keys and queries.
    pub rotary: bool,
    /// Positions per chunk of the scan: speed and memory, not results.
    pub chunk_size: usize,
}

impl Default for Mamba2Student {
    fn default() -> Self {
        let published = DiscreteMamba2Config::default();
        Self {
            d_state: published.d_state,
            n_qk_heads: published.n_qk_heads,
            n_v_heads: published.n_v_heads,
            head_dim: 0,
            d_conv: published.d_conv,
            conv_bias: published.conv_bias,
            expand: published.expand,
            activation: published.activation,
            bias: published.bias,
            a_log_bias: false,
            bc_norm: false,
            feature_map: FeatureMap::Identity,
            b_gate: false,
            rotary: false,
            chunk_size: published.chunk_size,
        }
    }
}

impl Mamba2Student {
    /// The options of the mixer.
    pub(crate) fn config(
        &self,
        of_teacher: &AttentionConfig,
        d_model: usize,
    ) -> DiscreteMamba2Config {
        DiscreteMamba2Config {
            d_state: self.d_state,
            n_v_heads: self.n_v_heads,
            head_dim: (self.head_dim > 0).then_some(self.head_dim),
            n_qk_heads: self.n_qk_heads,
            d_conv: self.d_conv,
            conv_bias: self.conv_bias,
            expand: self.expand,
            chunk_size: self.chunk_size,
            activation: self.activation,
            bias: self.bias,
            z_bias: !self.bias,
            a_log_bias: self.a_log_bias,
            feature_map: self.feature_map,
            b_gate: self.b_gate,
            bc_norm: (self.bc_norm).then(|| of_teacher.qk_norm.unwrap_or(EPSILON)),
            rotary: (self.rotary).then(|| MixerRotary::of(of_teacher, d_model)),
        }
    }
}

impl StudentOptions for Mamba2Student {
    fn mixer(
        &self,
        _layer: usize,
        of_teacher: &AttentionConfig,
        d_model: usize,
    ) -> Result<MixerConfig, ConfigError> {
        Ok(self.config(of_teacher, d_model).into())
    }

    fn mamba(&self) -> Option<&Mamba2Student> {
        Some(self)
    }
}

impl MixerRotary {
    /// The positions of B and C that are those of a teacher's keys and queries.
    pub fn of(attention: &AttentionConfig, d_model: usize) -> Self {
        Self {
            theta: attention.rope_theta,
            scaling: attention.rope_scaling,
            dim: attention.rotary_dim(d_model),
            turned: Turned::BAndC,
        }
    }
}
