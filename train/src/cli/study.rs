//! `train study`: its arguments.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burn::backend::Autodiff;
use clap::builder::RangedU64ValueParser;
use clap::{Args, Subcommand};
use kernels::KernelBackend;
use kernels::runtime::Work;

use super::signals::{INTERRUPTED, stop_on_interrupt};
use super::{SharedArgs, one_process, print, unused, with_advice};
use crate::TrainError;
use crate::logging::say;
use crate::shell::word;
use crate::study::budgets::{BudgetStudy, Split};
use crate::study::matrices::{MatrixStudy, Settings};

const EXAMPLES: &str = "\
Examples:
  The bundled teacher's matrices, on a CPU:
      train study matrices

  As the paper measures them, on a GPU, in hours: all heads, 512 tokens, 10,000 steps:
      train study matrices --teacher HuggingFaceTB/SmolLM2-135M --heads 0 --context 512 --steps 10000

  Where a million tokens are best spent:
      train study budgets --tokens 1000000";

/// Answers a question by one table: what structure can do, and where tokens are best spent.
///
/// Each study writes a table (table.md), the same as JSON and a page into its folder, beside what it has computed on the
/// way: the same command with the folder of a study that was stopped continues it.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct StudyArgs {
    #[command(subcommand)]
    study: Study,
}

#[derive(Debug, Subcommand)]
enum Study {
    Matrices(MatricesArgs),
    Budgets(BudgetsArgs),
}

/// How well Toeplitz, causal low-rank, SSD and general semiseparable matrices approximate a teacher's attention.
///
/// Toeplitz matrices are the nearest ones; general semiseparable ones are balanced truncations; the other two are fitted
/// by Adam. The three classes with a state have the same infimum, so that a figure is one of a method and its steps: the
/// tables name both, and compare at equal states, at equal numbers of parameters, and after equal times.
#[derive(Debug, Args)]
struct MatricesArgs {
    /// The teacher: a folder, a GGUF file, or OWNER/NAME on the Hugging Face hub; by default the bundled one
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    teacher: String,

    /// Files and folders of text, separated by commas; by default the bundled held-out text
    #[arg(long, value_delimiter = ',', value_name = "PATH,...")]
    text: Vec<String>,

    /// Tokens of a sequence. The paper has 512; 128 are minutes on two CPU cores
    #[arg(
        long,
        value_name = "N",
        default_value = "128",
        value_parser = RangedU64ValueParser::<usize>::new().range(2..=4096)
    )]
    context: usize,

    /// Sequences of the text. One, so that the same time goes to more heads
    #[arg(
        long,
        value_name = "N",
        default_value = "1",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1000)
    )]
    sequences: usize,

    /// Heads, spread evenly over all of the teacher; 0 takes all
    #[arg(long, value_name = "N", default_value = "24")]
    heads: usize,

    /// States of the approximations, separated by commas; those of the paper
    #[arg(
        long,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "16,32,64",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024)
    )]
    states: Vec<usize>,

    /// Steps of Adam. The paper has 10,000; 1,000 of 24 matrices are minutes on two CPU cores
    #[arg(
        long,
        value_name = "N",
        default_value = "1000",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_000_000)
    )]
    steps: usize,

    /// The rate of these steps, constant: that of the recorded fits in tests/goldens/structured
    #[arg(long, value_name = "RATE", default_value = "0.01")]
    lr: f64,

    /// Seeds of the fits by Adam, separated by commas: their spread is what a difference must exceed to mean something
    #[arg(
        long,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "1,2,3"
    )]
    seeds: Vec<u64>,

    /// The folder of tokenised text; by default in the user's cache folder
    #[arg(
        long,
        value_name = "FOLDER",
        default_value = "",
        hide_default_value = true
    )]
    cache: String,

    /// The folder for the results; by default runs/study-matrices
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,

    #[command(flatten)]
    shared: SharedArgs,
}

/// Which split of a budget of tokens over the stages ends at the lowest perplexity.
///
/// One run for each split, all with the same number of tokens, the preset's batches, rates and schedules.
#[derive(Debug, Args)]
struct BudgetsArgs {
    /// The preset that the runs start from
    #[arg(long, value_name = "NAME", default_value = "tiny")]
    preset: String,

    /// Override one key of every run, as in --set stage3.lr=2e-4; may be given many times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,

    /// Training tokens of each run
    #[arg(
        long,
        value_name = "N",
        value_parser = RangedU64ValueParser::<u64>::new().range(1..=1_000_000_000_000)
    )]
    tokens: u64,

    /// The splits, separated by commas: percent for each stage of the preset
    ///
    /// The default has more and more of the second stage, each without the first stage and with a twentieth for it; the
    /// published share of the first stage is 3 percent.
    #[arg(
        long,
        value_name = "N/N/N,...",
        value_delimiter = ',',
        default_value = "0/0/100,0/20/80,0/40/60,0/60/40,0/80/20,5/0/95,5/20/75,5/40/55,5/60/35,5/80/15"
    )]
    splits: Vec<Split>,

    /// The folder for the results and the runs; by default runs/study-budgets
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,

    #[command(flatten)]
    shared: SharedArgs,
}

impl StudyArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        one_process("study")?;
        match self.study {
            Study::Matrices(args) => args.run(),
            Study::Budgets(args) => args.run(),
        }
    }
}

impl MatricesArgs {
    fn run(self) -> anyhow::Result<ExitCode> {
        if !(self.lr > 0.0 && self.lr.is_finite()) {
            anyhow::bail!("--lr is {}; it must be positive", self.lr);
        }
        let seeds = &self.seeds;
        if let Some(i) = (1..seeds.len()).find(|&i| seeds[..i].contains(&seeds[i])) {
            let seed = seeds[i];
            anyhow::bail!("--seeds has {seed} twice, and the same seed gives the same fit");
        }
        let backend = self.shared.backend()?;
        let folder = folder(self.out, "study-matrices");
        let study = MatrixStudy {
            settings: Settings {
                teacher: self.teacher,
                text: self.text,
                context: self.context,
                sequences: self.sequences,
                heads: self.heads,
                states: self.states,
                steps: self.steps,
                lr: self.lr,
                seeds: self.seeds,
            },
            cache: self.cache,
            folder: folder.clone(),
            backend: backend.name().into(),
            stop: stop_on_interrupt()?,
        };
        end(backend.dispatch(Matrices(study)), &folder, "matrices.html")
    }
}

impl BudgetsArgs {
    fn run(self) -> anyhow::Result<ExitCode> {
        let backend = self.shared.backend()?;
        let folder = folder(self.out, "study-budgets");
        let study = BudgetStudy {
            preset: self.preset,
            set: self.set,
            tokens: self.tokens,
            splits: self.splits,
            folder: folder.clone(),
            backend: backend.name().into(),
            stop: stop_on_interrupt()?,
        };
        end(backend.dispatch(Budgets(study)), &folder, "budgets.html")
    }
}

/// The folder that is named, or an unused one of this name.
fn folder(named: Option<PathBuf>, name: &str) -> PathBuf {
    named.unwrap_or_else(|| unused(Path::new("runs").join(name)))
}

/// A study's table, or nothing if it was asked to stop.
type Outcome = Result<Option<String>, TrainError>;

/// Prints the table, or how to continue.
fn end(
    outcome: Result<Outcome, kernels::runtime::BackendError>,
    folder: &Path,
    page: &str,
) -> anyhow::Result<ExitCode> {
    let outcome = outcome
        .map_err(TrainError::from)
        .and_then(|outcome| outcome);
    let again = format!("by the same command with --out {}", word(folder));
    let memory = "give it the memory that other programs have there";
    match outcome.map_err(|error| with_advice(error, memory, &again))? {
        Some(table) => {
            let page = folder.join(page);
            print(format_args!("{table}\n\npage {}", page.display()))
        }
        None => {
            say(format_args!("continue {again}"));
            Ok(ExitCode::from(INTERRUPTED))
        }
    }
}

struct Matrices(MatrixStudy);

impl Work for Matrices {
    type Output = Outcome;

    fn run<B: KernelBackend>(self, device: B::Device) -> Self::Output {
        self.0.execute::<Autodiff<B>>(&device)
    }
}

struct Budgets(BudgetStudy);

impl Work for Budgets {
    type Output = Outcome;

    fn run<B: KernelBackend>(self, device: B::Device) -> Self::Output {
        self.0.execute::<Autodiff<B>>(&device)
    }
}
