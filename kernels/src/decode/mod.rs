//! What decoding computes for one new token of each sequence. No gradient passes through these ops.

pub mod attention_step;
pub mod projections;
pub mod queued_read;
pub mod recurrent_step;
pub mod replay;
pub mod sample;
