//! `train cache-teacher`: its arguments.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValuesParser, RangedU64ValueParser, TypedValueParser};
use kernels::KernelBackend;
use kernels::runtime::Work;

use super::{ConfigArgs, SharedArgs, one_process};
use crate::TrainError;
use crate::config::Config;
use crate::run::{CacheTeacher, CachedTeacher};
use crate::teacher_cache::StoredDtype;

const EXAMPLES: &str = "\
Examples:
  The predictions that the last stage of the bundled run reads, and that run:
      train cache-teacher --out runs/tiny-teacher
      train --set stage3.teacher_cache=runs/tiny-teacher

  The last stage alone, from the student of an earlier stage, without the teacher in memory:
      train cache-teacher --preset phi-1.5 --set data.train=/text/c4 --set data.validation= \\
          --stages stage3 --out /cache
      train --preset phi-1.5 --set data.train=/text/c4 --set data.validation= --stages stage3 \\
          --set student.from=runs/stage2/student --set stage3.teacher_cache=/cache";

/// Writes a teacher's predictions of the text that a stage reads, so that the stage trains without the teacher.
///
/// Of each token the k likeliest next tokens are kept, with the logarithms of their probabilities and that of all others
/// together, in the order in which the run reads the text. The configuration is that of the run, with the same --preset,
/// --config, --set and --stages: which part of the text a stage reads follows from the stages before it. The run then
/// takes the folder as `teacher_cache` of the stage, and refuses one of another teacher, tokenizer, text, context, seed or
/// part of the text. A process may be killed at any moment: the same command then continues its work.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct CacheTeacherArgs {
    #[command(flatten)]
    config: ConfigArgs,

    /// The stage that will read the cache; by default the only one of kind predictions
    #[arg(long, value_name = "NAME")]
    stage: Option<String>,

    /// The folder of the cache
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,

    /// How many of the likeliest tokens are kept
    ///
    /// A cache of more serves a stage that compares fewer, by its key top_k. The default is the smallest number that
    /// is usual, since the size of the cache is proportional to it: 260 bytes a token in f16 with a vocabulary of up to
    /// 65,536, or 260 GB a billion tokens.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 64,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_048_576)
    )]
    k: usize,

    /// What the logarithms are kept in: f16, which is off by up to 1/2048 of itself, or f32
    #[arg(
        long,
        value_name = "NAME",
        default_value = "f16",
        value_parser = PossibleValuesParser::new(["f16", "f32"]).map(|name| match &*name {
            "f32" => StoredDtype::F32,
            _ => StoredDtype::F16,
        })
    )]
    dtype: StoredDtype,

    #[command(flatten)]
    shared: SharedArgs,
}

impl CacheTeacherArgs {
    /// Does the work, and returns a report of it.
    pub(crate) fn run(self) -> anyhow::Result<String> {
        one_process("cache-teacher")?;
        let backend = self.shared.backend()?;
        let mut config = Config::load(self.config.source(), &self.config.overrides())?;
        if !self.config.stages.is_empty() {
            config.choose_stages(&self.config.stages)?;
        }
        let work = CacheTeacher {
            config,
            stage: self.stage,
            folder: self.out,
            k: self.k,
            dtype: self.dtype,
            backend: backend.name().into(),
        };
        let done = backend.dispatch(OnBackend(work)).map_err(TrainError::from);
        Ok(done.and_then(|done| done)?.to_string())
    }
}

struct OnBackend(CacheTeacher);

impl Work for OnBackend {
    type Output = Result<CachedTeacher, TrainError>;

    fn run<B: KernelBackend>(self, device: B::Device) -> Self::Output {
        self.0.execute::<B>(&device)
    }
}
