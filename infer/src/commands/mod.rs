//! The commands of `infer`: each file has the options of one command and runs it.

mod audit;
mod bench;
mod eval;
mod generate;
mod info;
mod perplexity;
mod quantize;
mod repl;
mod scoring;
mod serve;

use std::path::PathBuf;

use kernels::runtime::BackendError;

use crate::audit::AuditError;
use crate::chat::ChatFileError;
use crate::error::GenerateError;
use crate::eval::EvalError;
use crate::model_args::ModelArgsError;
use crate::output::TerminalError;
use crate::precision::PrecisionError;
use crate::repl::ReplError;
use crate::sampling::SamplingError;
use crate::serve::ServeError;
use crate::state_file::StateFileError;

pub(crate) use audit::AuditArgs;
pub(crate) use bench::BenchArgs;
pub(crate) use eval::EvalArgs;
pub(crate) use generate::{EXAMPLES, GenerateArgs};
pub(crate) use info::InfoArgs;
pub(crate) use perplexity::PerplexityArgs;
pub(crate) use quantize::QuantizeArgs;
pub(crate) use repl::ReplArgs;
pub(crate) use serve::ServeArgs;

/// Why a command failed. Each message is complete: it names its cause itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The model or its tokenizer cannot be found or loaded.
    #[error(transparent)]
    Model(#[from] ModelArgsError),
    /// The model cannot be loaded in the precision that was asked for.
    #[error(transparent)]
    Precision(#[from] PrecisionError),
    /// The model's files cannot be read.
    #[error(transparent)]
    Weights(#[from] model::WeightsError),
    /// A model would be written where there is one.
    #[error("{}: there is a model here already; name a new folder", .0.display())]
    HasModel(PathBuf),
    /// Nothing of a model can be stored in the bits that were asked for.
    #[error(
        "{}: no weight can be stored in {asked}, since no length of their rows is a multiple of 4; use the model as it is",
        folder.display()
    )]
    NothingToPack {
        /// The model.
        folder: PathBuf,
        /// The bits.
        asked: &'static str,
    },
    /// The backend cannot be used, or its device has failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The text or the tokenizer cannot be read.
    #[error(transparent)]
    Text(#[from] datasets::DataError),
    /// The model has no chat template, or one that cannot be used.
    #[error(transparent)]
    Chat(#[from] ChatFileError),
    /// A sampling option is out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// No tokens can be generated.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// A state cannot be saved or loaded.
    #[error(transparent)]
    StateFile(#[from] StateFileError),
    /// A session cannot continue.
    #[error(transparent)]
    Repl(#[from] ReplError),
    /// The server cannot start, or has stopped.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// An evaluation cannot be done.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// An audit cannot be done, or is not whole.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// Standard input or output has failed.
    #[error(transparent)]
    Terminal(#[from] TerminalError),
}
