//! `infer bench`: how fast models read prompts and make tokens, and what limits them.

use std::path::PathBuf;

use clap::Args;
use clap::builder::RangedU64ValueParser;
use kernels::KernelBackend;
use kernels::runtime::Work;

use super::CommandError;
use crate::bench::{self, Bandwidth, Subject};
use crate::model_args::ComputeArgs;
use crate::output::say;

const EXAMPLES: &str = "\
Examples:
  A student beside its teacher:
      infer bench --model runs/tiny/student --model assets/phi-tiny

  Whether a step takes longer after a long prompt, in numbers for a plot:
      infer bench --model goombalab/Phi-Mamba --prompts 128,2048,32768 --batches 1 --json

  An architecture without its weights, which are then random:
      infer bench --model phi-1.5/config.json --dtype bf16";

/// Times prompts and texts: tokens a second and the memory of a sequence, for several models in one table.
///
/// Prefill is reading a prompt, the median of three times; decode is making tokens one after another with
/// the likeliest always chosen, from one token on the host to the next, the median of all steps. As in a text, a
/// device that chooses the tokens has begun with the next step by then. Both are timed after a first
/// pass that compiles kernels. The last column is the bytes that a step must read and write at least,
/// over its time, as a share of the bandwidth that a copy reaches on the same device: at 100%, no program
/// could be faster. Those bytes are every projection's weight and attention's keys and values, which are
/// read, and the states of Mamba layers, which are read and written.
///
/// Prompts are made of arbitrary tokens, and may be longer than a teacher has learnt positions for.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct BenchArgs {
    /// A model's folder, a GGUF file, a name on the hub, or a config.json alone; may be given several times
    #[arg(
        long = "model",
        value_name = "FOLDER|FILE|OWNER/NAME[:FILE.gguf]",
        required = true
    )]
    models: Vec<PathBuf>,

    /// Sequences at a time, separated by commas
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "N,...",
        default_value = "1,8",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024)
    )]
    batches: Vec<usize>,

    /// Lengths of prompts, separated by commas
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "N,...",
        default_value = "128,2048",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=4_194_304)
    )]
    prompts: Vec<usize>,

    /// Tokens to make after each prompt
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    tokens: usize,

    #[command(flatten)]
    compute: ComputeArgs,

    /// Prints one JSON object in place of the table
    #[arg(long)]
    json: bool,
}

impl BenchArgs {
    /// Runs the command.
    pub fn run(self) -> Result<(), CommandError> {
        let backend = self.compute.backend()?;
        let locate = |model: &PathBuf| {
            if model.is_file() && !model::is_model(model) {
                Ok(model.clone())
            } else {
                model::locate(model)
            }
        };
        let folders = self.models.iter().map(locate);
        let folders = folders.collect::<Result<_, _>>()?;
        backend.dispatch(BenchWork {
            args: self,
            folders,
        })?
    }
}

struct BenchWork {
    args: BenchArgs,
    folders: Vec<PathBuf>,
}

impl Work for BenchWork {
    type Output = Result<(), CommandError>;

    fn run<B: KernelBackend>(self, device: B::Device) -> Self::Output {
        let bandwidth = Bandwidth::measure::<B>(&device)?;
        let mut rows = Vec::new();
        for (name, folder) in self.args.models.iter().zip(&self.folders) {
            let subject = Subject::<B>::new(name, folder, self.args.compute.dtype, &device)?;
            for &batch in &self.args.batches {
                for &prompt in &self.args.prompts {
                    rows.push(subject.measure(batch, prompt, self.args.tokens, bandwidth)?);
                }
            }
        }
        let text = if self.args.json {
            bench::json(bandwidth, &rows)
        } else {
            bench::markdown(bandwidth, &rows)
        };
        say(&text)?;
        Ok(())
    }
}
