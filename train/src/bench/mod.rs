//! `train bench`: how fast the stages are, and what a step is made of.

mod batch;
mod checkpoint;
mod matmul_rate;
mod measure;
mod networks;
mod rows;
mod trace;

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use burn::backend::Autodiff;
use kernels::KernelBackend;

use crate::config::Config;
use crate::error::{TrainError, io_error};
use crate::logging::say;
use crate::parallel::Ranks;
use crate::run::{COMPILING, check_layers};
use matmul_rate::MatmulRate;
use measure::{Row, Shape, Subject};
use networks::Networks;
use rows::Conditions;

/// The name, among those of stages, for the teacher's forward pass alone.
pub const TEACHER: &str = "teacher";

/// What to time: every stage with every batch and every length.
#[derive(Debug, Clone)]
pub struct Bench {
    /// Teacher, student, precision, and the stages.
    pub config: Config,
    /// Names of stages of the configuration, or [`TEACHER`].
    pub stages: Vec<String>,
    /// Sequences of a step.
    pub batch: Vec<usize>,
    /// Tokens of a sequence.
    pub length: Vec<usize>,
    /// Steps that are timed.
    pub steps: usize,
    /// The teacher's folder, in place of the configured one.
    pub teacher: Option<PathBuf>,
    /// Where random weights are written, or read if the folder has a config.json, if the configured teacher is
    /// not on this machine.
    pub weights: PathBuf,
    /// The backend's name, for the record.
    pub backend: String,
    /// A folder into which checkpoints are written beside the steps, which are timed with and without; `None` writes none.
    pub checkpoints: Option<PathBuf>,
    /// Whether the result is one JSON object in place of the tables.
    pub json: bool,
    /// Where the trace of a step of each row is written.
    pub profile: Option<PathBuf>,
}

impl Bench {
    /// The tables or the JSON. The rates measured so far are on stderr.
    ///
    /// # Errors
    /// [`TrainError`]: there is no such stage, a stage cannot train the student, the weights cannot be read or
    /// written, the trace cannot be written, or the device fails.
    pub fn execute<B: KernelBackend>(&self, device: &B::Device) -> Result<String, TrainError> {
        self.execute_among::<B>(device, Ranks::alone())
    }

    /// [`execute`](Self::execute) by several ranks, which must all call this. The batch is that of each rank; the rates
    /// are those of all ranks together.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub fn execute_among<B: KernelBackend>(
        &self,
        device: &B::Device,
        ranks: Ranks<B>,
    ) -> Result<String, TrainError> {
        let config = &self.config;
        let dtype = config.precision.dtype();
        if !B::holds(device, dtype) {
            return Err(TrainError::Precision {
                precision: config.precision,
                backend: self.backend.clone(),
                resumed: None,
            });
        }
        let shapes = self.shapes()?;
        if !ranks.is_alone() && (self.profile.is_some() || self.checkpoints.is_some()) {
            return Err(TrainError::Ranks(
                "--profile and --checkpoint measure one process: start one, or leave them out"
                    .into(),
            ));
        }
        // Opened first, so that nothing is measured in vain if the file cannot be written.
        let profile = match &self.profile {
            Some(path) => Some((path, File::create(path).map_err(io_error(path))?)),
            None => None,
        };
        if B::queues() {
            say(COMPILING);
        }
        let rate = MatmulRate::measure::<B>(dtype, device)?;
        let with_student = shapes.iter().any(|shape| shape.stage.is_some());
        // Rank 0 may write the weights that the others read.
        let networks = ranks.first_then_others(device, || {
            Networks::<Autodiff<B>>::open(
                config,
                self.teacher.as_deref(),
                &self.weights,
                with_student,
                device,
            )
        })?;
        for stage in shapes.iter().filter_map(|shape| shape.stage) {
            check_layers(stage, &networks.teacher_config, &networks.student_config)?;
        }
        let conditions = Conditions {
            backend: &self.backend,
            precision: config.precision.to_string(),
            teacher: networks.of_teacher.clone(),
            steps: self.steps,
            rate,
        };
        let mut subject = Subject {
            networks,
            config,
            rate,
            checkpoints: self.checkpoints.as_deref(),
            device,
            ranks,
        };
        let mut rows: Vec<Row> = vec![];
        for shape in shapes {
            let (name, batch, length) = (shape.name(), shape.batch, shape.length);
            say(format_args!("{name}, {batch} x {length} tokens a step"));
            let row = subject.row(shape, self.steps)?;
            say(format_args!("{:.0} tokens/s", row.tokens_per_second));
            rows.push(row);
        }
        if let Some((path, mut file)) = profile {
            let written = file.write_all(trace::json(&rows).as_bytes());
            written.map_err(io_error(path))?;
        }
        Ok(if self.json {
            rows::json(&conditions, &rows)
        } else {
            rows::text(&conditions, &rows)
        })
    }

    /// A row each.
    fn shapes(&self) -> Result<Vec<Shape<'_>>, TrainError> {
        let mut shapes = vec![];
        for name in &self.stages {
            let stage = match name.as_str() {
                TEACHER => None,
                name => Some(self.config.require_stage(name)?),
            };
            for &batch in &self.batch {
                let shapes_of = self.length.iter().map(|&length| Shape {
                    stage,
                    batch,
                    length,
                });
                shapes.extend(shapes_of);
            }
        }
        Ok(shapes)
    }
}
