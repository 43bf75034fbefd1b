//! What `eval` and `perplexity` share: a model scores every request once, with the progress shown and
//! kept on disk.

use std::collections::HashSet;
use std::fmt::Write;
use std::fs;
use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use clap::Args;
use datasets::Tokenizer;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use kernels::KernelBackend;
use kernels::runtime::{Backend, Work};
use serde_json::Value;

use super::CommandError;
use crate::eval::{EvalError, Ledger, Score, ScoreRequest, cannot, score};
use crate::model_args::{FoundModel, ModelArgs};
use crate::precision::Precision;
use model::atomic_file;

/// The most tokens at once, by default, for a model without a limit.
const UNBOUNDED_LENGTH: usize = 2048;

/// The largest --max-length for such a model.
const LONGEST: usize = 1 << 22;

/// The model, and how it scores.
#[derive(Debug, Args)]
pub(super) struct ScoringArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    /// The most tokens that are read at once; of longer texts, the last
    ///
    /// By default, a Phi's max_position_embeddings, which is also the most it can be, and 2048 for
    /// Phi-Mamba and the hybrid, for which it can be 4194304.
    #[arg(long, value_name = "TOKENS", allow_negative_numbers = true)]
    max_length: Option<usize>,

    /// How many texts are read at once
    ///
    /// On a CPU, by each core.
    #[arg(
        long,
        default_value_t = 16,
        value_name = "N",
        allow_negative_numbers = true
    )]
    batch_size: usize,

    /// A file for the results in JSON, with every log-likelihood
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The scores of all requests.
pub(super) struct Scored<P> {
    /// What the caller made beside the requests.
    pub plan: P,
    /// In the order of the requests.
    pub scores: Vec<Score>,
    /// The most tokens that were read at once.
    pub max_length: usize,
    /// The backend that computed.
    pub backend: Backend,
    /// From the first text encoded to the last scored.
    pub time: Duration,
    /// Whether some scores were found on disk, so that `time` is not that of all.
    pub resumed: bool,
    ledger: Ledger,
}

impl<P> Scored<P> {
    /// Writes the results as JSON, if a file was asked for, and then removes the scores from the disk:
    /// they are safe.
    ///
    /// # Errors
    /// [`EvalError::Io`].
    pub fn finish(
        self,
        args: &ScoringArgs,
        report: impl FnOnce() -> Value,
    ) -> Result<(), EvalError> {
        if let Some(path) = &args.json {
            let text = format!("{:#}\n", report());
            atomic_file::write(path, text.as_bytes()).map_err(cannot("write", path))?;
        }
        self.ledger.close();
        Ok(())
    }
}

impl ScoringArgs {
    /// Scores the requests that `plan` makes, which is given the tokenizer and the most tokens that are
    /// read at once.
    ///
    /// # Errors
    /// That the model cannot be found or loaded, the plan's, and those of [`score`](score()).
    pub fn score<P: Send>(
        &self,
        plan: impl FnOnce(&Tokenizer, usize) -> Result<(P, Vec<ScoreRequest>), EvalError> + Send,
    ) -> Result<Scored<P>, CommandError> {
        let backend = self.model.compute.backend()?;
        if self.batch_size == 0 {
            return Err(EvalError::BatchSize.into());
        }
        let model = self.model.find()?;
        let cache = dirs::cache_dir().unwrap_or_else(std::env::temp_dir);
        let ledger = Ledger::open(
            &cache.join("mohawk").join("eval"),
            &identity(&model.folder, backend, model.precision)?,
        );
        backend.dispatch(ScoringWork {
            args: self,
            model,
            ledger,
            backend,
            plan,
        })?
    }
}

/// A text that differs between models, and between a model before and after a change of its files.
fn identity(folder: &Path, backend: Backend, precision: Precision) -> Result<String, EvalError> {
    let absolute = fs::canonicalize(folder).map_err(cannot("open", folder))?;
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(cannot("list", folder))? {
        let path = entry.map_err(cannot("list", folder))?.path();
        let metadata = fs::metadata(&path).map_err(cannot("open", &path))?;
        let modified = metadata.modified().ok();
        let modified = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        files.push((path, metadata.len(), modified));
    }
    files.sort();
    let mut identity = format!("{} on {backend}, {precision:?}\n", absolute.display());
    for (path, bytes, modified) in files {
        // Writing to a string does not fail.
        let _ = writeln!(identity, "{} {bytes} {modified:?}", path.display());
    }
    Ok(identity)
}

struct ScoringWork<'a, F> {
    args: &'a ScoringArgs,
    model: FoundModel,
    ledger: Ledger,
    backend: Backend,
    plan: F,
}

impl<P, F> Work for ScoringWork<'_, F>
where
    P: Send,
    F: FnOnce(&Tokenizer, usize) -> Result<(P, Vec<ScoreRequest>), EvalError> + Send,
{
    type Output = Result<Scored<P>, CommandError>;

    fn run<B: KernelBackend>(self, device: B::Device) -> Self::Output {
        let (config, model) = self.model.load::<B>(&device)?;
        let (limit, usual) = match config.max_positions() {
            Some(positions) => (positions, positions),
            None => (LONGEST, UNBOUNDED_LENGTH),
        };
        let max_length = self.args.max_length.unwrap_or(usual);
        if max_length == 0 || max_length > limit {
            let given = max_length;
            return Err(EvalError::MaxLength { given, limit }.into());
        }

        let begun = Instant::now();
        let (plan, requests) = (self.plan)(&self.model.tokenizer, max_length)?;
        let mut ledger = self.ledger;
        let mut seen = HashSet::new();
        let different: Vec<&ScoreRequest> = requests
            .iter()
            .filter(|request| seen.insert(*request))
            .collect();
        let mut open = different.clone();
        open.retain(|request| ledger.get(request).is_none());
        let resumed = open.len() < different.len();
        let bar = progress(&different, &open);
        score(
            &model,
            &open,
            self.args.batch_size,
            &device,
            |request, score| {
                bar.inc(1);
                ledger.note(request, score);
            },
        )
        .inspect_err(|_| bar.abandon())?;
        bar.finish_and_clear();
        if !open.is_empty() {
            ledger.save();
        }
        let scores = requests.iter().filter_map(|request| ledger.get(request));
        Ok(Scored {
            plan,
            scores: scores.collect(),
            max_length,
            backend: self.backend,
            time: begun.elapsed(),
            resumed,
            ledger,
        })
    }
}

/// A progress bar on a terminal; and, where an evaluation is resumed, a line that says so.
fn progress(all: &[&ScoreRequest], open: &[&ScoreRequest]) -> ProgressBar {
    let known = all.len() - open.len();
    if known > 0 {
        eprintln!(
            "resuming: {} of {} requests were scored before",
            HumanCount(known as u64),
            HumanCount(all.len() as u64),
        );
    }
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = "{wide_bar} {human_pos} of {human_len} requests, {per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template);
    let bar = ProgressBar::new(all.len() as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        .with_position(known as u64);
    bar.reset_eta();
    bar
}
