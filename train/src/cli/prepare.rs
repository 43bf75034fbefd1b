//! `train prepare`: its arguments.

use std::path::PathBuf;

use clap::Args;
use datasets::Share;

use crate::config::{Config, Source};
use crate::run::prepare;

const EXAMPLES: &str = "\
Examples:
  The text of the published recipe, which `train` with the same --preset and --set then finds:
      train prepare --preset phi-1.5 --set data.train=/text/c4 --set data.validation=

  The same by 16 tasks of a Slurm array (sbatch --array=0-15), with one folder of tokens that all can write:
      train prepare --preset phi-1.5 --set data.train=/text/c4 --set data.validation= \\
          --set data.cache=/shared/tokens --shard $SLURM_ARRAY_TASK_ID/16

  The same by the pods of a Kubernetes job with completionMode: Indexed and 16 completions:
      train prepare ... --shard $JOB_COMPLETION_INDEX/16";

/// Tokenises the text of a run ahead of it, on all cores.
///
/// Training text and held-out text are taken from the configuration, as a run takes them, and the tokens are kept in
/// its folder of tokens (data.cache), where a run with the same data, tokenizer and split finds them. It needs no GPU
/// and no weights. A process may be killed at any moment: the same command then continues its work. The tokens do
/// not depend on the number of cores or of workers.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct PrepareArgs {
    /// The configuration to start from: a preset's name
    #[arg(long, value_name = "NAME", default_value = "tiny")]
    preset: String,

    /// A TOML file whose keys override those of a preset
    #[arg(long, value_name = "FILE", conflicts_with = "preset")]
    config: Option<PathBuf>,

    /// Override one key, as in --set data.train=/text/c4; may be given many times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,

    /// Leave out documents whose text came before; short for --set data.drop_duplicates=true, which the run needs too
    #[arg(long)]
    drop_duplicates: bool,

    /// Do the part of one of several workers, which divide the files among them: its number, from 0, of how many
    #[arg(long, value_name = "I/N")]
    shard: Option<Share>,
}

impl PrepareArgs {
    /// Does the work, and returns a report of it.
    pub(crate) fn run(self) -> anyhow::Result<String> {
        let mut set = self.set;
        if self.drop_duplicates {
            set.push("data.drop_duplicates=true".to_owned());
        }
        let source = match &self.config {
            Some(file) => Source::File(file),
            None => Source::Preset(&self.preset),
        };
        let prepared = prepare(Config::load(source, &set)?, self.shard)?;
        let lines: Vec<_> = prepared.iter().map(ToString::to_string).collect();
        Ok(lines.join("\n"))
    }
}
