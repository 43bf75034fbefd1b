//! `train bench`: how fast the stages are, and what a step is made of.

mod arithmetic;
mod measure;
mod networks;
mod table;

use std::path::PathBuf;

use anyhow::anyhow;
use burn::backend::Autodiff;
use clap::Args;
use clap::builder::RangedU64ValueParser;
use kernels::KernelBackend;
use kernels::backends::BackendError::OutOfMemory;
use kernels::backends::Work;

use crate::cli::SharedArgs;
use crate::config::{Config, Source};
use crate::error::TrainError;
use crate::logging::say;
use crate::run::COMPILING;
use measure::{MatmulRate, Row, Shape, Subject};
use networks::Networks;
use table::Head;

const EXAMPLES: &str = "\
Examples:
  All stages at full size on a GPU, with random weights unless the teacher is on this machine:
      train bench --preset phi-1.5 --stage 0,1,2,3 --batch 4 --length 2048

  What a longer sequence costs, for a script:
      train bench --preset phi-1.5 --stage 3 --batch 1 --length 2048,16384 --json

  On the CPU:
      train bench --preset tiny --stage 1,2,3 --batch 4 --length 256";

/// Times the optimizer steps of the stages, on random tokens.
///
/// A step is what a run does: a pass of both networks over a batch, the backward pass, the update; it is one
/// pass, where a run may add up the gradients of several (micro_batch), which takes memory too. Stage
/// 0 is the teacher's forward pass alone, logits included. Tokens a second are by the median step after
/// three to warm up, waiting for each (tokens/s), and over as many steps that are queued together, as a run
/// does it (queued). The arithmetic of a token times the first, over the rate of a product of matrices
/// alone in the same dtype, measured first, is the share that the rest leaves to the products. Memory is
/// what the device must have for the tensors, or the most that the process ever had on a CPU; the student
/// is in memory in stage 0 too if other stages are timed.
///
/// Where the time goes is told by one more step, in which each op waits for the one before it. Burn's own
/// ops and the host are "other".
///
/// Nothing is fetched: without the preset's teacher on this machine, random weights of Phi-1.5's shapes are
/// written in Hugging Face's layout and read back.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct BenchArgs {
    /// The configuration: tiny, phi-1.5 or hybrid-phi-1.5
    #[arg(long, value_name = "NAME", default_value = "phi-1.5")]
    preset: String,

    /// The stages, separated by commas; 0 is the teacher alone
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "N,...",
        default_value = "0,1,2,3",
        value_parser = RangedU64ValueParser::<u8>::new().range(0..=3)
    )]
    stage: Vec<u8>,

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

    #[command(flatten)]
    shared: SharedArgs,

    /// Prints one JSON object in place of the tables
    #[arg(long)]
    json: bool,
}

impl BenchArgs {
    /// The tables or the JSON.
    ///
    /// # Errors
    /// That the configuration is wrong, the weights cannot be read or written, or the device fails. The
    /// rates measured before that are on stderr.
    pub(crate) fn run(self) -> anyhow::Result<String> {
        let backend = self.shared.backend()?;
        let mut set = self.set.clone();
        let precision = self.precision.iter();
        set.extend(precision.map(|name| format!("precision={name}")));
        let config = Config::load(Source::Preset(&self.preset), &set)?;
        let bench = Bench {
            args: self,
            config,
            backend: backend.name(),
        };
        let done = backend.dispatch(bench).map_err(TrainError::from);
        done.and_then(|text| text).map_err(with_advice)
    }

    /// A row each.
    fn shapes(&self) -> Vec<Shape> {
        let mut shapes = vec![];
        for &stage in &self.stage {
            for &batch in &self.batch {
                for &length in &self.length {
                    shapes.push(Shape {
                        stage,
                        batch,
                        length,
                    });
                }
            }
        }
        shapes
    }
}

/// What to change where the memory does not suffice.
fn with_advice(error: TrainError) -> anyhow::Error {
    match error {
        TrainError::Device(OutOfMemory { .. }) => anyhow!(
            "{error}; lower --batch or --length, or --set stage3.recompute=true if it is not"
        ),
        other => other.into(),
    }
}

struct Bench {
    args: BenchArgs,
    config: Config,
    backend: &'static str,
}

impl Work for Bench {
    type Output = Result<String, TrainError>;

    fn run<B: KernelBackend>(self, device: B::Device) -> Self::Output {
        let Self {
            args,
            config,
            backend,
        } = self;
        let dtype = config.precision.dtype();
        if !B::holds(&device, dtype) {
            return Err(TrainError::Precision {
                precision: config.precision,
                backend: backend.into(),
                resumed: None,
            });
        }
        if B::queues() {
            say(COMPILING);
        }
        let rate = MatmulRate::measure::<B>(dtype, &device)?;
        let with_student = args.stage.iter().any(|stage| *stage > 0);
        let (teacher, weights) = (args.teacher.as_deref(), args.weights.as_deref());
        let networks =
            Networks::<Autodiff<B>>::open(&config, teacher, weights, with_student, &device)?;
        let head = Head {
            backend,
            precision: config.precision.to_string(),
            teacher: networks.of_teacher.clone(),
            steps: args.steps,
            rate,
        };
        let mut subject = Subject {
            networks,
            config: &config,
            rate,
            device: &device,
        };
        let mut rows: Vec<Row> = vec![];
        for shape in args.shapes() {
            let Shape {
                stage,
                batch,
                length,
            } = shape;
            say(format_args!(
                "stage {stage}, {batch} x {length} tokens a step"
            ));
            let row = subject.row(shape, args.steps)?;
            say(format_args!("{:.0} tokens/s", row.tokens_per_second));
            rows.push(row);
        }
        Ok(match args.json {
            true => table::json(&head, &rows),
            false => table::markdown(&head, &rows),
        })
    }
}
