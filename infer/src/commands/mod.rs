//! What a command can fail of.

use std::io;
use std::path::PathBuf;

use kernels::backends::BackendError;

use super::PHI_TOKENIZER;
use crate::eval::EvalError;
use crate::precision::PrecisionError;
use crate::serve::ServeError;
use crate::snapshot::SnapshotError;
use crate::{GenerateError, SamplingError};

/// Why a command failed. Each message is whole in itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    /// The backend cannot be used.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] datasets::DataError),
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(#[from] model::WeightsError),
    /// Neither the model nor the command line has one.
    #[error(
        "{}: no tokenizer.json here; --tokenizer takes such a file, a folder with one, or a name on \
         the hub, such as {PHI_TOKENIZER}, whose tokenizer the published Phi-Mambas use",
        folder.display()
    )]
    NoTokenizer {
        /// The model's folder.
        folder: PathBuf,
    },
    /// The model has none, and the one that it uses cannot be had.
    #[error(
        "{} has no tokenizer.json on the hub, and that of {PHI_TOKENIZER} cannot be had: {reason}; \
         --tokenizer names another",
        model.display()
    )]
    PhiTokenizer {
        /// The model's name.
        model: PathBuf,
        /// What went wrong.
        reason: model::WeightsError,
    },
    /// The tokenizer has tokens that the model has not.
    #[error(
        "{}: the tokenizer has {tokens} tokens, and the model's vocabulary ends at {vocab_size}; it \
         does not belong to this model",
        tokenizer.display()
    )]
    Vocabulary {
        /// The tokenizer's file.
        tokenizer: PathBuf,
        /// The tokenizer's vocabulary.
        tokens: usize,
        /// The model's.
        vocab_size: usize,
    },
    /// A sampling option has no meaning.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// No text can be made.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// A state cannot be saved or loaded.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The server cannot begin, or has ended.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// An evaluation cannot be done.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// The model cannot be had in what was asked for.
    #[error(transparent)]
    Precision(#[from] PrecisionError),
    /// The prompt cannot be read.
    #[error("the prompt cannot be read from standard input: {0}")]
    Stdin(io::Error),
    /// The text cannot be written.
    #[error("the text cannot be written to standard output: {0}")]
    Stdout(io::Error),
}
