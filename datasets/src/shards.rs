//! The format of token ids on disk, and its reader.
//!
//! A folder of shards holds `manifest.json` and the files `00000.bin`, `00001.bin`, …. These contain
//! the ids of the whole corpus in order, as little-endian integers of two bytes if the vocabulary
//! fits and of four bytes if not. Each file has `shard_tokens` ids, the last one has the rest.

use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{DataError, Result, cannot};
use crate::source::SourceFile;
use crate::split::Split;

mod shard;
pub(crate) mod writer;

use shard::Shard;

/// The version of the layout above and of the way from text to ids. Raise it with any change to
/// either, so that shards of an older version are not mistaken for new ones.
pub(crate) const FORMAT: u32 = 1;

/// The name of the manifest's file.
pub(crate) const MANIFEST: &str = "manifest.json";

/// The name of the file of shard `index`.
pub(crate) fn shard_name(index: u64) -> String {
    format!("{index:05}.bin")
}

/// The contents of a folder of shards, and the sources they were made from: its `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the layout.
    pub format: u32,
    /// The SHA-256 of everything the ids depend on: tokenizer, sources, split, layout.
    pub key: String,
    /// The SHA-256 of the `tokenizer.json`.
    pub tokenizer: String,
    /// The tokenizer's largest id plus one.
    pub vocab_size: usize,
    /// The id that ends every document.
    pub end_of_text: u32,
    /// Which documents of the sources were taken.
    pub split: Split,
    /// The source files, in the order of their text.
    pub sources: Vec<SourceFile>,
    /// The number of documents.
    pub documents: u64,
    /// The size of their text, in bytes of UTF-8.
    pub text_bytes: u64,
    /// The number of ids: those of the documents and one end-of-text for each.
    pub tokens: u64,
    /// The size of an id on disk, in bytes: 2 or 4.
    pub token_bytes: usize,
    /// The number of ids in a shard; the last shard may have fewer.
    pub shard_tokens: u64,
    /// The most records that may be skipped, as in `PrepareOptions::skip_bad_lines`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skip_bad_lines: u64,
    /// The number of records that were skipped.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: u64,
    /// The SHA-256 of each shard, in hexadecimal digits; empty in folders of older versions of this crate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sha256: Vec<String>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Manifest {
    /// The SHA-256 of everything that is known before the text is read.
    pub(crate) fn hash(&self) -> String {
        let plan = Self {
            key: String::new(),
            documents: 0,
            text_bytes: 0,
            tokens: 0,
            skipped: 0,
            sha256: Vec::new(),
            ..self.clone()
        };
        format!("{:x}", Sha256::digest(plan.to_json()))
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("numbers and strings are always JSON")
    }
}

/// A tokenised corpus in files. [`prepare`](Self::prepare) makes it, or opens it if it exists.
///
/// Several threads may read at the same time. A read touches only the part of a file that holds its range,
/// and notices if a file was cut or changed after it was opened.
#[derive(Debug)]
pub struct TokenShards {
    folder: PathBuf,
    manifest: Manifest,
    shards: Vec<Shard>,
}

impl TokenShards {
    /// Opens the shards in `folder`, which must have been made for `key`, and checks that every file
    /// has the length and, if the manifest has them, the checksum of the manifest.
    pub(crate) fn open(folder: &Path, key: &str) -> Result<Self> {
        let damaged = |reason: String| DataError::DamagedShards {
            path: folder.into(),
            reason,
        };
        let path = folder.join(MANIFEST);
        let json = fs::read(&path).map_err(cannot("read", &path))?;
        let manifest: Manifest =
            serde_json::from_slice(&json).map_err(|e| damaged(format!("{MANIFEST}: {e}")))?;
        if (manifest.format, manifest.key.as_str()) != (FORMAT, key) || manifest.hash() != key {
            return Err(damaged(format!("{MANIFEST} belongs to other tokens")));
        }
        if manifest.shard_tokens == 0 || ![2, 4].contains(&manifest.token_bytes) {
            return Err(damaged(format!("{MANIFEST} has impossible sizes")));
        }

        let mut shards = Vec::new();
        let mut left = manifest.tokens;
        while left > 0 {
            let tokens = left.min(manifest.shard_tokens);
            let index = shards.len();
            let name = shard_name(index as u64);
            let sha256 = manifest.sha256.get(index).cloned();
            let shard = Shard::open(folder.join(&name), index, sha256)?;
            let bytes = shard.bytes();
            if tokens.checked_mul(manifest.token_bytes as u64) != Some(bytes) {
                return Err(damaged(format!(
                    "{name} has {bytes} bytes, which is not {tokens} tokens"
                )));
            }
            shards.push(shard);
            left -= tokens;
        }
        if ![0, shards.len()].contains(&manifest.sha256.len()) {
            return Err(damaged(format!("{MANIFEST} lacks checksums")));
        }
        shards.par_iter().try_for_each(|shard| {
            if shard.has_its_checksum()? {
                Ok(())
            } else {
                let name = shard.path().file_name().unwrap_or_default();
                let name = name.display();
                Err(damaged(format!("{name} does not have its checksum")))
            }
        })?;
        Ok(Self {
            folder: folder.into(),
            manifest,
            shards,
        })
    }

    /// The length of the corpus, in tokens.
    pub fn tokens(&self) -> u64 {
        self.manifest.tokens
    }

    /// The sources of the corpus and its counts.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The folder that holds the shards.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Replaces the contents of `ids` by the `len` token ids from token `start` on.
    ///
    /// # Errors
    ///
    /// [`DataError::OutOfRange`] if the corpus ends before `start + len`;
    /// [`DataError::DamagedShards`] if an id is outside the tokenizer's vocabulary;
    /// [`DataError::ChangedShard`] and [`DataError::Io`] if a file was changed or removed meanwhile.
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
        let mut bytes = Vec::new();
        let mut at = start;
        while at < end {
            // `open` has checked that every shard up to `tokens` is complete.
            let shard = &self.shards[(at / shard_tokens) as usize];
            let first = at % shard_tokens;
            let count = (end - at).min(shard_tokens - first);
            bytes.resize(count as usize * token_bytes, 0);
            shard.read(first * token_bytes as u64, &mut bytes)?;
            if token_bytes == 2 {
                let numbers = bytes.as_chunks().0.iter();
                ids.extend(numbers.map(|&id| u32::from(u16::from_le_bytes(id))));
            } else {
                let numbers = bytes.as_chunks().0.iter();
                ids.extend(numbers.map(|&id| u32::from_le_bytes(id)));
            }
            at += count;
        }

        match ids.iter().find(|&&id| id as usize >= vocab_size) {
            None => Ok(()),
            Some(id) => Err(DataError::DamagedShards {
                path: self.folder.clone(),
                reason: format!("token {id} is outside the vocabulary of {vocab_size}"),
            }),
        }
    }
}
