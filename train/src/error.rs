//! Why a run cannot start or continue.

use std::io;
use std::path::{Path, PathBuf};

/// Why a run cannot start or continue.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// Text or tokenizer cannot be read.
    #[error(transparent)]
    Data(#[from] datasets::DataError),
    /// Something went wrong on the device that computes.
    #[error(transparent)]
    Device(#[from] kernels::runtime::BackendError),
    /// The teacher cannot be read.
    #[error("the teacher that teacher.model names cannot be read: {0}")]
    Teacher(model::WeightsError),
    /// A student cannot be written.
    #[error(transparent)]
    Weights(#[from] model::WeightsError),
    /// The student's sizes do not fit together or do not fit the teacher.
    #[error("the student in [student] does not fit the teacher: {0}")]
    Student(#[from] model::ConfigError),
    /// The teacher's weights do not fit the student.
    #[error(transparent)]
    Transfer(#[from] model::TransferError),
    /// Teacher and student cannot be compared.
    #[error("{0}")]
    Mismatch(String),
    /// `metrics.jsonl` cannot be read or written.
    #[error(transparent)]
    Metrics(#[from] crate::metrics::MetricsError),
    /// The report cannot be made.
    #[error(transparent)]
    Report(#[from] crate::report::ReportError),
    /// The run folder cannot be made.
    #[error(
        "{}: this folder for the run cannot be made: {source}; choose another by --out",
        path.display()
    )]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the run folder cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A stage cannot train the student.
    #[error("stage {stage}: {reason}")]
    Untrainable {
        /// The stage.
        stage: String,
        /// Which layer cannot learn, and why.
        reason: crate::stages::Untrainable,
    },
    /// Random weights would be written among others.
    #[error(
        "{}: holds .safetensors files but no config.json, and is not written over; choose another folder \
         by --weights",
        .0.display()
    )]
    ForeignWeights(PathBuf),
    /// A checkpoint is damaged.
    #[error(
        "checkpoint {} is damaged: {reason}; remove this folder to resume from the one before it",
        path.display()
    )]
    Checkpoint {
        /// The checkpoint's folder.
        path: PathBuf,
        /// Which file or tensor in it, and what is wrong with that.
        reason: String,
    },
    /// The run folder holds a run.
    #[error(
        "{folder}: holds a run already; resume it by --resume {folder}, or choose another folder by --out",
        folder = .0.display()
    )]
    Exists(PathBuf),
    /// The folder holds no run.
    #[error(
        "{}: no run in this folder (it has no config.toml); start one with --out instead of --resume",
        .0.display()
    )]
    NoRun(PathBuf),
    /// Another process works in the run folder.
    #[error("{}: another process is working on this run; wait for it, or stop it", .0.display())]
    InUse(PathBuf),
    /// The device cannot compute in that dtype.
    #[error(
        "the {backend} backend does not compute in {precision} here; every backend does in f32, by {}",
        in_f32(resumed)
    )]
    Precision {
        /// What was asked for.
        precision: crate::config::Precision,
        /// The backend.
        backend: String,
        /// The configuration that asks for it, where the run has begun with it.
        resumed: Option<PathBuf>,
    },
    /// Loss or gradient were not finite too many times in a row.
    #[error(
        "stage {stage}: loss or gradient was not finite in {skipped} steps in a row, up to step \
         {step}; lower lr of this stage in {}, then resume from the last checkpoint by --resume {}",
        folder.join("config.toml").display(),
        folder.display()
    )]
    NotFinite {
        /// The stage.
        stage: String,
        /// The last step tried.
        step: usize,
        /// Steps skipped in a row.
        skipped: usize,
        /// The run folder.
        folder: PathBuf,
    },
}

/// How to ask for f32.
fn in_f32(resumed: &Option<PathBuf>) -> String {
    match resumed {
        Some(config) => format!(
            "precision = \"f32\" in {}, which changes the result",
            config.display()
        ),
        None => "--precision f32".to_owned(),
    }
}

/// For `map_err`: an I/O error with the path it happened at.
pub(crate) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> TrainError {
    let path = path.to_owned();
    move |source| TrainError::Io { path, source }
}
