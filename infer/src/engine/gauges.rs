//! The engine's counters, which other threads read while it works.

use std::sync::atomic::{AtomicU64, AtomicUsize};

/// Totals since the start, and the present load.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Total of prompt tokens read.
    pub prompt_tokens: AtomicU64,
    /// Total of tokens made.
    pub tokens: AtomicU64,
    /// Sequences that are being computed.
    pub sequences: AtomicUsize,
    /// Bytes of their states, free rows of tiles included.
    pub state_bytes: AtomicUsize,
}
