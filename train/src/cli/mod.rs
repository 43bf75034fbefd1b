//! The command line of `train`.

mod ablate;
mod bench;
mod cache_teacher;
mod compare;
mod heads;
mod prepare;
mod sample_teacher;
mod signals;
mod study;
mod teacher_args;

use std::fmt;
use std::io::{ErrorKind, Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{anyhow, bail};
use burn::backend::Autodiff;
use clap::{Args, Parser, Subcommand};
use kernels::KernelBackend;
use kernels::runtime::{Backend, BackendError, Work};

use self::ablate::AblateArgs;
use self::bench::BenchArgs;
use self::cache_teacher::CacheTeacherArgs;
use self::compare::CompareArgs;
use self::heads::HeadsArgs;
use self::prepare::PrepareArgs;
use self::sample_teacher::SampleTeacherArgs;
use self::signals::{INTERRUPTED, stop_on_interrupt};
use self::study::StudyArgs;
use crate::TrainError;
use crate::config::{Config, PRESETS, Source};
use crate::logging::{listen, say};
use crate::parallel::World;
use crate::parallel::launch::Launch;
use crate::run::{CONFIG, Outcome, Run, RunOptions, SUMMARY};

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

  The published recipe at full size, on a GPU:
      train --preset phi-1.5 --set data.train=/text/c4

  The same with a teacher from a folder instead of the Hugging Face hub:
      train --preset phi-1.5 --set teacher.model=/models/phi-1_5 --set data.train=/text/c4

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
      train prepare --preset phi-1.5 --set data.train=/text/c4";

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

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,

    /// Resume the run in this folder from its newest checkpoint
    ///
    /// The run's own configuration is used (RUN/config.toml), so that the result is what an
    /// uninterrupted run gives. A run that is finished is left as it is. If the teacher, the tokenizer, the text
    /// or the settings of a stage that has begun have changed since, the run is not resumed.
    #[arg(long, value_name = "RUN", conflicts_with_all = ["preset", "config", "set", "stages", "precision", "out"])]
    resume: Option<PathBuf>,

    /// With --resume: go on although what the run is made from has changed
    ///
    /// What has changed is noted in metrics.jsonl, summary.json and the report, and the teacher is measured
    /// again. The result is not that of an uninterrupted run. Also takes a checkpoint of an earlier version of this
    /// program, which does not say what the run is made from.
    #[arg(long, requires = "resume")]
    accept_changes: bool,

    /// The run folder; by default runs/NAME, or runs/NAME-2 and so on where that is taken
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,

    /// Answer Prometheus on this port, at /metrics; short for --set log.metrics_port=PORT, also with --resume
    #[arg(long, value_name = "PORT")]
    metrics_port: Option<u16>,

    /// Measure the student every N steps of a stage, too; short for --set evaluation.every=N, also with --resume
    #[arg(long, value_name = "N")]
    eval_every: Option<usize>,

    #[command(flatten)]
    shared: SharedArgs,

    /// Show burn-train's dashboard while training (needs a terminal; q in it stops the run)
    #[arg(long)]
    dashboard: bool,
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
                // Of a rank that leaves it to another.
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

impl RunArgs {
    fn run(self) -> anyhow::Result<ExitCode> {
        let backend = self.shared.backend()?;
        let world = World::open(backend)?;
        let done = self.run_in(backend, &world);
        end(world, done)
    }

    /// The run, as this process of `world` does it.
    fn run_in(self, backend: Backend, world: &World) -> anyhow::Result<ExitCode> {
        let gpu = world.gpu(backend)?;
        let (mut config, folder, resume) = match &self.resume {
            Some(folder) => {
                let file = folder.join(CONFIG);
                if !file.exists() {
                    return Err(TrainError::NoRun(folder.clone()).into());
                }
                let config = Config::load(Source::File(&file), &[])?;
                (config, folder.clone(), true)
            }
            None => {
                let mut config = Config::load(self.config.source(), &self.config.overrides())?;
                if !self.config.stages.is_empty() {
                    config.choose_stages(&self.config.stages)?;
                }
                let default = || unused(Path::new("runs").join(&config.name));
                let folder = self.out.unwrap_or_else(default);
                (config, folder, false)
            }
        };
        if let Some(port) = self.metrics_port {
            config.log.metrics_port = port;
        }
        if let Some(every) = self.eval_every {
            config.evaluation.every = every;
        }
        let options = RunOptions {
            config,
            folder: folder.clone(),
            resume,
            accept_changes: self.accept_changes,
            dashboard: self.dashboard,
            backend: backend.name().into(),
            read_every: None,
            stop: stop_on_interrupt()?,
        };
        if resume && folder.join(SUMMARY).exists() {
            say(format_args!("{}: this run is finished", folder.display()));
        }
        let work = Train { options, world };
        let outcome = backend.dispatch_on(gpu, work).map_err(TrainError::from);
        let outcome = outcome.and_then(|outcome| outcome);
        match outcome.map_err(|error| of_run(error, &folder))? {
            Outcome::Finished(_) if !world.is_first() => Ok(ExitCode::SUCCESS),
            Outcome::Finished(summary) => {
                let (report, student) = (folder.join("report.html"), folder.join("student"));
                print(format_args!(
                    "{summary}\nreport   {}\nstudent  {}",
                    report.display(),
                    student.display()
                ))
            }
            Outcome::Stopped => Ok(ExitCode::from(INTERRUPTED)),
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

struct Train<'a> {
    options: RunOptions,
    world: &'a World,
}

impl Work for Train<'_> {
    type Output = Result<Outcome, TrainError>;

    fn run<B: KernelBackend>(self, device: B::Device) -> Self::Output {
        let ranks = self.world.join::<B>(&device)?;
        Run::<Autodiff<B>>::execute_among(self.options, &device, ranks)
    }
}

/// Refuses `command` to one of several processes: all of them would write into one folder.
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

/// Ends this process' part in `world` with what it has `done`. Where that is an error, the other processes end, too.
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

/// Prints the result. A reader that has closed the pipe is no failure: the result is in files, too.
fn print(result: fmt::Arguments) -> anyhow::Result<ExitCode> {
    match writeln!(stdout(), "{result}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(anyhow!(
            "the result cannot be written to standard output: {error}"
        )),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// `folder`, or it with the first number that makes it unused.
fn unused(folder: PathBuf) -> PathBuf {
    let numbered = (2..).map(|n| PathBuf::from(format!("{}-{n}", folder.display())));
    std::iter::once(folder.clone())
        .chain(numbered)
        .find(|folder| !folder.exists())
        .unwrap_or(folder)
}

/// What to do about an error of the run in `folder`.
fn of_run(error: TrainError, folder: &Path) -> anyhow::Error {
    let config = folder.join(CONFIG);
    match error {
        // Only the teacher is in memory before that file is written.
        TrainError::Device(BackendError::OutOfMemory { .. }) if !config.exists() => anyhow!(
            "{error}; the teacher alone does not fit: lower evaluation.batch, or choose another device by --backend"
        ),
        error if !config.exists() => error.into(),
        error => {
            // All of it changes sums by roundings, and neither the steps nor what they read.
            let memory = format!(
                "in {}, lower micro_batch of the stage, or evaluation.batch if it was evaluating, or set \
                 recompute = true of the stage if it has that option",
                config.display()
            );
            let again = format!("from the last checkpoint by --resume {}", folder.display());
            with_advice(error, &memory, &again)
        }
    }
}

/// What to do about a device that fails, or a file that cannot be read or written: `memory` where there is
/// too little of it, and `again` is how to continue after that.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn out_of_memory() -> TrainError {
        TrainError::Device(BackendError::OutOfMemory {
            asked: None,
            used: None,
        })
    }

    /// What is advised must not change what the steps are, or a checkpoint is of no use.
    #[test]
    fn too_little_memory_is_answered() {
        let folder = tempfile::tempdir().unwrap();
        let before = of_run(out_of_memory(), folder.path()).to_string();
        assert!(before.contains("the teacher alone"), "{before}");
        assert!(!before.contains("--resume"), "{before}");

        std::fs::write(folder.path().join(CONFIG), "").unwrap();
        let begun = of_run(out_of_memory(), folder.path()).to_string();
        for words in ["micro_batch", "evaluation.batch", "recompute", "--resume"] {
            assert!(begun.contains(words), "{begun}");
        }
        assert!(!begun.contains("context"), "{begun}");
    }

    #[test]
    fn other_errors_say_how_to_continue() {
        let folder = tempfile::tempdir().unwrap();
        let lost = || {
            TrainError::Device(BackendError::Lost {
                reason: "Device is lost".into(),
            })
        };
        let before = of_run(lost(), folder.path()).to_string();
        assert!(!before.contains("--resume"), "{before}");
        std::fs::write(folder.path().join(CONFIG), "").unwrap();
        let begun = of_run(lost(), folder.path()).to_string();
        assert!(begun.contains("--resume"), "{begun}");
    }
}
