//! Tokenising ahead of a run.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use datasets::{Share, TokenShards, Tokenizer};
use indicatif::HumanCount;
use model::Hub;

use super::text::{Texts, corpora};
use super::{inputs, sources};
use crate::config::{Config, resolve_path};
use crate::error::TrainError;

/// A text that is tokenised, or one worker's share of it.
pub struct Prepared {
    /// The key of the configuration that lists it.
    key: String,
    /// The shards; `None` if the share of this worker is empty.
    shards: Option<TokenShards>,
    seconds: f64,
}

impl fmt::Display for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(shards) = &self.shards else {
            return write!(f, "{}: no file is for this worker", self.key);
        };
        let manifest = shards.manifest();
        write!(
            f,
            "{}: {} documents, {} tokens of {} bytes",
            self.key,
            HumanCount(manifest.documents),
            HumanCount(manifest.tokens),
            manifest.token_bytes,
        )?;
        for (count, what) in [
            (manifest.duplicates, "duplicates dropped"),
            (manifest.skipped, "bad lines skipped"),
        ] {
            if count > 0 {
                write!(f, ", {} {what}", HumanCount(count))?;
            }
        }
        let folders = shards.folders().len();
        let more = if folders > 1 {
            format!(" and {} more folders beside it", folders - 1)
        } else {
            String::new()
        };
        write!(
            f,
            ", in {:.1} s: {}{more}",
            self.seconds,
            shards.folder().display()
        )
    }
}

/// Tokenises the texts that the run of `config` would tokenise, training text and held-out text, or one worker's
/// `share` of them. Texts that are tokenised already are only opened. Needs neither the teacher's weights nor a device.
///
/// # Errors
/// [`TrainError`]: of the configuration, the tokenizer, the text, the hub and the cache.
pub fn prepare(mut config: Config, share: Option<Share>) -> Result<Vec<Prepared>, TrainError> {
    config.validate()?;
    config = config.with_absolute_paths();
    sources::settle(&mut config)?;
    let tokenizer = Arc::new(tokenizer(&config)?);
    let texts = Texts::new(&config, &tokenizer)?;
    let prepared = corpora(&config).into_iter().map(|corpus| {
        let begun = Instant::now();
        let options = texts.options(&corpus)?;
        let shards = match share {
            Some(share) => TokenShards::prepare_share(&options, share)?,
            None => Some(TokenShards::prepare(&options)?),
        };
        Ok(Prepared {
            key: corpus.key,
            shards,
            seconds: begun.elapsed().as_secs_f64(),
        })
    });
    prepared.collect()
}

/// The tokenizer of a run, without its teacher: for a model on the hub, no other file is fetched.
fn tokenizer(config: &Config) -> Result<Tokenizer, TrainError> {
    let model = &config.teacher.model;
    let place = match config.data.tokenizer.as_str() {
        "" => match (resolve_path(model), Hub::from_env()) {
            (Ok(folder), _) => folder,
            (Err(_), Ok(hub)) if !model.contains(':') => match hub.tokenizer(model) {
                Ok(file) => file,
                // This call returns an error that says what is wrong with the name.
                Err(_) => inputs::teacher_folder(model, None)?,
            },
            _ => inputs::teacher_folder(model, None)?,
        },
        path => resolve_path(path)?,
    };
    inputs::tokenizer_at(&place)
}
