//! One folder of shards: the ids of a group of files.

use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::shard::Shard;
use super::{FORMAT, MANIFEST, Manifest, shard_name};
use crate::error::{DataError, Result, cannot};

/// The size of the shards of a folder up to which they are verified when it is opened, which takes a fraction of a
/// second.
pub(crate) const VERIFIED_AT_OPEN: u64 = 64 << 20;

/// What the manifest of a folder with a damaged shard is called, so that the folder is made again.
const DAMAGED: &str = "manifest.damaged.json";

/// The shards in a folder, and their manifest.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    manifest: Manifest,
    shards: Vec<Shard>,
    is_verified: bool,
}

impl Folder {
    /// Opens the shards in the folder `path`, which must have been made for `key`, and checks that every file has the
    /// length and, if the manifest has them and the folder holds up to `verified_at_open` bytes, the checksum of the
    /// manifest.
    pub(crate) fn open(path: &Path, key: &str, verified_at_open: u64) -> Result<Self> {
        let damaged = |reason: String| DataError::DamagedShards {
            path: path.into(),
            reason,
        };
        let json = path.join(MANIFEST);
        let json = fs::read(&json).map_err(cannot("read", &json))?;
        let manifest: Manifest =
            serde_json::from_slice(&json).map_err(|e| damaged(format!("{MANIFEST}: {e}")))?;
        if (manifest.format, manifest.key.as_str()) != (FORMAT, key) || manifest.hash() != key {
            return Err(damaged(format!("{MANIFEST} belongs to other tokens")));
        }
        if manifest.shard_tokens == 0 || ![2, 4].contains(&manifest.token_bytes) {
            return Err(damaged(format!("{MANIFEST} has impossible sizes")));
        }

        let mut shards = Vec::new();
        let (mut left, mut bytes) = (manifest.tokens, 0);
        while left > 0 {
            let tokens = left.min(manifest.shard_tokens);
            let index = shards.len();
            let name = shard_name(index as u64);
            let sha256 = manifest.sha256.get(index).cloned();
            let shard = Shard::open(path.join(&name), sha256)?;
            let length = shard.bytes();
            if tokens.checked_mul(manifest.token_bytes as u64) != Some(length) {
                return Err(damaged(format!(
                    "{name} has {length} bytes, which is not {tokens} tokens"
                )));
            }
            shards.push(shard);
            bytes += length;
            left -= tokens;
        }
        if ![0, shards.len()].contains(&manifest.sha256.len()) {
            return Err(damaged(format!("{MANIFEST} lacks checksums")));
        }
        let is_verified = bytes <= verified_at_open;
        if is_verified {
            shards.par_iter().try_for_each(Shard::verify)?;
        }
        Ok(Self {
            path: path.into(),
            manifest,
            shards,
            is_verified,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The number of files.
    pub(super) fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Whether the folder was small enough to be verified when it was opened.
    pub(super) fn is_verified(&self) -> bool {
        self.is_verified
    }

    /// Compares shard `index` with its checksum, once.
    pub(super) fn verify(&self, index: usize) -> Result<()> {
        self.setting_aside(self.shards[index].verify())
    }

    /// Appends to `ids` the `count` ids from token `start` of the folder on, which it has.
    pub(super) fn read(&self, start: u64, count: u64, ids: &mut Vec<u32>) -> Result<()> {
        let Manifest {
            shard_tokens,
            token_bytes,
            vocab_size,
            ..
        } = self.manifest;
        let before = ids.len();
        let mut bytes = Vec::new();
        let (mut at, end) = (start, start + count);
        while at < end {
            let shard = &self.shards[(at / shard_tokens) as usize];
            let first = at % shard_tokens;
            let count = (end - at).min(shard_tokens - first);
            bytes.resize(count as usize * token_bytes, 0);
            self.setting_aside(shard.read(first * token_bytes as u64, &mut bytes))?;
            if token_bytes == 2 {
                let numbers = bytes.as_chunks().0.iter();
                ids.extend(numbers.map(|&id| u32::from(u16::from_le_bytes(id))));
            } else {
                let numbers = bytes.as_chunks().0.iter();
                ids.extend(numbers.map(|&id| u32::from_le_bytes(id)));
            }
            at += count;
        }

        match ids[before..].iter().find(|&&id| id as usize >= vocab_size) {
            None => Ok(()),
            Some(id) => Err(DataError::DamagedShards {
                path: self.path.clone(),
                reason: format!("token {id} is outside the vocabulary of {vocab_size}"),
            }),
        }
    }

    /// `result`; if a shard is damaged, the folder is no longer taken for whole.
    fn setting_aside(&self, result: Result<()>) -> Result<()> {
        if let Err(DataError::DamagedShard { .. }) = result {
            // If that is not possible, the shard is found damaged again.
            let _ = fs::rename(self.path.join(MANIFEST), self.path.join(DAMAGED));
        }
        result
    }
}
