//! A model in use: what `infer` does with a folder that holds a Phi, a Phi-Mamba or a hybrid.
//!
//! ```text
//! folder -> tokenizer -> prompt ids -> Generation -> ids -> text, as it is made
//!        -> model    ----------------^    ^
//!                            Sampler: logits -> id
//! ```
//!
//! [`generate`](mod@generate) turns a prompt into an iterator of tokens, [`sampling`] chooses each of
//! them from its logits, and [`cli`] puts both on the command line, on the backend that is asked for.
//!
//! # One loop for all models
//!
//! A model with attention carries a cache that grows with every token, a Phi-Mamba carries matrices
//! of fixed size; both are a [`model::State`] that `prefill` fills and `step` moves on by a token, so
//! nothing here asks which model it has. What differs is that attention ends where the model's
//! positions end, and that is one number.
//!
//! # Why an iterator
//!
//! Tokens are wanted one at a time: to be printed, sent, measured or compared. An iterator leaves it
//! to the caller what to do between two of them, and when to stop: dropping it is enough. A callback
//! would have to return whether to go on, a channel would need a thread, and an asynchronous stream a
//! runtime, for work that keeps the device busy from one token to the next anyway.
//!
//! # Why logits are sampled on the CPU
//!
//! The warpers sort, compare ties and accumulate in a fixed order, which is easy to get right, and to
//! test against tables, on a slice; the same on a device would be a dozen kernels whose rounding
//! depends on the backend. The price is the copy of one row of logits a token (200 KB at a vocabulary
//! of 51,200), where a step reads every weight of the model.

#![deny(missing_docs)]

#[cfg(not(any(
    feature = "cuda",
    feature = "flex",
    feature = "ndarray",
    feature = "wgpu"
)))]
compile_error!("infer needs a backend: build with the feature flex, ndarray, wgpu or cuda");

pub mod cli;
pub mod generate;
pub mod sampling;

pub use generate::{GenerateError, GenerateOptions, Generation, Pace, Stop};
pub use sampling::{Sampler, SamplingError, SamplingSettings};
