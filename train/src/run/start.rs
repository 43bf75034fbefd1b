//! The first start of a run: the teacher's perplexity, and the student before training.

use std::collections::BTreeMap;

use burn::module::AutodiffModule;
use kernels::TrainBackend;
use model::{Fit, InitError, PhiMamba};

use super::open::Opening;
use super::{CONFIG, inputs, say_stopped, stop_requested, untrained_student};
use crate::checkpoint::Progress;
use crate::error::TrainError;
use crate::guard::Guard;
use crate::metrics::{Evaluation, MetricsLog, Note, Record};

/// A student, and how near its fitted layers are to the teacher's.
type Untrained<B> = (PhiMamba<B>, Vec<Fit>);

impl<B: TrainBackend> Opening<'_, B> {
    /// The untrained student, the progress and the log of a run that begins; `None` if asked to stop.
    pub(super) fn start(
        &mut self,
    ) -> Result<Option<(PhiMamba<B>, Progress, MetricsLog)>, TrainError> {
        let (options, ranks) = (self.options, self.ranks);
        let config = &options.config;
        if options.resume {
            self.watch
                .note("no checkpoint yet: starting from the beginning");
        }
        self.watch.note(&format!(
            "teacher {} ({} layers, width {}), {} training tokens{}, {} held out, on {}",
            config.teacher.model,
            self.teacher_config.network().mixers.len(),
            self.teacher_config.network().d_model,
            self.text.training_tokens,
            self.text.more_tokens(),
            self.text.held_out.shards().tokens(),
            options.backend,
        ));
        let teacher_perplexity = self.teacher_perplexity()?;
        // From here on the folder is a run, which can be resumed. Errors before this leave nothing behind.
        self.held.check()?;
        let mut log = if ranks.is_first() {
            if !options.resume {
                config.write(&options.folder.join(CONFIG))?;
            }
            MetricsLog::create(&self.metrics)?
        } else {
            MetricsLog::nowhere()
        };
        let Some(teacher_perplexity) = teacher_perplexity else {
            say_stopped(options, &mut self.watch);
            return Ok(None);
        };
        let Some((student, fits)) = self.untrained()? else {
            say_stopped(options, &mut self.watch);
            return Ok(None);
        };
        let student = ranks.student_of_first(student, self.student_config.layout());
        let Some(untrained) = self.perplexity(student.valid())? else {
            say_stopped(options, &mut self.watch);
            return Ok(None);
        };
        let evaluation = Evaluation {
            stage: None,
            step: None,
            tokens: 0,
            teacher_perplexity,
            student_perplexity: untrained,
            tasks: BTreeMap::new(),
        };
        log.record(&Record::Evaluation(evaluation.clone()))?;
        self.watch.evaluation(&evaluation);
        let mut notes = vec![];
        if !fits.is_empty() {
            let layer = |fit: &Fit| format!("{} {:.3}", fit.layer, fit.error);
            let layers: Vec<_> = fits.iter().map(layer).collect();
            let note = Note {
                stage: config.stages[0].name.clone(),
                step: 0,
                text: format!(
                    "the mixers start {}: the share of the attention's output that they lack, by layer: {}",
                    config.student.init,
                    layers.join(", ")
                ),
            };
            self.watch.note(&note.text);
            log.record(&Record::Note(note.clone()))?;
            notes.push(note);
        }
        let progress = Progress {
            stage: config.stages[0].name.clone(),
            step: 0,
            tokens: 0,
            stage_seconds: 0.0,
            seconds: 0.0,
            passed_over: 0,
            roll_backs: 0,
            measured_step: 0,
            guard: Guard::default(),
            skipped: 0,
            skipped_in_a_row: 0,
            stage_skipped: 0,
            loss: None,
            teacher_perplexity,
            log: Some(log.mark()),
            finished: vec![],
            notes,
        };
        Ok(Some((student, progress, log)))
    }

    /// The student before training. The second value says how near its fitted layers are to the teacher's. `None` if
    /// asked to stop.
    fn untrained(&mut self) -> Result<Option<Untrained<B>>, TrainError> {
        let config = &self.options.config;
        let calibration = if self.how.reads_text() && config.student.from.is_empty() {
            self.watch
                .note("fitting the mixers to the teacher's attention, which takes a while");
            inputs::calibration_text(&self.text.first_windows()?, self.device)?
        } else {
            vec![]
        };
        let made = match &self.teacher {
            Some(teacher) if config.student.from.is_empty() => untrained_student::<B>(
                &self.student_config,
                config.seed,
                teacher,
                self.how,
                &calibration,
                &|| stop_requested(self.options, &self.watch),
                self.device,
            ),
            _ => inputs::student_from::<B>(&config.student.from, &self.student_config, self.device),
        };
        match made {
            Err(TrainError::Initialisation(InitError::Stopped)) => Ok(None),
            made => made.map(Some),
        }
    }
}
