//! Resumes a run from a checkpoint: reports what has changed since then, and restores the log to its state then.

use std::path::Path;

use kernels::TrainBackend;
use model::PhiMamba;

use super::open::Opening;
use super::{CONFIG, RunOptions, say_stopped};
use crate::checkpoint::{self, Found, Loaded, Progress};
use crate::config::Config;
use crate::error::TrainError;
use crate::metrics::{MetricsLog, Note, Record};
use crate::provenance::Provenance;

/// The checkpoint to resume from.
pub(super) struct ResumedFrom<'a, B: TrainBackend> {
    pub(super) found: &'a Found,
    /// The inputs that it was made with; `None` if it does not have them.
    pub(super) before: Option<&'a Provenance>,
    pub(super) loaded: Loaded<B>,
}

impl<B: TrainBackend> Opening<'_, B> {
    /// The student, the progress and the log of a run that is resumed `from` a checkpoint; `None` if asked to stop.
    pub(super) fn resume(
        &mut self,
        from: ResumedFrom<'_, B>,
    ) -> Result<Option<(PhiMamba<B>, Progress, MetricsLog)>, TrainError> {
        let ResumedFrom {
            found,
            before,
            loaded,
        } = from;
        let Loaded {
            mut progress,
            student,
        } = loaded;
        let options = self.options;
        self.watch.note(&format!(
            "resuming from {}, on {}",
            found.path.display(),
            options.backend
        ));
        let changes = accepted(options, &progress, before, &self.made_from)?;
        let mut said = damages(found);
        if before.is_none() {
            let own = found.path.file_name().unwrap_or_default().display();
            said.push(format!(
                "resumed with --accept-changes from {own}, which an earlier version of this program wrote \
                 without checksums: neither its files nor what the run is made from could be compared"
            ));
        }
        said.extend(changes.iter().map(|change| {
            format!("resumed with --accept-changes, since this has changed: {change}")
        }));
        if !changes.is_empty() || before.is_none() {
            let Some(now) = self.teacher_perplexity()? else {
                say_stopped(options, &mut self.watch);
                return Ok(None);
            };
            let then = progress.teacher_perplexity;
            said.push(format!(
                "the teacher's perplexity, measured again, is {now:.4}, where it was {then:.4}"
            ));
            progress.teacher_perplexity = now;
        }
        let plans = before.map(|before| before.plans(&self.made_from, &changes));
        said.extend(
            (plans.iter().flatten())
                .map(|plan| format!("for the rest of the run this has changed: {plan}")),
        );
        let (position, evaluated) = (progress.position(), progress.evaluated());
        let mark = progress.log.as_ref();
        let (mut log, damage) = if self.ranks.is_first() {
            MetricsLog::resume(&self.metrics, mark, &position, evaluated, &self.names)?
        } else {
            (MetricsLog::nowhere(), None)
        };
        said.extend(damage);
        for text in &said {
            self.watch.note(text);
            let note = Note {
                stage: position.stage.clone(),
                step: position.step,
                text: text.clone(),
            };
            log.record(&Record::Note(note.clone()))?;
            progress.notes.push(note);
        }
        if !said.is_empty() {
            log.sync()?;
            progress.log = Some(log.mark());
        }
        self.ranks.after_first(self.device, || {
            if !said.is_empty() {
                self.checkpoints.amend(&progress, Some(&self.made_from))?;
            }
            // Last: if the process died earlier, the next one must still find them to report them.
            self.checkpoints.set_aside(&found.damaged)
        })?;
        Ok(Some((student, progress, log)))
    }
}

/// The changes of the inputs since the checkpoint of `progress`, whose inputs are `before`, if it has them.
///
/// # Errors
/// [`TrainError::Changed`] if there are changes and they are not accepted.
pub(super) fn accepted(
    options: &RunOptions,
    progress: &Progress,
    before: Option<&Provenance>,
    now: &Provenance,
) -> Result<Vec<String>, TrainError> {
    let Some(before) = before else {
        return Ok(vec![]);
    };
    let finished = progress.finished.iter().map(|done| done.stage.as_str());
    let changes = before.changes(now, &progress.position(), finished);
    if changes.is_empty() || options.accept_changes {
        return Ok(changes);
    }
    Err(TrainError::Changed {
        folder: options.folder.clone(),
        stage: progress.stage.clone(),
        step: progress.step,
        changes,
    })
}

/// A note for each damaged checkpoint.
fn damages(found: &Found) -> Vec<String> {
    let own = found.path.file_name().unwrap_or_default();
    let say = |damaged: &checkpoint::Damaged| {
        let name = damaged.path.file_name().unwrap_or_default();
        format!(
            "checkpoint {name} is damaged and was set aside as {name}.damaged: {}; resumed from {own}",
            damaged.reason,
            name = name.display(),
            own = own.display(),
        )
    };
    found.damaged.iter().map(say).collect()
}

/// Refuses to resume if a step has another size than before, or if the stages that are done are not the first ones of
/// the list: the same number of steps would then be other text.
pub(super) fn same_steps(
    config: &Config,
    progress: &Progress,
    folder: &Path,
) -> Result<(), TrainError> {
    let mismatch = |what: String| {
        TrainError::Mismatch(format!(
            "{}: {what}; undo what was changed of them, or start another run",
            folder.join(CONFIG).display(),
        ))
    };
    let mut done: Vec<_> = (progress.finished.iter())
        .map(|done| (&done.stage, done.steps, done.tokens))
        .collect();
    if progress.evaluated() != Some(&progress.stage) {
        done.push((&progress.stage, progress.step, progress.stage_tokens()));
    }
    let names = config.stages.iter().map(|stage| &stage.name);
    if !names
        .take(done.len())
        .eq(done.iter().map(|(name, ..)| *name))
    {
        let done = done.iter().map(|(name, ..)| name.as_str());
        return Err(mismatch(format!(
            "the run has done {}, and these are not the first stages of the list",
            done.collect::<Vec<_>>().join(", ")
        )));
    }
    for ((name, steps, tokens), stage) in done.into_iter().zip(&config.stages) {
        let now = config.tokens_per_step(stage);
        if (steps as u64).checked_mul(now) != Some(tokens) {
            return Err(mismatch(format!(
                "stage {name} has done {steps} steps of {} tokens, and its batch times its context (or \
                 data.context) is {now}",
                tokens / steps.max(1) as u64,
            )));
        }
    }
    Ok(())
}
