//! Why a run cannot start or continue.

use std::io;
use std::path::{Path, PathBuf};

use crate::shell::word;

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
    /// The student's mixers cannot start as the configuration says.
    #[error("student.init: {0}")]
    Initialisation(#[from] model::InitError),
    /// Teacher and student cannot be compared.
    #[error("{0}")]
    Mismatch(String),
    /// A cache of a teacher's predictions cannot be used or made.
    #[error("the teacher's predictions in {} cannot be used: {reason}", folder.display())]
    TeacherCache {
        /// The folder of the cache.
        folder: PathBuf,
        /// What is wrong, and what to do about it.
        reason: String,
    },
    /// The processes that share the run cannot work together.
    #[error("{0}")]
    Ranks(String),
    /// `metrics.jsonl` cannot be read or written.
    #[error(transparent)]
    Metrics(#[from] crate::metrics::MetricsError),
    /// The report cannot be made.
    #[error(transparent)]
    Report(#[from] crate::report::ReportError),
    /// The run folder cannot be made or written.
    #[error("{}: this folder for the run cannot be {}", path.display(), not_taken(path, source))]
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
    /// The folder for random weights has tensor files, but not those that this program writes there.
    #[error(
        "{}: holds .safetensors files but no config.json, and is not written over; choose another folder \
         by --weights",
        .0.display()
    )]
    ForeignWeights(PathBuf),
    /// A checkpoint that is undamaged by its checksums, but cannot be used.
    #[error(
        "checkpoint {} cannot be used: {reason}; give this folder another name to resume from the one before it",
        path.display()
    )]
    Checkpoint {
        /// The checkpoint's folder.
        path: PathBuf,
        /// Which file or tensor in it, and what is wrong with that.
        reason: String,
    },
    /// All checkpoints are damaged.
    #[error(
        "no checkpoint of this run is whole: {}; put back what is missing or changed, or give the folder of \
         checkpoints another name to resume from the beginning",
        listed(.0.iter().map(|damaged| format!("{}: {}", damaged.path.display(), damaged.reason)))
    )]
    NoWholeCheckpoint(Vec<crate::checkpoint::Damaged>),
    /// A checkpoint of an earlier version, which has nothing to compare.
    #[error(
        "{}: an earlier version of this program wrote this checkpoint, without SHA256SUMS and inputs.toml, so it \
         cannot be known whether its files and what the run is made from are unchanged; go on with it as it is by \
         --resume {} --accept-changes, or put both files back if they were removed",
        path.display(),
        word(folder)
    )]
    Unverified {
        /// The checkpoint's folder.
        path: PathBuf,
        /// The run folder.
        folder: PathBuf,
    },
    /// The checksums of files cannot be written or compared.
    #[error(transparent)]
    Manifest(#[from] model::manifest::ManifestError),
    /// The student of a finished run was changed after it was written.
    #[error(
        "this run is finished, and its student is damaged: {source}; remove {} and export it anew by --resume {}",
        folder.join("summary.json").display(),
        word(folder)
    )]
    DamagedStudent {
        /// The run folder.
        folder: PathBuf,
        /// Which file differs.
        source: model::manifest::ManifestError,
    },
    /// The inputs of the run are not those that its checkpoint was made with.
    #[error(
        "{}: since step {step} of stage {stage}, from which the run would be resumed, this has changed: {}; put it \
         back as it was, start another run, or go on with it by --resume {} --accept-changes",
        folder.display(),
        listed(changes.iter().cloned()),
        word(folder)
    )]
    Changed {
        /// The run folder.
        folder: PathBuf,
        /// The checkpoint's stage.
        stage: String,
        /// Its step.
        step: usize,
        /// What has changed, each as a phrase.
        changes: Vec<String>,
    },
    /// A file was replaced while it was read.
    #[error("{}: the file has changed while it was read; start again", .0.display())]
    ChangedWhileRead(PathBuf),
    /// The run folder was moved or removed.
    #[error(
        "{}: this folder of the run was removed or renamed while the run went on, which ends here; if it is \
         somewhere else, resume it from there by --resume",
        .0.display()
    )]
    FolderGone(PathBuf),
    /// There is no place for tokenised text.
    #[error(
        "there is no home folder ($HOME), whose cache folder would hold the tokenised text; name another folder by \
         data.cache, as in --set data.cache=FOLDER or in the configuration of the run"
    )]
    NoCache,
    /// The place for tokenised text cannot be used.
    #[error(
        "{}: this folder for the tokenised text cannot be made or written: {source}; name another by data.cache, as \
         in --set data.cache=FOLDER or in the configuration of the run",
        path.display()
    )]
    Cache {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The run folder holds a run.
    #[error(
        "{}: holds a run already; resume it by --resume {}, or choose another folder by --out",
        .0.display(),
        word(.0)
    )]
    Exists(PathBuf),
    /// The run folder holds a run with other settings than those of a comparison or a study.
    #[error(
        "{}: holds a run with other settings: {}; give the settings that it had, give the variant another name, or \
         choose another folder by --out",
        folder.display(),
        listed(differences.iter().cloned())
    )]
    OtherRun {
        /// The run folder.
        folder: PathBuf,
        /// Each a key with its value in the folder and its value now.
        differences: Vec<String>,
    },
    /// The folder holds no run.
    #[error("{}: no run in this folder (it has no config.toml)", .0.display())]
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
        /// The configuration that asks for it, if the run has already begun with it.
        resumed: Option<PathBuf>,
    },
    /// The teacher's perplexity is not finite.
    #[error(
        "the teacher {model} has a perplexity of {perplexity} on the held-out text, so there is nothing to learn \
         from it: its weights or its numbers in {precision} are not finite; choose another teacher by \
         teacher.model, or another precision"
    )]
    TeacherNotFinite {
        /// The teacher, as it is configured.
        model: String,
        /// Its perplexity.
        perplexity: f64,
        /// What it computes in.
        precision: crate::config::Precision,
    },
    /// All steps of a stage were skipped.
    #[error(
        "stage {stage}: loss or gradient was not finite in any of its {steps} steps, so it has trained nothing; {}",
        lower(folder)
    )]
    AllSkipped {
        /// The stage.
        stage: String,
        /// Its steps.
        steps: usize,
        /// The run folder.
        folder: PathBuf,
    },
    /// The student has values that are not finite.
    #[error(
        "stage {stage} step {step}: {what} of the student is not finite, and the student is not kept; {}",
        lower(folder)
    )]
    StudentNotFinite {
        /// The stage.
        stage: String,
        /// The last step.
        step: usize,
        /// A parameter by its name, or the perplexity.
        what: String,
        /// The run folder.
        folder: PathBuf,
    },
    /// The loss was too high too many times in a row.
    #[error(
        "stage {stage}: the loss was above guard.spike times the median of those before in {times} steps in a row, or \
         after going back {times} times, up to step {step}; {}",
        lower(folder)
    )]
    Spikes {
        /// The stage.
        stage: String,
        /// The last step tried.
        step: usize,
        /// How often.
        times: usize,
        /// The run folder.
        folder: PathBuf,
    },
    /// Loss or gradient were not finite too many times in a row.
    #[error(
        "stage {stage}: loss or gradient was not finite in {skipped} steps in a row, up to step {step}; {}",
        lower(folder)
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

impl TrainError {
    /// Whether the run's recipe is the cause, and not the machine or the files: the loss or the student is no longer
    /// finite, or the loss was too high too often.
    pub fn is_divergence(&self) -> bool {
        use TrainError::{AllSkipped, NotFinite, Spikes, StudentNotFinite};
        matches!(
            self,
            AllSkipped { .. } | NotFinite { .. } | Spikes { .. } | StudentNotFinite { .. }
        )
    }
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

/// What to do about a stage that diverges.
fn lower(folder: &Path) -> String {
    format!(
        "lower lr of this stage in {}, then resume from the last checkpoint by --resume {}, with --accept-changes if \
         that is of the same stage",
        folder.join("config.toml").display(),
        word(folder)
    )
}

/// What cannot be done with a run folder, and what to do.
fn not_taken(path: &Path, source: &io::Error) -> String {
    if path.is_dir() {
        format!("written: {source}; make it writable, or start another run by --out")
    } else {
        format!("made: {source}; choose another by --out")
    }
}

fn listed(all: impl Iterator<Item = String>) -> String {
    all.collect::<Vec<_>>().join("; ")
}

/// For `map_err`: an I/O error with the path it happened at.
pub(crate) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> TrainError {
    let path = path.to_owned();
    move |source| TrainError::Io { path, source }
}
