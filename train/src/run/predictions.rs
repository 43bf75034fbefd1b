//! The caches of the teacher's predictions that a run's stages read, and which part of a run needs the teacher itself.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::text::first_batch;
use crate::checkpoint::Found;
use crate::config::Config;
use crate::error::TrainError;
use crate::provenance::{self, Provenance};
use crate::teacher_cache::{CacheKey, TeacherCache};

/// Whether a run of `config` computes the teacher in stage `next` of the list or later. The report computes it if the
/// last stage does.
pub(super) fn needs_teacher(config: &Config, next: usize) -> bool {
    let last = config.stages.len().saturating_sub(1);
    let mut left = config.stages[next.min(last)..].iter();
    left.any(|stage| stage.kind.teacher_cache().is_empty())
}

/// The number, in the list, of the stage of the checkpoint `found`; 0 if its stage is not in the list.
pub(super) fn stage_of(found: &Found, names: &[String]) -> usize {
    let of_checkpoint = found.path.file_name().unwrap_or_default();
    let of_checkpoint = of_checkpoint.to_string_lossy();
    let name = of_checkpoint.rsplit_once("-step").map(|(name, _)| name);
    let place = names.iter().position(|stage| Some(stage.as_str()) == name);
    place.unwrap_or_default()
}

/// The rows, of the endless sequence of its text, that stage `number` of the list reads; `texts` identify the stages'
/// texts.
pub(super) fn rows_of(config: &Config, texts: &[&str], number: usize) -> Range<u64> {
    let stage = &config.stages[number];
    let batch = stage.batch as u64;
    let first = first_batch(config, texts, number) * batch;
    first..first + config.steps(stage) as u64 * batch
}

/// The key that the cache of stage `number` of the list must have, for predictions over `vocab_size` ids.
pub(super) fn key_of(
    config: &Config,
    made_from: &Provenance,
    vocab_size: usize,
    number: usize,
) -> CacheKey {
    let stage = &config.stages[number];
    let text = made_from.texts.get(&stage.name);
    CacheKey {
        teacher: made_from.teacher.clone(),
        tokenizer: made_from.tokenizer.clone(),
        text: text.map(|text| text.sha256.clone()).unwrap_or_default(),
        context: config.context(stage),
        seed: config.seed,
        vocab_size,
    }
}

/// An identity for the text of each stage.
pub(super) fn texts<'a>(config: &Config, made_from: &'a Provenance) -> Vec<&'a str> {
    let stages = config.stages.iter();
    let text = |name: &str| Some(made_from.texts.get(name)?.sha256.as_str());
    stages
        .map(|stage| text(&stage.name).unwrap_or_default())
        .collect()
}

/// Opens the caches of stage `next` and later ones; earlier stages are done.
///
/// # Errors
/// [`TrainError::TeacherCache`].
pub(super) fn open(
    config: &Config,
    made_from: &Provenance,
    vocab_size: usize,
    next: usize,
) -> Result<Vec<Option<Arc<TeacherCache>>>, TrainError> {
    let texts = texts(config, made_from);
    let stages = config.stages.iter().enumerate();
    let cache = stages.map(|(number, stage)| match stage.kind.teacher_cache() {
        "" => Ok(None),
        _ if number < next => Ok(None),
        folder => {
            let key = key_of(config, made_from, vocab_size, number);
            let rows = rows_of(config, &texts, number);
            let top_k = stage.kind.cached_ids();
            TeacherCache::open(Path::new(folder), &key, rows, top_k).map(Some)
        }
    });
    cache.collect()
}

/// The teacher's perplexity on the held-out text, for a run that does not load the teacher.
///
/// # Errors
/// [`TrainError::TeacherCache`] if none of the `caches` knows it.
pub(super) fn teacher_perplexity(
    config: &Config,
    caches: &[Option<Arc<TeacherCache>>],
    held_out: &provenance::Text,
) -> Result<f64, TrainError> {
    let mut caches_of = caches.iter().flatten();
    let known =
        |cache: &Arc<TeacherCache>| cache.teacher_perplexity(&held_out.sha256, &config.evaluation);
    caches_of.find_map(known).ok_or_else(|| {
        let stages = config.stages.iter();
        let mut folders = stages.map(|stage| stage.kind.teacher_cache());
        let folder = folders.find(|folder| !folder.is_empty());
        TrainError::TeacherCache {
            folder: folder.unwrap_or_default().into(),
            reason: "the teacher is not loaded, and its perplexity on this held-out text (data.validation, \
                     evaluation.context, evaluation.windows) is not in the cache; the same `train cache-teacher` with \
                     the run's values of these keys measures it"
                .to_owned(),
        }
    })
}
