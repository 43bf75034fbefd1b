//! `train cache-teacher`: the teacher's predictions of a stage's text, written ahead of it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datasets::Batches;
use indicatif::{HumanBytes, HumanCount};
use kernels::KernelBackend;
use kernels::runtime::check;
use model::Phi;

use super::predictions::{key_of, rows_of, texts};
use super::text::text;
use super::{COMPILING, inputs, sources, teacher_of_stages};
use crate::config::{Config, Packing, StageConfig};
use crate::error::TrainError;
use crate::evaluate::{ids, perplexity};
use crate::logging::say;
use crate::parallel_passes::ParallelPasses;
use crate::provenance::Provenance;
use crate::stages::{Kind, top_of_teacher};
use crate::teacher_cache::{CacheWriter, Manifest, MeasuredTeacher, StoredDtype, TopK};

/// How often progress is logged.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// What to write.
#[derive(Debug, Clone)]
pub struct CacheTeacher {
    /// The configuration of the run that will read the cache, with all its stages: the sequences that a stage reads
    /// depend on the stages before it.
    pub config: Config,
    /// The name of that stage; `None` if there is only one stage of a kind that compares predictions.
    pub stage: Option<String>,
    /// The folder of the cache.
    pub folder: PathBuf,
    /// How many of the likeliest ids are kept for each token; a number above the vocabulary keeps all.
    pub k: usize,
    /// The dtype in which the logarithms are stored.
    pub dtype: StoredDtype,
    /// The backend's name, for the record.
    pub backend: String,
}

/// A cache that was written.
#[derive(Debug, Clone)]
pub struct CachedTeacher {
    stage: String,
    folder: PathBuf,
    manifest: Manifest,
    /// Tokens that this process has written.
    tokens: u64,
    /// Seconds that it took to write these.
    seconds: f64,
}

impl fmt::Display for CachedTeacher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            manifest, tokens, ..
        } = self;
        let all = manifest.rows * manifest.key.context as u64;
        let bytes = manifest.token_bytes() as u64;
        write!(
            f,
            "{}: {} tokens, the {} likeliest ids of each, {} bytes a token, {}",
            self.stage,
            HumanCount(all),
            manifest.k,
            bytes,
            HumanBytes(all * bytes),
        )?;
        if *tokens > 0 {
            write!(
                f,
                "; {} tokens in {:.1} s, {:.0} tokens/s",
                HumanCount(*tokens),
                self.seconds,
                *tokens as f64 / self.seconds
            )?;
        } else {
            write!(f, "; nothing was left to do")?;
        }
        let measured = manifest.measured.last();
        if let Some(MeasuredTeacher { perplexity, .. }) = measured {
            write!(f, "; the teacher's perplexity is {perplexity:.4}")?;
        }
        write!(f, ": {}", self.folder.display())
    }
}

impl CacheTeacher {
    /// Writes the cache, or the part of it that is missing. A process may be killed at any moment: the same call
    /// continues its work.
    ///
    /// # Errors
    /// [`TrainError`] of the configuration, the teacher, the text, the device or the disk; [`TrainError::TeacherCache`]
    /// if the folder has another cache, or if the teacher's predictions are not finite.
    pub fn execute<B: KernelBackend>(
        mut self,
        device: &B::Device,
    ) -> Result<CachedTeacher, TrainError> {
        self.config.validate()?;
        self.config = self.config.with_absolute_paths();
        sources::settle(&mut self.config)?;
        let config = &self.config;
        let dtype = config.precision.dtype();
        if !B::holds(device, dtype) {
            return Err(TrainError::Precision {
                precision: config.precision,
                backend: self.backend,
                resumed: None,
            });
        }
        let number = self.stage_number()?;
        let stage = &config.stages[number];
        let teacher_folder = inputs::teacher_folder(&config.teacher.model, None)?;
        let stamps = inputs::stamps(&teacher_folder)?;
        let (teacher_config, teacher) =
            model::load_any::<B>(&teacher_folder, device).map_err(TrainError::Teacher)?;
        let student_config = inputs::student_config(config, &teacher_config)?;
        let tokenizer = Arc::new(inputs::tokenizer(config, &teacher_folder, &teacher_config)?);
        let mut made_from = Provenance {
            backend: self.backend.clone(),
            tokenizer: tokenizer.hash().to_owned(),
            teacher_folder: teacher_folder.to_string_lossy().into_owned(),
            teacher: Provenance::of_teacher(&teacher_folder)?,
            held_out: None,
            texts: BTreeMap::new(),
            caches: BTreeMap::new(),
            config: config.to_table()?,
        };
        if let Some(changed) = inputs::changed(&stamps, &inputs::stamps(&teacher_folder)?) {
            return Err(TrainError::ChangedWhileRead(changed));
        }
        let text = text(config, &tokenizer)?;
        let names = config.stages.iter().map(|stage| stage.name.clone());
        let is = text.train.iter().map(|text| text.is.clone());
        made_from.texts = names.zip(is).collect();

        let key = key_of(
            config,
            &made_from,
            student_config.network().vocab_size,
            number,
        );
        let rows = rows_of(config, &texts(config, &made_from), number);
        let vocab_size = key.vocab_size;
        if self.k > vocab_size {
            say(format_args!(
                "the teacher's vocabulary has {vocab_size} tokens, fewer than the {} that --k asks for: all are kept",
                self.k
            ));
        }
        let k = self.k.clamp(1, vocab_size);
        let mut wanted = Manifest::new(key, (rows.start, rows.end - rows.start), k, self.dtype);
        wanted.precision = config.precision.to_string();
        wanted.backend = self.backend.clone();
        let mut writer = CacheWriter::open(&self.folder, wanted)?;

        if B::queues() {
            say(COMPILING);
        }
        let held_out = &text.held_out_is.sha256;
        let mut measured = writer.manifest().measured.iter();
        if !measured.any(|measured| measured.is_of(held_out, &config.evaluation)) {
            let evaluation = &config.evaluation;
            let teacher = teacher.clone().cast(dtype);
            let found = perplexity(&teacher, &text.held_out, evaluation, device, || false)?;
            let perplexity = found.filter(|perplexity| perplexity.is_finite());
            let Some(perplexity) = perplexity else {
                return Err(TrainError::TeacherNotFinite {
                    model: config.teacher.model.clone(),
                    perplexity: found.unwrap_or(f64::NAN),
                    precision: config.precision,
                });
            };
            writer.measured(MeasuredTeacher {
                held_out: held_out.clone(),
                context: evaluation.context,
                windows: evaluation.windows,
                // With more digits, reading it back from JSON would give a neighbouring number, and a process that
                // continues the work would write other bytes.
                perplexity: (perplexity * 1e9).round() / 1e9,
            })?;
        }
        let teacher = teacher_of_stages(teacher, &student_config, config.precision);
        let sources = text.train[number].sources.clone();
        let batches = Batches::mixed(sources, stage.micro_batch, config.seed)?;
        let work = Shards {
            teacher: &teacher,
            stage,
            context: config.context(stage),
            batches: &batches,
            device,
        };
        let (tokens, seconds) = work.write(&mut writer)?;
        Ok(CachedTeacher {
            stage: stage.name.clone(),
            manifest: writer.manifest().clone(),
            folder: self.folder,
            tokens,
            seconds,
        })
    }

    /// The number, in the list of stages, of the stage that will read the cache.
    fn stage_number(&self) -> Result<usize, TrainError> {
        let stages = &self.config.stages;
        let can = |stage: &StageConfig| matches!(stage.kind, Kind::Predictions(_));
        let mut chosen = vec![];
        for (number, stage) in stages.iter().enumerate() {
            let is_meant = match &self.stage {
                Some(name) => stage.name == *name,
                None => can(stage),
            };
            if is_meant {
                chosen.push(number);
            }
        }
        if let Some(name) = &self.stage {
            self.config.require_stage(name)?;
        }
        if self.config.data.packing == Packing::Documents {
            return Err(TrainError::Mismatch(
                "predictions are written for rows that are one text: set data.packing = \"concatenate\"".into(),
            ));
        }
        match chosen[..] {
            [number] if can(&stages[number]) => Ok(number),
            [number] => Err(TrainError::Mismatch(format!(
                "stage {} is of kind {}, which reads more of the teacher than its predictions; only a stage of kind \
                 predictions can be trained from a cache",
                stages[number].name, stages[number].kind
            ))),
            [] => Err(TrainError::Mismatch(
                "no stage of this run compares predictions; choose one of kind predictions by --stages".into(),
            )),
            _ => Err(TrainError::Mismatch(format!(
                "{} stages compare predictions; say by --stage which of them is to read the cache",
                chosen.len()
            ))),
        }
    }
}

/// The inputs from which shards are computed.
struct Shards<'a, B: KernelBackend> {
    teacher: &'a Phi<B>,
    stage: &'a StageConfig,
    context: usize,
    /// Each batch has `stage.micro_batch` rows.
    batches: &'a Batches,
    device: &'a B::Device,
}

impl<B: KernelBackend> Shards<'_, B> {
    /// Writes the missing shards. Returns the number of their tokens, and the seconds that this took.
    fn write(&self, writer: &mut CacheWriter) -> Result<(u64, f64), TrainError> {
        let missing = writer.missing();
        let all: u64 = missing
            .iter()
            .map(|&index| tokens(&writer.rows_of(index), self.context))
            .sum();
        let (begun, mut said, mut done) = (Instant::now(), Instant::now(), 0);
        for index in missing {
            let rows = writer.rows_of(index);
            let k = writer.manifest().k;
            let top = self.top(rows.clone(), k, |rows| {
                if said.elapsed() >= SAID_EVERY {
                    said = Instant::now();
                    let now = done + rows * self.context as u64;
                    say(format_args!(
                        "{}: {} of {} tokens, {:.0} tokens/s",
                        self.stage.name,
                        HumanCount(now),
                        HumanCount(all),
                        now as f64 / begun.elapsed().as_secs_f64()
                    ));
                }
            })?;
            check::<B>(self.device)?;
            if !top.is_finite() {
                return Err(TrainError::Mismatch(format!(
                    "the teacher's predictions of sequences {} to {} of the text are not finite; choose another \
                     teacher, or another precision",
                    rows.start, rows.end
                )));
            }
            done += tokens(&rows, self.context);
            writer.write(index, &top)?;
        }
        Ok((done, begun.elapsed().as_secs_f64()))
    }

    /// The predictions of `rows` of the endless sequence; `then` is called with the number of rows done.
    fn top(
        &self,
        rows: std::ops::Range<u64>,
        k: usize,
        mut then: impl FnMut(u64),
    ) -> Result<TopK, TrainError> {
        let per_batch = self.batches_rows();
        let context = self.context;
        // The batches that contain these rows; the first and the last may contain other rows too.
        let steps = rows.start / per_batch..rows.end.div_ceil(per_batch);
        let parallel = ParallelPasses::new::<B>((steps.end - steps.start) as usize);
        let mut failure = None;
        let batches = steps.map_while(|step| {
            let batch = self.batches.batch(step);
            let batch = batch.map_err(|error| failure = Some(error)).ok()?;
            let first = step * per_batch;
            let own = rows.start.max(first) - first..rows.end.min(first + per_batch) - first;
            let tokens = own.start as usize * context..own.end as usize * context;
            Some(batch.ids[tokens].to_vec())
        });
        // The parallel passes ask for further batches after the end.
        let batches = batches.fuse();
        let (mut all, mut done) = (TopK::default(), 0);
        parallel.run(
            batches,
            |row_ids| {
                let rows = (row_ids.len() / context) as u64;
                let ids_bl = ids::<B>(&row_ids, context, self.device);
                (rows, top_of_teacher(self.teacher, ids_bl, k))
            },
            |(rows, top)| {
                done += rows;
                all.append(top);
                then(done);
            },
        );
        match failure {
            Some(error) => Err(error.into()),
            None => Ok(all),
        }
    }

    fn batches_rows(&self) -> u64 {
        self.stage.micro_batch as u64
    }
}

fn tokens(rows: &std::ops::Range<u64>, context: usize) -> u64 {
    (rows.end - rows.start) * context as u64
}
