//! MOHAWK: distils a Transformer into a student whose attention layers are replaced by state-space mixers.
//!
//! # How a run is organised
//!
//! [`config`] says what to do: a list of stages. [`run`] does it, from beginning to end. [`step`] is one optimizer
//! step, and [`stages`] has the kinds of stages, each with the computation of one pass. [`optimizer`] updates the
//! parameters, [`checkpoint`] saves all that is needed to resume, [`metrics`] shows and records, [`report`] draws the
//! report.
//! A step moves data in this order:
//!
//! ```text
//! windows -> batch -> teacher -> stage -> loss, gradients -> optimizer -> metrics, checkpoint
//! ```
//!
//! # Why not the loop of burn-train
//!
//! burn-train's `Learner` runs epochs over one model and one loss. It checkpoints, evaluates and resumes only between
//! epochs, clips gradients tensor by tensor, and advances the schedule with every pass. Distillation has a frozen
//! teacher beside the student and several losses one after another, some of them layer by layer with a backward pass
//! for each layer, and must resume at any step to the bit. One part of burn-train fits and is used: its terminal
//! dashboard (`--dashboard`).
//!
//! The teacher is on the inner backend, without an autodiff graph. Gradients are collected as soon as a layer's
//! backward pass is done. Everything is generic over [`kernels::TrainBackend`]; only the program's command line names
//! backends.
//!
//! # As a library
//!
//! ```
//! use train::config::{Config, Source};
//!
//! let mut config = Config::load(Source::Preset("tiny"), &["stage3.lr.mixer=1e-3".to_owned()])?;
//! config.choose_stages(&["stage2".to_owned(), "stage3".to_owned()])?;
//! let steps: Vec<_> = config.stages.iter().map(|stage| config.steps(stage)).collect();
//! assert_eq!(steps, [500, 760]);
//! # Ok::<(), train::config::ConfigError>(())
//! ```
//!
//! [`run::Run::execute`] then runs it on any backend.

#![deny(missing_docs)]

#[cfg(not(any(
    feature = "cuda",
    feature = "wgpu",
    feature = "flex",
    feature = "ndarray"
)))]
compile_error!("train needs a backend: build with `--features flex` (or ndarray, wgpu, cuda)");

pub mod ablation;
pub mod bench;
pub mod checkpoint;
pub mod cli;
pub mod clipping;
pub mod config;
mod device_rate;
mod error;
pub mod evaluate;
pub mod gradients;
mod guard;
pub mod heads;
pub mod limits;
pub mod logging;
pub mod metrics;
pub mod optimizer;
pub mod parallel;
mod parallel_passes;
pub mod provenance;
mod recorded;
pub mod report;
mod retry;
pub mod run;
pub mod schedule;
mod shell;
pub mod specimens;
pub mod stages;
pub mod step;
pub mod study;
pub mod summary;
mod table;
pub mod teacher_cache;
pub mod teacher_text;

pub use error::TrainError;

/// The example of the README compiles.
#[cfg(all(doctest, feature = "flex"))]
#[doc = include_str!("../README.md")]
struct Readme;
