//! Makes the shards of a corpus, once for each tokenizer and each state of the source files.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::error::{DataError, Result};
use crate::shards::folder::{Folder, VERIFIED_AT_OPEN};
use crate::shards::{FORMAT, Manifest, TokenShards};
use crate::source::{GROUP_BYTES, Source, SourceFile, groups, inputs};
use crate::split::Split;
use crate::tokenizer::{END_OF_TEXT, Tokenizer};

mod blocks;
mod group;
mod progress;
mod scratch;
mod seen;

use group::Group;
use seen::Seen;

/// Token ids in a shard: 256 MiB if an id takes two bytes.
const SHARD_TOKENS: u64 = 128 << 20;

/// Bytes of text that are tokenised at a time, for each core. The memory needed is a few times this and
/// some megabytes for each core, whatever the size of the corpus and of its documents. Progress is reported
/// after each block.
const BLOCK_BYTES: usize = 2 << 20;

/// How often the state of the work is saved. A later call continues from the last saved state.
const SAVE_EVERY: Duration = Duration::from_secs(10);

/// The sizes of the work; smaller in tests.
#[derive(Clone, Copy)]
struct Sizes {
    shard_tokens: u64,
    block_bytes: usize,
    group_bytes: u64,
    save_every: Duration,
    verified_at_open: u64,
}

impl Sizes {
    fn new() -> Self {
        Self {
            shard_tokens: SHARD_TOKENS,
            block_bytes: BLOCK_BYTES * rayon::current_num_threads(),
            group_bytes: GROUP_BYTES,
            save_every: SAVE_EVERY,
            verified_at_open: VERIFIED_AT_OPEN,
        }
    }
}

/// The arguments of [`TokenShards::prepare`]. [`new`](Self::new) has the usual ones.
pub struct PrepareOptions<'a> {
    /// The purpose of this text in one word that is valid in a file name: "train", "validation". The
    /// progress bar shows it, and the name of the folder begins with it.
    pub name: &'a str,
    /// Files and folders of text, as [`source_files`](crate::source_files) takes them, and files to be fetched.
    pub sources: Vec<Source>,
    /// Which documents of the sources to take.
    pub split: Split,
    /// The tokenizer. Its vocabulary must have [`END_OF_TEXT`].
    pub tokenizer: &'a Tokenizer,
    /// The folder that holds the folders of shards; created if it does not exist.
    pub cache: PathBuf,
    /// The most records of the sources, over all files, that are left out because they hold no document:
    /// lines and rows that are no JSON, not UTF-8 or without a text. The next one is an error, which names
    /// it. The number left out is logged, and is [`Manifest::skipped`].
    pub skip_bad_lines: u64,
    /// Whether a document is left out if the same text came before, in any file. Texts are compared by 128 bits of
    /// their SHA-256, which takes up to 40 bytes of memory for each different document, and 60 while the table of them
    /// grows. Files before those that are tokenised are read for it, which is about a hundred times as fast.
    pub drop_duplicates: bool,
    /// Called between pieces of the text, on any thread; if it returns true, the work stops. The work that is done
    /// until then is kept.
    pub stopped: &'a (dyn Fn() -> bool + Sync),
}

impl<'a> PrepareOptions<'a> {
    /// Options with the defaults: all documents of `sources`; a bad line is an error; duplicates are kept; the work is
    /// not stopped early.
    pub fn new(
        name: &'a str,
        sources: impl IntoIterator<Item = impl Into<Source>>,
        tokenizer: &'a Tokenizer,
        cache: impl Into<PathBuf>,
    ) -> Self {
        Self {
            name,
            sources: sources.into_iter().map(Into::into).collect(),
            split: Split::All,
            tokenizer,
            cache: cache.into(),
            skip_bad_lines: 0,
            drop_duplicates: false,
            stopped: &|| false,
        }
    }
}

/// The part of one worker if several workers share the work: those groups of files whose number modulo `of` is `index`.
///
/// ```
/// let share: datasets::Share = "3/16".parse().unwrap();
/// assert_eq!((share.index(), share.of()), (3, 16));
/// assert!("16/16".parse::<datasets::Share>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    index: usize,
    of: usize,
}

impl Share {
    /// The number of the worker, from 0.
    pub fn index(self) -> usize {
        self.index
    }

    /// The number of workers.
    pub fn of(self) -> usize {
        self.of
    }
}

impl FromStr for Share {
    type Err = String;

    /// Reads `INDEX/OF`.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let numbers = text.split_once('/');
        let numbers = numbers.and_then(|(index, of)| Some((index.parse().ok()?, of.parse().ok()?)));
        match numbers {
            Some((index, of)) if index < of => Ok(Self { index, of }),
            _ => Err(
                "it must be INDEX/OF, two whole numbers, the first of them from 0 to OF - 1".into(),
            ),
        }
    }
}

impl TokenShards {
    /// The token ids of a text: those of each document, followed by one end-of-text.
    ///
    /// The first call tokenises. It shows a progress bar on a terminal, or logs a line every ten
    /// seconds if there is none. Files are taken in groups of 256 MiB or, if larger, one by one, and the result of
    /// each group stays in a separate folder under `cache`. The name of
    /// that folder contains a hash of the tokenizer's file, of the split, and of the paths, sizes and
    /// modification times of the source files; as long as all of these stay the same, later calls
    /// only open the folder, and compare checksums as [`TokenShards`] says. Folders of earlier
    /// states are never removed.
    ///
    /// The text is read and tokenised in blocks, long documents too, so that the memory needed does not
    /// depend on the size of the corpus or of a document. The ids depend neither on the number of threads nor on
    /// that of processes.
    ///
    /// A folder whose files do not match its manifest is made again. Shards are first written to a folder
    /// `.NAME-….part`; a file in it records the progress, at least every ten seconds. A later call continues from
    /// there, also after the process was killed: it reads the current text file again up to the recorded place, and
    /// tokenises the rest. If two processes prepare the same text at the same time, the second one works in a temporary
    /// folder `.NAME-…`, and uses the shards of the first if these are complete earlier. On a file system without locks
    /// every process works in this way, and unfinished groups begin anew. Both kinds of folder may be deleted when no
    /// process uses them.
    ///
    /// # Errors
    ///
    /// Sources that do not exist, cannot be read, fetched or are in no known format; a tokenizer that has no
    /// end-of-text or that fails; sources without a document; a cache folder that cannot be written.
    ///
    /// ```
    /// use datasets::{PrepareOptions, TokenShards, Tokenizer};
    ///
    /// # fn main() -> datasets::Result<()> {
    /// # let cache = tempfile::tempdir().unwrap();
    /// let text = "../assets/text/pd-validation.json.gz";
    /// let tokenizer = Tokenizer::from_folder("../assets/phi-tiny")?;
    /// let options = PrepareOptions::new("validation", [text], &tokenizer, cache.path());
    /// let shards = TokenShards::prepare(&options)?;
    /// assert_eq!((shards.manifest().documents, shards.tokens()), (26, 162_566));
    /// # Ok(())
    /// # }
    /// ```
    pub fn prepare(options: &PrepareOptions) -> Result<Self> {
        prepare(options, &Sizes::new())
    }

    /// Prepares the share of one of several workers, which may run on several machines with a common `cache`. When all
    /// workers are done, [`prepare`](Self::prepare) finds the whole corpus there. Returns the shards of this worker, or
    /// `None` if the share has no group of files, because there are more workers than groups. Records without a text
    /// are counted in each share separately.
    ///
    /// # Errors
    ///
    /// As [`prepare`](Self::prepare), but a share may be without a document.
    pub fn prepare_share(options: &PrepareOptions, share: Share) -> Result<Option<Self>> {
        let mut plan = Plan::new(options, &Sizes::new())?;
        plan.share(share)
    }
}

fn prepare(options: &PrepareOptions, sizes: &Sizes) -> Result<TokenShards> {
    let mut plan = Plan::new(options, sizes)?;
    let all = Share { index: 0, of: 1 };
    let whole = plan.share(all)?;
    let Some(shards) = whole.filter(|shards| shards.manifest().documents > 0) else {
        return Err(DataError::NoDocuments {
            name: options.name.into(),
        });
    };
    Ok(shards)
}

/// The work that makes the shards of a corpus.
pub(crate) struct Plan<'a> {
    options: &'a PrepareOptions<'a>,
    sizes: Sizes,
    groups: Vec<Group>,
    /// The texts of the groups that were read so far, if duplicates are dropped.
    seen: Option<Seen>,
    /// The records without a text in the groups that are done.
    skipped: u64,
}

impl<'a> Plan<'a> {
    fn new(options: &'a PrepareOptions<'a>, sizes: &Sizes) -> Result<Self> {
        let manifest = empty_manifest(options, sizes.shard_tokens)?;
        let mut groups = Vec::new();
        let mut earlier = Vec::new();
        for inputs in self::groups(inputs(&options.sources)?, sizes.group_bytes) {
            let mut manifest = manifest.clone();
            manifest.sources = inputs.iter().map(|input| input.file.clone()).collect();
            if options.drop_duplicates {
                manifest.distinct_after = Some(digest(&earlier));
                earlier.extend(manifest.sources.iter().cloned());
            }
            manifest.key = manifest.hash();
            groups.push(Group { inputs, manifest });
        }
        let seen = options.drop_duplicates.then(Seen::default);
        Ok(Self {
            options,
            sizes: *sizes,
            groups,
            seen,
            skipped: 0,
        })
    }

    /// The plan of [`TokenShards::prepare`].
    pub(crate) fn of(options: &'a PrepareOptions<'a>) -> Result<Self> {
        Self::new(options, &Sizes::new())
    }

    /// The number of groups.
    pub(crate) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// The SHA-256 of everything that the ids depend on.
    pub(crate) fn key(&self) -> String {
        let keys = self.groups.iter().map(|group| &*group.manifest.key);
        format!("{:x}", Sha256::digest(keys.collect::<Vec<_>>().join(" ")))
    }

    /// Returns the shards of group `number`, and makes them if they do not exist. Groups must be requested in their
    /// order.
    pub(crate) fn group(&mut self, number: usize) -> Result<Folder> {
        let (group, earlier) = (&self.groups[number], &self.groups[..number]);
        let of_all = (number, self.groups.len());
        let work = group::Work {
            options: self.options,
            sizes: &self.sizes,
            of_all,
            bad_lines: self.options.skip_bad_lines.saturating_sub(self.skipped),
        };
        let folder = work.done(group, earlier, &mut self.seen)?;
        self.skipped += folder.manifest().skipped;
        if self.skipped > self.options.skip_bad_lines {
            return Err(DataError::TooManyBadLines {
                name: self.options.name.into(),
                skipped: self.skipped,
                allowed: self.options.skip_bad_lines,
            });
        }
        Ok(folder)
    }

    fn share(&mut self, share: Share) -> Result<Option<TokenShards>> {
        let own = (share.index..self.groups.len()).step_by(share.of);
        let folders: Vec<Folder> = own
            .map(|number| self.group(number))
            .collect::<Result<_>>()?;
        Ok((!folders.is_empty()).then(|| TokenShards::of(folders)))
    }
}

/// The manifest of shards of no files yet, with counts of 0.
fn empty_manifest(options: &PrepareOptions, shard_tokens: u64) -> Result<Manifest> {
    let tokenizer = options.tokenizer;
    let end_of_text = tokenizer
        .end_of_text()
        .ok_or_else(|| DataError::NoEndOfText {
            path: tokenizer.path().into(),
            token: END_OF_TEXT,
        })?;
    Ok(Manifest {
        format: FORMAT,
        key: String::new(),
        tokenizer: tokenizer.hash().into(),
        vocab_size: tokenizer.vocab_size(),
        end_of_text,
        split: options.split,
        sources: Vec::new(),
        documents: 0,
        text_bytes: 0,
        tokens: 0,
        token_bytes: if tokenizer.vocab_size() <= 1 << 16 {
            2
        } else {
            4
        },
        shard_tokens,
        skip_bad_lines: options.skip_bad_lines,
        skipped: 0,
        distinct_after: None,
        duplicates: 0,
        sha256: Vec::new(),
    })
}

/// The SHA-256 of a list of files.
fn digest(files: &[SourceFile]) -> String {
    let json = serde_json::to_vec(files).expect("numbers and strings are always JSON");
    format!("{:x}", Sha256::digest(json))
}

#[cfg(test)]
mod tests;
