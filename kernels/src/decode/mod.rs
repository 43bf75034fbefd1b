//! The ops of a decoding step: they compute one new token for each sequence. No gradient passes through them.

pub mod attention_step;
pub mod projections;
pub mod queued_read;
pub mod recurrent_step;
pub mod replay;
pub mod sample;
