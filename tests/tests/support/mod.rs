//! What the test programs of the workspace share beyond the crate's library.
#![allow(dead_code)] // each test program uses its part

pub mod passes;
pub mod perplexity;
