//! What the engine shows of itself while it works.

use std::sync::atomic::{AtomicU64, AtomicUsize};

/// Counts since the start, and what is so now.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Prompt tokens that were read.
    pub prompt_tokens: AtomicU64,
    /// Tokens that were made.
    pub tokens: AtomicU64,
    /// Sequences at work.
    pub sequences: AtomicUsize,
    /// Bytes of their states, those of the free rows of started tiles included.
    pub state_bytes: AtomicUsize,
}
