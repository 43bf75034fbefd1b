//! What the start and the resumption of a run have in common; `start` and `resume` have the differences.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use kernels::{KernelBackend, TrainBackend};
use model::{CausalLm, Initialisation, ModelConfig, PhiMamba};

use super::begin::AtWork;
use super::folder::Held;
use super::predictions::{self, needs_teacher, stage_of};
use super::resume::{ResumedFrom, accepted, same_steps};
use super::teacher_files::TeacherFiles;
use super::text::{Text, text};
use super::writer::Writer;
use super::{
    CHECKPOINTS, COMPILING, CONFIG, METRICS, Run, RunOptions, check_layers, inputs, sharing_place,
    stop_requested, tasks, teacher_of_stages,
};
use crate::checkpoint::{self, Checkpoints};
use crate::config::GuardAction;
use crate::device_rate::device_rate;
use crate::error::TrainError;
use crate::evaluate::perplexity;
use crate::metrics::{Mirrors, StagePlan, Watch};
use crate::optimizer::AdamW;
use crate::parallel::Ranks;
use crate::provenance::Provenance;
use crate::recorded::recorded as recorded_losses;
use crate::teacher_cache::TeacherCache;

/// What is known of a run when it starts or is resumed.
pub(super) struct Opening<'a, B: TrainBackend> {
    pub(super) options: &'a RunOptions,
    pub(super) ranks: &'a Ranks<B::InnerBackend>,
    pub(super) device: &'a B::Device,
    pub(super) held: &'a Held,
    /// The path of `metrics.jsonl`.
    pub(super) metrics: PathBuf,
    /// The names of the stages.
    pub(super) names: Vec<String>,
    pub(super) teacher_config: ModelConfig,
    /// The teacher as it was loaded; `None` if it is not needed.
    pub(super) teacher: Option<CausalLm<B::InnerBackend>>,
    pub(super) student_config: ModelConfig,
    /// How the mixers start.
    pub(super) how: Initialisation,
    pub(super) text: Text,
    /// The caches of the stages.
    pub(super) caches: Vec<Option<Arc<TeacherCache>>>,
    pub(super) made_from: Provenance,
    pub(super) checkpoints: Checkpoints,
    pub(super) watch: Watch,
}

impl<B: TrainBackend> Opening<'_, B> {
    /// The perplexity of `model` on the held-out text; `None` if asked to stop.
    pub(super) fn perplexity(
        &self,
        model: CausalLm<B::InnerBackend>,
    ) -> Result<Option<f64>, TrainError> {
        let config = &self.options.config;
        let measured = self.ranks.from_first(self.device, || {
            let model = model.cast(config.precision.dtype());
            let (held_out, evaluation) = (&self.text.held_out, &config.evaluation);
            let stop = || stop_requested(self.options, &self.watch);
            let measured = perplexity(&model, held_out, evaluation, self.device, stop)?;
            // The bits are sent, since JSON has no number for NaN and infinities.
            Ok(measured.map(f64::to_bits))
        })?;
        Ok(measured.map(f64::from_bits))
    }

    /// The teacher's perplexity.
    pub(super) fn teacher_perplexity(&self) -> Result<Option<f64>, TrainError> {
        let config = &self.options.config;
        let Some(teacher) = &self.teacher else {
            let known =
                predictions::teacher_perplexity(config, &self.caches, &self.text.held_out_is);
            return known.map(Some);
        };
        match self.perplexity(teacher.clone())? {
            Some(perplexity) if !perplexity.is_finite() => Err(TrainError::TeacherNotFinite {
                model: config.teacher.model.clone(),
                perplexity,
                precision: config.precision,
            }),
            measured => Ok(measured),
        }
    }
}

impl<B: TrainBackend> Run<B> {
    /// Reads or makes everything that the stages need; `None` if asked to stop before the end.
    pub(super) fn open(
        options: RunOptions,
        held: &Arc<Held>,
        device: &B::Device,
        at_work: AtWork<B::InnerBackend>,
    ) -> Result<Option<(Self, PhiMamba<B>)>, TrainError> {
        let AtWork {
            ranks,
            asked,
            is_in_lockstep,
        } = at_work;
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
        ranks.from_first(device, || tasks::check(&config.evaluation))?;
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
        // A checkpoint at a stage's end counts as one within that stage; the teacher is then loaded although it may not
        // be needed.
        let next = newest.as_ref().map_or(0, |found| stage_of(found, &names));
        let is_new = newest.is_none();
        let student_config = inputs::student_config(config, &teacher_config)?;
        for stage in &config.stages {
            inputs::check_top_k(stage, &student_config.network())?;
        }
        if is_new && !config.student.from.is_empty() {
            inputs::check_student_from(&config.student.from, &student_config)?;
        }
        let loads = needs_teacher(config, next) || (is_new && config.student.from.is_empty());
        let teacher = if loads {
            let loaded = model::load_any::<B::InnerBackend>(&teacher_folder, device);
            Some(loaded.map_err(TrainError::Teacher)?.1)
        } else {
            None
        };
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
        // The files that were hashed must be those that were loaded.
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
        // Tokenising comes last, since it may take hours: all errors that can be found without it have been found
        // before.
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
        let plan: Vec<_> = plan.collect();
        let mut watch = if !ranks.is_first() {
            Watch::Silent
        } else if is_in_lockstep {
            Watch::named_lines(&config.name, plan, config.log.every)
        } else {
            Watch::new(plan, config.log.every, options.dashboard)
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
        let mut opening = Opening {
            options: &options,
            ranks: &ranks,
            device,
            held,
            metrics,
            names,
            teacher_config,
            teacher,
            student_config,
            how,
            text,
            caches,
            made_from,
            checkpoints,
            watch,
        };
        let begun = match loaded {
            Some((found, loaded)) => {
                let before = before.as_ref();
                let from = ResumedFrom {
                    found,
                    before,
                    loaded,
                };
                opening.resume(from)?
            }
            None => opening.start()?,
        };
        let Some((student, progress, log)) = begun else {
            return Ok(None);
        };
        let Opening {
            metrics,
            teacher,
            student_config,
            text,
            caches,
            made_from,
            checkpoints,
            watch,
            ..
        } = opening;
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

/// Checks that all ranks have the same inputs that affect the result.
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
