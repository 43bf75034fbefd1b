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
//! A [`Reading`] is a text and how far a model has come with it: [`snapshot`] keeps it on disk, and
//! `infer repl` goes on from it with every line.
//! For many texts at once, [`engine`] runs them in a batch that they join and leave, and [`serve`]
//! lets HTTP clients in to it.
//! [`eval`] asks a model what it makes of texts that are there already: the paper's evaluations.
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
//! runtime, for work that keeps the device busy from one token to the next anyway. The [`engine`],
//! which many ask at once, has all three.
//!
//! # Where tokens are chosen
//!
//! The warpers sort, compare ties and accumulate in a fixed order, which is easy to get right, and to
//! test against tables, on a slice of the host's: [`sampling`]. Where the device has memory of its own,
//! a kernel chooses the same token there, for several texts at once with settings of their own, and what
//! comes back is one number a text in place of a vocabulary of them.

#![deny(missing_docs)]

#[cfg(not(any(
    feature = "cuda",
    feature = "flex",
    feature = "ndarray",
    feature = "wgpu"
)))]
compile_error!("infer needs a backend: build with the feature flex, ndarray, wgpu or cuda");

mod atomic_file;
pub mod bench;
mod chooser;
pub mod cli;
pub mod engine;
pub mod eval;
pub mod generate;
mod identity;
mod info;
mod memory;
pub mod precision;
mod repl;
pub mod sampling;
pub mod serve;
pub mod snapshot;

pub use generate::{GenerateError, GenerateOptions, Generation, Pace, Reading, Stop};
pub use identity::ModelHash;
pub use sampling::{Sampler, SamplingError, SamplingSettings};
pub use snapshot::SnapshotError;
