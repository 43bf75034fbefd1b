//! Reads a cache, one shard in memory at a time.

use std::fs;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;

use sha2::{Digest, Sha256};

use super::{CacheKey, CachedPredictions, Manifest, refused, shard_name};
use crate::config::Evaluation;
use crate::error::{TrainError, io_error};

/// A cache that is open for a stage.
#[derive(Debug)]
pub struct TeacherCache {
    folder: PathBuf,
    manifest: Manifest,
    /// The number of ids of each token that are compared separately, at most the number in the cache.
    k: usize,
    /// The shard that was read last: its number and its bytes.
    shard: Mutex<Option<(u64, Arc<Vec<u8>>)>>,
    /// The first damage that the verifying thread has found.
    damage: Mutex<Option<String>>,
}

impl TeacherCache {
    /// Opens the cache in `folder` for a stage with the identity `key`, which reads these `rows` of the endless
    /// sequence and compares the `top_k` likeliest ids of each token separately (0: all that the cache has). Another
    /// thread then verifies the checksums of the shards with these rows, until the cache is dropped.
    ///
    /// # Errors
    /// [`TrainError::TeacherCache`] says why the cache cannot be used for this stage; [`TrainError::Io`].
    pub fn open(
        folder: &Path,
        key: &CacheKey,
        rows: Range<u64>,
        top_k: usize,
    ) -> Result<Arc<Self>, TrainError> {
        let Some(manifest) = Manifest::read(folder)? else {
            let reason = "there is no manifest.json; make it by `train cache-teacher`".to_owned();
            return Err(refused(folder, reason));
        };
        let differences = manifest.key.differences(key);
        if !differences.is_empty() {
            let reason = format!(
                "it was made with {}; make one for this run by `train cache-teacher`",
                differences.join("; ")
            );
            return Err(refused(folder, reason));
        }
        let own = manifest.first_row..manifest.first_row + manifest.rows;
        if rows.start < own.start || rows.end > own.end {
            let reason = format!(
                "it has sequences {} to {} of the text, and the stage reads {} to {}, which follow from the stages \
                 before it, its tokens and its batch; make one with the same of them by `train cache-teacher`",
                own.start, own.end, rows.start, rows.end
            );
            return Err(refused(folder, reason));
        }
        if top_k > manifest.k {
            let (k, vocab_size) = (manifest.k, manifest.key.vocab_size);
            let reason = if top_k > vocab_size {
                format!(
                    "the vocabulary has {vocab_size} tokens, and top_k asks for {top_k}; lower top_k"
                )
            } else {
                format!(
                    "it has the {k} likeliest ids of each token, and top_k asks for {top_k}; lower top_k, or make one \
                     with --k {top_k}"
                )
            };
            return Err(refused(folder, reason));
        }
        let k = if top_k == 0 { manifest.k } else { top_k };
        let cache = Arc::new(Self {
            folder: folder.to_owned(),
            manifest,
            k,
            shard: Mutex::new(None),
            damage: Mutex::new(None),
        });
        let shards = cache.shards_of(&rows);
        for index in shards.clone() {
            cache.check_size(index)?;
        }
        let in_background = Arc::downgrade(&cache);
        thread::spawn(move || compare(&in_background, shards));
        Ok(cache)
    }

    /// The cache's manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// An identity of this cache for the record of a run: the number of ids, the dtype, and the key.
    pub fn identity(&self) -> String {
        let Manifest { key, dtype, .. } = &self.manifest;
        let all = serde_json::json!({"key": key, "k": self.k, "dtype": dtype});
        format!("{:x}", Sha256::digest(all.to_string()))
    }

    /// The teacher's perplexity on a held-out text, measured as `evaluation` says, if it is known.
    pub fn teacher_perplexity(&self, held_out: &str, evaluation: &Evaluation) -> Option<f64> {
        let mut measured = self.manifest.measured.iter();
        let found = measured.find(|measured| measured.is_of(held_out, evaluation));
        found.map(|measured| measured.perplexity)
    }

    /// The predictions for `count` rows of the endless sequence, from row `first` on.
    ///
    /// # Errors
    /// [`TrainError::TeacherCache`] names the damaged shard, or the rows if the cache does not have all of them.
    pub fn rows(&self, first: u64, count: usize) -> Result<CachedPredictions, TrainError> {
        let damage = self.damage.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = &*damage {
            return Err(refused(&self.folder, reason.clone()));
        }
        drop(damage);
        let mut predictions = CachedPredictions::new(&self.manifest, self.k);
        let row_bytes = self.manifest.row_bytes();
        for row in first..first.saturating_add(count as u64) {
            let own = row.checked_sub(self.manifest.first_row);
            let Some(own) = own.filter(|own| *own < self.manifest.rows) else {
                return Err(refused(&self.folder, format!("it has no sequence {row}")));
            };
            let index = own / self.manifest.shard_rows;
            let bytes = self.shard(index)?;
            let at = (own % self.manifest.shard_rows) as usize * row_bytes;
            let row = &bytes[at..at + row_bytes];
            (self.manifest.decode(row, &mut predictions)).map_err(|wrong| {
                let name = shard_name(index);
                refused(&self.folder, format!("{name} has {wrong}; {AGAIN}"))
            })?;
        }
        Ok(predictions)
    }

    fn shards_of(&self, rows: &Range<u64>) -> Range<u64> {
        let own = |row: u64| row - self.manifest.first_row;
        let end = own(rows.end).div_ceil(self.manifest.shard_rows);
        own(rows.start) / self.manifest.shard_rows..end
    }

    /// The bytes of shard `index`, after their checksum was verified.
    fn shard(&self, index: u64) -> Result<Arc<Vec<u8>>, TrainError> {
        let mut kept = self.shard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((number, bytes)) = &*kept
            && *number == index
        {
            return Ok(Arc::clone(bytes));
        }
        // Frees the memory of the shard before, before the next one is read.
        *kept = None;
        let bytes = Arc::new(self.read(index)?);
        *kept = Some((index, Arc::clone(&bytes)));
        Ok(bytes)
    }

    /// Reads shard `index` and verifies its checksum.
    fn read(&self, index: u64) -> Result<Vec<u8>, TrainError> {
        let sha256 = self.check_size(index)?;
        let name = shard_name(index);
        let path = self.folder.join(&name);
        let bytes = fs::read(&path).map_err(io_error(&path))?;
        let has_size = bytes.len() as u64 == self.manifest.shard_bytes(index);
        if has_size && format!("{:x}", Sha256::digest(&bytes)) == sha256 {
            return Ok(bytes);
        }
        let reason = format!(
            "{name} is not what was written: its checksum differs; remove that file, and {AGAIN}"
        );
        Err(refused(&self.folder, reason))
    }

    /// Checks that shard `index` exists and has the right length, and returns its expected checksum.
    fn check_size(&self, index: u64) -> Result<&str, TrainError> {
        let name = shard_name(index);
        let Some(sha256) = self.manifest.shards.get(&name) else {
            let reason = format!(
                "{name} is not made yet: the same `train cache-teacher` that began it makes what is missing"
            );
            return Err(refused(&self.folder, reason));
        };
        let path = self.folder.join(&name);
        match fs::metadata(&path) {
            Ok(file) if file.len() == self.manifest.shard_bytes(index) => Ok(sha256),
            Err(error) if error.kind() != ErrorKind::NotFound => Err(io_error(&path)(error)),
            found => {
                let wrong = match found {
                    Ok(_) => {
                        format!("has another length than it had; remove that file, and {AGAIN}")
                    }
                    Err(_) => format!("is gone; {AGAIN}"),
                };
                Err(refused(&self.folder, format!("{name} {wrong}")))
            }
        }
    }
}

/// Advice on how to repair a cache.
const AGAIN: &str = "the same `train cache-teacher` that made the cache makes it again";

/// Verifies the checksums of `shards` while the cache is in use.
fn compare(cache: &Weak<TeacherCache>, shards: Range<u64>) {
    for index in shards {
        let Some(cache) = cache.upgrade() else {
            return;
        };
        if let Err(error) = cache.read(index) {
            let reason = match error {
                TrainError::TeacherCache { reason, .. } => reason,
                other => other.to_string(),
            };
            *cache.damage.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
            return;
        }
    }
}
