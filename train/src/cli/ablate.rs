//! `train ablate`: its arguments.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{anyhow, bail};
use burn::backend::Autodiff;
use clap::Args;
use clap::builder::RangedU64ValueParser;
use kernels::KernelBackend;
use kernels::runtime::Work;

use super::signals::{INTERRUPTED, stop_on_interrupt};
use super::{ConfigArgs, SharedArgs, one_process, print, unused, with_advice};
use crate::TrainError;
use crate::ablation::{Ablation, Budget, Recipe, Variant};
use crate::config::Config;
use crate::logging::say;
use crate::shell::word;

const EXAMPLES: &str = "\
Examples:
  Two ways to start, with three seeds:
      train ablate --vary student.init=published --vary student.init=calibrated --seeds 1,2,3

  Losses of the last stage, with a third of its tokens:
      train ablate --set stage3.tokens=262144 --vary name=forward \\
          --vary 'name=reverse; stage3.loss=reverse_kl' \\
          --vary 'name=top-20; stage3.top_k=20'

  Four rates, on a GPU with one pass of the teacher for all four:
      train ablate --preset smollm2-135m --lockstep 4 --vary stage3.lr=1e-5 --vary stage3.lr=3e-5 \\
          --vary stage3.lr=1e-4 --vary stage3.lr=3e-4

  What each stage is worth:
      train ablate --plan small";

/// Compares variants of a configuration, each with the same seeds.
///
/// Each variant runs once with each seed. Prints one table: the student's perplexity over the teacher's, its mean, and
/// the mean difference from the first variant, by pairs of one seed, with its standard error; then the ratio before the
/// first stage and after each. After each run it writes both, as far as they go, as table.md and table.json into the
/// folder beside the runs.
///
/// Without variants it compares the last stage of tiny alone, the last two, and all three, at one budget of tokens: with
/// the tokens, learning rates and shares of the budget of the published modules' runs that assets/README.md lists.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct AblateArgs {
    /// A variant by the keys that it changes, as in 'student.init=calibrated; stage2.lr=1e-3'; give two or more
    ///
    /// Two keys are special: `name` is what the variant is called, and `stages=stage2,stage3` leaves out all other
    /// stages. `name=base` alone changes nothing.
    #[arg(long, value_name = "KEY=VALUE;...")]
    vary: Vec<String>,

    /// A file of more variants, one a line
    #[arg(long, value_name = "FILE")]
    variants: Option<PathBuf>,

    #[command(flatten)]
    config: ConfigArgs,

    /// The budget without variants: small (262,144 tokens, 4 x 256) or large (4,194,304 tokens, 16 x 512)
    #[arg(
        long,
        value_name = "NAME",
        default_value = "small",
        conflicts_with_all = ["vary", "variants"]
    )]
    plan: Budget,

    /// The seeds to repeat each variant with, as in 42,43,44
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "42,43,44"
    )]
    seeds: Vec<u64>,

    /// Runs of one seed that go in lockstep, at most: they share batches and the teacher, which is computed once
    ///
    /// They may differ in the student, its start, rates, schedules, optimizer and losses, and end in the same bits as
    /// alone on a CPU. As many go together as fit into the device's memory, by arithmetic, where that is known; which ones
    /// do, and why others do not, is said in the log.
    #[arg(
        long,
        value_name = "N",
        default_value = "1",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1000)
    )]
    lockstep: usize,

    /// The folder for the table and the runs; by default runs/ablation-NAME, of the configuration or the plan
    ///
    /// The same command with the folder of a comparison that was stopped continues it. Runs that are finished are taken
    /// as they are, also with more variants or seeds.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,

    #[command(flatten)]
    shared: SharedArgs,
}

impl AblateArgs {
    /// Makes the comparison, and prints its table.
    ///
    /// # Errors
    /// That there is nothing to compare, those of [`Variant::resolve`] and of [`Ablation::execute`].
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        one_process("ablate")?;
        let backend = self.shared.backend()?;
        let recipes = self.recipes()?;
        let (source, set, stages) = (
            self.config.source(),
            self.config.overrides(),
            &self.config.stages,
        );
        let (name, title, recipes) = if recipes.is_empty() {
            if !self.config.is_empty() {
                bail!(
                    "nothing to compare with that configuration: give two variants or more, as in --vary name=base \
                     --vary stage3.lr=1e-4"
                );
            }
            let name = self.plan.name().to_owned();
            (name, self.plan.title(), self.plan.recipes())
        } else {
            let name = Config::load(source, &set)?.name;
            (name.clone(), name, recipes)
        };
        let variants = Variant::resolve(source, &set, stages, &recipes, &self.seeds)?;
        let default = || unused(Path::new("runs").join(format!("ablation-{name}")));
        let folder = self.out.unwrap_or_else(default);
        let ablation = Ablation {
            title,
            variants,
            seeds: self.seeds,
            folder: folder.clone(),
            lockstep: self.lockstep,
            backend: backend.name().into(),
            stop: stop_on_interrupt()?,
        };
        let outcome = backend.dispatch(Ablate(ablation)).map_err(TrainError::from);
        let outcome = outcome.and_then(|outcome| outcome);
        let again = format!("by the same command with --out {}", word(&folder));
        let memory = if self.lockstep > 1 {
            "lower --lockstep"
        } else {
            "give it the memory that other programs have there"
        };
        match outcome.map_err(|error| with_advice(error, memory, &again))? {
            Some(table) => print(format_args!("{table}")),
            None => {
                say(format_args!("continue {again}"));
                Ok(ExitCode::from(INTERRUPTED))
            }
        }
    }

    /// Those of the command line, then those of the file.
    fn recipes(&self) -> anyhow::Result<Vec<Recipe>> {
        let mut recipes = vec![];
        for text in &self.vary {
            recipes.push(text.parse()?);
        }
        if let Some(file) = &self.variants {
            let read = std::fs::read_to_string(file);
            let text = read.map_err(|error| anyhow!("{}: {error}", file.display()))?;
            let listed = Recipe::list(&text);
            recipes.extend(listed.map_err(|error| anyhow!("{}: {error}", file.display()))?);
            if recipes.is_empty() {
                bail!("{}: no variant in it, one a line", file.display());
            }
        }
        Ok(recipes)
    }
}

struct Ablate(Ablation);

impl Work for Ablate {
    type Output = Result<Option<String>, TrainError>;

    fn run<B: KernelBackend>(self, device: B::Device) -> Self::Output {
        self.0.execute::<Autodiff<B>>(&device)
    }
}
