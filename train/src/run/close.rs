//! The end of a run: its student, its summary, its report.

use burn::module::AutodiffModule;
use kernels::TrainBackend;
use model::PhiMamba;

use super::{METRICS, Run, STUDENT, SUMMARY};
use crate::error::{TrainError, io_error};
use crate::metrics;
use crate::report::ReportData;
use crate::retry::{retry, sleep};
use crate::specimens::Specimens;
use crate::summary::{Summary, peak_memory_bytes};

impl<B: TrainBackend> Run<B> {
    /// Exports the student, and writes summary and report.
    pub(super) fn close(mut self, student: &PhiMamba<B>) -> Result<Summary, TrainError> {
        self.require_finite(student)?;
        let student = student.valid();
        let folder = self.options.folder.clone();
        self.held.check()?;
        let exported = folder.join(STUDENT);
        retry(sleep, || {
            (self.teacher_files).export(&self.student_config, &student, &exported)
        })?;
        if !self.log.is_intact()? {
            self.note(format!(
                "{} was changed or removed by another program while the run went on; the curves of the report may \
                 have gaps or wrong points",
                folder.join(METRICS).display()
            ))?;
        }
        let stages = self.progress.finished.clone();
        let trained: f64 = stages.iter().map(|stage| stage.seconds).sum();
        let student_perplexity = stages.last().map_or(f64::NAN, |stage| stage.perplexity);
        // The student in the dtype in which it was trained and measured, which is also the teacher's.
        let student = student.cast(self.options.config.precision.dtype());
        let (matrices, samples) = if let Some(teacher) = &self.teacher {
            let specimens = Specimens {
                teacher,
                student: &student,
                tokenizer: &self.tokenizer,
                held_out: &self.held_out,
                device: &self.device,
            };
            (specimens.matrices()?, specimens.samples()?)
        } else {
            // Matrices and samples show both models, and the teacher is not in memory.
            (vec![], vec![])
        };
        let summary = Summary {
            teacher_perplexity: self.progress.teacher_perplexity,
            student_perplexity,
            ratio: student_perplexity / self.progress.teacher_perplexity,
            tokens: self.progress.tokens,
            seconds: self.seconds_before + self.started.elapsed().as_secs_f64(),
            tokens_per_second: self.progress.tokens as f64 / trained,
            stages,
            skipped_steps: self.progress.skipped,
            skipped_lines: self.skipped_lines,
            notes: self.progress.notes.clone(),
            backend: self.options.backend.clone(),
            peak_memory_bytes: peak_memory_bytes(),
        };
        let report = ReportData {
            name: self.options.config.name.clone(),
            summary: summary.clone(),
            records: metrics::read_what_can_be(&folder.join(METRICS))?,
            matrices,
            samples,
            config: self.options.config.to_toml()?,
        };
        self.held.check()?;
        retry(sleep, || report.write(&folder.join("report.html")))?;
        let path = folder.join(SUMMARY);
        retry(sleep, || summary.write(&path)).map_err(io_error(&path))?;
        Ok(summary)
    }
}
