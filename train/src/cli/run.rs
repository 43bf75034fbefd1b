//! `train` without a command: a run, from its arguments to the message at its end.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{anyhow, bail};
use burn::backend::Autodiff;
use clap::Args;
use kernels::KernelBackend;
use kernels::runtime::{Backend, BackendError, Work};

use super::signals::{INTERRUPTED, stop_on_interrupt};
use super::{ConfigArgs, SharedArgs, end, print, unused, with_advice};
use crate::TrainError;
use crate::config::{Config, Source};
use crate::logging::say;
use crate::parallel::World;
use crate::run::{CHECKPOINTS, CONFIG, Outcome, Run, RunOptions, SUMMARY};
use crate::shell::word;

#[derive(Debug, Args)]
pub(super) struct RunArgs {
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

impl RunArgs {
    /// Does the run, and returns the program's exit code.
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
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
                if !file.exists() && folder.join(CHECKPOINTS).exists() {
                    bail!(
                        "{}: the config.toml of this run is gone; put it back (the inputs.toml of each checkpoint has it \
                         as [config]), or start another run by --out",
                        folder.display()
                    );
                }
                if !file.exists() {
                    let error = TrainError::NoRun(folder.clone());
                    bail!("{error}; start one with --out instead of --resume");
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

/// Adds advice to an error of the run in `folder`.
fn of_run(error: TrainError, folder: &Path) -> anyhow::Error {
    let config = folder.join(CONFIG);
    match error {
        // Only the teacher is in memory before that file is written.
        TrainError::Device(BackendError::OutOfMemory { .. }) if !config.exists() => anyhow!(
            "{error}; the teacher alone does not fit: lower evaluation.batch, or choose another device by --backend"
        ),
        error if !config.exists() => error.into(),
        error => {
            // All of these settings change only the rounding of sums, and neither the steps nor their text.
            let memory = format!(
                "in {}, lower micro_batch of the stage, or evaluation.batch if it was evaluating, or set \
                 recompute = true of the stage if it has that option",
                config.display()
            );
            let again = format!("from the last checkpoint by --resume {}", word(folder));
            with_advice(error, &memory, &again)
        }
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

    /// The advice must not change the steps, or a checkpoint could not be resumed.
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
