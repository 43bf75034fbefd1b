//! MOHAWK: a run that distils a Phi Transformer into a Phi-Mamba.
//!
//! # How a run reads
//!
//! `config` says what to do, `run` tells the story from top to bottom, `step` is one optimizer step,
//! `stage` says what each of the three stages computes for one pass, `optimizer` moves the parameters, `checkpoint` holds all that
//! is needed to go on, `metrics` shows and records, `report` draws. Data goes one way:
//!
//! ```text
//! windows -> batch -> teacher -> stage -> loss, gradients -> optimizer -> metrics, checkpoint
//! ```
//!
//! # Why a loop of our own
//!
//! burn-train's `Learner` goes by epochs over one model and one loss; it checkpoints and evaluates
//! between epochs and resumes at their bounds, clips gradients tensor by tensor, and steps the
//! schedule with every pass. Distillation has a frozen teacher beside the student, three losses in a
//! row, two of them taken layer by layer with a backward pass each, and must resume at any step to
//! the bit. What burn-train does well is used where it fits: its terminal dashboard (`--dashboard`).
//!
//! The teacher lives on the inner backend, without a graph. Gradients are taken as soon as a layer's
//! backward pass is done, and everything is generic over [`kernels::TrainBackend`]; only the command
//! line knows which backends there are.

#![deny(missing_docs)]

#[cfg(not(any(
    feature = "cuda",
    feature = "wgpu",
    feature = "flex",
    feature = "ndarray"
)))]
compile_error!("train needs a backend: build with `--features flex` (or ndarray, wgpu, cuda)");

pub mod ablation;
mod bench;
pub mod checkpoint;
pub mod cli;
pub mod config;
mod error;
pub mod evaluate;
pub mod gradients;
mod lanes;
pub mod logging;
pub mod metrics;
pub mod optimizer;
pub mod report;
pub mod run;
pub mod schedule;
pub mod showing;
pub mod stage;
pub mod step;
pub mod summary;

pub use error::TrainError;
