//! The format of token ids on disk, and its reader.
//!
//! A folder of shards holds `manifest.json` and the files `00000.bin`, `00001.bin`, …. These contain
//! the ids of some files of text in order, as little-endian integers of two bytes if the vocabulary
//! fits and of four bytes if not. Each file has `shard_tokens` ids, the last one has the rest. A large
//! corpus is in several folders, each with the ids of a group of its files.

use std::path::Path;
use std::sync::{Arc, Weak};
use std::thread;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{DataError, Result};
use crate::source::SourceFile;
use crate::split::Split;

pub(crate) mod folder;
mod shard;
pub(crate) mod writer;

use folder::Folder;

/// The version of the layout above and of the way from text to ids. Raise it with any change to
/// either, so that shards of an older version are not mistaken for new ones.
pub(crate) const FORMAT: u32 = 1;

/// The name of the manifest's file.
pub(crate) const MANIFEST: &str = "manifest.json";

/// The name of the file of shard `index`.
pub(crate) fn shard_name(index: u64) -> String {
    format!("{index:05}.bin")
}

/// The contents of a folder of shards, and the sources they were made from: its `manifest.json`. That of a corpus in
/// several folders has the sources and checksums of all, and the sums of their counts.
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
    /// If documents whose text occurred before are left out: the SHA-256 of the list of the earlier files, in which
    /// such a text may be. `None` if duplicates are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distinct_after: Option<String>,
    /// The number of documents that were left out since their text came before.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub duplicates: u64,
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
            duplicates: 0,
            sha256: Vec::new(),
            ..self.clone()
        };
        format!("{:x}", Sha256::digest(plan.to_json()))
    }

    /// This manifest extended by the sources, checksums and counts of `next`.
    fn and(mut self, next: &Self) -> Self {
        self.sources.extend(next.sources.iter().cloned());
        self.sha256.extend(next.sha256.iter().cloned());
        self.documents = self.documents.saturating_add(next.documents);
        self.text_bytes = self.text_bytes.saturating_add(next.text_bytes);
        self.tokens = self.tokens.saturating_add(next.tokens);
        self.skipped = self.skipped.saturating_add(next.skipped);
        self.duplicates = self.duplicates.saturating_add(next.duplicates);
        self
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("numbers and strings are always JSON")
    }
}

/// A tokenised corpus in files. [`prepare`](Self::prepare) makes it, or opens it if it exists.
///
/// Several threads may read at the same time. A read touches only the part of a file that holds its range, and detects
/// if a file was truncated or changed after it was opened. Ids are returned only from files whose checksum matches the
/// manifest. If the files of a folder have up to 64 MiB in all, they are verified when the folder is opened. Otherwise
/// another thread verifies them, or, if it has not reached a file yet, the first read of this file does.
#[derive(Debug)]
pub struct TokenShards {
    folders: Arc<[Folder]>,
    /// The number of the first token of each folder.
    starts: Vec<u64>,
    manifest: Manifest,
}

impl TokenShards {
    /// The corpus of the ids in `folders`, one after another.
    ///
    /// # Panics
    ///
    /// There is no folder.
    pub(crate) fn of(folders: Vec<Folder>) -> Self {
        let mut manifests = folders.iter().map(Folder::manifest);
        let first = manifests.next().expect("a corpus has a folder").clone();
        let manifest = manifests.fold(first, Manifest::and);
        let mut tokens = 0;
        let starts = folders.iter().map(|folder| {
            let start = tokens;
            tokens += folder.manifest().tokens;
            start
        });
        let starts = starts.collect();
        let folders: Arc<[Folder]> = folders.into();
        if !folders.iter().all(Folder::is_verified) {
            let folders = Arc::downgrade(&folders);
            thread::spawn(move || verify(&folders));
        }
        Self {
            folders,
            starts,
            manifest,
        }
    }

    /// The length of the corpus, in tokens.
    pub fn tokens(&self) -> u64 {
        self.manifest.tokens
    }

    /// The sources of the corpus and its counts.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The folder that holds the shards; the first of them if there are several.
    pub fn folder(&self) -> &Path {
        self.folders[0].path()
    }

    /// The folders that hold the shards, in the order of their tokens.
    pub fn folders(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.folders.iter().map(Folder::path)
    }

    /// Replaces the contents of `ids` by the `len` token ids from token `start` on.
    ///
    /// # Errors
    ///
    /// [`DataError::OutOfRange`] if the corpus ends before `start + len`; [`DataError::DamagedShard`] if a file does
    /// not have its checksum; its folder is then marked as damaged, and the next [`prepare`](Self::prepare) makes it
    /// again; [`DataError::DamagedShards`] if an id is outside the tokenizer's vocabulary; [`DataError::ChangedShard`]
    /// and [`DataError::Io`] if a file was changed or removed meanwhile.
    pub fn read(&self, start: u64, len: usize, ids: &mut Vec<u32>) -> Result<()> {
        ids.clear();
        let tokens = self.tokens();
        let end = start.checked_add(len as u64).filter(|&end| end <= tokens);
        let Some(end) = end else {
            return Err(DataError::OutOfRange { start, len, tokens });
        };
        ids.reserve(len);
        let mut at = start;
        while at < end {
            // The last folder that begins at or before this token has it; those without a token never do.
            let index = self.starts.partition_point(|&start| start <= at) - 1;
            let folder = &self.folders[index];
            let first = at - self.starts[index];
            let count = (end - at).min(folder.manifest().tokens - first);
            folder.read(first, count, ids)?;
            at += count;
        }
        Ok(())
    }
}

/// Verifies the shards that are not verified yet, as long as the corpus is in use.
fn verify(folders: &Weak<[Folder]>) {
    let mut number = 0;
    while let Some(folders) = folders.upgrade() {
        let mut shards = folders.iter().flat_map(|folder| {
            let shards = 0..folder.shards();
            shards.map(move |index| (folder, index))
        });
        let Some((folder, index)) = shards.nth(number) else {
            break;
        };
        if let Err(error) = folder.verify(index) {
            log::error!("{error}");
        }
        number += 1;
    }
}
