//! The options of attention.

use kernels::Window;
use serde_json::{Value, json};

use crate::config_error::{ConfigError, check_positive, check_sizes};
use crate::mixers::{F32, MatrixOperations, MixerOptions, RopeScaling, StateSize};

/// Options of causal self-attention with rotary embedding and grouped key and value heads.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionConfig {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads, a divisor of `n_heads`: query head `i` reads number `i / (n_heads / n_kv_heads)`.
    pub n_kv_heads: usize,
    /// Dimensions of a head, where they are not the model's width divided by `n_heads`.
    pub head_dim: Option<usize>,
    /// Whether the projections to queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the output projection has one.
    pub dense_bias: bool,
    /// Share of each head's dimensions that is rotated by its position.
    pub partial_rotary_factor: f64,
    /// Base of the rotation's frequencies.
    pub rope_theta: f64,
    /// How they are changed for longer sequences.
    pub rope_scaling: Option<RopeScaling>,
    /// The epsilon of an RMS norm of each query's and each key's head, before the rotation, as in Qwen3; `None`
    /// without such norms.
    pub qk_norm: Option<f64>,
    /// Which tokens each attends to; `None` where it is all before it.
    pub window: Option<Window>,
}

impl AttentionConfig {
    /// Phi's options with so many heads, each with its own keys and values.
    pub fn with_heads(n_heads: usize) -> Self {
        Self {
            n_heads,
            n_kv_heads: n_heads,
            head_dim: None,
            qkv_bias: true,
            dense_bias: true,
            partial_rotary_factor: 0.5,
            rope_theta: 10000.0,
            rope_scaling: None,
            qk_norm: None,
            window: None,
        }
    }

    /// Dimensions of a head in a network `d_model` wide.
    pub fn head_dim(&self, d_model: usize) -> usize {
        self.head_dim.unwrap_or(d_model / self.n_heads)
    }

    /// Dimensions of each head that are rotated, the first ones: `factor * head_dim`, truncated.
    pub fn rotary_dim(&self, d_model: usize) -> usize {
        (self.partial_rotary_factor * self.head_dim(d_model) as f64) as usize
    }

    /// How many tokens a token of a sequence of `l` sees, on average: half of them, or what a window leaves.
    fn seen(&self, l: usize) -> f64 {
        let all = l as f64;
        let most = self.window.map_or(all, |window| window.tokens() as f64);
        if most < all {
            most * (1.0 - 0.5 * most / all)
        } else {
            0.5 * all
        }
    }

    /// Widths of all queries, and of all keys or all values.
    fn widths(&self, d_model: usize) -> (usize, usize) {
        let p = self.head_dim(d_model);
        (self.n_heads * p, self.n_kv_heads * p)
    }
}

impl MixerOptions for AttentionConfig {
    fn kind(&self) -> &'static str {
        "attention"
    }

    fn validate(&self, d_model: usize) -> Result<(), ConfigError> {
        check_sizes(&[
            ("hidden size", d_model),
            ("num_attention_heads", self.n_heads),
            ("num_key_value_heads", self.n_kv_heads),
        ])?;
        check_positive("rope_theta", self.rope_theta)?;
        self.rope_scaling.map_or(Ok(()), RopeScaling::validate)?;
        self.qk_norm
            .map_or(Ok(()), |epsilon| check_positive("qk_norm", epsilon))?;
        if let Some(Window { window, sinks }) = self.window {
            // Zero sinks are none.
            check_sizes(&[("window", window), ("sinks", sinks.max(1))])?;
        }
        let (h, g) = (self.n_heads, self.n_kv_heads);
        if !h.is_multiple_of(g) {
            return Err(ConfigError::Invalid(format!(
                "`num_key_value_heads` is {g}, which does not divide `num_attention_heads`, {h}"
            )));
        }
        if self.head_dim.is_none() && !d_model.is_multiple_of(h) {
            return Err(ConfigError::Invalid(format!(
                "`num_attention_heads` is {h}, which does not divide the hidden size {d_model}; give `head_dim` if \
                 the heads do not share that"
            )));
        }
        let (rotary, head) = (self.rotary_dim(d_model), self.head_dim(d_model));
        check_sizes(&[("head_dim", head)])?;
        // Both factors are below 2^24, so the product is what it should be.
        check_sizes(&[("num_attention_heads * head_dim", self.n_heads * head)])?;
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

    fn n_heads(&self) -> usize {
        self.n_heads
    }

    fn describe(&self, d_model: usize) -> String {
        let heads = format!(
            "attention, {} heads of {}, {} of keys and values",
            self.n_heads,
            self.head_dim(d_model),
            self.n_kv_heads
        );
        match self.window {
            None => heads,
            Some(Window { window, sinks: 0 }) => format!("{heads}, window of {window}"),
            Some(Window { window, sinks }) => {
                format!("{heads}, window of {window} and {sinks} sinks")
            }
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "qkv_bias": self.qkv_bias,
            "dense_bias": self.dense_bias,
            "partial_rotary_factor": self.partial_rotary_factor,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling.map(RopeScaling::to_json),
            "qk_norm": self.qk_norm,
            "window": self.window.map(|window| window.window),
            "sinks": self.window.map(|window| window.sinks),
        })
    }

    /// With a window, what the sinks and the window take when they are full: the state does not grow beyond that.
    fn state_size(&self, d_model: usize) -> StateSize {
        let per_token = 2 * self.widths(d_model).1 * F32;
        match self.window {
            None => StateSize {
                fixed: 0,
                per_token,
            },
            Some(window) => StateSize {
                fixed: window.tokens().saturating_mul(per_token),
                per_token: 0,
            },
        }
    }

    /// `2 d (2 h p + 2 g p)` of the projections, and `4 h p` of the scores and sums of each token that is seen.
    fn operations(&self, d_model: usize, l: usize) -> f64 {
        let (queries, keys) = self.widths(d_model);
        let projections = 2.0 * d_model as f64 * (2 * queries + 2 * keys) as f64;
        projections + 4.0 * self.seen(l) * queries as f64
    }

    /// Queries and keys; `2 h p` of the product with each token that is seen.
    fn matrix_operations(&self, d_model: usize, l: usize) -> MatrixOperations {
        let (queries, keys) = self.widths(d_model);
        MatrixOperations {
            projections: 2.0 * d_model as f64 * (queries + keys) as f64,
            scores: 2.0 * self.seen(l) * queries as f64,
        }
    }

    fn has_attention_parts(&self) -> bool {
        true
    }
}
