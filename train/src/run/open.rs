//! The beginning of a run, or of the rest of one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use burn::module::AutodiffModule;
use kernels::{KernelBackend, TrainBackend};
use model::{CausalLm, Fit, InitError, PhiMamba};

use super::folder::Held;
use super::predictions::{self, needs_teacher, stage_of};
use super::teacher_files::TeacherFiles;
use super::text::text;
use super::writer::Writer;
use super::{
    CHECKPOINTS, COMPILING, CONFIG, METRICS, Run, RunOptions, StopRequest, check_layers, inputs,
    say_stopped, sharing_place, stop_requested, teacher_of_stages, untrained_student,
};
use crate::checkpoint::{self, Checkpoints, Found, Loaded, Progress};
use crate::config::{Config, GuardAction};
use crate::device_rate::device_rate;
use crate::error::TrainError;
use crate::evaluate::perplexity;
use crate::guard::Guard;
use crate::metrics::{Evaluation, MetricsLog, Mirrors, Note, Record, StagePlan, Watch};
use crate::optimizer::AdamW;
use crate::parallel::Ranks;
use crate::provenance::Provenance;
use crate::recorded::recorded as recorded_losses;

impl<B: TrainBackend> Run<B> {
    /// Reads or makes everything the stages need; `None` if asked to stop on the way.
    pub(super) fn open(
        options: RunOptions,
        held: &Arc<Held>,
        device: &B::Device,
        (ranks, asked): (Ranks<B::InnerBackend>, StopRequest),
    ) -> Result<Option<(Self, PhiMamba<B>)>, TrainError> {
        let started = Instant::now();
        let (config, folder) = (&options.config, &options.folder);
        let dtype = config.precision.dtype();
        if !B::holds(device, dtype) {
            return Err(TrainError::Precision {
                precision: config.precision,
                backend: options.backend,
                resumed: options.resume.then(|| folder.join(CONFIG)),
            });
        }
        let stages = config.stages.iter();
        let names: Vec<_> = stages.map(|stage| stage.name.clone()).collect();
        let keep = config.checkpoint.keep;
        let mut checkpoints = Checkpoints::new(folder.join(CHECKPOINTS), keep, names.clone());
        if config.guard.action == GuardAction::RollBack {
            checkpoints = checkpoints.with_due(config.checkpoint.every);
        }
        let newest = ranks.from_first(device, || {
            checkpoints.remove_partial()?;
            checkpoints.newest()
        })?;
        if let Some(found) = &newest
            && found.inputs.is_none()
            && !options.accept_changes
        {
            return Err(TrainError::Unverified {
                path: found.path.clone(),
                folder: folder.clone(),
            });
        }
        let before = newest.as_ref().map(checkpoint::inputs).transpose()?;
        let before = before.flatten();

        let teacher_folder = ranks.first_then_others(device, || {
            inputs::teacher_folder(&config.teacher.model, before.as_ref())
        })?;
        let stamps = inputs::stamps(&teacher_folder)?;
        let teacher_config = model::load_config(&teacher_folder).map_err(TrainError::Teacher)?;
        // The checkpoint at a stage's end counts as one of that stage, which then loads the teacher for nothing.
        let next = newest.as_ref().map_or(0, |found| stage_of(found, &names));
        let is_new = newest.is_none();
        let loads = needs_teacher(config, next) || (is_new && config.student.from.is_empty());
        let teacher = if loads {
            let loaded = model::load_any::<B::InnerBackend>(&teacher_folder, device);
            Some(loaded.map_err(TrainError::Teacher)?.1)
        } else {
            None
        };
        let student_config = inputs::student_config(config, &teacher_config)?;
        let how = inputs::initialisation(config);
        if let (Some(teacher), true) = (&teacher, config.student.from.is_empty()) {
            how.check(&CausalLm::init(&student_config, 0, device), teacher)?;
        }
        let (idle_layers, operations, recorded) = {
            let (teacher, student) = (teacher_config.network(), student_config.network());
            let stages = config.stages.iter();
            let idle = stages.clone();
            let idle = idle.map(|stage| check_layers(stage, &teacher, &student));
            let recorded = stages.clone();
            let recorded =
                recorded.map(|stage| recorded_losses(&stage.kind, &teacher, config.context(stage)));
            let operations = stages.clone().map(|stage| {
                let l = config.context(stage);
                stage.kind.arithmetic(l, &teacher, &student).total()
            });
            (
                idle.collect::<Result<Vec<_>, _>>()?,
                operations.collect(),
                recorded.collect(),
            )
        };
        let tokenizer = inputs::tokenizer(config, &teacher_folder, &teacher_config)?;
        let tokenizer = Arc::new(tokenizer);
        let teacher_files = TeacherFiles::read(&teacher_folder, &tokenizer)?;
        let mut made_from = Provenance {
            backend: options.backend.clone(),
            tokenizer: tokenizer.hash().to_owned(),
            teacher_folder: std::path::absolute(&teacher_folder)
                .unwrap_or_else(|_| teacher_folder.clone())
                .to_string_lossy()
                .into_owned(),
            teacher: Provenance::of_teacher(&teacher_folder)?,
            held_out: None,
            texts: BTreeMap::new(),
            caches: BTreeMap::new(),
            config: config.to_table()?,
        };
        // What has been hashed is what was loaded.
        if let Some(changed) = inputs::changed(&stamps, &inputs::stamps(&teacher_folder)?) {
            return Err(TrainError::ChangedWhileRead(changed));
        }
        let optimizer = AdamW::new(&config.optimizer);
        let mut optimizer = optimizer.sharing(sharing_place(config, &ranks));
        let loaded = match &newest {
            Some(found) => {
                let loaded =
                    checkpoint::load::<B>(found, config, &student_config, &mut optimizer, device)?;
                same_steps(config, &loaded.progress, folder)?;
                accepted(&options, &loaded.progress, before.as_ref(), &made_from)?;
                Some((found, loaded))
            }
            None => None,
        };
        // Last, since it may take hours: what can be refused without it has been.
        let text = ranks.first_then_others(device, || text(config, &tokenizer))?;
        made_from.held_out = Some(text.held_out_is.clone());
        let texts = text.train.iter().map(|text| text.is.clone());
        made_from.texts = names.iter().cloned().zip(texts).collect();
        let vocab_size = student_config.network().vocab_size;
        let caches = predictions::open(config, &made_from, vocab_size, next)?;
        let identities = names.iter().zip(&caches);
        made_from.caches = identities
            .filter_map(|(name, cache)| Some((name.clone(), cache.as_ref()?.identity())))
            .collect();
        agree(&ranks, device, &made_from)?;
        held.check()?;

        let metrics = folder.join(METRICS);
        let stages = config.stages.iter();
        let plan = stages.map(|stage| StagePlan {
            stage: stage.name.clone(),
            steps: config.steps(stage),
            tokens_per_step: config.tokens_per_step(stage),
        });
        let mut watch = if ranks.is_first() {
            Watch::new(plan.collect(), config.log.every, options.dashboard)
        } else {
            Watch::Silent
        };
        if let Some(name) = ranks.name() {
            watch.note(&format!("{} ranks, by {name}", ranks.place().world));
        }
        if text.skipped_lines > 0 {
            watch.note(&format!(
                "{} lines of the text hold no document and were left out, of the {} that data.skip_bad_lines allows \
                 in each text",
                text.skipped_lines, config.data.skip_bad_lines
            ));
        }
        if B::queues() {
            watch.note(COMPILING);
        }
        let device_rate = device_rate::<B::InnerBackend>(dtype, device)?;
        watch.note(&format!(
            "a product of matrices alone reaches {:.1} GFLOP/s here, in {}",
            1e-9 * device_rate,
            config.precision
        ));
        let stop = |watch: &Watch| stop_requested(&options, watch);
        let measure = |model: CausalLm<_>, watch: &Watch| {
            let measured = ranks.from_first(device, || {
                let model = model.cast(dtype);
                let stop = || stop(watch);
                let measured =
                    perplexity(&model, &text.held_out, &config.evaluation, device, stop)?;
                // JSON has no number for what is not finite.
                Ok(measured.map(f64::to_bits))
            });
            Ok::<_, TrainError>(measured?.map(f64::from_bits))
        };
        let measure_teacher = |watch: &Watch| {
            let Some(teacher) = &teacher else {
                return predictions::teacher_perplexity(config, &caches, &text.held_out_is)
                    .map(Some);
            };
            match measure(teacher.clone(), watch)? {
                Some(perplexity) if !perplexity.is_finite() => Err(TrainError::TeacherNotFinite {
                    model: config.teacher.model.clone(),
                    perplexity,
                    precision: config.precision,
                }),
                measured => Ok(measured),
            }
        };

        let (student, progress, log) = if let Some((newest, loaded)) = loaded {
            let Loaded {
                mut progress,
                student,
            } = loaded;
            watch.note(&format!(
                "resuming from {}, on {}",
                newest.path.display(),
                options.backend
            ));
            let before = before.as_ref();
            let changes = accepted(&options, &progress, before, &made_from)?;
            let mut said = damages(newest);
            if before.is_none() {
                let own = newest.path.file_name().unwrap_or_default().display();
                said.push(format!(
                    "resumed with --accept-changes from {own}, which an earlier version of this program wrote \
                     without checksums: neither its files nor what the run is made from could be compared"
                ));
            }
            said.extend(changes.iter().map(|change| {
                format!("resumed with --accept-changes, since this has changed: {change}")
            }));
            if !changes.is_empty() || before.is_none() {
                let Some(now) = measure_teacher(&watch)? else {
                    say_stopped(&options, &mut watch);
                    return Ok(None);
                };
                let then = progress.teacher_perplexity;
                said.push(format!(
                    "the teacher's perplexity, measured again, is {now:.4}, where it was {then:.4}"
                ));
                progress.teacher_perplexity = now;
            }
            let plans = before.map(|before| before.plans(&made_from, &changes));
            said.extend(
                (plans.iter().flatten())
                    .map(|plan| format!("for the rest of the run this has changed: {plan}")),
            );
            let (position, evaluated) = (progress.position(), progress.evaluated());
            let mark = progress.log.as_ref();
            let (mut log, damage) = if ranks.is_first() {
                MetricsLog::resume(&metrics, mark, &position, evaluated, &names)?
            } else {
                (MetricsLog::nowhere(), None)
            };
            said.extend(damage);
            for text in &said {
                watch.note(text);
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
            ranks.after_first(device, || {
                if !said.is_empty() {
                    checkpoints.amend(&progress, Some(&made_from))?;
                }
                // Last, or a process that dies here would leave nothing to say about them.
                checkpoints.set_aside(&newest.damaged)
            })?;
            (student, progress, log)
        } else {
            if options.resume {
                watch.note("no checkpoint yet: starting from the beginning");
            }
            watch.note(&format!(
                "teacher {} ({} layers, width {}), {} training tokens{}, {} held out, on {}",
                config.teacher.model,
                teacher_config.network().mixers.len(),
                teacher_config.network().d_model,
                text.training_tokens,
                text.more_tokens(),
                text.held_out.shards().tokens(),
                options.backend,
            ));
            let teacher_perplexity = measure_teacher(&watch)?;
            // From here on it is a run, which can be resumed. What has failed before leaves nothing behind.
            held.check()?;
            let mut log = if ranks.is_first() {
                if !options.resume {
                    config.write(&folder.join(CONFIG))?;
                }
                MetricsLog::create(&metrics)?
            } else {
                MetricsLog::nowhere()
            };
            let Some(teacher_perplexity) = teacher_perplexity else {
                say_stopped(&options, &mut watch);
                return Ok(None);
            };
            let calibration = if how.reads_text() && config.student.from.is_empty() {
                watch.note("fitting the mixers to the teacher's attention, which takes a while");
                inputs::calibration_text(&text.first_windows()?, device)?
            } else {
                vec![]
            };
            let made = match &teacher {
                Some(teacher) if config.student.from.is_empty() => untrained_student::<B>(
                    &student_config,
                    config.seed,
                    teacher,
                    how,
                    &calibration,
                    &|| stop(&watch),
                    device,
                ),
                _ => inputs::student_from::<B>(&config.student.from, &student_config, device),
            };
            drop(calibration);
            if let Err(TrainError::Initialisation(InitError::Stopped)) = made {
                say_stopped(&options, &mut watch);
                return Ok(None);
            }
            let (student, fits) = made?;
            let student = ranks.student_of_first(student, student_config.layout());
            let Some(untrained) = measure(student.valid(), &watch)? else {
                say_stopped(&options, &mut watch);
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
            watch.evaluation(&evaluation);
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
                watch.note(&note.text);
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
            (student, progress, log)
        };
        let checkpoints = Arc::new(checkpoints);
        let run = Self {
            writer: Writer::new(checkpoints.clone(), held.clone()),
            held: held.clone(),
            device: device.clone(),
            tokenizer,
            teacher_files,
            made_from,
            train: text.train,
            held_out: text.held_out,
            skipped_lines: text.skipped_lines,
            idle_layers,
            operations,
            device_rate,
            teacher: teacher
                .map(|teacher| teacher_of_stages(teacher, &student_config, config.precision)),
            caches,
            student_config,
            optimizer,
            seconds_before: progress.seconds,
            progress,
            checkpoints,
            log,
            mirrors: if ranks.is_first() {
                Mirrors::open(&options.config.log, &options.folder, &metrics)
            } else {
                Mirrors::default()
            },
            watch,
            beginning: None,
            recorded,
            started,
            ranks,
            asked,
            stops: false,
            options,
        };
        Ok(Some((run, student)))
    }
}

/// That what decides on the result is the same on all ranks.
fn agree<B: KernelBackend>(
    ranks: &Ranks<B>,
    device: &B::Device,
    made_from: &Provenance,
) -> Result<(), TrainError> {
    let texts = made_from.texts.values().chain(&made_from.held_out);
    let texts: Vec<_> = texts.map(|text| text.sha256.as_str()).collect();
    let teacher = format!("{:?}", made_from.teacher);
    ranks.agree(
        device,
        "the version of this program",
        env!("CARGO_PKG_VERSION"),
    )?;
    ranks.agree(device, "the backend", &made_from.backend)?;
    ranks.agree(device, "the teacher", &teacher)?;
    ranks.agree(device, "the tokenizer", &made_from.tokenizer)?;
    ranks.agree(device, "the tokenised text", &texts.join(" "))?;
    let caches: Vec<_> = made_from.caches.values().map(String::as_str).collect();
    ranks.agree(
        device,
        "the cache of the teacher's predictions",
        &caches.join(" "),
    )
}

/// What has changed since the checkpoint of `progress`, which was made `before`, as far as it says so.
///
/// # Errors
/// [`TrainError::Changed`] unless such changes are accepted.
fn accepted(
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

/// What there is to say about the checkpoints that are damaged.
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

/// Refuses to resume where a step is not what it was, or where the stages that are done are not the first of the
/// list: the same number of steps would be other text.
fn same_steps(config: &Config, progress: &Progress, folder: &Path) -> Result<(), TrainError> {
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
