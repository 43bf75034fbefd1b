//! A stage of a run, step by step.
//!
//! One run does the parts of a step one after the other. Several runs in lockstep do each part together (`lockstep`).

use std::time::Instant;

use datasets::{Batch, Batches};
use indicatif::BinaryBytes;
use kernels::TrainBackend;
use kernels::runtime::check;
use model::PhiMamba;

use super::pending_metrics::{PendingMetrics, QueuedStep};
use super::predictions::needs_teacher;
use super::prefetch::Prefetch;
use super::text::first_batch;
use super::{Beginning, End, Run, say_stopped, stop_requested};
use crate::config::{GuardAction, Packing, StageConfig};
use crate::error::TrainError;
use crate::guard::Guard;
use crate::parallel::{Arriving, FlatOrder, Sharing};
use crate::stages::{Rates, StageStep, train_parts};
use crate::step::{Measured, TrainStep};
use crate::teacher_cache::CachedPredictions;

/// The steps of a stage after which the device's memory is shown, to see whether it grows.
const MEMORY_SHOWN: [usize; 3] = [10, 100, 1000];

/// A batch, and the teacher's predictions of it where the stage reads them.
pub(super) type StageBatch = (Batch, Option<CachedPredictions>);

/// A stage that is under way.
pub(super) struct StageUnderWay<B: TrainBackend> {
    pub(super) config: StageConfig,
    /// All steps of the stage.
    pub(super) steps: usize,
    pub(super) train_step: TrainStep<B>,
    pub(super) pending: PendingMetrics<B::InnerBackend>,
    /// The number of steps after which their measured values are read.
    read_every: usize,
}

/// The step that comes next.
pub(super) struct NextStep {
    pub(super) at: StageStep,
    pub(super) rates: Rates,
    /// Seconds for which it has waited for its text.
    data_wait: f64,
}

impl<B: TrainBackend> Run<B> {
    /// Does stage `number` of the list, from 0: its remaining steps, its last checkpoint and its evaluation.
    ///
    /// The student is passed by value from step to step, so that its parameters have one owner and the optimizer can
    /// update them in place.
    pub(super) fn stage(
        &mut self,
        number: usize,
        student: PhiMamba<B>,
    ) -> Result<End<B>, TrainError> {
        let mut batches = self.batches(number)?;
        let (mut stage, student) = self.begin_stage(number, student)?;
        let mut student = Arriving::from(student);
        while self.progress.step < stage.steps {
            if self.is_measured_now() {
                self.measure_within(&stage.config, student.whole(), &mut stage.pending)?;
            }
            if self.is_asked_to_stop() {
                self.stop(&mut stage, student.whole())?;
                return Ok(End::Stopped);
            }
            let waits = Instant::now();
            let Some(batch) = batches.next(|| self.gives_up_text(number))? else {
                continue;
            };
            let next = self.before_step(&mut stage, &batch, waits.elapsed().as_secs_f64())?;
            let (train_step, optimizer) = (&stage.train_step, &mut self.optimizer);
            let (rates, at) = (&next.rates, next.at);
            let measured;
            (student, measured) = match &batch {
                (batch, Some(predictions)) => {
                    train_step.step_from_cache(student, optimizer, batch, predictions, rates, at)
                }
                (batch, None) => train_step.step(student, optimizer, batch, rates, at),
            };
            if self.after_step(&mut stage, &next, measured)? {
                drop(student);
                return self.roll_back(&stage.config).map(End::RolledBack);
            }
            if self.writes_checkpoint(&stage) {
                self.checkpoint_within(&mut stage, student.whole())?;
            }
        }
        let student = student.wait();
        // Before the evaluation, which takes time and may fail.
        self.end_steps(&stage, &student)?;
        if !self.end_stage(&stage.config, &student)? {
            self.writer.wait()?;
            say_stopped(&self.options, &mut self.watch);
            return Ok(End::Stopped);
        }
        Ok(End::Done(student))
    }

    /// Begins stage `number` of the list, or the rest of it, and returns its student.
    pub(super) fn begin_stage(
        &mut self,
        number: usize,
        student: PhiMamba<B>,
    ) -> Result<(StageUnderWay<B>, PhiMamba<B>), TrainError> {
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
        // Frees the memory that the steps of the stage before had reserved for tensors of their sizes.
        B::memory_cleanup(device);
        // On a device with a queue, reading a value waits for all work that was queued before it.
        let acts = config.guard.action != GuardAction::Log;
        let best = if B::queues() { config.log.every } else { 1 };
        let read_every = if acts {
            // The action at a step depends on the losses of all steps before it.
            1
        } else {
            self.options.read_every.unwrap_or(best)
        };
        let under_way = StageUnderWay {
            config: stage.clone(),
            steps: config.steps(stage),
            train_step,
            pending: PendingMetrics::new(),
            read_every,
        };
        self.watch.stage_begin(&stage.name, self.progress.step);
        self.show_idle_layers(number);
        if config.guard.action == GuardAction::RollBack && self.progress.step == 0 {
            self.checkpoint(&student)?;
        }
        Ok((under_way, student))
    }

    /// The batches of stage `number` of the list, from the next step on.
    pub(super) fn batches(
        &self,
        number: usize,
    ) -> Result<Prefetch<StageBatch, TrainError>, TrainError> {
        let config = &self.options.config;
        let stage = &config.stages[number];
        let texts: Vec<_> = (self.train.iter())
            .map(|text| text.is.sha256.as_str())
            .collect();
        let passed_over = self.progress.passed_over.div_ceil(stage.batch as u64);
        let done = self.steps_done(number) as u64;
        let first = first_batch(config, &texts, number) + passed_over + done;
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
        Ok(Prefetch::new(make, first))
    }

    /// The number of steps of stage `number` of the list that are done; the stage may not have begun.
    pub(super) fn steps_done(&self, number: usize) -> usize {
        if self.progress.stage == self.options.config.stages[number].name {
            self.progress.step
        } else {
            0
        }
    }

    /// Whether this run is asked to stop before its next step.
    pub(super) fn is_asked_to_stop(&self) -> bool {
        self.stops || stop_requested(&self.options, &self.watch)
    }

    /// Whether a step of stage `number` of the list should give up waiting for text that is fetched.
    pub(super) fn gives_up_text(&self, number: usize) -> bool {
        self.train[number].is_incoming() && stop_requested(&self.options, &self.watch)
    }

    /// Stops between two steps, with a checkpoint.
    pub(super) fn stop(
        &mut self,
        stage: &mut StageUnderWay<B>,
        student: &PhiMamba<B>,
    ) -> Result<(), TrainError> {
        self.read(&stage.config, &mut stage.pending)?;
        self.checkpoint(student)?;
        self.writer.wait()?;
        say_stopped(&self.options, &mut self.watch);
        // A launcher may end all processes when the first of them ends.
        self.ranks.barrier(&self.device);
        Ok(())
    }

    /// Prepares the step over `batch`, which has waited for the batch for so many seconds.
    pub(super) fn before_step(
        &mut self,
        stage: &mut StageUnderWay<B>,
        (batch, predictions): &StageBatch,
        data_wait: f64,
    ) -> Result<NextStep, TrainError> {
        if self.progress.step == 0 && self.ranks.is_first() {
            let floor = match predictions {
                Some(predictions) => stage.train_step.floor_from_cache(predictions),
                None => {
                    let floor = stage.train_step.floor(batch);
                    floor.into_data().iter::<f64>().next()
                }
            };
            self.beginning = Some(Beginning { floor });
            stage.pending.restart();
        }
        let at = StageStep {
            number: self.progress.step,
            of: stage.steps,
        };
        if stage.config.kind.changes_loss(at) {
            self.read(&stage.config, &mut stage.pending)?;
            self.progress.guard = Guard::default();
        }
        let guard = &self.options.config.guard;
        if guard.action == GuardAction::Skip {
            self.optimizer.loss_limit = self.progress.guard.limit(guard);
        }
        Ok(NextStep {
            at,
            rates: stage.config.lr_at(at.number, at.of),
            data_wait,
        })
    }

    /// Records a step with the measured values `measured`. Returns whether the run has to be rolled back.
    pub(super) fn after_step(
        &mut self,
        stage: &mut StageUnderWay<B>,
        done: &NextStep,
        measured: Measured<B::InnerBackend>,
    ) -> Result<bool, TrainError> {
        self.progress.step += 1;
        self.progress.tokens += self.options.config.tokens_per_step(&stage.config);
        let step = self.progress.step;
        let queued = QueuedStep {
            number: step,
            tokens: self.progress.tokens,
            lr: done.rates.highest(),
            data_wait: done.data_wait,
        };
        stage.pending.push(queued, measured);
        check::<B>(&self.device)?;
        stage.train_step.agree()?;
        self.writer.check()?;
        if MEMORY_SHOWN.contains(&step) {
            self.show_memory();
        }
        let is_due = step.is_multiple_of(stage.read_every) || step == stage.steps;
        if !(is_due || self.is_checkpoint_due(stage)) {
            return Ok(false);
        }
        let is_spike = self.read(&stage.config, &mut stage.pending)?;
        Ok(is_spike && self.options.config.guard.action == GuardAction::RollBack)
    }

    /// Whether a scheduled checkpoint follows the step that is done. The last step of a stage has its own checkpoint.
    fn is_checkpoint_due(&self, stage: &StageUnderWay<B>) -> bool {
        let (step, every) = (self.progress.step, self.options.config.checkpoint.every);
        step.is_multiple_of(every) && step < stage.steps
    }

    /// Whether to write the checkpoint that is scheduled after this step, whose values were read.
    pub(super) fn writes_checkpoint(&self, stage: &StageUnderWay<B>) -> bool {
        // A checkpoint after skipped steps would keep the state that led to them.
        self.is_checkpoint_due(stage) && self.progress.skipped_in_a_row == 0
    }

    /// Writes the checkpoint that is due after a step.
    pub(super) fn checkpoint_within(
        &mut self,
        stage: &mut StageUnderWay<B>,
        student: &PhiMamba<B>,
    ) -> Result<(), TrainError> {
        self.progress.roll_backs = 0;
        self.checkpoint(student)?;
        stage.pending.restart();
        Ok(())
    }

    /// Ends the steps of a stage, with a checkpoint.
    ///
    /// # Errors
    /// [`TrainError::AllSkipped`]; those of the checkpoint.
    pub(super) fn end_steps(
        &mut self,
        stage: &StageUnderWay<B>,
        student: &PhiMamba<B>,
    ) -> Result<(), TrainError> {
        if self.progress.loss.is_none() {
            return Err(TrainError::AllSkipped {
                stage: stage.config.name.clone(),
                steps: stage.steps,
                folder: self.options.folder.clone(),
            });
        }
        self.checkpoint(student)
    }

    /// Notes which layers have nothing to learn in stage `number` of the list, if there are any.
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

    /// Shows the memory that tensors use on the device, if the device has its own memory.
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
}
