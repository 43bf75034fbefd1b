//! `train bench`: its arguments.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use clap::builder::RangedU64ValueParser;
use kernels::KernelBackend;
use kernels::runtime::BackendError::OutOfMemory;
use kernels::runtime::{Backend, Work};
use tempfile::TempDir;

use super::signals::{INTERRUPTED, on_interrupt};
use super::{SharedArgs, end};
use crate::TrainError;
use crate::bench::{Bench, TEACHER};
use crate::config::{Config, Source};
use crate::parallel::World;

const EXAMPLES: &str = "\
Examples:
  All stages at full size on a GPU, with random weights unless the teacher is on this machine:
      train bench --preset phi-1.5 --batch 4 --length 2048

  What a longer sequence costs, for a script:
      train bench --preset phi-1.5 --stage stage3 --batch 1 --length 2048,16384 --json

  What a checkpoint costs the steps beside which it is written:
      train bench --preset tiny --stage stage3 --batch 4 --length 256 --checkpoint runs

  On eight GPUs, with the time and the bytes of what they exchange:
      torchrun --no-python --standalone --nproc-per-node 8 train bench --stage stage3

  On the CPU, with a trace of one step of each stage:
      train bench --preset tiny --stage stage1,stage2 --batch 4 --length 256 --profile steps.json";

/// Times the optimizer steps of the stages, on random tokens.
///
/// A step is what a run does: a pass of both networks over a batch, the backward pass, the update; it is one
/// pass, where a run may add up the gradients of several (micro_batch), which takes memory too. Stage
/// `teacher` is the teacher's forward pass alone, logits included. Tokens a second are by the median step after
/// three to warm up, waiting for each (tokens/s), and over as many steps that are queued together, as a run
/// does it (queued). The operations of a token times tokens/s are also given as a share of the rate that a
/// product of matrices alone reaches in the same dtype, which is measured first (% of product). Memory is
/// what the device must have for the tensors, or the most that the process ever had on a CPU; the student
/// is in memory in stage `teacher` too if other stages are timed.
///
/// One more step, in which each op waits for the one before it, shows where the time goes. Burn's own ops and
/// the host are "other". --profile writes that step as a trace: every op from its call until the device has done it,
/// every op within an op, and every gap between two ops, in which the host works and Burn's own ops are queued. As
/// nothing overlaps in it, it is longer than a step of a run; ui.perfetto.dev and chrome://tracing draw it.
///
/// Started as several processes (docs/scaling.md), the batch is that of each of them, and tokens/s are those of all.
/// A second table compares them with the same steps of one rank without the others, and shows what the ranks exchange
/// in a step: bytes that each sends, and the time of that alone. The part of this time by which the steps do not get
/// longer is hidden.
///
/// Nothing is fetched: without the preset's teacher on this machine, random weights of Phi-1.5's shapes are
/// written in Hugging Face's layout and read back.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct BenchArgs {
    /// The preset, as tiny, phi-1.5 or smollm2-135m
    #[arg(long, value_name = "NAME", default_value = "phi-1.5")]
    preset: String,

    /// The stages by their names, separated by commas, or `teacher`; by default that and all of the preset
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    stage: Vec<String>,

    /// Sequences of a step, separated by commas
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "N,...",
        default_value = "4",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024)
    )]
    batch: Vec<usize>,

    /// Tokens of a sequence, separated by commas
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "N,...",
        default_value = "2048",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_048_576)
    )]
    length: Vec<usize>,

    /// Steps that are timed
    #[arg(
        long,
        value_name = "N",
        default_value_t = 20,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=100_000)
    )]
    steps: usize,

    /// What the networks compute in: f32, or bf16 on GPUs that have it; short for --set precision=NAME
    #[arg(long, value_name = "NAME")]
    precision: Option<String>,

    /// Override one key, as in --set stage3.recompute=false; may be given many times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,

    /// The teacher's folder, in place of the preset's
    #[arg(long, value_name = "FOLDER")]
    teacher: Option<PathBuf>,

    /// Where random weights are written and kept, or the folder's own are read if it has a config.json; by
    /// default a temporary folder
    #[arg(long, value_name = "FOLDER", conflicts_with = "teacher")]
    weights: Option<PathBuf>,

    /// Also time the steps while checkpoints are written into this folder, beside those while none is
    ///
    /// The disk of the folder matters. What is written is removed again.
    #[arg(long, value_name = "FOLDER")]
    checkpoint: Option<PathBuf>,

    #[command(flatten)]
    shared: SharedArgs,

    /// Prints one JSON object in place of the tables
    #[arg(long)]
    json: bool,

    /// Writes a trace of one step of each row, for Perfetto or chrome://tracing
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
}

impl BenchArgs {
    /// The tables or the JSON.
    ///
    /// # Errors
    /// Those of [`Bench::execute`], and that the configuration is wrong.
    pub(crate) fn run(self) -> anyhow::Result<String> {
        let backend = self.shared.backend()?;
        let world = World::open(backend)?;
        let done = self.run_in(backend, &world);
        end(world, done)
    }

    /// The tables or the JSON; nothing on ranks other than 0.
    fn run_in(self, backend: Backend, world: &World) -> anyhow::Result<String> {
        let gpu = world.gpu(backend)?;
        let mut set = self.set;
        let precision = self.precision.iter();
        set.extend(precision.map(|name| format!("precision={name}")));
        let config = Config::load(Source::Preset(&self.preset), &set)?;
        let mut stages = self.stage;
        if stages.is_empty() {
            stages.push(TEACHER.into());
            stages.extend(config.stages.iter().map(|stage| stage.name.clone()));
        }
        // Removed at the end, also by Ctrl-C.
        let temporary = match self.weights {
            Some(_) => None,
            None => Some(temporary_folder()?),
        };
        let of_weights = |folder: &TempDir| folder.path().to_owned();
        let bench = Bench {
            config,
            stages,
            batch: self.batch,
            length: self.length,
            steps: self.steps,
            teacher: self.teacher,
            weights: self
                .weights
                .or(temporary.as_ref().map(of_weights))
                .unwrap_or_default(),
            backend: backend.name().into(),
            checkpoints: self.checkpoint,
            json: self.json,
            profile: self.profile,
        };
        let work = OnBackend { bench, world };
        let done = backend.dispatch_on(gpu, work).map_err(TrainError::from);
        done.and_then(|text| text).map_err(with_advice)
    }
}

struct OnBackend<'a> {
    bench: Bench,
    world: &'a World,
}

impl Work for OnBackend<'_> {
    type Output = Result<String, TrainError>;

    fn run<B: KernelBackend>(self, device: B::Device) -> Self::Output {
        let ranks = self.world.join::<B>(&device)?;
        let is_first = ranks.is_first();
        let text = self.bench.execute_among::<B>(&device, ranks)?;
        Ok(if is_first { text } else { String::new() })
    }
}

/// A new folder, which is removed with the value or when the program is interrupted.
fn temporary_folder() -> anyhow::Result<TempDir> {
    let folder = tempfile::Builder::new()
        .prefix("phi-random-")
        .tempdir()
        .map_err(|error| anyhow!("{}: {error}", std::env::temp_dir().display()))?;
    let path = folder.path().to_owned();
    // Without a handler the folder stays, and the program ends all the same.
    let _ = on_interrupt(move || {
        let _ = std::fs::remove_dir_all(&path);
        std::process::exit(INTERRUPTED.into());
    });
    Ok(folder)
}

/// Adds advice about what to change if memory is short.
fn with_advice(error: TrainError) -> anyhow::Error {
    match error {
        TrainError::Device(OutOfMemory { .. }) => anyhow!(
            "{error}; lower --batch or --length, or set recompute=true of the stage if it has that option"
        ),
        other => other.into(),
    }
}
