//! A run, from its configuration to its report.
//!
//! The run folder receives `config.toml` first and `summary.json` last: a folder with the first is a
//! run, and a run with the second is finished.

mod ahead;
mod close;
mod folder;
mod inputs;
mod open;
mod unread;

pub use inputs::student_config;
pub(crate) use inputs::{teacher_of_stages, untrained_student};

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::module::AutodiffModule;
use datasets::{Batches, TokenWindows, Tokenizer};
use indicatif::BinaryBytes;
use kernels::TrainBackend;
use kernels::backends::{check, synchronise};
use model::{ModelConfig, Phi, PhiMamba};

use self::ahead::Ahead;
use self::folder::{finished, is_run, lock};
use self::unread::Unread;
use crate::checkpoint::{Checkpoints, Progress};
use crate::config::Config;
use crate::error::TrainError;
use crate::evaluate::perplexity;
use crate::metrics::{Evaluation, MetricsLog, Record, StepMetrics, Watch};
use crate::optimizer::AdamW;
use crate::stage::{Objective, train_parts};
use crate::step::Teaching;
use crate::summary::{StageSummary, Summary};

/// The file of the run folder that says what the run does; the first to be written.
pub const CONFIG: &str = "config.toml";
/// The file of the run folder that tells the result; the last to be written.
pub const SUMMARY: &str = "summary.json";
/// The folder of the run folder that holds the checkpoints.
const CHECKPOINTS: &str = "checkpoints";
/// The file of the run folder that has a line for each step.
const METRICS: &str = "metrics.jsonl";

/// Said before the first pass on a GPU.
pub(crate) const COMPILING: &str = "compiling kernels, which takes a while at the first start";
/// The steps of a stage after which the device's memory is told: it should not grow from one to the next.
const MEMORY_TOLD: [usize; 3] = [10, 100, 1000];

/// What a run is given beside its configuration.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// What to do.
    pub config: Config,
    /// The run folder.
    pub folder: PathBuf,
    /// Whether to go on from the newest checkpoint in it, or from the start if it has none yet. A run
    /// that is finished stays as it is.
    pub resume: bool,
    /// Whether to show the terminal dashboard.
    pub dashboard: bool,
    /// The backend's name, for the record.
    pub backend: String,
    /// After how many steps what they have measured is read, recorded and shown. `None` is as the device has
    /// it best: each step on a CPU, and on a device with a queue `log.every` of them together.
    pub read_every: Option<usize>,
    /// Set by another thread to stop, with a checkpoint, once the steps that are queued are done.
    pub stop: Arc<AtomicBool>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// All stages done; the student is exported.
    Finished(Summary),
    /// Stopped on request, with a checkpoint to go on from.
    Stopped,
}

/// A run in progress: `B` trains, its inner backend holds the teacher.
pub struct Run<B: TrainBackend> {
    options: RunOptions,
    device: B::Device,
    tokenizer: Tokenizer,
    train: TokenWindows,
    held_out: TokenWindows,
    teacher: Phi<B::InnerBackend>,
    student_config: ModelConfig,
    optimizer: AdamW<B::InnerBackend>,
    progress: Progress,
    checkpoints: Checkpoints,
    log: MetricsLog,
    watch: Watch,
    started: Instant,
    seconds_before: f64,
}

impl<B: TrainBackend> Run<B> {
    /// Does all of it.
    ///
    /// # Errors
    /// [`TrainError`]; what the run wrote before stays, and it can be resumed.
    pub fn execute(options: RunOptions, device: &B::Device) -> Result<Outcome, TrainError> {
        let folder = options.folder.clone();
        if !options.resume && is_run(&folder) {
            return Err(TrainError::Exists(folder));
        }
        // Now and not when there is something to write, which may be hours of tokenising later.
        let is_new = !folder.exists();
        fs::create_dir_all(&folder).map_err(|source| TrainError::Folder {
            path: folder.clone(),
            source,
        })?;
        let _lock = lock(&folder)?;
        if options.resume
            && let Some(summary) = finished(&folder)?
        {
            return Ok(Outcome::Finished(summary));
        }
        let opened = Self::open(options, device);
        if opened.is_err() && is_new {
            // Gone if nothing was written to it; fails otherwise.
            let _ = fs::remove_dir(&folder);
        }
        let Some((mut run, mut student)) = opened? else {
            return Ok(Outcome::Stopped);
        };
        for stage in run.options.config.stages.clone() {
            if run.is_finished(stage) {
                continue;
            }
            student = match run.stage(stage, student)? {
                Some(student) => student,
                None => return Ok(Outcome::Stopped),
            };
        }
        run.close(&student).map(Outcome::Finished)
    }

    fn is_finished(&self, stage: u8) -> bool {
        self.progress
            .finished
            .iter()
            .any(|done| done.stage == stage)
    }

    /// One stage from where it stands, its last checkpoint and its evaluation; `None` if asked to
    /// stop on the way.
    ///
    /// The student is handed from step to step, so that its parameters have one owner and the
    /// optimizer can update them in place.
    fn stage(
        &mut self,
        number: u8,
        student: PhiMamba<B>,
    ) -> Result<Option<PhiMamba<B>>, TrainError> {
        let config = self.options.config.clone();
        if self.progress.stage != number {
            self.progress.stage = number;
            self.progress.step = 0;
            self.progress.stage_seconds = 0.0;
            self.progress.skipped_in_a_row = 0;
            self.progress.loss = None;
            self.optimizer = AdamW::new(&config.optimizer);
        }
        let stage = config.stage(number);
        let (steps, schedule) = (config.steps(number), config.schedule(number));
        let objective = Objective::of(&config, number);
        let first = first_batch(&config, number) + self.progress.step as u64;
        let batches = Batches::new(self.train.clone(), stage.batch, config.seed);
        let mut batches = Ahead::new(move |step| batches.batch(step), first);
        let (precision, device) = (config.precision, &self.device);
        let teaching = Teaching::<B>::new(objective, &self.teacher, stage, precision, device);
        let mut student = train_parts(student, stage);
        let mut unread = Unread::new();
        // On a device that has a queue, whoever reads a result waits for all that was queued before.
        let read_every = self.options.read_every.unwrap_or(match B::queues() {
            true => config.log.every,
            false => 1,
        });
        self.watch.stage_begin(number, self.progress.step);

        while self.progress.step < steps {
            if stop_requested(&self.options, &self.watch) {
                self.read(&mut unread)?;
                self.checkpoint(&student)?;
                say_stopped(&self.options, &mut self.watch);
                return Ok(None);
            }
            let batch = batches.next()?;
            let lr = schedule.lr(self.progress.step);
            let measured;
            (student, measured) = teaching.step(student, &mut self.optimizer, &batch, lr);
            self.progress.step += 1;
            self.progress.tokens += tokens_per_step(&config, number);
            unread.push(self.progress.step, self.progress.tokens, lr, measured);

            let step = self.progress.step;
            let last = step == steps;
            check::<B>(&self.device)?;
            if MEMORY_TOLD.contains(&step) {
                self.tell_memory();
            }
            let checkpoint = step.is_multiple_of(config.checkpoint.every) && !last;
            if step.is_multiple_of(read_every) || last || checkpoint {
                self.read(&mut unread)?;
            }
            // A checkpoint after a skipped step would keep what led there.
            if checkpoint && self.progress.skipped_in_a_row == 0 {
                self.checkpoint(&student)?;
                unread.restart();
            }
        }
        // First of all, since an evaluation takes its time and may fail.
        self.checkpoint(&student)?;
        if !self.end_stage(number, &student)? {
            say_stopped(&self.options, &mut self.watch);
            return Ok(None);
        }
        Ok(Some(student))
    }

    /// Reads, records and shows what the steps since the last time have measured.
    fn read(&mut self, unread: &mut Unread<B::InnerBackend>) -> Result<(), TrainError> {
        let config = &self.options.config;
        let number = self.progress.stage;
        let steps = config.steps(number) as f64;
        let tokens = tokens_per_step(config, number);
        for step in unread.read() {
            let skipped = !(step.loss.is_finite() && step.norm.is_finite());
            if skipped {
                self.progress.skipped += 1;
                self.progress.skipped_in_a_row += 1;
            } else {
                self.progress.skipped_in_a_row = 0;
                // Smoothed over a twentieth of the stage.
                let share = 20.0 / steps.max(20.0);
                let smooth = |old: f64| old + share * (step.loss - old);
                self.progress.loss = Some(self.progress.loss.map_or(step.loss, smooth));
            }
            self.progress.stage_seconds += step.seconds;
            self.progress.seconds = self.seconds_before + self.started.elapsed().as_secs_f64();
            let metrics = StepMetrics {
                stage: number,
                step: step.number,
                tokens: step.tokens,
                loss: step.loss,
                lr: step.lr,
                grad_norm: step.norm,
                tokens_per_second: tokens as f64 / step.seconds,
                skipped,
                seconds: self.trained_seconds(),
            };
            self.log.record(&Record::Step(metrics.clone()))?;
            self.watch.step(&metrics, self.progress.skipped);

            if self.progress.skipped_in_a_row >= self.options.config.safety.max_skipped {
                return Err(TrainError::NotFinite {
                    stage: number,
                    step: step.number,
                    skipped: self.progress.skipped_in_a_row,
                    folder: self.options.folder.clone(),
                });
            }
        }
        Ok(())
    }

    /// Shows the memory that the device's tensors take, where they do not have the host's.
    fn tell_memory(&mut self) {
        if let Some(memory) = B::memory(&self.device) {
            self.watch.note(&format!(
                "stage {} step {}: {} of device memory, {} in use",
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

    fn checkpoint(&mut self, student: &PhiMamba<B>) -> Result<(), TrainError> {
        // A kernel that has failed leaves nonsense where its results should be.
        synchronise::<B>(&self.device)?;
        // Before the checkpoint, which tells that all before it is recorded.
        self.log.sync()?;
        self.progress.seconds = self.seconds_before + self.started.elapsed().as_secs_f64();
        self.checkpoints.save(
            &self.progress,
            &self.student_config,
            student,
            &self.optimizer,
        )
    }

    /// Measures the student at the end of a stage, and amends its checkpoint by that; false if asked to stop
    /// on the way.
    fn end_stage(&mut self, number: u8, student: &PhiMamba<B>) -> Result<bool, TrainError> {
        let config = &self.options.config;
        let measured = perplexity(
            &student.valid().cast(config.precision.dtype()),
            &self.held_out,
            &config.evaluation,
            &self.device,
            || stop_requested(&self.options, &self.watch),
        )?;
        let Some(student_perplexity) = measured else {
            return Ok(false);
        };
        let evaluation = Evaluation {
            stage: number,
            tokens: self.progress.tokens,
            teacher_perplexity: self.progress.teacher_perplexity,
            student_perplexity,
        };
        let summary = StageSummary {
            stage: number,
            tokens: config.steps(number) as u64 * tokens_per_step(config, number),
            steps: config.steps(number),
            seconds: self.progress.stage_seconds,
            loss: self.progress.loss.unwrap_or(f64::NAN),
            perplexity: student_perplexity,
        };
        self.log.record(&Record::Evaluation(evaluation.clone()))?;
        self.watch.evaluation(&evaluation);
        self.watch.stage_end(&summary);
        self.progress.finished.push(summary);
        self.progress.stage_seconds = 0.0;
        self.progress.seconds = self.seconds_before + self.started.elapsed().as_secs_f64();
        // Before the checkpoint, as ever.
        self.log.sync()?;
        self.checkpoints.amend(&self.progress)?;
        Ok(true)
    }
}

/// Whether anybody has asked the run to stop.
fn stop_requested(options: &RunOptions, watch: &Watch) -> bool {
    options.stop.load(Ordering::Relaxed) || watch.stop_requested()
}

fn say_stopped(options: &RunOptions, watch: &mut Watch) {
    let folder = options.folder.display();
    watch.note(&format!("stopped; go on with --resume {folder}"));
}

fn tokens_per_step(config: &Config, stage: u8) -> u64 {
    (config.stage(stage).batch * config.data.context) as u64
}

/// Where a stage's data begins: after the sequences of the stages before it, up to whole batches, so
/// that no text is seen again before all of it was dealt out.
fn first_batch(config: &Config, stage: u8) -> u64 {
    let before = config.stages.iter().filter(|&&other| other < stage);
    let sequences: usize = before
        .map(|&other| config.steps(other) * config.stage(other).batch)
        .sum();
    sequences.div_ceil(config.stage(stage).batch) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

    /// The sequences that stage `number` sees, of all that are ever dealt out.
    fn sequences(config: &Config, number: u8) -> std::ops::Range<u64> {
        let batch = config.stage(number).batch as u64;
        let first = first_batch(config, number);
        first * batch..(first + config.steps(number) as u64) * batch
    }

    #[test]
    fn no_stage_repeats_the_data_of_another() {
        let load = |overrides: &[&str]| {
            let overrides: Vec<_> = overrides.iter().map(|text| text.to_string()).collect();
            Config::load(Source::Preset("tiny"), &overrides).unwrap()
        };
        let tiny = load(&[]);
        assert_eq!(
            [1, 2, 3].map(|n| sequences(&tiny, n)),
            [0..160, 160..2160, 2160..5200]
        );

        // Stages that are left out take no data; another batch size begins at a whole batch.
        let odd = load(&["stages=2,3", "stage3.batch=12", "stage3.tokens=30720"]);
        assert_eq!(sequences(&odd, 2), 0..2000);
        assert_eq!(sequences(&odd, 3), 2004..2124);
    }
}
