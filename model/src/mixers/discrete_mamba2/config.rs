//! The mixer's options, under the published names.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::feature_map::FeatureMap;
use super::rotary::MixerRotary;
use crate::config_error::{ConfigError, check_positive, check_sizes};
use crate::mixers::{F32, MatrixOperations, MixerOptions, StateSize};

/// No convolution may be longer than this; the published ones are 4.
const MOST_TAPS: usize = 1 << 10;

/// What follows the convolution, on x, B and C alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// Nothing, as in the published models.
    Identity,
    /// `v * sigmoid(v)`, as in Mamba-2.
    #[serde(alias = "swish")]
    Silu,
}

/// Options of the discrete Mamba-2 mixer (the published `core_input`). Absent keys get the
/// published defaults; unknown ones are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiscreteMamba2Config {
    /// State dimension `n` of each head.
    pub d_state: usize,
    /// Heads of x, the values.
    pub n_v_heads: usize,
    /// Dimensions of each of them, where they are not `expand * d_model / n_v_heads`.
    pub head_dim: Option<usize>,
    /// Groups that share B and C, which stand where keys and queries do; a divisor of `n_v_heads`.
    pub n_qk_heads: usize,
    /// Taps of the causal convolution.
    pub d_conv: usize,
    /// Whether the convolution has a bias.
    pub conv_bias: bool,
    /// Inner width as a multiple of `d_model`, where `head_dim` does not say it.
    pub expand: usize,
    /// Tokens that the scan takes at once. Changes speed and memory, never the result.
    pub chunk_size: usize,
    /// What follows the convolution.
    pub activation: Activation,
    /// Whether the projections have biases.
    pub bias: bool,
    /// Whether the gate has a bias beside that of its projection.
    pub z_bias: bool,
    /// Whether A_log has a bias beside that of its projection, one number a head.
    pub a_log_bias: bool,
    /// The epsilon of an RMS norm of B, and of another of C, over the `d_state` numbers of each head, behind the
    /// convolution; `None` without such norms.
    pub bc_norm: Option<f64>,
    /// What B and C go through behind their norms and before rotary positions. In files only where it is not the
    /// identity.
    #[serde(skip_serializing_if = "FeatureMap::is_identity")]
    pub feature_map: FeatureMap,
    /// Whether each head's B is multiplied by `2 sigmoid` of a product with the input: a gate that says how much of a
    /// token goes into the state (an input gate, as that of an LSTM). It begins at 1. In files only where there is one.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub b_gate: bool,
    /// Rotary positions; `None` without.
    pub rotary: Option<MixerRotary>,
}

impl Default for DiscreteMamba2Config {
    fn default() -> Self {
        Self {
            d_state: 64,
            n_v_heads: 32,
            head_dim: None,
            n_qk_heads: 32,
            d_conv: 4,
            conv_bias: true,
            expand: 1,
            chunk_size: 128,
            activation: Activation::Identity,
            bias: false,
            z_bias: true,
            a_log_bias: false,
            bc_norm: None,
            feature_map: FeatureMap::Identity,
            b_gate: false,
            rotary: None,
        }
    }
}

impl DiscreteMamba2Config {
    /// The published options with so many heads, each with its own B and C.
    pub fn with_heads(n_heads: usize) -> Self {
        Self {
            n_v_heads: n_heads,
            n_qk_heads: n_heads,
            ..Self::default()
        }
    }

    /// The keys of a published Phi-Mamba's file. There the gate has a bias of its own where the projections have
    /// none.
    pub(crate) const KEYS: [&str; 9] = [
        "d_state",
        "n_v_heads",
        "n_qk_heads",
        "d_conv",
        "conv_bias",
        "expand",
        "chunk_size",
        "activation",
        "bias",
    ];

    /// Width of x and of the gate.
    pub fn d_inner(&self, d_model: usize) -> usize {
        match self.head_dim {
            Some(p) => self.n_v_heads * p,
            None => self.expand * d_model,
        }
    }

    /// Dimensions of a head of x.
    pub fn head_dim(&self, d_model: usize) -> usize {
        self.d_inner(d_model) / self.n_v_heads
    }

    /// Width of B, and of C.
    pub fn d_bc(&self) -> usize {
        self.n_qk_heads * self.d_state
    }

    /// Channels of the convolution, which are x, B and C in this order.
    pub fn conv_dim(&self, d_model: usize) -> usize {
        self.d_inner(d_model) + 2 * self.d_bc()
    }

    /// Gates of B: one a head of B, or none.
    pub fn n_b_gates(&self) -> usize {
        if self.b_gate { self.n_qk_heads } else { 0 }
    }

    /// Rows of the input projection: x, B, C, the gate z, A_log, and the gates of B, in this order.
    pub fn d_in_proj(&self, d_model: usize) -> usize {
        self.conv_dim(d_model) + self.d_inner(d_model) + self.n_v_heads + self.n_b_gates()
    }
}

impl MixerOptions for DiscreteMamba2Config {
    fn kind(&self) -> &'static str {
        "mamba2"
    }

    fn validate(&self, d_model: usize) -> Result<(), ConfigError> {
        check_sizes(&[
            ("d_model", d_model),
            ("d_state", self.d_state),
            ("n_v_heads", self.n_v_heads),
            ("n_qk_heads", self.n_qk_heads),
            ("d_conv", self.d_conv),
            ("expand", self.expand),
            ("chunk_size", self.chunk_size),
            ("head_dim", self.head_dim.unwrap_or(1)),
        ])?;
        // Both factors are below 2^24, so the products are what they should be.
        check_sizes(&[
            (
                "expand * d_model or n_v_heads * head_dim",
                self.d_inner(d_model),
            ),
            ("n_qk_heads * d_state", self.d_bc()),
        ])?;
        if self.d_conv > MOST_TAPS {
            return Err(ConfigError::Invalid(format!(
                "`d_conv` is {}; it must lie between 1 and {MOST_TAPS}",
                self.d_conv
            )));
        }
        let d_inner = self.d_inner(d_model);
        if !d_inner.is_multiple_of(self.n_v_heads) {
            return Err(ConfigError::Invalid(format!(
                "`n_v_heads` is {}, which does not divide the inner width {d_inner}",
                self.n_v_heads
            )));
        }
        if !self.n_v_heads.is_multiple_of(self.n_qk_heads) {
            return Err(ConfigError::Invalid(format!(
                "`n_qk_heads` is {}, which does not divide `n_v_heads`, {}",
                self.n_qk_heads, self.n_v_heads
            )));
        }
        if let Some(epsilon) = self.bc_norm {
            check_positive("bc_norm", epsilon)?;
        }
        match &self.rotary {
            Some(rotary) => rotary.validate(self.d_state, self.head_dim(d_model)),
            None => Ok(()),
        }
    }

    fn n_heads(&self) -> usize {
        self.n_v_heads
    }

    fn describe(&self, d_model: usize) -> String {
        format!(
            "Mamba-2, {} heads of {}, {} of B and C, state {}",
            self.n_v_heads,
            self.head_dim(d_model),
            self.n_qk_heads,
            self.d_state
        )
    }

    fn to_json(&self) -> Value {
        json!(self)
    }

    fn state_size(&self, d_model: usize) -> StateSize {
        let window = self.conv_dim(d_model) * self.d_conv;
        let state = self.d_inner(d_model) * self.d_state;
        StateSize {
            fixed: (window + state) * F32,
            per_token: 0,
        }
    }

    /// `2 d i + 2 d_inner d` of the projections, with `i` rows into the mixer, and `4 d_inner n` of the recurrence.
    fn operations(&self, d_model: usize, _l: usize) -> f64 {
        let (d, d_inner) = (d_model as f64, self.d_inner(d_model) as f64);
        let rows = self.d_in_proj(d_model) as f64;
        2.0 * d * rows + 2.0 * d * d_inner + 4.0 * d_inner * self.d_state as f64
    }

    /// The rows of B, C, A_log and the gates of B; `l h n` of the products of C and B.
    fn matrix_operations(&self, d_model: usize, l: usize) -> MatrixOperations {
        let rows = 2 * self.d_bc() + self.n_v_heads + self.n_b_gates();
        MatrixOperations {
            projections: 2.0 * d_model as f64 * rows as f64,
            scores: l as f64 * (self.n_v_heads * self.d_state) as f64,
        }
    }

    fn has_transfer_parts(&self) -> bool {
        true
    }

    fn mamba_mut(&mut self) -> Option<&mut DiscreteMamba2Config> {
        Some(self)
    }
}
