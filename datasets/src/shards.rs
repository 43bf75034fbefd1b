//! Token ids on disk, and how they are read.
//!
//! A folder of shards holds `manifest.json` and the files `00000.bin`, `00001.bin`, …: the ids of the
//! whole corpus one behind the other, little-endian, two bytes each where the vocabulary allows it
//! and four where not, cut into files of `shard_tokens` ids of which only the last is shorter.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use crate::error::cannot;
use crate::{DataError, Result, SourceFile, Split};

/// The number of the layout above and of the way text becomes ids. To be raised with any change to
/// either, so that shards made before are not taken for shards made after.
pub(crate) const FORMAT: u32 = 1;

pub(crate) const MANIFEST: &str = "manifest.json";

pub(crate) fn shard_name(index: u64) -> String {
    format!("{index:05}.bin")
}

/// What a folder of shards holds, and what it was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the layout.
    pub format: u32,
    /// The hash of all that the ids depend on: tokenizer, sources, split, layout.
    pub key: String,
    /// The SHA-256 of the `tokenizer.json`.
    pub tokenizer: String,
    /// One more than the tokenizer's largest id.
    pub vocab_size: usize,
    /// The id that ends every document.
    pub end_of_text: u32,
    /// The documents of the sources that were taken.
    pub split: Split,
    /// The files, in the order of their text.
    pub sources: Vec<SourceFile>,
    /// How many documents there are.
    pub documents: u64,
    /// The size of their text in UTF-8.
    pub text_bytes: u64,
    /// How many ids there are: the documents' and one end-of-text for each.
    pub tokens: u64,
    /// The size of an id: 2 or 4.
    pub token_bytes: usize,
    /// How many ids a shard holds.
    pub shard_tokens: u64,
}

/// A tokenised corpus in memory-mapped files; [`prepare`](Self::prepare) makes or finds it.
///
/// Reading is safe from many threads and touches no more of the files than it is asked for.
#[derive(Debug)]
pub struct TokenShards {
    folder: PathBuf,
    manifest: Manifest,
    shards: Vec<Mmap>,
}

impl TokenShards {
    /// Opens the shards in `folder`, which must have been made for `key`, and checks that every file
    /// is there and as long as the manifest says.
    pub(crate) fn open(folder: &Path, key: &str) -> Result<Self> {
        let damaged = |reason: String| DataError::DamagedShards {
            path: folder.into(),
            reason,
        };
        let path = folder.join(MANIFEST);
        let json = fs::read(&path).map_err(cannot("read", &path))?;
        let manifest: Manifest =
            serde_json::from_slice(&json).map_err(|e| damaged(format!("{MANIFEST}: {e}")))?;
        if (manifest.format, manifest.key.as_str()) != (FORMAT, key) {
            return Err(damaged(format!("{MANIFEST} is of other tokens")));
        }
        if manifest.shard_tokens == 0 || ![2, 4].contains(&manifest.token_bytes) {
            return Err(damaged(format!("{MANIFEST} makes no sense")));
        }

        let mut shards = Vec::new();
        let mut left = manifest.tokens;
        while left > 0 {
            let tokens = left.min(manifest.shard_tokens);
            let name = shard_name(shards.len() as u64);
            let path = folder.join(&name);
            let file = File::open(&path).map_err(cannot("open", &path))?;
            // SAFETY: a shard is written under another name and moved here when complete; nothing
            // in this crate writes to it or shortens it from then on, and a mapping outlives the
            // removal of its file. Another program that shortens it under us is out of our hands.
            let map = unsafe { Mmap::map(&file) }.map_err(cannot("map", &path))?;
            let expected = tokens.checked_mul(manifest.token_bytes as u64);
            if expected != Some(map.len() as u64) {
                let bytes = map.len();
                return Err(damaged(format!(
                    "{name} has {bytes} bytes, which is not {tokens} tokens"
                )));
            }
            shards.push(map);
            left -= tokens;
        }
        Ok(Self {
            folder: folder.into(),
            manifest,
            shards,
        })
    }

    /// How many token ids the corpus has.
    pub fn tokens(&self) -> u64 {
        self.manifest.tokens
    }

    /// What the corpus was made of, and its counts.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The folder that holds the shards.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Puts the `len` ids from `start` on into `ids`, in place of what it held.
    ///
    /// # Errors
    ///
    /// The corpus ends before; a shard holds an id which the tokenizer does not have.
    pub fn read(&self, start: u64, len: usize, ids: &mut Vec<u32>) -> Result<()> {
        ids.clear();
        let Manifest {
            tokens,
            shard_tokens,
            token_bytes,
            vocab_size,
            ..
        } = self.manifest;
        let end = start.checked_add(len as u64).filter(|&end| end <= tokens);
        let Some(end) = end else {
            return Err(DataError::OutOfRange { start, len, tokens });
        };

        ids.reserve(len);
        let mut at = start;
        while at < end {
            // `open` has checked that every shard up to `tokens` is there in full.
            let shard = &self.shards[(at / shard_tokens) as usize];
            let first = at % shard_tokens;
            let count = (end - at).min(shard_tokens - first);
            let bytes =
                &shard[first as usize * token_bytes..(first + count) as usize * token_bytes];
            match token_bytes {
                2 => ids.extend(
                    bytes
                        .as_chunks()
                        .0
                        .iter()
                        .map(|&id| u32::from(u16::from_le_bytes(id))),
                ),
                _ => ids.extend(bytes.as_chunks().0.iter().map(|&id| u32::from_le_bytes(id))),
            }
            at += count;
        }

        match ids.iter().find(|&&id| id as usize >= vocab_size) {
            None => Ok(()),
            Some(id) => Err(DataError::DamagedShards {
                path: self.folder.clone(),
                reason: format!("token {id} behind the {vocab_size} of the vocabulary"),
            }),
        }
    }
}
