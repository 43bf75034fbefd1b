//! A run, from its configuration to its report.
//!
//! The run folder receives `config.toml` first and `summary.json` last: a folder with the first is a
//! run, and a run with the second is finished.

mod cache_teacher;
mod close;
mod finite;
mod folder;
mod inputs;
mod open;
mod options;
mod pending_metrics;
mod predictions;
mod prefetch;
mod prepare;
mod record;
mod roll_back;
mod sources;
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
pub use options::{Outcome, RunOptions, StopRequest};
pub use prepare::{Prepared, prepare};
pub(crate) use teacher_and_text::{TeacherAndText, teacher_and_tokenizer};

use std::sync::Arc;
use std::time::Instant;

use burn::module::AutodiffModule;
use datasets::{Batches, TokenWindows, Tokenizer};
use indicatif::BinaryBytes;
use kernels::runtime::collective::Place;
use kernels::runtime::{check, synchronise};
use kernels::{KernelBackend, TrainBackend};
use model::{ModelConfig, Phi, PhiMamba};

use self::folder::{Held, finished, is_run};
use self::pending_metrics::{PendingMetrics, QueuedStep};
use self::predictions::needs_teacher;
use self::prefetch::Prefetch;
use self::teacher_files::TeacherFiles;
use self::text::{StageText, first_batch};
use self::writer::Writer;
use crate::checkpoint::{Checkpoints, Progress, Snapshot};
use crate::config::{Config, GuardAction, Packing, StageConfig};
use crate::error::TrainError;
use crate::evaluate::perplexity;
use crate::guard::Guard;
use crate::metrics::{Evaluation, MetricsLog, Mirrors, Record, Watch};
use crate::optimizer::AdamW;
use crate::parallel::{self, Arriving, FlatOrder, Ranks, Sharing};
use crate::provenance::Provenance;
use crate::retry::{retry, sleep};
use crate::stages::{StageStep, train_parts};
use crate::step::TrainStep;
use crate::summary::{StageSummary, Summary};
use crate::teacher_cache::TeacherCache;

/// The file of the run folder that says what the run does; the first to be written.
pub const CONFIG: &str = "config.toml";
/// The file of the run folder with the result; the last to be written.
pub const SUMMARY: &str = "summary.json";
/// The folder of the run folder that holds the checkpoints.
const CHECKPOINTS: &str = "checkpoints";
/// The file of the run folder that has a line for each step.
pub(crate) const METRICS: &str = "metrics.jsonl";
/// The folder of the run folder that holds the result.
const STUDENT: &str = "student";

/// Said before the first pass on a GPU.
pub(crate) const COMPILING: &str = "compiling kernels, which takes a while at the first start";
/// The steps of a stage after which the device's memory is shown: it should not grow from one to the next.
const MEMORY_SHOWN: [usize; 3] = [10, 100, 1000];

/// A run in progress: `B` trains, its inner backend holds the teacher.
pub struct Run<B: TrainBackend> {
    options: RunOptions,
    /// Those that share the run; `options.stop` then never asks to stop, and `asked` does.
    ranks: Ranks<B::InnerBackend>,
    /// Whether this process is asked to stop, where ranks share the run.
    asked: StopRequest,
    /// Whether a rank was asked to stop at a step that has been read.
    stops: bool,
    device: B::Device,
    tokenizer: Arc<Tokenizer>,
    teacher_files: TeacherFiles,
    made_from: Provenance,
    /// Of each stage of the list.
    train: Vec<StageText>,
    held_out: TokenWindows,
    /// Lines of the text that hold no document.
    skipped_lines: u64,
    /// Of each stage of the list: the layers that have nothing to learn in it.
    idle_layers: Vec<Vec<usize>>,
    /// Of each stage of the list: the operations that a token takes.
    operations: Vec<f64>,
    /// Operations a second of a product of matrices on this device.
    device_rate: f64,
    /// `None` where no stage that is left computes it.
    teacher: Option<Phi<B::InnerBackend>>,
    /// Of each stage of the list: the cache of the teacher's predictions that it reads, if it does.
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
    /// What there is to say of the stage's loss; `None` if this process did not begin the stage, or has said it.
    beginning: Option<Beginning>,
    /// Of each stage of the list: what its loss has come to in runs on record, in words.
    recorded: Vec<String>,
    started: Instant,
    seconds_before: f64,
}

/// What is said of a stage's loss with its first step.
struct Beginning {
    /// What it would be with the teacher in the student's place, if that is known.
    floor: Option<f64>,
}

/// How a stage ended, for now.
enum End<B: TrainBackend> {
    /// With all of its steps, and this student.
    Done(PhiMamba<B>),
    /// At a spike of the loss: the run has gone back, and has this student.
    RolledBack(PhiMamba<B>),
    /// On request.
    Stopped,
}

impl<B: TrainBackend> Run<B> {
    /// Does all of it. On a GPU, failures of the device are known only after
    /// [`report_failures`](kernels::runtime::report_failures).
    ///
    /// # Errors
    /// [`TrainError`]; what the run wrote before stays, and it can be resumed.
    pub fn execute(options: RunOptions, device: &B::Device) -> Result<Outcome, TrainError> {
        Self::execute_among(options, device, Ranks::alone())
    }

    /// [`execute`](Self::execute) by several `ranks`, which all call this. Configuration and folder are rank 0's; a
    /// request to any of them stops all after the same step. All return the same.
    ///
    /// # Errors
    /// As [`execute`](Self::execute); [`TrainError::Ranks`] if another rank has failed, if the ranks do not have the same
    /// teacher, text and program, or if their number does not divide the passes of a step.
    pub fn execute_among(
        mut options: RunOptions,
        device: &B::Device,
        ranks: Ranks<B::InnerBackend>,
    ) -> Result<Outcome, TrainError> {
        let asked = if ranks.is_alone() {
            StopRequest::default()
        } else {
            options.dashboard = false;
            std::mem::take(&mut options.stop)
        };
        let told = || {
            Ok((
                options.folder.clone(),
                options.resume,
                options.accept_changes,
            ))
        };
        (options.folder, options.resume, options.accept_changes) =
            ranks.from_first(device, told)?;
        options.config.validate()?;
        options.config = options.config.with_absolute_paths();
        for stage in &options.config.stages {
            parallel::indivisible(stage, ranks.place().world)?;
        }
        let taken = ranks.after_first(device, || take(&options))?;
        let finished = ranks.from_first(device, || match &taken {
            Some(Taken::Finished(summary)) => Ok(Some(Summary::clone(summary))),
            _ => Ok(None),
        })?;
        if let Some(summary) = finished {
            return Ok(Outcome::Finished(summary));
        }
        let held = match taken {
            Some(Taken::Held(held)) => held,
            _ => Held::taken_by_first(&options.folder)?,
        };
        let held = Arc::new(held);
        let settled = settle_on_first(&mut options.config, device, &ranks);
        let open = |()| Self::open(options, &held, device, (ranks.clone(), asked));
        let opened = match settled.and_then(open) {
            Ok(opened) => opened,
            Err(error) => {
                held.give_up();
                return Err(error);
            }
        };
        let Some((mut run, mut student)) = opened else {
            return Ok(Outcome::Stopped);
        };
        // Those that are done are the first of the list.
        for number in run.progress.finished.len()..run.options.config.stages.len() {
            loop {
                match run.stage(number, student)? {
                    End::Done(trained) => {
                        student = trained;
                        break;
                    }
                    End::RolledBack(earlier) => student = earlier,
                    End::Stopped => return Ok(Outcome::Stopped),
                }
            }
        }
        let closed = ranks.from_first(device, || run.close(&student));
        closed.map(Outcome::Finished)
    }

    /// Stage `number` of the list, from 0: the steps that are left of it, its last checkpoint and its
    /// evaluation.
    ///
    /// The student is passed by value from step to step, so that its parameters have one owner and the
    /// optimizer can update them in place.
    fn stage(&mut self, number: usize, student: PhiMamba<B>) -> Result<End<B>, TrainError> {
        let config = self.options.config.clone();
        let stage = &config.stages[number];
        if self.progress.stage != stage.name {
            self.progress.stage = stage.name.clone();
            self.progress.step = 0;
            self.progress.stage_seconds = 0.0;
            self.progress.skipped_in_a_row = 0;
            self.progress.stage_skipped = 0;
            self.progress.measured_step = 0;
            self.progress.loss = None;
            self.progress.guard = Guard::default();
            self.optimizer = self.new_optimizer();
        }
        let steps = config.steps(stage);
        let texts: Vec<_> = (self.train.iter())
            .map(|text| text.is.sha256.as_str())
            .collect();
        let passed_over = self.progress.passed_over.div_ceil(stage.batch as u64);
        let first = first_batch(&config, &texts, number) + passed_over + self.progress.step as u64;
        let is_incoming = self.train[number].is_incoming();
        let sources = self.train[number].sources.clone();
        let mut batches = Batches::mixed(sources, stage.batch, config.seed)?;
        if config.data.packing == Packing::Documents {
            let end = self.tokenizer.end_of_text().ok_or_else(|| {
                TrainError::Mismatch(
                    "data.packing = \"documents\" needs a tokenizer with a token that ends a text; set data.packing = \
                     \"concatenate\""
                        .into(),
                )
            })?;
            batches = batches.by_documents(end);
        }
        let (cache, rows) = (self.caches[number].clone(), stage.batch);
        let make = move |step: u64| -> Result<_, TrainError> {
            let batch = batches.batch(step)?;
            let cached = cache.as_ref();
            let predictions = cached.map(|cache| cache.rows(step * rows as u64, rows));
            Ok((batch, predictions.transpose()?))
        };
        let mut batches = Prefetch::new(make, first);
        let student = train_parts(student, &stage.lr);
        if !needs_teacher(&config, number) {
            self.teacher = None;
        }
        let (precision, device) = (config.precision, &self.device);
        let train_step = match (&self.caches[number], &self.teacher) {
            (None, Some(teacher)) => {
                TrainStep::<B>::new(stage, teacher, &student, precision, device)
            }
            _ => TrainStep::<B>::without_teacher(stage, &student, precision, device),
        };
        let mut train_step = train_step.with_seed(config.seed);
        if !self.ranks.is_alone() {
            train_step = train_step.among(Sharing {
                ranks: self.ranks.clone(),
                order: FlatOrder::of(&student, self.student_config.layout()),
                config: config.parallel.clone(),
                stop: self.asked.clone(),
                device: device.clone(),
            });
        }
        let mut student = Arriving::from(student);
        // What the steps of the stage before had reserved for tensors of their sizes.
        B::memory_cleanup(device);
        let mut pending = PendingMetrics::new();
        // On a device that has a queue, reading a result waits for all that was queued before.
        let acts = config.guard.action != GuardAction::Log;
        let best = if B::queues() { config.log.every } else { 1 };
        let read_every = if acts {
            // What is done at a step depends on the losses of all before it.
            1
        } else {
            self.options.read_every.unwrap_or(best)
        };
        self.watch.stage_begin(&stage.name, self.progress.step);
        self.show_idle_layers(number);
        if config.guard.action == GuardAction::RollBack && self.progress.step == 0 {
            self.checkpoint(student.whole())?;
        }

        while self.progress.step < steps {
            if self.is_measured_now() {
                self.measure_within(stage, student.whole(), &mut pending)?;
            }
            if self.stops || stop_requested(&self.options, &self.watch) {
                self.read(stage, &mut pending)?;
                self.checkpoint(student.whole())?;
                self.writer.wait()?;
                say_stopped(&self.options, &mut self.watch);
                // A launcher may end all when the first of them does.
                self.ranks.barrier(&self.device);
                return Ok(End::Stopped);
            }
            let waits = Instant::now();
            let stops = || is_incoming && stop_requested(&self.options, &self.watch);
            let Some((batch, predictions)) = batches.next(stops)? else {
                continue;
            };
            let data_wait = waits.elapsed().as_secs_f64();
            if self.progress.step == 0 && self.ranks.is_first() {
                let floor = match &predictions {
                    Some(predictions) => train_step.floor_from_cache(predictions),
                    None => train_step.floor(&batch).into_data().iter::<f64>().next(),
                };
                self.beginning = Some(Beginning { floor });
                pending.restart();
            }
            let rates = stage.lr_at(self.progress.step, steps);
            let at = StageStep {
                number: self.progress.step,
                of: steps,
            };
            if stage.kind.changes_loss(at) {
                self.read(stage, &mut pending)?;
                self.progress.guard = Guard::default();
            }
            if config.guard.action == GuardAction::Skip {
                self.optimizer.loss_limit = self.progress.guard.limit(&config.guard);
            }
            let measured;
            let optimizer = &mut self.optimizer;
            (student, measured) = match &predictions {
                Some(predictions) => {
                    train_step.step_from_cache(student, optimizer, &batch, predictions, &rates, at)
                }
                None => train_step.step(student, optimizer, &batch, &rates, at),
            };
            self.progress.step += 1;
            self.progress.tokens += config.tokens_per_step(stage);
            let step = self.progress.step;
            let queued = QueuedStep {
                number: step,
                tokens: self.progress.tokens,
                lr: rates.highest(),
                data_wait,
            };
            pending.push(queued, measured);

            let last = step == steps;
            check::<B>(&self.device)?;
            self.writer.check()?;
            if MEMORY_SHOWN.contains(&step) {
                self.show_memory();
            }
            let checkpoint = step.is_multiple_of(config.checkpoint.every) && !last;
            if step.is_multiple_of(read_every) || last || checkpoint {
                let is_spike = self.read(stage, &mut pending)?;
                if is_spike && config.guard.action == GuardAction::RollBack {
                    drop(student);
                    return self.roll_back(stage).map(End::RolledBack);
                }
            }
            // A checkpoint after a skipped step would keep what led there.
            if checkpoint && self.progress.skipped_in_a_row == 0 {
                self.progress.roll_backs = 0;
                self.checkpoint(student.whole())?;
                pending.restart();
            }
        }
        if self.progress.loss.is_none() {
            return Err(TrainError::AllSkipped {
                stage: stage.name.clone(),
                steps,
                folder: self.options.folder.clone(),
            });
        }
        let student = student.wait();
        // Before the evaluation, which takes time and may fail.
        self.checkpoint(&student)?;
        if !self.end_stage(stage, &student)? {
            self.writer.wait()?;
            say_stopped(&self.options, &mut self.watch);
            return Ok(End::Stopped);
        }
        Ok(End::Done(student))
    }

    /// Says which layers have nothing to learn in stage `number` of the list, if there are any.
    fn show_idle_layers(&mut self, number: usize) {
        let idle = &self.idle_layers[number];
        if !idle.is_empty() {
            let layers: Vec<_> = idle.iter().map(usize::to_string).collect();
            self.watch.note(&format!(
                "{}: these layers keep the teacher's mixer and have nothing to learn: {}",
                self.options.config.stages[number].name,
                layers.join(", ")
            ));
        }
    }

    /// Shows the memory that the device's tensors take, where they do not have the host's.
    fn show_memory(&mut self) {
        if let Some(memory) = B::memory(&self.device) {
            self.watch.note(&format!(
                "{} step {}: {} of device memory, {} in use",
                self.progress.stage,
                self.progress.step,
                BinaryBytes(memory.reserved),
                BinaryBytes(memory.in_use),
            ));
        }
    }

    /// Seconds that all stages have trained, without evaluation.
    fn trained_seconds(&self) -> f64 {
        let finished = self.progress.finished.iter().map(|stage| stage.seconds);
        finished.sum::<f64>() + self.progress.stage_seconds
    }

    /// Reads all that a checkpoint holds, and begins to write it.
    fn checkpoint(&mut self, student: &PhiMamba<B>) -> Result<(), TrainError> {
        // Before the next one is read: the host's memory may not hold both.
        self.writer.wait()?;
        // The results of a kernel that has failed are not valid.
        synchronise::<B>(&self.device)?;
        self.require_finite(student)?;
        self.held.check()?;
        // Before the checkpoint, which says that all before it is recorded.
        self.log.sync()?;
        self.progress.log = Some(self.log.mark());
        self.progress.seconds = self.seconds_before + self.started.elapsed().as_secs_f64();
        if !self.ranks.is_first() && self.optimizer.place.is_none() {
            // Rank 0 has all of it.
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

    /// Measures the student at the end of a stage, and amends its checkpoint by that; false if asked to stop
    /// on the way.
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
            // JSON has no number for what is not finite.
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
        // More than one in a hundred.
        if skipped as u64 * 100 > steps as u64 {
            self.note(format!(
                "warning: {skipped} of the {steps} steps of stage {} were skipped, since their loss or gradient was \
                 not finite or too high; what it has learnt is from the others; a lower lr of the stage may help",
                stage.name
            ))?;
        }
        self.progress.stage_seconds = 0.0;
        self.progress.seconds = self.seconds_before + self.started.elapsed().as_secs_f64();
        // Before the checkpoint, which says that all before it is recorded.
        self.log.sync()?;
        self.progress.log = Some(self.log.mark());
        self.writer.wait()?;
        self.held.check()?;
        if self.ranks.is_first() {
            retry(sleep, || self.checkpoints.amend(&self.progress, None))?;
        }
        Ok(true)
    }

    /// An optimizer that remembers nothing.
    fn new_optimizer(&self) -> AdamW<B::InnerBackend> {
        let config = &self.options.config;
        AdamW::new(&config.optimizer).sharing(sharing_place(config, &self.ranks))
    }
}

/// Which of the ranks this is, if they share the moments.
fn sharing_place<B: KernelBackend>(config: &Config, ranks: &Ranks<B>) -> Option<Place> {
    let shares = config.parallel.shard_moments && !ranks.is_alone();
    shares.then(|| ranks.place())
}

/// What the folder of a run has, for the process that is to write it.
enum Taken {
    /// It is free, and kept from other processes.
    Held(Held),
    /// Its run is finished.
    Finished(Box<Summary>),
}

/// Takes the folder of the run, if there is something to do.
fn take(options: &RunOptions) -> Result<Taken, TrainError> {
    let folder = &options.folder;
    let exists = || !options.resume && is_run(folder);
    if exists() {
        return Err(TrainError::Exists(folder.clone()));
    }
    // A finished run may lie where nothing can be written.
    if options.resume
        && let Some(summary) = finished(folder)?
    {
        return Ok(Taken::Finished(Box::new(summary)));
    }
    let held = Held::take(folder)?;
    // Another process may have begun one, or ended it, before the folder was taken.
    if exists() {
        return Err(TrainError::Exists(folder.clone()));
    }
    if options.resume
        && let Some(summary) = finished(folder)?
    {
        return Ok(Taken::Finished(Box::new(summary)));
    }
    Ok(Taken::Held(held))
}

/// [`sources::settle`] on rank 0, whose configuration all have then.
fn settle_on_first<B: KernelBackend>(
    config: &mut Config,
    device: &B::Device,
    ranks: &Ranks<B>,
) -> Result<(), TrainError> {
    ranks.after_first(device, || sources::settle(config))?;
    if ranks.is_alone() {
        return Ok(());
    }
    let text = ranks.from_first(device, || Ok(config.to_toml()?))?;
    if !ranks.is_first() {
        *config = toml::from_str(&text).map_err(|error| {
            TrainError::Ranks(format!(
                "the configuration of rank 0 cannot be read: {error}; all ranks must run the same program"
            ))
        })?;
    }
    Ok(())
}

/// Whether the run is asked to stop, by its options or in the dashboard.
fn stop_requested(options: &RunOptions, watch: &Watch) -> bool {
    options.stop.is_asked() || watch.stop_requested()
}

fn say_stopped(options: &RunOptions, watch: &mut Watch) {
    let folder = options.folder.display();
    watch.note(&format!("stopped; continue with --resume {folder}"));
}
