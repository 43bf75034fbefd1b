//! What both commands do: a model, asked everything once, with its progress shown and kept.

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
use kernels::backends::{Backend, Work};

use super::encode::Request;
use super::error::{EvalError, cannot};
use super::ledger::Ledger;
use super::score::{Score, score};
use crate::cli::{CliError, chosen, find};
use crate::precision::Precision;

/// How much is read at once by a model that would read without end.
const UNBOUNDED_LENGTH: usize = 2048;

/// The most that such a model may be made to read at once.
const LONGEST: usize = 1 << 22;

/// The model, and how it is asked.
#[derive(Debug, Args)]
pub struct ScoringArgs {
    /// The folder of the model, or its name on the Hugging Face hub
    #[arg(long, value_name = "FOLDER|OWNER/NAME")]
    pub model: PathBuf,

    /// A tokenizer.json, a folder with one, or a name on the hub, in place of the model's own
    #[arg(long, value_name = "FILE|FOLDER|OWNER/NAME")]
    pub tokenizer: Option<PathBuf>,

    /// The most tokens that are read at once; of longer texts, the last
    ///
    /// By default, a Phi's max_position_embeddings, which is also the most it can be, and 2048 for
    /// Phi-Mamba and the hybrid, for which it can be 4194304.
    #[arg(long, value_name = "TOKENS", allow_negative_numbers = true)]
    pub max_length: Option<usize>,

    /// How many texts are read at once
    ///
    /// On a CPU, by each core.
    #[arg(
        long,
        default_value_t = 16,
        value_name = "N",
        allow_negative_numbers = true
    )]
    pub batch_size: usize,

    /// What computes: cuda, wgpu, flex or ndarray, of those built in
    #[arg(long, value_name = "NAME")]
    pub backend: Option<Backend>,

    /// What parameters are kept in
    #[arg(long, value_enum, default_value_t)]
    pub dtype: Precision,

    /// A file for the results in JSON, with every log-likelihood
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// What a model made of all requests.
pub struct Scored<P> {
    /// What the requests were made of.
    pub plan: P,
    /// In the order of the requests.
    pub scores: Vec<Score>,
    /// The most tokens that were read at once.
    pub max_length: usize,
    /// What computed.
    pub backend: Backend,
    /// From the first text encoded to the last scored.
    pub time: Duration,
    /// Whether some had been scored before, so that `time` is not that of all.
    pub went_on: bool,
    ledger: Ledger,
}

impl<P> Scored<P> {
    /// Says that the results are safe, so that the scores need not be kept.
    pub fn done(self) {
        self.ledger.close();
    }
}

impl ScoringArgs {
    /// Asks the model what `plan` makes requests of, which is told the tokenizer and the most tokens
    /// that are read at once.
    ///
    /// # Errors
    /// That the model cannot be had, the plan's, and those of [`score`].
    pub fn score<P: Send>(
        &self,
        plan: impl FnOnce(&Tokenizer, usize) -> Result<(P, Vec<Request>), EvalError> + Send,
    ) -> Result<Scored<P>, CliError> {
        let backend = chosen(self.backend)?;
        if self.batch_size == 0 {
            return Err(EvalError::BatchSize.into());
        }
        let (model, tokenizer) = find(&self.model, self.tokenizer.as_deref())?;
        let cache = dirs::cache_dir().unwrap_or_else(std::env::temp_dir);
        let ledger = Ledger::open(
            &cache.join("mohawk").join("eval"),
            &identity(&model, backend, self.dtype)?,
        );
        backend.dispatch(Scoring {
            args: self,
            model,
            tokenizer,
            ledger,
            backend,
            plan,
        })?
    }
}

/// What tells one model from another, and from itself after a change.
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

struct Scoring<'a, F> {
    args: &'a ScoringArgs,
    model: PathBuf,
    tokenizer: Tokenizer,
    ledger: Ledger,
    backend: Backend,
    plan: F,
}

impl<P, F> Work for Scoring<'_, F>
where
    P: Send,
    F: FnOnce(&Tokenizer, usize) -> Result<(P, Vec<Request>), EvalError> + Send,
{
    type Output = Result<Scored<P>, CliError>;

    fn run<B: KernelBackend>(self, device: B::Device) -> Self::Output {
        let (config, model) = self.args.dtype.load::<B>(&self.model, &device)?;
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
        let (plan, requests) = (self.plan)(&self.tokenizer, max_length)?;
        let mut ledger = self.ledger;
        let mut seen = HashSet::new();
        let different: Vec<&Request> = requests.iter().filter(|it| seen.insert(*it)).collect();
        let mut open = different.clone();
        open.retain(|request| ledger.get(request).is_none());
        let went_on = open.len() < different.len();
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
            went_on,
            ledger,
        })
    }
}

/// A bar on a terminal; and, where an evaluation goes on, a line that says so.
fn progress(all: &[&Request], open: &[&Request]) -> ProgressBar {
    let known = all.len() - open.len();
    if known > 0 {
        eprintln!(
            "going on: {} of {} requests were scored before",
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
