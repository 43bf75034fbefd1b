//! `train heads`: its arguments.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{anyhow, bail};
use clap::Args;
use clap::builder::{PossibleValuesParser, RangedU64ValueParser};
use datasets::probes::Probe;
use kernels::KernelBackend;
use kernels::runtime::Work;

use super::signals::{INTERRUPTED, stop_on_interrupt};
use super::teacher_args::TeacherArgs;
use super::{SharedArgs, one_process, print, unused, with_advice};
use crate::TrainError;
use crate::heads::{By, HYBRID, HeadStudy, Settings, UnitKind};
use crate::logging::say;

const EXAMPLES: &str = "\
Examples:
  Which heads of SmolLM2 recall, on a GPU, and a hybrid of the best six:
      train heads --preset smollm2-135m --precision bf16 --keep 6 --out runs/heads
      train --config runs/heads/hybrid.toml --set data.train=TEXT --set data.validation=TEXT

  By what each gains where the others see a window, in two rounds, whole groups that share keys and values:
      train heads --preset smollm2-135m --by restoration --unit group --rounds 2

  A teacher of your own, with short documents:
      train heads --teacher FOLDER --lengths 256 --documents 8 --curve-lengths 256 --curve-documents 20";

/// Finds the attention heads that recall, and writes the configuration of a hybrid that keeps the best.
///
/// Each head is changed by itself, and the teacher reads documents that ask for what stands in them (needle, copy, mqar,
/// as `infer eval` has them). Prints the ranking, and the teacher's recall where the best k
/// heads see all and every other head a window: about what a hybrid of these k can come to. Writes table.md, heads.json
/// and hybrid.toml into the folder; `train --config FOLDER/hybrid.toml` distils the hybrid.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct HeadsArgs {
    // The configuration of the hybrid starts from the same preset.
    #[command(flatten)]
    teacher: TeacherArgs,

    /// What the teacher computes in, and the hybrid's precision: f32, or bf16 on GPUs that have it; by default the preset's
    #[arg(long, value_name = "NAME")]
    precision: Option<String>,

    /// The probes, separated by commas: needle, needles, copy and mqar
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAME,...",
        default_value = "needle,copy,mqar",
        value_parser = PossibleValuesParser::new(["needle", "needles", "copy", "mqar"])
    )]
    probes: Vec<String>,

    /// Tokens of the documents that rank, separated by commas
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "N,...",
        default_value = "256,512",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_048_576)
    )]
    lengths: Vec<usize>,

    /// Documents that rank, of each probe and length
    #[arg(
        long,
        value_name = "N",
        default_value = "24",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=10_000)
    )]
    documents: usize,

    /// Of the draws of these documents; the curve has those of `infer eval`
    #[arg(long, value_name = "N", default_value = "1")]
    seed: u32,

    /// What ranks a head: removal, the loss when its output is zero; or restoration, the gain when it alone sees all
    #[arg(
        long,
        value_name = "NAME",
        default_value = "removal",
        value_parser = PossibleValuesParser::new(["removal", "restoration"])
    )]
    by: String,

    /// What is changed together: head, or group, the query heads that share keys and values
    #[arg(
        long,
        value_name = "NAME",
        default_value = "head",
        value_parser = PossibleValuesParser::new(["head", "group"])
    )]
    unit: String,

    /// Rounds: after each but the last, the first heads stay changed while the others are measured again
    ///
    /// Heads may do the same work, so that none of them is missed alone. Each round takes as long as the first.
    #[arg(
        long,
        value_name = "N",
        default_value = "1",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1000)
    )]
    rounds: usize,

    /// Query heads that the hybrid keeps
    #[arg(
        long,
        value_name = "K",
        default_value = "6",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=100_000)
    )]
    keep: usize,

    /// The last tokens that the other heads see in the curve, the own one included
    #[arg(
        long,
        value_name = "N",
        default_value = "64",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_048_576)
    )]
    window: usize,

    /// The first tokens that they see besides
    #[arg(
        long,
        value_name = "N",
        default_value = "4",
        value_parser = RangedU64ValueParser::<usize>::new().range(0..=1_048_576)
    )]
    sinks: usize,

    /// Numbers of heads of the curve, separated by commas
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "K,...",
        default_value = "0,2,4,6,12,27"
    )]
    curve: Vec<usize>,

    /// Tokens of the curve's documents, separated by commas
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "N,...",
        default_value = "256,512,1024,2048",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_048_576)
    )]
    curve_lengths: Vec<usize>,

    /// Documents of the curve, of each probe and length; 0 leaves the curve out
    #[arg(
        long,
        value_name = "N",
        default_value = "50",
        value_parser = RangedU64ValueParser::<usize>::new().range(0..=10_000)
    )]
    curve_documents: usize,

    /// The folder for the results; by default runs/heads
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,

    #[command(flatten)]
    shared: SharedArgs,
}

impl HeadsArgs {
    /// Makes the study, and prints its tables.
    ///
    /// # Errors
    /// Those of the configuration and of [`HeadStudy::execute`].
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        one_process("heads")?;
        let backend = self.shared.backend()?;
        let precision = self.precision.iter();
        let precision = precision.map(|name| format!("precision={name}"));
        let config = self.teacher.config(precision)?;
        let settings = self.settings()?;
        let default = || unused(Path::new("runs").join("heads"));
        let folder = self.out.unwrap_or_else(default);
        let study = HeadStudy {
            settings,
            config,
            folder: folder.clone(),
            backend: backend.name().into(),
            stop: stop_on_interrupt()?,
        };
        let outcome = backend.dispatch(Heads(study));
        let outcome = outcome
            .map_err(TrainError::from)
            .and_then(|outcome| outcome);
        let memory = "choose shorter --lengths and --curve-lengths";
        match outcome.map_err(|error| with_advice(error, memory, "by the same command"))? {
            Some(table) => {
                let hybrid = folder.join(HYBRID);
                let folder = folder.display();
                if hybrid.exists() {
                    print(format_args!(
                        "{table}\n\nresults {folder}\nhybrid  {}",
                        hybrid.display()
                    ))
                } else {
                    print(format_args!("{table}\n\nresults {folder}"))
                }
            }
            None => {
                say("stopped; nothing was written");
                Ok(ExitCode::from(INTERRUPTED))
            }
        }
    }

    fn settings(&self) -> anyhow::Result<Settings> {
        let probe = |name: &String| Probe::named(name).ok_or_else(|| anyhow!("no probe {name}"));
        let twice = |all: &[usize]| (1..all.len()).any(|i| all[..i].contains(&all[i]));
        for (option, twice) in [
            ("--lengths", twice(&self.lengths)),
            ("--curve-lengths", twice(&self.curve_lengths)),
        ] {
            if twice {
                bail!("{option} has a number twice");
            }
        }
        if (1..self.probes.len()).any(|i| self.probes[..i].contains(&self.probes[i])) {
            bail!("--probes has a name twice");
        }
        Ok(Settings {
            probes: self
                .probes
                .iter()
                .map(probe)
                .collect::<anyhow::Result<_>>()?,
            lengths: self.lengths.clone(),
            documents: self.documents,
            seed: self.seed,
            by: named(&By::ALL, &self.by)?,
            unit: named(&UnitKind::ALL, &self.unit)?,
            rounds: self.rounds,
            keep: self.keep,
            window: self.window,
            sinks: self.sinks,
            curve: self.curve.clone(),
            curve_lengths: self.curve_lengths.clone(),
            curve_documents: self.curve_documents,
        })
    }
}

/// The value called `name`.
fn named<T: Copy>(all: &[(&str, T)], name: &str) -> anyhow::Result<T> {
    let found = all.iter().find(|(known, _)| *known == name);
    found
        .map(|(_, value)| *value)
        .ok_or_else(|| anyhow!("{name} is not known"))
}

struct Heads(HeadStudy);

impl Work for Heads {
    type Output = Result<Option<String>, TrainError>;

    fn run<B: KernelBackend>(self, device: B::Device) -> Self::Output {
        self.0.execute::<B>(&device)
    }
}
