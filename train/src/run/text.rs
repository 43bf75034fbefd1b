//! The text of a run, as windows of tokens: where its tokens are kept, and which stages share it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use datasets::{PrepareOptions, Split, TokenShards, TokenWindows, Tokenizer};
use model::atomic_file;

use crate::config::{Config, ConfigError, resolve_path};
use crate::error::TrainError;
use crate::provenance;

/// The text of a run.
pub(super) struct Text {
    /// For each stage of the list, what it trains on.
    pub(super) train: Vec<StageText>,
    /// What no stage trains on.
    pub(super) held_out: TokenWindows,
    /// The same, as it is known again.
    pub(super) held_out_is: provenance::Text,
    /// Training tokens, over all different texts.
    pub(super) training_tokens: u64,
    /// Lines that were left out since they hold no document, over all different texts and the held-out one.
    pub(super) skipped_lines: u64,
}

/// What a stage trains on.
#[derive(Clone)]
pub(super) struct StageText {
    pub(super) windows: TokenWindows,
    /// By which it is known again.
    pub(super) is: provenance::Text,
}

/// The training windows of every stage, and the held-out ones.
pub(super) fn text(config: &Config, tokenizer: &Tokenizer) -> Result<Text, TrainError> {
    let cache = cache(config)?;
    let prepare = |name, key: &str, paths: &[String], split| {
        let shards = TokenShards::prepare(&PrepareOptions {
            name,
            sources: resolved(paths)?,
            split,
            tokenizer,
            cache: cache.clone(),
            skip_bad_lines: config.data.skip_bad_lines,
        })?;
        let is = provenance::Text::of(key, &shards)?;
        Ok::<_, TrainError>((Arc::new(shards), is))
    };
    // Without held-out text in the configuration, one document in a hundred is held out, of a stage's own
    // text too, since that may be a part of the same.
    let per_mille = 10;
    let (train_split, held_out_key, held_out, held_out_split) = match &config.data.validation[..] {
        [] => (
            Split::Train { per_mille },
            "data.train",
            &config.data.train,
            Split::HeldOut { per_mille },
        ),
        _ => (
            Split::All,
            "data.validation",
            &config.data.validation,
            Split::All,
        ),
    };
    let mut prepared: HashMap<&[String], (Arc<TokenShards>, provenance::Text)> = HashMap::new();
    let mut train: Vec<StageText> = vec![];
    let (mut training_tokens, mut skipped_lines) = (0, 0);
    for stage in &config.stages {
        let paths = config.text(stage);
        let (shards, is) = match prepared.get(paths) {
            Some(known) => known.clone(),
            None => {
                let key = match &stage.data[..] {
                    [] => "data.train".to_owned(),
                    _ => format!("{}.data", stage.name),
                };
                let new = prepare("train", &key, paths, train_split)?;
                // The same in other words is the same.
                if prepared
                    .values()
                    .all(|(_, known)| known.sha256 != new.1.sha256)
                {
                    training_tokens += new.0.tokens();
                    skipped_lines += new.0.manifest().skipped;
                }
                prepared.insert(paths, new.clone());
                new
            }
        };
        let windows = TokenWindows::new(shards, config.context(stage))?;
        train.push(StageText { windows, is });
    }
    let (held_out, held_out_is) = prepare("validation", held_out_key, held_out, held_out_split)?;
    // A part that is held out of the training text has that one's bad lines.
    if !config.data.validation.is_empty() {
        skipped_lines += held_out.manifest().skipped;
    }
    Ok(Text {
        train,
        held_out: TokenWindows::new(held_out, config.evaluation.context)?,
        held_out_is,
        training_tokens,
        skipped_lines,
    })
}

fn resolved(paths: &[String]) -> Result<Vec<PathBuf>, ConfigError> {
    paths.iter().map(|path| resolve_path(path)).collect()
}

/// The folder for tokens, which can be written.
///
/// # Errors
/// [`TrainError::NoCache`] and [`TrainError::Cache`], which name the key that chooses another.
fn cache(config: &Config) -> Result<PathBuf, TrainError> {
    let cache = match config.data.cache.as_str() {
        "" => users_cache(dirs::cache_dir())?,
        path => PathBuf::from(path),
    };
    // Now, and not when the first text is tokenised.
    match atomic_file::check(&cache.join("probe")) {
        Ok(()) => Ok(cache),
        Err(source) => Err(TrainError::Cache {
            path: cache,
            source,
        }),
    }
}

/// The folder for tokens in the user's cache folder.
///
/// A relative one would be another in every working directory, and one in the system's temporary folder could be
/// that of whoever made it first.
fn users_cache(users: Option<PathBuf>) -> Result<PathBuf, TrainError> {
    match users.filter(|folder| folder.is_absolute()) {
        Some(folder) => Ok(folder.join("mohawk")),
        None => Err(TrainError::NoCache),
    }
}

/// Where the data of stage `number` of the list begins: after the sequences of the stages before it that have
/// the same text and context, up to whole batches, so that no text is seen again before all of it was dealt out.
/// Text that is cut into sequences of another length is dealt out in another order, from its first sequence.
/// `texts` has what tells one text from another, for each stage.
pub(super) fn first_batch(config: &Config, texts: &[&str], number: usize) -> u64 {
    let stage = &config.stages[number];
    let before = config.stages[..number].iter().zip(texts);
    let sequences: usize = before
        .filter(|(other, text)| {
            **text == texts[number] && config.context(other) == config.context(stage)
        })
        .map(|(other, _)| config.steps(other) * other.batch)
        .sum();
    sequences.div_ceil(stage.batch) as u64
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Source;

    /// The sequences that each stage sees, of all that are ever dealt out of its text.
    fn sequences(config: &Config, texts: &[&str; 3]) -> Vec<std::ops::Range<u64>> {
        let ranges = config.stages.iter().enumerate().map(|(number, stage)| {
            let batch = stage.batch as u64;
            let first = first_batch(config, texts, number);
            first * batch..(first + config.steps(stage) as u64) * batch
        });
        ranges.collect()
    }

    fn load(overrides: &[&str]) -> Config {
        let overrides: Vec<_> = overrides.iter().map(|text| text.to_string()).collect();
        Config::load(Source::Preset("tiny"), &overrides).unwrap()
    }

    #[test]
    fn no_stage_repeats_the_data_of_another() {
        let same = ["a", "a", "a"];
        assert_eq!(
            sequences(&load(&[]), &same),
            [0..160, 160..2160, 2160..5200]
        );

        // Stages that are left out take no data; another batch size begins at a whole batch.
        let mut odd = load(&["stage3.batch=12", "stage3.tokens=30720"]);
        odd.choose_stages(&["stage2", "stage3"].map(str::to_owned))
            .unwrap();
        assert_eq!(sequences(&odd, &same), [0..2000, 2004..2124]);
    }

    #[test]
    fn other_text_and_other_lengths_begin_at_their_beginning() {
        let longer = load(&["stage2.context=512"]);
        let same = ["a", "a", "a"];
        assert_eq!(sequences(&longer, &same), [0..160, 0..1000, 160..3200]);
        let other = ["b", "a", "b"];
        assert_eq!(sequences(&load(&[]), &other), [0..160, 0..2000, 160..3200]);
    }

    #[test]
    fn there_is_no_cache_without_a_home() {
        for users in [None, Some(PathBuf::from("relative/.cache"))] {
            let message = users_cache(users).unwrap_err().to_string();
            assert!(message.contains("data.cache"), "{message}");
        }
        let users = users_cache(Some("/home/me/.cache".into())).unwrap();
        assert_eq!(users, Path::new("/home/me/.cache/mohawk"));
        // One that cannot be made.
        let cache = "data.cache=/dev/null/cache".to_owned();
        let config = Config::load(Source::Preset("tiny"), &[cache]).unwrap();
        let message = self::cache(&config).unwrap_err().to_string();
        assert!(
            message.contains("data.cache") && message.contains("/dev/null"),
            "{message}"
        );
    }
}
