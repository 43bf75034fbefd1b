//! The trait of a mixer's options, and the types for sizes of states and numbers of operations.

use std::fmt::Debug;

use serde::Serialize;
use serde_json::Value;

use super::discrete_mamba2::DiscreteMamba2Config;
use crate::config_error::ConfigError;

/// Bytes of a number in f32.
pub(crate) const F32: usize = 4;

/// The options of a mixer, and everything about it that needs neither parameters nor a device.
pub trait MixerOptions: Debug {
    /// The name of the kind of mixer in programs, such as `attention`.
    fn kind(&self) -> &'static str;

    /// Checks that the sizes fit together in a network of width `d_model`.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the values that do not fit.
    fn validate(&self, d_model: usize) -> Result<(), ConfigError>;

    /// Heads of the output, each with its own mixing matrix.
    fn n_heads(&self) -> usize;

    /// The mixer in a few words, such as `attention, 32 heads of 64, 32 of keys and values`.
    fn describe(&self, d_model: usize) -> String;

    /// The options as JSON, under the keys of published configurations.
    fn to_json(&self) -> Value;

    /// The size of the state of one sequence in f32, without overflow for sizes that [`validate`](Self::validate)
    /// accepts.
    fn state_size(&self, d_model: usize) -> StateSize;

    /// Floating-point operations of the forward pass for one token of a sequence of `l`, an addition and a
    /// multiplication counting as two. It is the average over the sequence: attention sees half of the keys on average.
    fn operations(&self, d_model: usize, l: usize) -> f64;

    /// The same for what [`kernels::mixing_distance`] computes of the mixing matrix.
    fn matrix_operations(&self, d_model: usize, l: usize) -> MatrixOperations;

    /// Whether the mixing matrix can be the student's in [`kernels::mixing_distance`]: whether
    /// [`TokenMixer::transfer_parts`](super::TokenMixer::transfer_parts) gives anything.
    fn has_transfer_parts(&self) -> bool {
        false
    }

    /// Whether the student's mixing matrix is compared as a whole, since it has no such factors: with
    /// [`crate::mohawk::matrix_orientation_loss`] of [`TokenMixer::mixing_matrix`](super::TokenMixer::mixing_matrix), which
    /// holds the matrices of a layer.
    fn has_whole_matrix(&self) -> bool {
        false
    }

    /// The options of the discrete Mamba-2 in it, to be changed.
    fn mamba_mut(&mut self) -> Option<&mut DiscreteMamba2Config> {
        None
    }

    /// Whether it can be the teacher's there: whether
    /// [`TokenMixer::attention_parts`](super::TokenMixer::attention_parts) gives anything.
    fn has_attention_parts(&self) -> bool {
        false
    }
}

/// Floating-point operations of a mixing matrix, for one token.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MatrixOperations {
    /// Of the projections that give its factors.
    pub projections: f64,
    /// Of its entries, of which half are below the diagonal.
    pub scores: f64,
}

/// Bytes of the decoding state of one sequence in f32: `fixed + per_token * tokens`.
///
/// In a half-precision network, recurrent states stay in f32, but the windows of convolutions and cached keys and
/// values may take half of these sizes. Sums saturate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct StateSize {
    /// Whatever the length of the sequence.
    pub fixed: usize,
    /// For each token that was read.
    pub per_token: usize,
}

impl StateSize {
    /// Bytes after `tokens` tokens.
    pub fn bytes(self, tokens: usize) -> usize {
        let growing = self.per_token.saturating_mul(tokens);
        self.fixed.saturating_add(growing)
    }

    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            fixed: self.fixed.saturating_add(other.fixed),
            per_token: self.per_token.saturating_add(other.per_token),
        }
    }

    /// `n` of them.
    pub fn times(self, n: usize) -> Self {
        Self {
            fixed: self.fixed.saturating_mul(n),
            per_token: self.per_token.saturating_mul(n),
        }
    }
}
