//! Why an evaluation cannot be done.

use std::io;
use std::path::{Path, PathBuf};

use kernels::runtime::BackendError;

use super::control::Control;
use super::task::Task;

/// Why an evaluation cannot be done. Each message is complete.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The operating system refused a file or folder.
    #[error("cannot {action} {}: {reason}", path.display())]
    Io {
        /// The failed action, as a verb: "open", "write".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        reason: io::Error,
    },
    /// A folder without a task's data.
    #[error(
        "{}: no data for {task} here; it should be {task}.jsonl, {task}.jsonl.gz, \
         {task}.jsonl.zst, {task}.json.gz or {task}.parquet",
        folder.display()
    )]
    NoData {
        /// The folder.
        folder: PathBuf,
        /// The task.
        task: Task,
    },
    /// The data of a task cannot be fetched.
    #[error("{task}: {reason}; --data takes a folder with the data instead")]
    Hub {
        /// The task.
        task: Task,
        /// Why not.
        reason: Box<model::WeightsError>,
    },
    /// A file that cannot be read to its end.
    #[error("{}, {place}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// "line 3" or "row 3", from 1.
        place: String,
        /// What is wrong there.
        reason: String,
    },
    /// The file of an interrupted evaluation's scores is damaged.
    #[error("{}: the scores of an interrupted evaluation in it are damaged", path.display())]
    DamagedScores {
        /// The file.
        path: PathBuf,
    },
    /// A file without a single document.
    #[error("{}: no document in this file", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The tokenizer has no end-of-text token, from which a text's first token is predicted.
    #[error(
        "a text is scored from its first token on, and the tokenizer has no end-of-text token to \
         stand before it; use the tokenizer that belongs to the model"
    )]
    NoPrefix,
    /// A continuation without its own token: its letters are part of the context's last token.
    #[error(
        "nothing is left to score of the continuation {continuation:?}: its letters join a token \
         of the context"
    )]
    NothingToScore {
        /// The continuation.
        continuation: String,
    },
    /// More tokens to score than the model reads at once.
    #[error(
        "a continuation has {tokens} tokens, and {limit} are read at once; raise --max-length if \
         the model has positions for it"
    )]
    TooLong {
        /// The continuation's length.
        tokens: usize,
        /// The most that are read.
        limit: usize,
    },
    /// A maximum length that is out of the model's range.
    #[error(
        "--max-length is {given}; it must be from 1 to {limit}, the most tokens that this model reads at \
         once"
    )]
    MaxLength {
        /// The given length.
        given: usize,
        /// The largest length: a teacher's positions, or a fixed limit for models without positions.
        limit: usize,
    },
    /// A model that reads fewer tokens at once than the shortest document of a probe has.
    #[error(
        "{task} needs a model that reads at least {least} tokens at once, and --max-length is {max_length}; raise it, \
         or leave this task out"
    )]
    TooShort {
        /// The probe.
        task: Task,
        /// The length of its shortest documents.
        least: usize,
        /// The most tokens that are read.
        max_length: usize,
    },
    /// A probe's question has so many tokens with this tokenizer that no text fits around it.
    #[error(
        "{length} tokens of this tokenizer are too few for a document of {task}; leave this task out"
    )]
    NoRoom {
        /// The probe.
        task: Task,
        /// The most tokens of the document.
        length: usize,
    },
    /// A probe cannot have documents of this length.
    #[error(
        "{task} has too few different keys for a document of {length} tokens; choose a shorter length"
    )]
    TooMuchRoom {
        /// The probe.
        task: Task,
        /// The most tokens of the document.
        length: usize,
    },
    /// A stride that would skip tokens.
    #[error(
        "--stride is {stride}; it must be from 1 to {max_length}, the length of the windows \
         (--max-length)"
    )]
    Stride {
        /// The given stride.
        stride: usize,
        /// The windows' length.
        max_length: usize,
    },
    /// A batch of no sequences.
    #[error("--batch-size is 0; it must be at least 1")]
    BatchSize,
    /// A limit of no documents.
    #[error("--limit is 0; it must be at least 1")]
    Limit,
    /// A control that would not change the model.
    #[error(
        "{}: no layer of this model has {}, so --control {control} would change nothing; give another model, or \
         leave the option out",
        model.display(), control.of()
    )]
    NoEffect {
        /// The model, as it was named.
        model: PathBuf,
        /// The control.
        control: Control,
    },
    /// A token that the model has no embedding for.
    #[error(
        "token {token} is to be read, the model's vocabulary ends at {vocab_size}; the tokenizer \
         does not belong to this model"
    )]
    UnknownToken {
        /// The token.
        token: u32,
        /// The model's vocabulary, padding included.
        vocab_size: usize,
    },
    /// The texts have no token.
    #[error("the text has no token to score; give more of it")]
    NoTokens,
    /// The logits are not finite.
    #[error(
        "the model gives a text no probability (its logits are not finite numbers): its weights \
         are damaged or overflow"
    )]
    NotFinite,
    /// The documents of a probe cannot be made for another reason.
    #[error(transparent)]
    Probe(datasets::probes::ProbeError),
    /// The device has failed.
    #[error(transparent)]
    Device(#[from] BackendError),
    /// The tokenizer or a text file cannot be used.
    #[error(transparent)]
    Data(#[from] datasets::DataError),
}

/// Turns the operating system's error into an [`EvalError::Io`]: `.map_err(cannot("open", path))`.
pub(crate) fn cannot(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EvalError {
    move |reason| EvalError::Io {
        action,
        path: path.into(),
        reason,
    }
}
