//! Back from a spike of the loss to the last checkpoint of the stage that was due, and on with other text.
//!
//! Due are the checkpoints after every `checkpoint.every` steps, and the one at a stage's start that is written where a
//! run may go back; those of a stop are not. So where a run goes back to does not depend on where it was stopped: a
//! resumed run goes back where an uninterrupted one does. The steps after that checkpoint are forgotten and done again:
//! `metrics.jsonl` has each once. The sequences that they have read are passed over.

use kernels::TrainBackend;
use model::PhiMamba;

use super::{METRICS, Run};
use crate::checkpoint::{self, Loaded};
use crate::config::StageConfig;
use crate::error::TrainError;
use crate::metrics::{MetricsLog, Mirrors, Record};
use crate::retry::{retry, sleep};

/// How often a run goes back to one checkpoint, at most.
const MOST: usize = 3;

impl<B: TrainBackend> Run<B> {
    /// The student of the last checkpoint of `stage` that was due. The run is then where it was at that time, but for
    /// the text that comes, and keeps its notes.
    ///
    /// # Errors
    /// [`TrainError::Spikes`] if the run has gone back too often; those of reading a checkpoint.
    pub(super) fn roll_back(&mut self, stage: &StageConfig) -> Result<PhiMamba<B>, TrainError> {
        self.writer.wait()?;
        if self.progress.roll_backs >= MOST {
            return Err(TrainError::Spikes {
                stage: stage.name.clone(),
                step: self.progress.step,
                times: MOST,
                folder: self.options.folder.clone(),
            });
        }
        let config = &self.options.config;
        let found = self.ranks.from_first(&self.device, || {
            let found = self.checkpoints.last_due(&stage.name)?;
            self.checkpoints.set_aside(&found.damaged)?;
            Ok(found)
        })?;
        self.optimizer = self.new_optimizer();
        let Loaded { progress, student } = checkpoint::load::<B>(
            &found,
            config,
            &self.student_config,
            &mut self.optimizer,
            &self.device,
        )?;
        let position = progress.position();
        (self.ranks).after_first(&self.device, || self.checkpoints.remove_after(&position))?;
        let then = std::mem::replace(&mut self.progress, progress);
        let lost = then.step - self.progress.step;
        let before = self.progress.notes.len();
        self.progress.notes = then.notes;
        self.progress.roll_backs = then.roll_backs + 1;
        self.progress.passed_over = then.passed_over + (lost * stage.batch) as u64;
        self.progress.seconds = then.seconds;

        let mut damage = None;
        if self.ranks.is_first() {
            let names: Vec<_> = (config.stages.iter())
                .map(|stage| stage.name.clone())
                .collect();
            let metrics = self.options.folder.join(METRICS);
            (self.log, damage) = MetricsLog::resume(
                &metrics,
                self.progress.log.as_ref(),
                &self.progress.position(),
                self.progress.evaluated(),
                &names,
            )?;
            // The port of the old ones is free when they are dropped.
            self.mirrors = Mirrors::default();
            self.mirrors = Mirrors::open(&config.log, &self.options.folder, &metrics);
        }
        // What was noticed on the way is no less true.
        for note in &self.progress.notes[before..] {
            self.log.record(&Record::Note(note.clone()))?;
        }
        if let Some(damage) = damage {
            self.note(damage)?;
        }
        self.note(format!(
            "after a spike at step {}, the run has gone back {lost} steps, and goes on with the text after it",
            then.step
        ))?;
        // At once: a stop before the next checkpoint would write none, since this one is of the same step, and a
        // resumed run would read the text of the spike again.
        self.log.sync()?;
        self.progress.log = Some(self.log.mark());
        self.held.check()?;
        if self.ranks.is_first() {
            retry(sleep, || self.checkpoints.amend(&self.progress, None))?;
        }
        Ok(student)
    }
}
