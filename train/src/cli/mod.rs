//! The command line of `train`.

mod ablate;
mod bench;
mod cache_teacher;
mod compare;
mod heads;
mod prepare;
mod run;
mod sample_teacher;
mod signals;
mod study;
mod teacher_args;

use std::fmt;
use std::io::{ErrorKind, Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{anyhow, bail};
use clap::{Args, Parser, Subcommand};
use kernels::runtime::{Backend, BackendError};

use self::ablate::AblateArgs;
use self::bench::BenchArgs;
use self::cache_teacher::CacheTeacherArgs;
use self::compare::CompareArgs;
use self::heads::HeadsArgs;
use self::prepare::PrepareArgs;
use self::run::RunArgs;
use self::sample_teacher::SampleTeacherArgs;
use self::study::StudyArgs;
use crate::TrainError;
use crate::config::{PRESETS, Source};
use crate::logging::{listen, say};
use crate::parallel::World;
use crate::parallel::launch::Launch;

const EXAMPLES: &str = "\
Examples:
  Distil the bundled teacher into a Phi-Mamba, in three stages (minutes on two CPU cores):
      train

  The same without the first stage, with another learning rate in the last:
      train --stages stage2,stage3 --set stage3.lr=2e-4

  Resume a run that was stopped or has failed:
      train --resume runs/tiny

  A Phi teacher and text of your own, from a file that changes some keys of a preset:
      train --config my-run.toml --out runs/mine

  The published recipe at full size, on a GPU, with one document in a hundred held out:
      train --preset phi-1.5 --set data.train=/text/c4 --set data.validation=

  The same with a teacher from a folder instead of the Hugging Face hub:
      train --preset phi-1.5 --set teacher.model=/models/phi-1_5 --set data.train=/text/c4 \\
          --set data.validation=

  Two thirds of one text and one third of another, from files of JSON lines whose text is in \"body\":
      train --set 'data.train=[{path = \"a/*.jsonl.gz\", weight = 2, column = \"body\"},
          {path = \"b\", weight = 1}]'

  C4 from the Hugging Face hub, tokenised while the run goes on:
      train --preset phi-1.5 --set data.train=hub:allenai/c4:en \\
          --set data.validation=hub:allenai/c4:en:validation

  Two runs over each other, on one page:
      train compare runs/tiny runs/tiny-2

  How fast the stages are at full size on this machine:
      train bench --preset phi-1.5

  Which attention heads recall what was read, and the configuration of a hybrid that keeps them:
      train heads --preset smollm2-135m

  The teacher's predictions ahead of a run, which then needs no teacher in memory in its last stage:
      train cache-teacher --out runs/tiny-teacher
      train --set stage3.teacher_cache=runs/tiny-teacher

  On several GPUs, one process each (also by mpirun and srun: docs/scaling.md):
      torchrun --no-python --standalone --nproc-per-node 8 train --preset phi-1.5

  Text from the teacher itself, for runs to read:
      train sample-teacher --preset smollm2-135m --tokens 10000000 --out sampled

  To tokenise the text of a run ahead, on machines without a GPU:
      train prepare --preset phi-1.5 --set data.train=/text/c4 --set data.validation=";

/// Distils a Transformer into a student whose attention layers are state-space mixers, by MOHAWK (arXiv 2408.10189).
///
/// A run is a list of stages; the published ones match each layer's mixing matrix, then each layer's output,
/// then the model's predictions. What to do stands in one TOML configuration: a preset, changed by a file,
/// changed by --set. The run folder receives the resolved configuration (config.toml), a line a step
/// (metrics.jsonl), checkpoints, the student in the published format with its tokenizer (student/),
/// the result in numbers (summary.json) and on one page (report.html).
#[derive(Debug, Parser)]
#[command(name = "train", version, after_long_help = EXAMPLES, max_term_width = 100)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    Ablate(Box<AblateArgs>),
    Bench(Box<BenchArgs>),
    CacheTeacher(Box<CacheTeacherArgs>),
    Prepare(PrepareArgs),
    Study(StudyArgs),
    Heads(Box<HeadsArgs>),
    SampleTeacher(Box<SampleTeacherArgs>),
    Compare(CompareArgs),
}

/// What makes a configuration.
#[derive(Debug, Args)]
struct ConfigArgs {
    /// The preset to start from, as tiny, phi-1.5 or smollm2-135m; by default tiny
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,

    /// A TOML file whose keys override those of a preset
    ///
    /// The file may name the preset itself (`preset = "phi-1.5"`); without that it is tiny. Every
    /// key, its default and its reason stand in the presets, train/presets/*.toml.
    #[arg(long, value_name = "FILE", conflicts_with = "preset")]
    config: Option<PathBuf>,

    /// Override one key, as in --set stage3.lr=2e-4, by the stage's name; may be given many times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,

    /// What the networks compute in: f32, or bf16 on GPUs that have it; short for --set precision=NAME
    #[arg(long, value_name = "NAME")]
    precision: Option<String>,

    /// The stages to run, by name, as in stage2,stage3; by default all of the list, whose order they keep
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    stages: Vec<String>,
}

/// What all subcommands take.
#[derive(Debug, Args)]
pub(crate) struct SharedArgs {
    /// What computes: cuda, wgpu, flex or ndarray, of those built in
    ///
    /// cuda: NVIDIA GPUs. wgpu: GPUs through Vulkan, Metal or DirectX 12. flex: the CPU, with fast
    /// paths of this project's own. ndarray: the CPU, slower, the reference for the others. Which of
    /// them this program holds is decided when it is built, by `--features`. The default is the first
    /// of that list that it holds.
    #[arg(long, value_name = "NAME")]
    backend: Option<Backend>,
}

impl Cli {
    /// Does what the command line says.
    ///
    /// # Errors
    /// Whatever went wrong, in sentences meant for the user.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        listen();
        match self.command {
            Some(Command::Ablate(args)) => args.run(),
            Some(Command::Bench(args)) => match args.run()? {
                // Nothing to print: another rank prints the result.
                nothing if nothing.is_empty() => Ok(ExitCode::SUCCESS),
                text => print(format_args!("{text}")),
            },
            Some(Command::CacheTeacher(args)) => print(format_args!("{}", args.run()?)),
            Some(Command::Prepare(args)) => print(format_args!("{}", args.run()?)),
            Some(Command::Study(args)) => args.run(),
            Some(Command::Heads(args)) => args.run(),
            Some(Command::SampleTeacher(args)) => args.run(),
            Some(Command::Compare(args)) => args.run(),
            None => self.run.run(),
        }
    }
}

impl SharedArgs {
    /// The backend that is named, or the preferred one.
    pub(crate) fn backend(&self) -> anyhow::Result<Backend> {
        match self.backend.or_else(Backend::preferred) {
            Some(backend) => Ok(backend),
            None => bail!("built without a backend; build with `--features flex`"),
        }
    }
}

impl ConfigArgs {
    fn source(&self) -> Source<'_> {
        match &self.config {
            Some(file) => Source::File(file),
            None => Source::Preset(self.preset.as_deref().unwrap_or(PRESETS[0].0)),
        }
    }

    fn overrides(&self) -> Vec<String> {
        let precision = self.precision.iter();
        let precision = precision.map(|name| format!("precision={name}"));
        self.set.iter().cloned().chain(precision).collect()
    }

    /// Whether nothing is given.
    fn is_empty(&self) -> bool {
        self.preset.is_none()
            && self.config.is_none()
            && self.stages.is_empty()
            && self.overrides().is_empty()
    }
}

/// Refuses to run `command` as one of several processes: all of them would write into one folder.
fn one_process(command: &str) -> anyhow::Result<()> {
    match Launch::from_environment()? {
        Some(launch) if launch.place.world > 1 => bail!(
            "`train {command}` is work of one process, and this is one of {} that a launcher has started (RANK and \
             WORLD_SIZE, mpirun or srun): all of them would write into one folder; start it without a launcher",
            launch.place.world
        ),
        _ => Ok(()),
    }
}

/// Ends this process' part in `world`, with the result `done`. If that is an error, the other processes end too.
pub(crate) fn end<T>(world: World, done: anyhow::Result<T>) -> anyhow::Result<T> {
    let error = match done {
        Ok(done) => {
            world.end();
            return Ok(done);
        }
        Err(error) => error,
    };
    let Some(place) = world.place() else {
        return Err(error);
    };
    let error = anyhow!("rank {}: {error}", place.rank);
    if world.fails_alone() {
        return Err(error);
    }
    // What ends the others ends this process, too.
    say(format_args!("error: {error}"));
    world.fail()
}

/// Prints the result. A reader that has closed the pipe is not an error: the result is also in files.
fn print(result: fmt::Arguments) -> anyhow::Result<ExitCode> {
    match writeln!(stdout(), "{result}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(anyhow!(
            "the result cannot be written to standard output: {error}"
        )),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// `folder`, or if it is used, the same name with the first number that makes it unused.
fn unused(folder: PathBuf) -> PathBuf {
    let numbered = (2..).map(|n| PathBuf::from(format!("{}-{n}", folder.display())));
    std::iter::once(folder.clone())
        .chain(numbered)
        .find(|folder| !folder.exists())
        .unwrap_or(folder)
}

/// Adds advice to an error of a device that fails, or of a file that cannot be read or written. `memory` is the advice
/// if memory is short, and `again` says how to continue afterwards.
fn with_advice(error: TrainError, memory: &str, again: &str) -> anyhow::Error {
    use BackendError::{Failed, Lost, OldDriver, OutOfMemory};
    use TrainError::{Data, Device, Io, Manifest, Metrics, Report, TeacherCache, Weights};
    match error {
        Device(OutOfMemory { .. }) => anyhow!("{error}; {memory}, then continue {again}"),
        Device(Lost { .. } | OldDriver { .. } | Failed { .. }) => {
            anyhow!("{error}; after that, continue {again}")
        }
        Data(_)
        | Io { .. }
        | Manifest(_)
        | Metrics(_)
        | Report(_)
        | TeacherCache { .. }
        | Weights(_) => {
            anyhow!("{error}; put that right, then continue {again}")
        }
        other => other.into(),
    }
}
