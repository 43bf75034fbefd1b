//! The ops of a discrete Mamba-2 mixer between its projections.

pub mod causal_conv;
pub mod skip_gate;
pub mod ssd;
