//! A teacher's predictions on disk, of which a stage trains without the teacher in memory.
//!
//! # What is kept
//!
//! Of each token of the text that the stage reads: the ids of the `k` next tokens that the teacher finds likeliest, the
//! likeliest first and of equal ones the smallest id; the logarithms of their probabilities, at temperature 1; and the
//! logarithm of the probability of all other ids together. That is what
//! [`top_classes_block`](kernels::top_classes_block) compares a student with.
//!
//! # The format
//!
//! A cache is a folder. Its sequences have the order in which the stage reads them: they are rows `first_row`,
//! `first_row + 1`, ... of the endless sequence of [`Batches`](datasets::Batches), which does not depend on the batch
//! size. `manifest.json` is a [`Manifest`]; the files `00000.bin`, `00001.bin`, ... have `shard_rows` rows each, the last
//! one the rest. A row is, for its `context` tokens `l` in order, in little-endian numbers:
//!
//! ```text
//! ids       [l, k]  2 bytes each where the vocabulary fits, or else 4
//! log_q     [l, k]  f16 (2 bytes) or f32 (4 bytes)
//! log_rest  [l]     f32
//! ```
//!
//! A logarithm `x` in f16 is off by at most `|x| / 2048`, so the probability by that share of itself: 0.03% at a
//! probability of one half, 0.4% at one of 1/10,000. In f32 it is off by `|x| / 2^24`. What is below -60,000 is written
//! as that.
//!
//! # What may happen to it
//!
//! A shard is written under another name, brought to the disk and renamed, and then listed in the manifest with its
//! SHA-256; so a process may be killed at any moment, and the same command makes the shards that are missing. A shard is
//! read whole, and used only if it has its checksum. A thread compares all that a stage will read when the stage begins.
//! The manifest has what the cache is of ([`CacheKey`]), and one that is of anything else is refused by its name.

mod reader;
mod rows;
mod top_k;
mod writer;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use reader::TeacherCache;
pub use rows::CachedPredictions;
pub(crate) use top_k::TopK;
pub(crate) use writer::CacheWriter;

use crate::config::Evaluation;
use crate::error::{TrainError, io_error};

/// The version of the layout above and of what is kept.
const FORMAT: u32 = 1;
/// The manifest's file.
const MANIFEST: &str = "manifest.json";
/// Bytes of a shard, about.
const SHARD_BYTES: usize = 64 << 20;

/// What a cache is of: all that its numbers follow from, but for roundings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheKey {
    /// The SHA-256 of each file of the teacher, by its name.
    pub teacher: BTreeMap<String, String>,
    /// The SHA-256 of the tokenizer's file.
    pub tokenizer: String,
    /// The SHA-256 of the text's tokens.
    pub text: String,
    /// Tokens of a sequence.
    pub context: usize,
    /// The seed, which the order of the sequences follows from.
    pub seed: u64,
    /// How many ids the predictions are of.
    pub vocab_size: usize,
}

impl CacheKey {
    /// What of `self` is not what is `wanted`, in words.
    fn differences(&self, wanted: &Self) -> Vec<String> {
        let mut differences = vec![];
        if self.teacher != wanted.teacher {
            let mut names = self.teacher.keys().chain(wanted.teacher.keys());
            let differs = |name: &&String| self.teacher.get(*name) != wanted.teacher.get(*name);
            let name = names.find(differs).map_or("", String::as_str);
            differences.push(format!("another teacher ({name} differs)"));
        }
        if self.tokenizer != wanted.tokenizer {
            differences.push("another tokenizer".to_owned());
        }
        if self.text != wanted.text {
            differences.push("another text, or another mixture of texts".to_owned());
        }
        for (what, of_cache, of_stage) in [
            ("context", self.context as u64, wanted.context as u64),
            ("seed", self.seed, wanted.seed),
            (
                "vocabulary",
                self.vocab_size as u64,
                wanted.vocab_size as u64,
            ),
        ] {
            if of_cache != of_stage {
                differences.push(format!(
                    "a {what} of {of_cache}, where it is {of_stage} here"
                ));
            }
        }
        differences
    }
}

/// What the logarithms are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoredDtype {
    /// Two bytes.
    F16,
    /// Four bytes.
    F32,
}

impl StoredDtype {
    fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// A cache's `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the layout.
    pub format: u32,
    /// What the cache is of.
    pub key: CacheKey,
    /// The number of its first row.
    pub first_row: u64,
    /// How many rows it has.
    pub rows: u64,
    /// Ids of each token.
    pub k: usize,
    /// Bytes of an id, 2 or 4.
    pub id_bytes: usize,
    /// What the logarithms are kept in.
    pub dtype: StoredDtype,
    /// Rows of a shard; the last one may have fewer.
    pub shard_rows: u64,
    /// What the teacher computed in, for the record.
    pub precision: String,
    /// What computed, for the record.
    pub backend: String,
    /// The SHA-256 of each shard that is written, by its name.
    pub shards: BTreeMap<String, String>,
    /// Perplexities of the teacher, for runs that do not load it.
    #[serde(default)]
    pub measured: Vec<MeasuredTeacher>,
}

/// A perplexity of the teacher, and of what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MeasuredTeacher {
    /// The SHA-256 of the held-out text's tokens.
    pub held_out: String,
    /// Tokens of a window.
    pub context: usize,
    /// Windows; 0 for all.
    pub windows: usize,
    /// The teacher's perplexity.
    pub perplexity: f64,
}

impl MeasuredTeacher {
    /// Whether it is of this text, measured as `evaluation` says.
    pub(crate) fn is_of(&self, held_out: &str, evaluation: &Evaluation) -> bool {
        self.held_out == held_out
            && (self.context, self.windows) == (evaluation.context, evaluation.windows)
    }
}

impl Manifest {
    /// That of a cache without shards yet: of `rows` rows from `first_row` on.
    pub(crate) fn new(
        key: CacheKey,
        (first_row, rows): (u64, u64),
        k: usize,
        dtype: StoredDtype,
    ) -> Self {
        let id_bytes = if key.vocab_size <= 1 << 16 { 2 } else { 4 };
        let mut manifest = Self {
            format: FORMAT,
            key,
            first_row,
            rows,
            k,
            id_bytes,
            dtype,
            shard_rows: 1,
            precision: String::new(),
            backend: String::new(),
            shards: BTreeMap::new(),
            measured: vec![],
        };
        manifest.shard_rows = (SHARD_BYTES / manifest.row_bytes()).max(1) as u64;
        manifest
    }

    /// Bytes on the disk of a token.
    pub fn token_bytes(&self) -> usize {
        self.k * (self.id_bytes + self.dtype.bytes()) + size_of::<f32>()
    }

    fn row_bytes(&self) -> usize {
        self.key.context * self.token_bytes()
    }

    fn shard_count(&self) -> u64 {
        self.rows.div_ceil(self.shard_rows)
    }

    /// The rows of shard `index`, counted from the first of the cache.
    fn shard(&self, index: u64) -> std::ops::Range<u64> {
        let first = index * self.shard_rows;
        first..(first + self.shard_rows).min(self.rows)
    }

    fn shard_bytes(&self, index: u64) -> u64 {
        let rows = self.shard(index);
        (rows.end - rows.start) * self.row_bytes() as u64
    }

    /// Reads that of `folder`; `None` if there is none.
    fn read(folder: &Path) -> Result<Option<Self>, TrainError> {
        let path = folder.join(MANIFEST);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(io_error(&path))?,
        };
        let manifest: Self = serde_json::from_slice(&bytes)
            .map_err(|error| refused(folder, format!("{MANIFEST}: {error}")))?;
        if manifest.format != FORMAT {
            return Err(refused(
                folder,
                format!(
                    "its format is {}, and this program reads {FORMAT}; make it again",
                    manifest.format
                ),
            ));
        }
        // Numbers of a file: what follows multiplies and divides by them.
        let Self {
            k,
            shard_rows,
            rows,
            ..
        } = manifest;
        let context = manifest.key.context;
        let of_row = context.checked_mul(k.saturating_mul(8).saturating_add(4));
        let all = of_row.and_then(|bytes| rows.checked_mul(bytes as u64));
        if k == 0
            || k > manifest.key.vocab_size
            || context == 0
            || rows == 0
            || shard_rows == 0
            || shard_rows.checked_add(rows).is_none()
            || ![2, 4].contains(&manifest.id_bytes)
            || manifest.first_row.checked_add(rows).is_none()
            || all.is_none()
        {
            return Err(refused(
                folder,
                format!("{MANIFEST} has numbers that no cache has; make it again"),
            ));
        }
        Ok(Some(manifest))
    }
}

/// The name of the file of shard `index`.
fn shard_name(index: u64) -> String {
    format!("{index:05}.bin")
}

/// That the cache in `folder` cannot be used.
fn refused(folder: &Path, reason: String) -> TrainError {
    TrainError::TeacherCache {
        folder: folder.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests;
