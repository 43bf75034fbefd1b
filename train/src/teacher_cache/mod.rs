//! A teacher's predictions on disk, with which a stage trains without the teacher in memory.
//!
//! # What is kept
//!
//! For each token of the text that the stage reads: the ids of the `k` next tokens that the teacher finds likeliest, in
//! descending order (if several are equally likely, the smallest id first); the natural logarithms of their
//! probabilities, at temperature 1; and the logarithm of the probability of all other ids together.
//! [`top_classes_block`](kernels::top_classes_block) compares a student with these.
//!
//! # The format
//!
//! A cache is a folder. Its sequences are in the order in which the stage reads them: they are the rows `first_row`,
//! `first_row + 1`, ... of the endless sequence of [`Batches`](datasets::Batches), which does not depend on the batch
//! size. `manifest.json` is a [`Manifest`]; each of the files `00000.bin`, `00001.bin`, ... has `shard_rows` rows, and
//! the last file has the rest. A row has, for its `context` tokens `l` in order, in little-endian numbers:
//!
//! ```text
//! ids       [l, k]  2 bytes each where the vocabulary fits, or else 4
//! log_q     [l, k]  f16 (2 bytes) or f32 (4 bytes)
//! log_rest  [l]     f32
//! ```
//!
//! A logarithm `x` in f16 has an error of at most `|x| / 2048`, which is also the relative error of the probability:
//! 0.03% at a probability of one half, 0.4% at 1/10,000. In f32 the error is at most `|x| / 2^24`. Logarithms below
//! -60,000 are written as -60,000.
//!
//! # Kills and damage
//!
//! A shard is written under another name, flushed to the disk, renamed, and then listed in the manifest with its
//! SHA-256. So a process may be killed at any moment, and the same command makes the missing shards. A shard is read
//! completely, and is used only if its checksum is right. When a stage begins, a thread also verifies all shards that
//! the stage will read. The manifest has the identity of the cache ([`CacheKey`]): a cache for anything else is
//! refused, with an error that names the difference.

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
/// The approximate size of a shard, in bytes.
const SHARD_BYTES: usize = 64 << 20;

/// The identity of a cache: everything that its numbers depend on, apart from rounding.
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
    /// The seed, which determines the order of the sequences.
    pub seed: u64,
    /// The number of ids that the predictions cover.
    pub vocab_size: usize,
}

impl CacheKey {
    /// The differences between `self` and the `wanted` key, in words.
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

/// The dtype in which the logarithms are stored.
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
    /// The identity of the cache.
    pub key: CacheKey,
    /// The number of its first row.
    pub first_row: u64,
    /// How many rows it has.
    pub rows: u64,
    /// The number of ids for each token.
    pub k: usize,
    /// Bytes of an id, 2 or 4.
    pub id_bytes: usize,
    /// The dtype in which the logarithms are stored.
    pub dtype: StoredDtype,
    /// Rows of a shard; the last one may have fewer.
    pub shard_rows: u64,
    /// The precision in which the teacher computed, for the record.
    pub precision: String,
    /// The backend, for the record.
    pub backend: String,
    /// The SHA-256 of each shard that is written, by its name.
    pub shards: BTreeMap<String, String>,
    /// Perplexities of the teacher, for runs that do not load it.
    #[serde(default)]
    pub measured: Vec<MeasuredTeacher>,
}

/// A perplexity of the teacher, and the text and windows that it was measured on.
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
    /// Whether this perplexity is of the text `held_out`, measured with the settings `evaluation`.
    pub(crate) fn is_of(&self, held_out: &str, evaluation: &Evaluation) -> bool {
        self.held_out == held_out
            && (self.context, self.windows) == (evaluation.context, evaluation.windows)
    }
}

impl Manifest {
    /// The manifest of a cache without shards, for `rows` rows from `first_row` on.
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

    /// Reads the manifest in `folder`; `None` if there is none.
    fn read(folder: &Path) -> Result<Option<Self>, TrainError> {
        let path = folder.join(MANIFEST);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(io_error(&path))?,
        };
        let manifest: Self = serde_json::from_slice(&bytes)
            .map_err(|error| refused(folder, format!("{MANIFEST}: {error}; {ANEW}")))?;
        if manifest.format != FORMAT {
            return Err(refused(
                folder,
                format!(
                    "its format is {}, and this program reads {FORMAT}; {ANEW}",
                    manifest.format
                ),
            ));
        }
        // These numbers come from a file, so they are checked before they are used in multiplications and divisions.
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
                format!("{MANIFEST} has numbers that no cache has; {ANEW}"),
            ));
        }
        Ok(Some(manifest))
    }
}

/// Advice if nothing of a cache can be used.
const ANEW: &str = "remove the folder, and make the cache again by `train cache-teacher`";

/// The name of the file of shard `index`.
fn shard_name(index: u64) -> String {
    format!("{index:05}.bin")
}

/// The error that the cache in `folder` cannot be used.
fn refused(folder: &Path, reason: String) -> TrainError {
    TrainError::TeacherCache {
        folder: folder.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests;
