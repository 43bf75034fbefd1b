//! The common part of `eval` and `perplexity`: a model scores every request once; progress is shown, and scores are
//! saved on disk.

use std::collections::HashSet;
use std::io::{IsTerminal, stderr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use datasets::Tokenizer;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use kernels::KernelBackend;
use kernels::runtime::{Backend, Work};
use model::{ModelHash, WeightsError, atomic_file};
use serde_json::Value;

use super::CommandError;
use crate::eval::{Control, EvalError, Ledger, Score, ScoreRequest, cannot, score};
use crate::model_args::{FoundModel, ModelArgs};
use crate::output::{note, say};

/// The most tokens at once, by default, for a model without a limit.
const UNBOUNDED_LENGTH: usize = 2048;

/// The largest --max-length for such a model.
const LONGEST: usize = 1 << 22;

/// The consequence if scores cannot be saved on disk, for messages.
const LOSS: &str = "an interruption would lose what has been scored";

/// The model, and how it scores.
#[derive(Debug, Args)]
pub(super) struct ScoringArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    /// The most tokens that are read at once; of longer texts, the last
    ///
    /// By default, a teacher's max_position_embeddings, which is also the most it can be, and 2048 for
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

    /// Scores the model with less than it has, to see what that is good for
    ///
    /// window=N: each attention sees the last N tokens alone, and with ,sinks=M the first M of the text too.
    /// no-attention: no attention adds anything. A student's scores mean little until they are better than those of
    /// its teacher under both. no-ssm: no state-space mixer adds anything. reset=N: their states are emptied every N
    /// tokens.
    #[arg(long, value_name = "window=N[,sinks=M]|no-attention|no-ssm|reset=N")]
    pub control: Option<Control>,

    /// A file for the results in JSON, with every log-likelihood
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The scores of all requests.
pub(super) struct Scored<P> {
    /// The caller's result of making the requests.
    pub plan: P,
    /// In the order of the requests.
    pub scores: Vec<Score>,
    /// The most tokens that were read at once.
    pub max_length: usize,
    /// The backend that computed.
    pub backend: Backend,
    /// From the first encoded text to the last score.
    pub time: Duration,
    /// Whether some scores were found on disk; `time` then does not include their computation.
    pub resumed: bool,
    ledger: Ledger,
}

impl<P> Scored<P> {
    /// Writes the results as JSON, if a file was given, and shows them. After that the saved scores are removed from
    /// the disk. If one of the two outputs fails, the other is still made.
    ///
    /// # Errors
    /// [`EvalError::Io`] and [`TerminalError`](crate::output::TerminalError).
    pub fn finish(
        self,
        args: &ScoringArgs,
        shown: &str,
        speed: &str,
        report: impl FnOnce() -> Value,
    ) -> Result<(), CommandError> {
        let written = args.json.as_ref().map(|path| {
            let text = format!("{:#}\n", report());
            atomic_file::write(path, text.as_bytes()).map_err(cannot("write", path))
        });
        let shown = say(shown);
        note(speed);
        let is_written = written.transpose()?.is_some();
        if (is_written || matches!(shown, Ok(true)))
            && let Err(error) = self.ledger.close()
        {
            note(format!("{error}; the next evaluation would resume from it"));
        }
        shown?;
        Ok(())
    }
}

impl ScoringArgs {
    /// Checks all that can be checked without the model, before data is fetched or a text is scored.
    ///
    /// # Errors
    /// [`EvalError::BatchSize`], and [`EvalError::Io`] if the file for the results cannot be written.
    pub fn check(&self) -> Result<(), EvalError> {
        if self.batch_size == 0 {
            return Err(EvalError::BatchSize);
        }
        let Some(path) = &self.json else {
            return Ok(());
        };
        atomic_file::check(path).map_err(cannot("write", path))
    }

    /// Scores the requests that `plan` makes; `plan` gets the tokenizer and the most tokens that are read at once. Call
    /// [`check`](Self::check) first.
    ///
    /// # Errors
    /// The model cannot be found or loaded; the errors of `plan` and of [`score`](score()).
    pub fn score<P: Send>(
        &self,
        plan: impl FnOnce(&Tokenizer, usize) -> Result<(P, Vec<ScoreRequest>), EvalError> + Send,
    ) -> Result<Scored<P>, CommandError> {
        let backend = self.model.compute.backend()?;
        let model = self.model.find()?;
        let ledger = open_ledger(&model, backend, self.control)?;
        backend.dispatch(ScoringWork {
            args: self,
            model,
            ledger,
            backend,
            plan,
        })?
    }
}

/// Opens the saved scores of an interrupted evaluation of this model, under this control, on this backend. They are
/// only saved in the user's own cache folder: in the system's temporary folder they could be another user's.
fn open_ledger(
    model: &FoundModel,
    backend: Backend,
    control: Option<Control>,
) -> Result<Ledger, WeightsError> {
    let Some(cache) = dirs::cache_dir().filter(|cache| cache.is_absolute()) else {
        note(format!(
            "neither XDG_CACHE_HOME nor HOME names a folder for a cache; {LOSS}"
        ));
        return Ok(Ledger::in_memory());
    };
    // The manifest's hash is enough: scores are only looked up after the model was loaded, which compares its files
    // with the manifest.
    let hash = match ModelHash::listed(&model.folder)? {
        Some(hash) => hash,
        None => ModelHash::of(&model.folder)?,
    };
    let control = control.map_or_else(String::new, |control| format!(", {control}"));
    let identity = format!("{hash} on {backend}, {:?}{control}", model.precision);
    let (ledger, read) = Ledger::open(&cache.join("mohawk").join("eval"), &identity);
    if let Err(error) = read {
        note(format!("{error}; everything is scored anew"));
    }
    Ok(ledger)
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

        let model = match self.args.control {
            Some(control) => control.apply(model).ok_or_else(|| EvalError::NoEffect {
                model: self.args.model.model.clone(),
                control,
            })?,
            None => model,
        };

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
        let mut has_warned = false;
        let mut warn = |saved: Result<(), EvalError>| {
            if let Err(error) = saved
                && !std::mem::replace(&mut has_warned, true)
            {
                bar.suspend(|| note(format!("{error}; {LOSS}")));
            }
        };
        score(
            &model,
            &open,
            self.args.batch_size,
            &device,
            |request, score| {
                bar.inc(1);
                warn(ledger.note(request, score));
            },
        )
        .inspect_err(|_| bar.abandon())?;
        if !open.is_empty() {
            warn(ledger.save());
        }
        bar.finish_and_clear();
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
        let (known, all) = (HumanCount(known as u64), HumanCount(all.len() as u64));
        note(format!(
            "resuming: {known} of {all} requests were scored before"
        ));
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
