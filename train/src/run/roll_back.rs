//! Goes back from a spike of the loss to the last scheduled checkpoint of the stage, and continues with other text.
//!
//! Scheduled checkpoints are those after every `checkpoint.every` steps, and the one at the beginning of a stage, which
//! is written if a run may be rolled back. Checkpoints that are written at a stop do not count. So the place to which a
//! run goes back does not depend on where it was stopped: a resumed run goes back to the same place as an uninterrupted
//! one. The steps after that checkpoint are removed and done again, so `metrics.jsonl` has each step once. The
//! sequences that they have read are skipped.

use kernels::TrainBackend;
use model::PhiMamba;

use super::{METRICS, Run};
use crate::checkpoint::{self, Loaded};
use crate::config::StageConfig;
use crate::error::TrainError;
use crate::metrics::{MetricsLog, Mirrors, Record};
use crate::retry::{retry, sleep};

/// The most times that a run goes back to the same checkpoint.
const MOST: usize = 3;

impl<B: TrainBackend> Run<B> {
    /// Restores the last scheduled checkpoint of `stage` and returns its student. The run is then in the state of that
    /// time, but it skips text that was read since, and keeps its notes.
    ///
    /// # Errors
    /// [`TrainError::Spikes`] if the run has gone back too often; the errors of reading a checkpoint.
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
        // Notes about later steps are kept: they are still true.
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
        // Saved at once. A stop before the next checkpoint would not save it, because a checkpoint of this step exists
        // already; a resumed run would then read the text of the spike again.
        self.log.sync()?;
        self.progress.log = Some(self.log.mark());
        self.held.check()?;
        if self.ranks.is_first() {
            retry(sleep, || self.checkpoints.amend(&self.progress, None))?;
        }
        Ok(student)
    }
}
