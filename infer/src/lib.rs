//! Inference: the library behind the program `infer`. It works on the folder of a teacher, a student or a hybrid.
//!
//! ```text
//! folder -> tokenizer -> prompt ids -> Generation -> ids -> text, token by token
//!        -> model    ----------------^    ^
//!                            Sampler: logits -> id
//! ```
//!
//! [`generate`](mod@generate) turns a prompt into an iterator over tokens, and [`sampling`] chooses each token from its
//! logits. A [`Reading`] is a text together with the model's state after it: [`state_file`] saves it on disk, and
//! `infer repl` continues from it with every line. [`chat`] writes a conversation as one text, by the model's chat
//! template. [`engine`] runs many texts at once, in a batch that sequences can join and leave at any step, and
//! [`serve`] offers it over HTTP. [`eval`] scores existing texts: the paper's evaluations. [`cli`] is the command line.
//!
//! # One loop for all models
//!
//! A model with attention has a cache that grows with every token; a Phi-Mamba has matrices of fixed size. Both are a
//! [`model::State`], which `prefill` fills and `step` advances by one token, so the code here does not depend on the
//! kind of model. One difference remains: a model with attention has a limited number of positions
//! ([`GenerateOptions::max_positions`]).
//!
//! # Why an iterator
//!
//! Tokens are needed one at a time: to be printed, sent, measured or compared. With an iterator the caller decides what
//! to do between two tokens, and stops by dropping the iterator. A callback would have to return whether to continue, a
//! channel would need a thread, and an asynchronous stream a runtime, although the device is busy from one token to the
//! next in any case. The [`engine`], which serves many callers at once, has all three.
//!
//! # Where tokens are chosen
//!
//! The warpers sort, compare ties and accumulate in a fixed order. On a slice in the host's memory this is easy to
//! implement correctly and to test against tables: [`sampling`]. If the device has its own memory, a kernel chooses the
//! same tokens there, for several texts at once, each with its own settings. Then only one number per text is copied to
//! the host, instead of one number per entry of the vocabulary.

#![deny(missing_docs)]
// These panic where a stream is closed or full: `output` writes.
#![deny(clippy::print_stdout, clippy::print_stderr)]

#[cfg(not(any(
    feature = "cuda",
    feature = "flex",
    feature = "ndarray",
    feature = "wgpu"
)))]
compile_error!("infer needs a backend: build with the feature flex, ndarray, wgpu or cuda");

mod audit;
pub mod beginning;
mod bench;
pub mod chat;
pub mod cli;
mod commands;
mod device;
mod device_sampler;
pub mod end_tokens;
pub mod engine;
mod error;
pub mod eval;
pub mod generate;
mod model_args;
mod output;
pub mod precision;
mod repl;
pub mod sampling;
pub mod serve;
pub mod state_file;
mod state_size;
mod table;

pub use error::GenerateError;
pub use generate::{GenerateOptions, Generation, Pace, Reading, Stop};
pub use model::ModelHash;
pub use sampling::{Sampler, SamplingError, SamplingSettings};
pub use state_file::StateFileError;
