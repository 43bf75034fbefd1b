//! The text of a run, as windows of tokens: where its tokens are kept, and which stages share it.

use std::path::PathBuf;
use std::sync::Arc;

use datasets::probes::{Probe, RecallText};
use datasets::{
    DataError, IncomingShards, IncomingWindows, PrepareOptions, Source, Split, TokenShards,
    TokenWindows, Tokenizer, Windows,
};
use model::atomic_file;
use sha2::{Digest, Sha256};

use super::sources;
use crate::config::{Config, TextSource};
use crate::error::TrainError;
use crate::provenance;

/// The text of a run.
pub(super) struct Text {
    /// For each stage of the list, what it trains on.
    pub(super) train: Vec<StageText>,
    /// The held-out text, which no stage trains on.
    pub(super) held_out: TokenWindows,
    /// The identity of the held-out text.
    pub(super) held_out_is: provenance::Text,
    /// Training tokens, over all different texts. Texts that are tokenised while they are read are not counted.
    pub(super) training_tokens: u64,
    /// Lines that were skipped because they hold no document, over all different texts and the held-out text. Texts
    /// that are tokenised while they are read are not counted.
    pub(super) skipped_lines: u64,
}

impl Text {
    /// The first windows of the first stage's text, from its first source that is not generated; the held-out windows
    /// if all of it is generated.
    pub(super) fn first_windows(&self) -> Result<TokenWindows, TrainError> {
        for (windows, _) in &self.train[0].sources {
            if let Some(first) = windows.first()? {
                return Ok(first);
            }
        }
        Ok(self.held_out.clone())
    }

    /// A remark that some tokens are not counted, if there are any.
    pub(super) fn more_tokens(&self) -> &'static str {
        if self.train.iter().any(StageText::is_incoming) {
            " and those that are fetched"
        } else {
            ""
        }
    }
}

/// The training text of a stage.
#[derive(Clone)]
pub(super) struct StageText {
    /// Its sources and their weights.
    pub(super) sources: Vec<(Windows, f64)>,
    /// The identity of the text.
    pub(super) is: provenance::Text,
}

impl StageText {
    /// Whether a part of it may not be on this machine yet.
    pub(super) fn is_incoming(&self) -> bool {
        let mut sources = self.sources.iter();
        sources.any(|(windows, _)| matches!(windows, Windows::Incoming(_)))
    }
}

/// The tokens of one source, or of several that are one text.
#[derive(Clone)]
enum Tokens {
    Whole(Arc<TokenShards>),
    /// Fetched and tokenised while they are read.
    Incoming(Arc<IncomingShards>),
    /// Documents of these probes, generated while they are read.
    Made(Arc<Tokenizer>, Vec<Probe>),
}

impl Tokens {
    fn windows(&self, context: usize) -> Result<Windows, TrainError> {
        Ok(match self {
            Self::Whole(shards) => TokenWindows::new(Arc::clone(shards), context)?.into(),
            Self::Incoming(shards) => IncomingWindows::new(Arc::clone(shards), context)?.into(),
            Self::Made(tokenizer, probes) => {
                RecallText::new(Arc::clone(tokenizer), probes.clone(), context)?.into()
            }
        })
    }
}

/// The tokens of a list of sources.
#[derive(Clone)]
struct Tokenised {
    parts: Vec<(Tokens, f64)>,
    is: provenance::Text,
}

/// Sources that are tokenised as one text.
pub(super) struct Corpus<'a> {
    /// The purpose of its tokens.
    pub(super) name: &'static str,
    /// The key of the configuration that lists it.
    pub(super) key: String,
    pub(super) sources: &'a [TextSource],
    pub(super) split: Split,
}

/// What the texts of a run are tokenised with.
pub(super) struct Texts<'a> {
    config: &'a Config,
    tokenizer: &'a Arc<Tokenizer>,
    cache: PathBuf,
}

impl<'a> Texts<'a> {
    pub(super) fn new(
        config: &'a Config,
        tokenizer: &'a Arc<Tokenizer>,
    ) -> Result<Self, TrainError> {
        Ok(Self {
            config,
            tokenizer,
            cache: cache(config)?,
        })
    }

    /// How `corpus` is tokenised.
    pub(super) fn options(&self, corpus: &Corpus) -> Result<PrepareOptions<'a>, TrainError> {
        let sources: Vec<Source> = sources::resolved(corpus.sources)?;
        Ok(PrepareOptions {
            split: corpus.split,
            skip_bad_lines: self.config.data.skip_bad_lines,
            drop_duplicates: self.config.data.drop_duplicates,
            ..PrepareOptions::new(corpus.name, sources, self.tokenizer, &self.cache)
        })
    }

    fn whole(&self, corpus: &Corpus) -> Result<(Arc<TokenShards>, provenance::Text), TrainError> {
        let shards = TokenShards::prepare(&self.options(corpus)?)?;
        let is = provenance::Text::of(&corpus.key, &shards)?;
        Ok((Arc::new(shards), is))
    }

    /// The tokens of `corpus`. If a part of it has to be fetched, that work begins, and the tokens come while they are
    /// read.
    fn tokens(&self, corpus: &Corpus) -> Result<(Tokens, provenance::Text), TrainError> {
        // A source that is fetched or made is always alone in its corpus: its list has weights or no other source.
        if let [source] = corpus.sources
            && let Some(probes) = source.probes()
        {
            let tokenizer = Arc::clone(self.tokenizer);
            let key = RecallText::new(Arc::clone(&tokenizer), probes.clone(), 1)?.key();
            let is = provenance::Text {
                key: corpus.key.clone(),
                tokens: source.path.clone(),
                sha256: format!("{:x}", Sha256::digest(key)),
            };
            return Ok((Tokens::Made(tokenizer, probes), is));
        }
        if corpus
            .sources
            .iter()
            .all(|source| source.on_hub().is_none())
        {
            let (shards, is) = self.whole(corpus)?;
            return Ok((Tokens::Whole(shards), is));
        }
        let options = self.options(corpus)?;
        let shards = IncomingShards::start(&options, Arc::clone(self.tokenizer))?;
        let is = provenance::Text {
            key: corpus.key.clone(),
            tokens: self.cache.to_string_lossy().into_owned(),
            sha256: shards.key().to_owned(),
        };
        Ok((Tokens::Incoming(Arc::new(shards)), is))
    }

    /// The tokens of the list `sources`, which is the value of `key` in the configuration.
    fn tokenised(
        &self,
        key: &str,
        sources: &[TextSource],
        split: Split,
    ) -> Result<Tokenised, TrainError> {
        let mut parts = vec![];
        let mut texts = vec![];
        for (sources, weight) in weighted(sources) {
            let (tokens, is) = self.tokens(&Corpus {
                name: TRAIN,
                key: key.to_owned(),
                sources,
                split,
            })?;
            parts.push((tokens, weight));
            texts.push((is, weight));
        }
        Ok(Tokenised {
            parts,
            is: mixture(texts),
        })
    }
}

/// The name of tokens to train on.
const TRAIN: &str = "train";
/// The name of tokens that are held out.
const VALIDATION: &str = "validation";

/// Divides a list into separate texts with weights: each source, if any has a weight, or all sources together.
fn weighted(sources: &[TextSource]) -> Vec<(&[TextSource], f64)> {
    if sources.iter().all(|source| source.weight.is_none()) {
        return vec![(sources, 1.0)];
    }
    let parts = sources.chunks(1);
    parts
        .map(|part| (part, part[0].weight.unwrap_or(1.0)))
        .collect()
}

/// The identity of a mixture of texts: its texts and their weights.
fn mixture(mut texts: Vec<(provenance::Text, f64)>) -> provenance::Text {
    if texts.len() == 1 {
        return texts.remove(0).0;
    }
    let lines = texts
        .iter()
        .map(|(text, weight)| format!("{weight} {}\n", text.sha256));
    let sha256 = format!("{:x}", Sha256::digest(lines.collect::<String>()));
    provenance::Text {
        sha256,
        ..texts.remove(0).0
    }
}

/// The split of the training texts, and the held-out text. If the configuration has no held-out text, one document in a
/// hundred is held out. This also applies to a stage's own text, which may overlap with the others.
fn held_out(config: &Config) -> (Split, Corpus<'_>) {
    let per_mille = 10;
    let (split, key, sources, held_out) = match &config.data.validation[..] {
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
    let corpus = Corpus {
        name: VALIDATION,
        key: key.to_owned(),
        sources,
        split: held_out,
    };
    (split, corpus)
}

/// The different lists of training text, with the key of the first stage that has each.
fn lists(config: &Config) -> Vec<(String, &[TextSource])> {
    let mut lists: Vec<(String, &[TextSource])> = vec![];
    for stage in &config.stages {
        let sources = config.text(stage);
        if lists.iter().all(|(_, known)| *known != sources) {
            let key = match &stage.data[..] {
                [] => "data.train".to_owned(),
                _ => format!("{}.data", stage.name),
            };
            lists.push((key, sources));
        }
    }
    lists
}

/// Everything that the run of `config` tokenises.
pub(super) fn corpora(config: &Config) -> Vec<Corpus<'_>> {
    let (split, held_out) = held_out(config);
    let train = lists(config).into_iter().flat_map(|(key, sources)| {
        let parts = weighted(sources).into_iter();
        let parts = parts.filter(|(sources, _)| sources.iter().all(|s| s.probes().is_none()));
        parts.map(move |(sources, _)| Corpus {
            name: TRAIN,
            key: key.clone(),
            sources,
            split,
        })
    });
    train.chain([held_out]).collect()
}

/// The training windows of every stage, and the held-out ones.
pub(super) fn text(config: &Config, tokenizer: &Arc<Tokenizer>) -> Result<Text, TrainError> {
    let texts = Texts::new(config, tokenizer)?;
    let (split, held_out_corpus) = held_out(config);
    let mut prepared: Vec<(&[TextSource], Tokenised)> = vec![];
    let (mut training_tokens, mut skipped_lines) = (0, 0);
    for (key, sources) in lists(config) {
        let new = texts.tokenised(&key, sources, split)?;
        // Lists that are written differently may be the same text.
        let is_known = |(_, known): &(_, Tokenised)| known.is.sha256 == new.is.sha256;
        if !prepared.iter().any(is_known) {
            for (tokens, _) in &new.parts {
                if let Tokens::Whole(shards) = tokens {
                    training_tokens += shards.tokens();
                    skipped_lines += shards.manifest().skipped;
                }
            }
        }
        prepared.push((sources, new));
    }
    let mut train = vec![];
    for stage in &config.stages {
        let list = config.text(stage);
        let tokens = prepared.iter().find(|(sources, _)| *sources == list);
        let (_, tokens) = tokens.expect("every list was prepared");
        let windows = tokens.parts.iter().map(|(tokens, weight)| {
            let windows = tokens.windows(config.context(stage));
            let of = format!("the text of {}", stage.name);
            let windows = windows.map_err(|error| too_short(error, &of))?;
            Ok((windows, *weight))
        });
        train.push(StageText {
            sources: windows.collect::<Result<_, TrainError>>()?,
            is: tokens.is.clone(),
        });
    }
    let (held_out, held_out_is) = texts.whole(&held_out_corpus)?;
    // If the held-out text is a part of the training text, its skipped lines are counted there.
    if !config.data.validation.is_empty() {
        skipped_lines += held_out.manifest().skipped;
    }
    let held_out = TokenWindows::new(held_out, config.evaluation.context);
    let of = "the held-out text (data.validation, evaluation.context)";
    let held_out = held_out.map_err(|error| too_short(error.into(), of))?;
    Ok(Text {
        train,
        held_out,
        held_out_is,
        training_tokens,
        skipped_lines,
    })
}

/// `error`; if a text is too short, it says which one.
fn too_short(error: TrainError, of: &str) -> TrainError {
    match error {
        TrainError::Data(error @ DataError::TooShort { .. }) => {
            TrainError::Mismatch(format!("{of}: {error}"))
        }
        other => other,
    }
}

/// The folder for tokens, after a check that it can be written.
///
/// # Errors
/// [`TrainError::NoCache`] and [`TrainError::Cache`], which name the key that chooses another.
pub(super) fn cache(config: &Config) -> Result<PathBuf, TrainError> {
    let cache = match config.data.cache.as_str() {
        "" => users_cache(dirs::cache_dir())?,
        path => PathBuf::from(path),
    };
    // Checked now, and not when the first text is tokenised.
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
/// A relative path would be another folder in every working directory, and a folder in the system's temporary folder
/// could belong to another user, who made it first.
fn users_cache(users: Option<PathBuf>) -> Result<PathBuf, TrainError> {
    match users.filter(|folder| folder.is_absolute()) {
        Some(folder) => Ok(folder.join("mohawk")),
        None => Err(TrainError::NoCache),
    }
}

/// The batch at which stage `number` of the list begins in its text. It comes after the sequences of earlier stages
/// with the same text and context, rounded up to whole batches, so that no text is read again before all of it was read
/// once. For another sequence length the text is cut and shuffled anew, and begins with its first sequence. `texts` has
/// an identity for the text of each stage.
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
mod tests;
