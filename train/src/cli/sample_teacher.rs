//! `train sample-teacher`: its arguments.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use clap::builder::RangedU64ValueParser;
use kernels::KernelBackend;
use kernels::runtime::Work;

use super::signals::{INTERRUPTED, stop_on_interrupt};
use super::teacher_args::TeacherArgs;
use super::{SharedArgs, one_process, print, with_advice};
use crate::TrainError;
use crate::logging::say;
use crate::teacher_text::{Settings, TeacherText};

const EXAMPLES: &str = "\
Examples:
  Ten million tokens of SmolLM2's own, on a GPU, as one text of a run beside another:
      train sample-teacher --preset smollm2-135m --tokens 10000000 --rows 512 --out sampled
      train --preset smollm2-135m --set data.validation=TEXT \\
          --set 'data.train=[{path = \"TEXT\", weight = 2}, {path = \"sampled\", weight = 1}]'";

/// Samples text from the teacher, as files of JSON lines that runs can read.
///
/// At temperature 1, from begin-of-text on, so that a student sees what the teacher itself would say. The text follows
/// from the seed, on the same backend. The same command with the folder of one that was stopped continues it.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct SampleTeacherArgs {
    #[command(flatten)]
    teacher: TeacherArgs,

    /// Tokens in all, up to whole files
    #[arg(
        long,
        value_name = "N",
        value_parser = RangedU64ValueParser::<u64>::new().range(1..=1_000_000_000_000)
    )]
    tokens: u64,

    /// Tokens of a row, within which the teacher remembers what it has said
    #[arg(
        long,
        value_name = "N",
        default_value = "1024",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_048_576)
    )]
    length: usize,

    /// Rows that are sampled together and become one file; more of them are faster on a GPU and take more memory
    #[arg(
        long,
        value_name = "N",
        default_value = "64",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=65_536)
    )]
    rows: usize,

    /// Of all draws
    #[arg(long, value_name = "N", default_value = "1")]
    seed: u64,

    /// The folder for the files
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,

    #[command(flatten)]
    shared: SharedArgs,
}

impl SampleTeacherArgs {
    /// Samples.
    ///
    /// # Errors
    /// Those of the configuration and of [`TeacherText::execute`].
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        one_process("sample-teacher")?;
        let backend = self.shared.backend()?;
        let config = self.teacher.config([])?;
        let folder = self.out;
        let text = TeacherText {
            settings: Settings {
                teacher: config.teacher.model.clone(),
                precision: config.precision,
                length: self.length,
                rows: self.rows,
                seed: self.seed,
            },
            config,
            tokens: self.tokens,
            folder: folder.clone(),
            backend: backend.name().into(),
            stop: stop_on_interrupt()?,
        };
        let outcome = backend.dispatch(Sample(text));
        let outcome = outcome
            .map_err(TrainError::from)
            .and_then(|outcome| outcome);
        let again = "by the same command";
        match outcome.map_err(|error| with_advice(error, "choose fewer --rows", again))? {
            Some(files) => print(format_args!("{files} files in {}", folder.display())),
            None => {
                say(format_args!("stopped; continue {again}"));
                Ok(ExitCode::from(INTERRUPTED))
            }
        }
    }
}

struct Sample(TeacherText);

impl Work for Sample {
    type Output = Result<Option<u64>, TrainError>;

    fn run<B: KernelBackend>(self, device: B::Device) -> Self::Output {
        self.0.execute::<B>(&device)
    }
}
