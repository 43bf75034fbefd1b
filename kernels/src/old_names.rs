//! The names that the crates above still use.
#![allow(missing_docs)]

pub use crate::decode::projections::{self as matvec, into as fan_out, out_of as fan_in};
pub use crate::decode::recurrent_step as step;
pub use crate::decode::sample::{self as choice, sample as choose};
pub use crate::dense::layer_norm as norm;
pub use crate::dense::{embedding, gelu, linear, rotary};
pub use crate::losses::hidden_states as rows_distance;
pub use crate::losses::mixing_matrices as distance;
pub use crate::losses::predictions as distillation;
pub use crate::optim::adamw;
pub use crate::profile as meter;
pub use crate::runtime as backends;
pub use crate::scan::causal_conv as conv;
pub use crate::scan::skip_gate::{
    self as gate, SkipGateGradients as GatedSkipGradients, skip_gate as gated_skip,
};
pub use crate::scan::ssd;

pub mod attention {
    pub use crate::decode::attention_step as step;
    pub use crate::dense::attention::*;
}

pub mod devices {
    pub use crate::runtime::{Memory, Survey, survey};
}
