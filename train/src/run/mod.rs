//! A run, from its configuration to its report.
//!
//! The run writes `config.toml` first and `summary.json` last into its folder: a folder with `config.toml` is a run,
//! and a run with `summary.json` is finished.

mod begin;
mod cache_teacher;
mod close;
mod finite;
mod folder;
mod inputs;
mod lockstep;
mod open;
mod options;
mod pending_metrics;
mod predictions;
mod prefetch;
mod prepare;
mod record;
mod resume;
mod roll_back;
mod sources;
mod stage;
mod start;
mod tasks;
mod teacher_and_text;
mod teacher_files;
mod text;
mod within;
mod writer;

pub use cache_teacher::{CacheTeacher, CachedTeacher};
pub(crate) use folder::begun;
pub use inputs::student_config;
pub(crate) use inputs::{check_layers, teacher_of_stages, untrained_student};
pub(crate) use lockstep::{Need, Room, alone, apart};
pub use options::{Outcome, RunOptions, StopRequest};
pub use prepare::{Prepared, prepare};
pub(crate) use teacher_and_text::{TeacherAndText, teacher_and_tokenizer};

use std::sync::Arc;
use std::time::Instant;

use burn::module::AutodiffModule;
use datasets::{TokenWindows, Tokenizer};
use kernels::runtime::collective::Place;
use kernels::runtime::synchronise;
use kernels::{KernelBackend, TrainBackend};
use model::{ModelConfig, Phi, PhiMamba};

use self::begin::{Begun, Company};
use self::folder::Held;
use self::teacher_files::TeacherFiles;
use self::text::StageText;
use self::writer::Writer;
use crate::checkpoint::{Checkpoints, Progress, Snapshot};
use crate::config::{Config, StageConfig};
use crate::error::TrainError;
use crate::evaluate::perplexity;
use crate::metrics::{Evaluation, MetricsLog, Mirrors, Record, Watch};
use crate::optimizer::AdamW;
use crate::parallel::Ranks;
use crate::provenance::Provenance;
use crate::retry::{retry, sleep};
use crate::shell::word;
use crate::summary::StageSummary;
use crate::teacher_cache::TeacherCache;

/// The file of the run folder that says what the run does; the first to be written.
pub const CONFIG: &str = "config.toml";
/// The file of the run folder with the result; the last to be written.
pub const SUMMARY: &str = "summary.json";
/// The folder of the run folder that holds the checkpoints.
pub(crate) const CHECKPOINTS: &str = "checkpoints";
/// The file of the run folder that has a line for each step.
pub(crate) const METRICS: &str = "metrics.jsonl";
/// The folder of the run folder that holds the result.
const STUDENT: &str = "student";

/// Logged before the first pass on a GPU.
pub(crate) const COMPILING: &str = "compiling kernels, which takes a while at the first start";

/// A run in progress. `B` trains; its inner backend has the teacher.
pub struct Run<B: TrainBackend> {
    options: RunOptions,
    /// The processes that share the run. If there are several, `options.stop` never asks to stop, and `asked` is used
    /// instead.
    ranks: Ranks<B::InnerBackend>,
    /// Whether this process is asked to stop, if ranks share the run.
    asked: StopRequest,
    /// Whether any rank was asked to stop, as of the last step that was read.
    stops: bool,
    device: B::Device,
    tokenizer: Arc<Tokenizer>,
    teacher_files: TeacherFiles,
    made_from: Provenance,
    /// For each stage of the list.
    train: Vec<StageText>,
    held_out: TokenWindows,
    /// Lines of the text that hold no document.
    skipped_lines: u64,
    /// For each stage of the list: the layers that have nothing to learn in it.
    idle_layers: Vec<Vec<usize>>,
    /// For each stage of the list: the floating-point operations of a token.
    operations: Vec<f64>,
    /// Floating-point operations a second of a matrix product on this device.
    device_rate: f64,
    /// `None` if no remaining stage computes the teacher.
    teacher: Option<Phi<B::InnerBackend>>,
    /// For each stage of the list: the cache of the teacher's predictions that it reads, if any.
    caches: Vec<Option<Arc<TeacherCache>>>,
    student_config: ModelConfig,
    optimizer: AdamW<B::InnerBackend>,
    progress: Progress,
    checkpoints: Arc<Checkpoints>,
    writer: Writer,
    held: Arc<Held>,
    log: MetricsLog,
    mirrors: Mirrors,
    watch: Watch,
    /// What is still to be logged about the stage's first loss; `None` if this process did not begin the stage, or has
    /// logged it.
    beginning: Option<Beginning>,
    /// For each stage of the list: in words, the final losses of recorded runs.
    recorded: Vec<String>,
    started: Instant,
    seconds_before: f64,
}

/// What is logged about a stage's loss at its first step.
struct Beginning {
    /// The loss that the teacher would have in the student's place, if it is known.
    floor: Option<f64>,
}

/// How the work on a stage ended.
enum End<B: TrainBackend> {
    /// All steps are done; the student after them.
    Done(PhiMamba<B>),
    /// The run was rolled back because of a spike of the loss; the student of that checkpoint.
    RolledBack(PhiMamba<B>),
    /// On request.
    Stopped,
}

impl<B: TrainBackend> Run<B> {
    /// Executes the whole run. On a GPU, failures of the device are only reported after a call of
    /// [`report_failures`](kernels::runtime::report_failures).
    ///
    /// # Errors
    /// [`TrainError`]. What the run wrote before that remains, and it can be resumed.
    pub fn execute(options: RunOptions, device: &B::Device) -> Result<Outcome, TrainError> {
        Self::execute_among(options, device, Ranks::alone())
    }

    /// [`execute`](Self::execute) by several `ranks`, which must all call this. Configuration and folder are those of
    /// rank 0. A request to any rank stops all of them after the same step. All return the same result.
    ///
    /// # Errors
    /// As [`execute`](Self::execute); [`TrainError::Ranks`] if another rank has failed, if the ranks do not have the same
    /// teacher, text and program, or if their number does not divide the passes of a step.
    pub fn execute_among(
        options: RunOptions,
        device: &B::Device,
        ranks: Ranks<B::InnerBackend>,
    ) -> Result<Outcome, TrainError> {
        match Self::begin(options, device, Company::of(ranks))? {
            Begun::Finished(summary) => Ok(Outcome::Finished(*summary)),
            Begun::Stopped => Ok(Outcome::Stopped),
            Begun::Open(open) => {
                let (run, student) = *open;
                run.go_on(student)
            }
        }
    }

    /// Does the remaining stages, beginning with this student, and the end of the run.
    fn go_on(mut self, mut student: PhiMamba<B>) -> Result<Outcome, TrainError> {
        // The stages that are done are the first ones of the list.
        for number in self.progress.finished.len()..self.options.config.stages.len() {
            loop {
                match self.stage(number, student)? {
                    End::Done(trained) => {
                        student = trained;
                        break;
                    }
                    End::RolledBack(earlier) => student = earlier,
                    End::Stopped => return Ok(Outcome::Stopped),
                }
            }
        }
        let (ranks, device) = (self.ranks.clone(), self.device.clone());
        let closed = ranks.from_first(&device, || self.close(&student));
        closed.map(Outcome::Finished)
    }

    /// Seconds that all stages have trained, without evaluation.
    fn trained_seconds(&self) -> f64 {
        let finished = self.progress.finished.iter().map(|stage| stage.seconds);
        finished.sum::<f64>() + self.progress.stage_seconds
    }

    /// Copies all that a checkpoint contains, and starts to write it on another thread.
    fn checkpoint(&mut self, student: &PhiMamba<B>) -> Result<(), TrainError> {
        // Before the next one is copied: the host's memory may not be large enough for two.
        self.writer.wait()?;
        // The results of a kernel that has failed are not valid.
        synchronise::<B>(&self.device)?;
        self.require_finite(student)?;
        self.held.check()?;
        // Before the checkpoint, which has a mark of the log up to here.
        self.log.sync()?;
        self.progress.log = Some(self.log.mark());
        self.progress.seconds = self.seconds_before + self.started.elapsed().as_secs_f64();
        if !self.ranks.is_first() && self.optimizer.place.is_none() {
            // Rank 0 writes the log.
            return Ok(());
        }
        self.writer.write(Snapshot::take(
            &self.progress,
            &self.made_from,
            &self.student_config,
            student,
            &self.optimizer,
        ))
    }

    /// Measures the student at the end of a stage, and adds the result to its checkpoint; false if asked to stop before
    /// the end.
    fn end_stage(
        &mut self,
        stage: &StageConfig,
        student: &PhiMamba<B>,
    ) -> Result<bool, TrainError> {
        let config = &self.options.config;
        let measured = self.ranks.from_first(&self.device, || {
            let measured = perplexity(
                &student.valid().cast(config.precision.dtype()),
                &self.held_out,
                &config.evaluation,
                &self.device,
                || stop_requested(&self.options, &self.watch),
            )?;
            // The bits are sent, since JSON has no number for NaN and infinities.
            Ok(measured.map(f64::to_bits))
        })?;
        let Some(student_perplexity) = measured.map(f64::from_bits) else {
            return Ok(false);
        };
        if !student_perplexity.is_finite() {
            return Err(self.diverged("the perplexity".to_owned()));
        }
        let student = student.valid();
        let (ranks, device) = (self.ranks.clone(), self.device.clone());
        let Some(tasks) = ranks.from_first(&device, || self.task_scores(&student))? else {
            return Ok(false);
        };
        let config = &self.options.config;
        let evaluation = Evaluation {
            stage: Some(stage.name.clone()),
            step: None,
            tokens: self.progress.tokens,
            teacher_perplexity: self.progress.teacher_perplexity,
            student_perplexity,
            tasks,
        };
        let steps = config.steps(stage);
        let summary = StageSummary {
            stage: stage.name.clone(),
            kind: stage.kind.name().to_owned(),
            tokens: config.steps(stage) as u64 * config.tokens_per_step(stage),
            steps,
            seconds: self.progress.stage_seconds,
            loss: self.progress.loss.unwrap_or(f64::NAN),
            perplexity: student_perplexity,
        };
        self.record(Record::Evaluation(evaluation.clone()))?;
        self.watch.evaluation(&evaluation);
        self.watch.stage_end(&summary);
        self.progress.finished.push(summary);
        let skipped = self.progress.stage_skipped;
        // If more than one step in a hundred was skipped.
        if skipped as u64 * 100 > steps as u64 {
            self.note(format!(
                "warning: {skipped} of the {steps} steps of stage {} were skipped, since their loss or gradient was \
                 not finite or too high; what it has learnt is from the others; a lower lr of the stage may help",
                stage.name
            ))?;
        }
        self.progress.stage_seconds = 0.0;
        self.progress.seconds = self.seconds_before + self.started.elapsed().as_secs_f64();
        // Before the checkpoint, which has a mark of the log up to here.
        self.log.sync()?;
        self.progress.log = Some(self.log.mark());
        self.writer.wait()?;
        self.held.check()?;
        if self.ranks.is_first() {
            retry(sleep, || self.checkpoints.amend(&self.progress, None))?;
        }
        Ok(true)
    }

    /// An optimizer without moments.
    fn new_optimizer(&self) -> AdamW<B::InnerBackend> {
        let config = &self.options.config;
        AdamW::new(&config.optimizer).sharing(sharing_place(config, &self.ranks))
    }
}

/// This rank's place, if the ranks share the moments.
fn sharing_place<B: KernelBackend>(config: &Config, ranks: &Ranks<B>) -> Option<Place> {
    let shares = config.parallel.shard_moments && !ranks.is_alone();
    shares.then(|| ranks.place())
}

/// Whether the run is asked to stop, by its options or in the dashboard.
fn stop_requested(options: &RunOptions, watch: &Watch) -> bool {
    options.stop.is_asked() || watch.stop_requested()
}

fn say_stopped(options: &RunOptions, watch: &mut Watch) {
    let (backend, folder) = (&options.backend, word(&options.folder));
    watch.note(&format!(
        "stopped; continue with train --backend {backend} --resume {folder}"
    ));
}
