//! The mixer's options.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config_error::{ConfigError, check_sizes};
use crate::mixers::{F32, MatrixOperations, MixerOptions, StateSize};

/// Options of the causal low-rank mixer. All of them must be there, and unknown ones are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LowRankConfig {
    /// Heads, each with its own B and C.
    pub n_heads: usize,
    /// Dimensions of a head of x.
    pub head_dim: usize,
    /// Dimensions of B and of C: the rank of a head's matrix, but for its causal mask and the skip.
    pub d_state: usize,
    /// Taps of the causal convolution.
    pub d_conv: usize,
    /// Tokens that the scan takes at once. Changes speed and memory, never the result.
    pub chunk_size: usize,
}

impl LowRankConfig {
    /// Width of x and of the gate.
    pub fn d_inner(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of B, and of C.
    pub fn d_bc(&self) -> usize {
        self.n_heads * self.d_state
    }

    /// Channels of the convolution, which are x, B and C in this order.
    pub fn conv_dim(&self) -> usize {
        self.d_inner() + 2 * self.d_bc()
    }
}

impl MixerOptions for LowRankConfig {
    fn kind(&self) -> &'static str {
        "low_rank"
    }

    fn validate(&self, d_model: usize) -> Result<(), ConfigError> {
        check_sizes(&[
            ("d_model", d_model),
            ("n_heads", self.n_heads),
            ("head_dim", self.head_dim),
            ("d_state", self.d_state),
            ("d_conv", self.d_conv),
            ("chunk_size", self.chunk_size),
        ])?;
        // Each factor is below 2^24.
        check_sizes(&[
            ("n_heads * head_dim", self.d_inner()),
            ("n_heads * d_state", self.d_bc()),
        ])?;
        check_sizes(&[("taps of all channels", self.conv_dim() * self.d_conv)])
    }

    fn n_heads(&self) -> usize {
        self.n_heads
    }

    fn describe(&self, _d_model: usize) -> String {
        format!(
            "causal low-rank, {} heads of {}, rank {}",
            self.n_heads, self.head_dim, self.d_state
        )
    }

    fn to_json(&self) -> Value {
        json!(self)
    }

    fn state_size(&self, _d_model: usize) -> StateSize {
        let window = self.conv_dim() * self.d_conv;
        let sums = self.d_inner() * self.d_state;
        StateSize {
            fixed: (window + sums) * F32,
            per_token: 0,
        }
    }

    /// `2 d i + 2 d_inner d` of the projections, with `i` rows into the mixer, and `4 d_inner n` of the recurrence.
    fn operations(&self, d_model: usize, _l: usize) -> f64 {
        let (d, d_inner) = (d_model as f64, self.d_inner() as f64);
        let rows = self.conv_dim() as f64 + d_inner;
        2.0 * d * rows + 2.0 * d * d_inner + 4.0 * d_inner * self.d_state as f64
    }

    /// The rows of B and C; `l h n` of their products.
    fn matrix_operations(&self, d_model: usize, l: usize) -> MatrixOperations {
        MatrixOperations {
            projections: 4.0 * d_model as f64 * self.d_bc() as f64,
            scores: l as f64 * self.d_bc() as f64,
        }
    }

    fn has_transfer_parts(&self) -> bool {
        true
    }
}
