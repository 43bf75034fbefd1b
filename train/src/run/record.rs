//! What a run records and shows while it works.

use kernels::TrainBackend;

use super::pending_metrics::PendingMetrics;
use super::{Beginning, Run};
use crate::config::{GuardAction, StageConfig};
use crate::error::TrainError;
use crate::metrics::{Note, Record, StepMetrics};
use crate::step::ReadMeasured;
use crate::summary::memory_bytes;

impl<B: TrainBackend> Run<B> {
    /// Appends `record` to the log, and sends it to the other outputs.
    pub(super) fn record(&mut self, record: Record) -> Result<(), TrainError> {
        self.log.record(&record)?;
        self.mirrors.record(&record);
        Ok(())
    }

    /// Reads, records and shows the losses and norms of the pending steps. Returns whether one of the losses is a
    /// spike.
    pub(super) fn read(
        &mut self,
        stage: &StageConfig,
        pending: &mut PendingMetrics<B::InnerBackend>,
    ) -> Result<bool, TrainError> {
        let config = &self.options.config;
        let guard = config.guard.clone();
        let steps = config.steps(stage) as f64;
        let tokens = config.tokens_per_step(stage);
        let mut has_spike = false;
        let operations = self.operations[self.progress.finished.len()];
        // The rate of all devices that share the steps.
        let rate = self.device_rate * self.ranks.place().world as f64;
        let memory_bytes = match B::memory(&self.device) {
            Some(memory) => Some(memory.reserved),
            None => memory_bytes(),
        };
        for step in pending.read() {
            let (queued, seconds) = (step.queued, step.seconds);
            let ReadMeasured {
                loss,
                norm,
                norms,
                stops,
            } = step.measured;
            self.stops |= stops;
            let is_finite = loss.is_finite() && norm.is_finite();
            let limit = self.progress.guard.limit(&guard);
            let is_spike = is_finite && limit.is_some_and(|limit| loss > limit);
            let skipped = !is_finite || (is_spike && guard.action == GuardAction::Skip);
            if skipped {
                self.progress.skipped += 1;
                self.progress.skipped_in_a_row += 1;
                self.progress.stage_skipped += 1;
            } else {
                self.progress.skipped_in_a_row = 0;
                // Smoothed over a twentieth of the stage.
                let share = 20.0 / steps.max(20.0);
                let smooth = |old: f64| old + share * (loss - old);
                self.progress.loss = Some(self.progress.loss.map_or(loss, smooth));
            }
            self.progress.stage_seconds += seconds;
            self.progress.seconds = self.seconds_before + self.started.elapsed().as_secs_f64();
            let tokens_per_second = tokens as f64 / seconds;
            let metrics = StepMetrics {
                stage: stage.name.clone(),
                step: queued.number,
                tokens: queued.tokens,
                loss,
                lr: queued.lr,
                grad_norm: norm,
                grad_norms: norms,
                tokens_per_second,
                operations_per_second: operations * tokens_per_second,
                device_share: Some(operations * tokens_per_second / rate),
                data_wait: queued.data_wait,
                memory_bytes,
                skipped,
                seconds: self.trained_seconds(),
            };
            self.record(Record::Step(metrics.clone()))?;
            self.watch.step(&metrics, self.progress.skipped);
            if let Some(Beginning { floor }) = self.beginning.take() {
                let floor = floor.map_or(String::new(), |floor| {
                    format!(", and {floor:.4} with the teacher in the student's place")
                });
                let recorded = &self.recorded[self.progress.finished.len()];
                self.watch.note(&format!(
                    "{}: its loss is {loss:.4} before the first step{floor}; {recorded}",
                    stage.name
                ));
            }
            if is_finite {
                for event in self.progress.guard.observe(&guard, loss, skipped) {
                    let text = event.text(queued.number, loss, &guard);
                    self.note_at(queued.number, text)?;
                }
            }
            has_spike |= is_spike;

            let in_a_row = self.progress.skipped_in_a_row;
            if in_a_row >= self.options.config.safety.max_skipped {
                let (stage, folder) = (stage.name.clone(), self.options.folder.clone());
                let step = queued.number;
                return Err(if is_finite {
                    TrainError::Spikes {
                        stage,
                        step,
                        times: in_a_row,
                        folder,
                    }
                } else {
                    TrainError::NotFinite {
                        stage,
                        step,
                        skipped: in_a_row,
                        folder,
                    }
                });
            }
        }
        Ok(has_spike)
    }

    /// Notes `text` in the log, in the metrics and in the summary.
    pub(super) fn note(&mut self, text: String) -> Result<(), TrainError> {
        self.note_at(self.progress.step, text)
    }

    /// The same for a given step of the stage, which need not be the last.
    pub(super) fn note_at(&mut self, step: usize, text: String) -> Result<(), TrainError> {
        self.watch.note(&text);
        let note = Note {
            stage: self.progress.stage.clone(),
            step,
            text,
        };
        self.record(Record::Note(note.clone()))?;
        self.progress.notes.push(note);
        Ok(())
    }
}
