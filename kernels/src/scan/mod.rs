//! What a discrete Mamba-2 mixer computes between its projections.

pub mod causal_conv;
pub mod skip_gate;
pub mod ssd;
