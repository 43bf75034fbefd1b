//! The beginning of a run, or of the rest of one.

use std::path::Path;
use std::time::Instant;

use burn::module::AutodiffModule;
use kernels::TrainBackend;
use model::{CausalLm, PhiMamba};

use super::{
    CHECKPOINTS, COMPILING, CONFIG, METRICS, Run, RunOptions, check_layers, inputs, say_stopped,
    stop_requested, teacher_of_stages, untrained_student,
};
use crate::checkpoint::{self, Checkpoints, Progress};
use crate::config::Config;
use crate::error::TrainError;
use crate::evaluate::perplexity;
use crate::metrics::{Evaluation, MetricsLog, Record, StagePlan, Watch};
use crate::optimizer::AdamW;

impl<B: TrainBackend> Run<B> {
    /// Reads or makes everything the stages need; `None` if asked to stop on the way.
    pub(super) fn open(
        options: RunOptions,
        device: &B::Device,
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
        let teacher_folder = inputs::teacher_folder(&config.teacher.model)?;
        let (teacher_config, teacher) =
            model::load_any(&teacher_folder, device).map_err(TrainError::Teacher)?;
        let student_config = inputs::student_config(config, &teacher_config)?;
        let idle_layers = {
            let (teacher, student) = (teacher_config.network(), student_config.network());
            let stages = config.stages.iter();
            stages
                .map(|stage| check_layers(stage, &teacher, &student))
                .collect::<Result<Vec<_>, _>>()?
        };
        let tokenizer = inputs::tokenizer(config, &teacher_folder, &teacher_config)?;
        let inputs::Text {
            train,
            held_out,
            training_tokens,
        } = inputs::text(config, &tokenizer)?;

        let names: Vec<_> = config
            .stages
            .iter()
            .map(|stage| stage.name.clone())
            .collect();
        let keep = config.checkpoint.keep;
        let checkpoints = Checkpoints::new(folder.join(CHECKPOINTS), keep, names.clone());
        let metrics = folder.join(METRICS);
        let stages = config.stages.iter();
        let plan = stages.map(|stage| StagePlan {
            stage: stage.name.clone(),
            steps: config.steps(stage),
            tokens_per_step: config.tokens_per_step(stage),
        });
        let mut watch = Watch::new(plan.collect(), config.log.every, options.dashboard);
        let mut optimizer = AdamW::new(&config.optimizer);
        if B::queues() {
            watch.note(COMPILING);
        }

        checkpoints.remove_partial()?;
        let newest = checkpoints.newest()?;
        let (student, progress, log) = if let Some(newest) = newest {
            let (progress, student) =
                checkpoint::load::<B>(&newest, &student_config, &mut optimizer, device)?;
            same_steps(config, &progress, folder)?;
            let (position, evaluated) = (progress.position(), progress.evaluated());
            let log = MetricsLog::resume(&metrics, &position, evaluated, &names)?;
            watch.note(&format!(
                "resuming from {}, on {}",
                newest.display(),
                options.backend
            ));
            (student, progress, log)
        } else {
            if options.resume {
                watch.note("no checkpoint yet: starting from the beginning");
            } else {
                config.write(&folder.join(CONFIG))?;
            }
            let mut log = MetricsLog::create(&metrics)?;
            let student = untrained_student::<B>(&student_config, config.seed, &teacher, device)?;
            watch.note(&format!(
                "teacher {} ({} layers, width {}), {} training tokens, {} held out, on {}",
                config.teacher.model,
                teacher.backbone.layers.len(),
                teacher_config.network().d_model,
                training_tokens,
                held_out.shards().tokens(),
                options.backend,
            ));
            let stop = || stop_requested(&options, &watch);
            let measure = |model: CausalLm<_>| {
                let model = model.cast(dtype);
                perplexity(&model, &held_out, &config.evaluation, device, stop)
            };
            let Some(teacher_perplexity) = measure(teacher.clone())? else {
                say_stopped(&options, &mut watch);
                return Ok(None);
            };
            let Some(untrained) = measure(student.valid())? else {
                say_stopped(&options, &mut watch);
                return Ok(None);
            };
            let evaluation = Evaluation {
                stage: None,
                tokens: 0,
                teacher_perplexity,
                student_perplexity: untrained,
            };
            log.record(&Record::Evaluation(evaluation.clone()))?;
            watch.evaluation(&evaluation);
            let progress = Progress {
                stage: config.stages[0].name.clone(),
                step: 0,
                tokens: 0,
                stage_seconds: 0.0,
                seconds: 0.0,
                skipped: 0,
                skipped_in_a_row: 0,
                loss: None,
                teacher_perplexity,
                finished: vec![],
            };
            (student, progress, log)
        };
        let run = Self {
            device: device.clone(),
            tokenizer,
            train,
            held_out,
            idle_layers,
            teacher: teacher_of_stages(teacher, &student_config, config.precision),
            student_config,
            optimizer,
            seconds_before: progress.seconds,
            progress,
            checkpoints,
            log,
            watch,
            started,
            options,
        };
        Ok(Some((run, student)))
    }
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
        if steps as u64 * now != tokens {
            return Err(mismatch(format!(
                "stage {name} has done {steps} steps of {} tokens, and its batch times its context (or \
                 data.context) is {now}",
                tokens / steps.max(1) as u64,
            )));
        }
    }
    Ok(())
}
