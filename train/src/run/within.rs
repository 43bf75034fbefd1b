//! Measurements within a stage, every `evaluation.every` steps.
//!
//! A measurement only reads the student, and training draws nothing from a random state: a run has the same bits with
//! and without measurements. A measurement comes before the next step, and after the checkpoint of the last step if one
//! was scheduled. So a run that is resumed from that checkpoint does the measurement that the interrupted run may have
//! missed.

use burn::module::AutodiffModule;
use kernels::TrainBackend;
use model::PhiMamba;

use super::pending_metrics::PendingMetrics;
use super::{Run, stop_requested};
use crate::config::StageConfig;
use crate::error::TrainError;
use crate::evaluate::perplexity;
use crate::metrics::{Evaluation, Record};

impl<B: TrainBackend> Run<B> {
    /// Whether the student is to be measured now, between two steps.
    pub(super) fn is_measured_now(&self) -> bool {
        let (every, step) = (self.options.config.evaluation.every, self.progress.step);
        every > 0 && step > 0 && step.is_multiple_of(every) && self.progress.measured_step != step
    }

    /// Measures the student and records the result after the `pending` steps. If the run is asked to stop meanwhile,
    /// the student is measured when the run is resumed.
    ///
    /// # Errors
    /// [`TrainError`], also if the perplexity is not finite.
    pub(super) fn measure_within(
        &mut self,
        stage: &StageConfig,
        student: &PhiMamba<B>,
        pending: &mut PendingMetrics<B::InnerBackend>,
    ) -> Result<(), TrainError> {
        // A spike that is acted on is read at its own step.
        self.read(stage, pending)?;
        let student = student.valid();
        let (ranks, device) = (self.ranks.clone(), self.device.clone());
        let measured = ranks.from_first(&device, || {
            let config = &self.options.config;
            let measured = perplexity(
                &student.clone().cast(config.precision.dtype()),
                &self.held_out,
                &config.evaluation,
                &self.device,
                || stop_requested(&self.options, &self.watch),
            )?;
            let tasks = match measured {
                Some(perplexity) if perplexity.is_finite() => self.task_scores(&student)?,
                _ => None,
            };
            // JSON has no number for what is not finite.
            Ok((measured.map(f64::to_bits), tasks))
        })?;
        let (measured, tasks) = (measured.0.map(f64::from_bits), measured.1);
        // Frees the memory that the measurement had reserved for tensors of its sizes.
        B::memory_cleanup(&self.device);
        if measured.is_some_and(|perplexity| !perplexity.is_finite()) {
            return Err(self.diverged("the perplexity".to_owned()));
        }
        drop(student);
        if let (Some(student_perplexity), Some(tasks)) = (measured, tasks) {
            let evaluation = Evaluation {
                stage: Some(stage.name.clone()),
                step: Some(self.progress.step),
                tokens: self.progress.tokens,
                teacher_perplexity: self.progress.teacher_perplexity,
                student_perplexity,
                tasks,
            };
            self.record(Record::Evaluation(evaluation.clone()))?;
            self.watch.evaluation(&evaluation);
            self.progress.measured_step = self.progress.step;
        }
        // The measurement does not count as time of a step.
        pending.restart();
        Ok(())
    }
}
