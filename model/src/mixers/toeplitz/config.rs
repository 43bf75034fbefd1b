//! The mixer's options.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config_error::{ConfigError, check_sizes};
use crate::mixers::{F32, MatrixOperations, MixerOptions, StateSize};

/// Options of the Toeplitz mixer. All of them must be there, and unknown ones are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToeplitzConfig {
    /// Heads, each with its own matrix.
    pub n_heads: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Taps of each head. A token that lies as far back, or further, has no weight.
    pub length: usize,
}

impl ToeplitzConfig {
    /// Width of x and of the gate.
    pub fn d_inner(&self) -> usize {
        self.n_heads * self.head_dim
    }
}

impl MixerOptions for ToeplitzConfig {
    fn kind(&self) -> &'static str {
        "toeplitz"
    }

    fn validate(&self, d_model: usize) -> Result<(), ConfigError> {
        check_sizes(&[
            ("d_model", d_model),
            ("n_heads", self.n_heads),
            ("head_dim", self.head_dim),
            ("length", self.length),
        ])?;
        // Each factor is below 2^24.
        check_sizes(&[
            ("n_heads * head_dim", self.d_inner()),
            ("n_heads * length", self.n_heads * self.length),
        ])
    }

    fn n_heads(&self) -> usize {
        self.n_heads
    }

    fn describe(&self, _d_model: usize) -> String {
        format!(
            "Toeplitz, {} heads of {}, {} taps",
            self.n_heads, self.head_dim, self.length
        )
    }

    fn to_json(&self) -> Value {
        json!(self)
    }

    /// The last `length` inputs of the matrix, zeros before the first: of one size, however much was read.
    fn state_size(&self, _d_model: usize) -> StateSize {
        StateSize {
            fixed: self.d_inner() * self.length * F32,
            per_token: 0,
        }
    }

    /// `6 d_inner d` of the projections, and two for each channel and token that is mixed.
    fn operations(&self, d_model: usize, l: usize) -> f64 {
        let (d, d_inner) = (d_model as f64, self.d_inner() as f64);
        let (l, length) = (l as f64, self.length as f64);
        let mixed = if l <= length {
            l / 2.0
        } else {
            length - length * length / (2.0 * l)
        };
        6.0 * d_inner * d + 2.0 * d_inner * mixed
    }

    /// Nothing is multiplied.
    fn matrix_operations(&self, _d_model: usize, _l: usize) -> MatrixOperations {
        MatrixOperations::default()
    }

    fn has_whole_matrix(&self) -> bool {
        true
    }
}
