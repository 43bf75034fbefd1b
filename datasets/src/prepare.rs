//! Makes a folder of shards, once for each tokenizer and state of the sources.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use indicatif::HumanCount;
use sha2::{Digest, Sha256};

use crate::error::{DataError, Result, cannot};
use crate::shards::writer::ShardWriter;
use crate::shards::{FORMAT, MANIFEST, Manifest, TokenShards};
use crate::source::{Documents, source_files};
use crate::split::Split;
use crate::tokenizer::{END_OF_TEXT, Tokenizer};

mod progress;

use progress::Progress;

/// Token ids in a shard: 256 MiB if an id takes two bytes.
const SHARD_TOKENS: u64 = 128 << 20;

/// Bytes of text that are tokenised at a time, for each core. The memory needed is a few times this,
/// whatever the size of the corpus, unless a single document is larger. Progress is reported after
/// each block.
const BLOCK_BYTES: usize = 2 << 20;

/// The file in a cache folder that a process locks while it moves shards into the folder.
const LOCK: &str = ".lock";

/// The sizes of shards and blocks; smaller in tests.
struct Sizes {
    shard_tokens: u64,
    block_bytes: usize,
}

/// The arguments of [`TokenShards::prepare`].
pub struct PrepareOptions<'a> {
    /// The purpose of this text in one word that is valid in a file name: "train", "validation". The
    /// progress bar shows it, and the name of the folder begins with it.
    pub name: &'a str,
    /// Files and folders of text, as [`source_files`] takes them.
    pub sources: Vec<PathBuf>,
    /// Which documents of the sources to take.
    pub split: Split,
    /// The tokenizer. Its vocabulary must have [`END_OF_TEXT`].
    pub tokenizer: &'a Tokenizer,
    /// The folder that holds the folders of shards; created if it does not exist.
    pub cache: PathBuf,
}

impl TokenShards {
    /// The token ids of a text: those of each document, followed by one end-of-text.
    ///
    /// The first call tokenises. It shows a progress bar on a terminal, or logs a line every ten
    /// seconds if there is none. The result stays in a separate folder under `cache`. The name of
    /// that folder contains a hash of the tokenizer's file, of the split, and of the paths, sizes and
    /// modification times of the source files; as long as all of these stay the same, later calls
    /// only open the folder. Folders of earlier states are never removed.
    ///
    /// A folder whose files do not match its manifest is made again. Shards are written to a
    /// temporary folder, which is renamed when complete. So a process that is killed leaves no
    /// incomplete shards (but possibly a folder `.NAME-…`, which may be deleted), and if two
    /// processes prepare the same text at the same time, the second takes the shards of the first.
    ///
    /// # Errors
    ///
    /// Sources that do not exist, cannot be read or are in no known format; a tokenizer that has no
    /// end-of-text or that fails; sources without a document; a cache folder that cannot be written.
    ///
    /// ```
    /// use datasets::{PrepareOptions, Split, TokenShards, Tokenizer};
    ///
    /// # fn main() -> datasets::Result<()> {
    /// # let cache = tempfile::tempdir().unwrap();
    /// let shards = TokenShards::prepare(&PrepareOptions {
    ///     name: "validation",
    ///     sources: vec!["../assets/text/pd-validation.json.gz".into()],
    ///     split: Split::All,
    ///     tokenizer: &Tokenizer::from_folder("../assets/phi-tiny")?,
    ///     cache: cache.path().into(),
    /// })?;
    /// assert_eq!((shards.manifest().documents, shards.tokens()), (26, 162_566));
    /// # Ok(())
    /// # }
    /// ```
    pub fn prepare(options: &PrepareOptions) -> Result<Self> {
        let sizes = Sizes {
            shard_tokens: SHARD_TOKENS,
            block_bytes: BLOCK_BYTES * rayon::current_num_threads(),
        };
        prepare(options, &sizes)
    }
}

fn prepare(options: &PrepareOptions, sizes: &Sizes) -> Result<TokenShards> {
    let PrepareOptions { name, cache, .. } = options;
    let manifest = plan(options, sizes.shard_tokens)?;
    let key = manifest.key.clone();
    let target = cache.join(format!("{name}-{key:.16}"));
    if target.exists() {
        match TokenShards::open(&target, &key) {
            Ok(shards) => {
                let tokens = HumanCount(shards.tokens());
                log::info!("{name}: {tokens} tokens found in {}", target.display());
                return Ok(shards);
            }
            Err(error) => log::warn!("{error}: making it again"),
        }
    }

    fs::create_dir_all(cache).map_err(cannot("create", cache))?;
    let prefix = format!(".{name}-");
    let scratch = tempfile::Builder::new()
        .prefix(&prefix)
        .tempdir_in(cache)
        .map_err(cannot("create a folder in", cache))?;
    // Not `scratch` itself: only its owner may enter that folder.
    let new = scratch.path().join("new");
    fs::create_dir(&new).map_err(cannot("create", &new))?;
    write_shards(options, sizes, manifest, &new)?;
    move_into_place(&new, &target, &key, &scratch.path().join("old"))
}

/// The manifest of shards that are not made yet, with counts of 0.
fn plan(options: &PrepareOptions, shard_tokens: u64) -> Result<Manifest> {
    let tokenizer = options.tokenizer;
    let end_of_text = tokenizer
        .end_of_text()
        .ok_or_else(|| DataError::NoEndOfText {
            path: tokenizer.path().into(),
            token: END_OF_TEXT,
        })?;
    let mut manifest = Manifest {
        format: FORMAT,
        key: String::new(),
        tokenizer: tokenizer.hash().into(),
        vocab_size: tokenizer.vocab_size(),
        end_of_text,
        split: options.split,
        sources: source_files(&options.sources)?,
        documents: 0,
        text_bytes: 0,
        tokens: 0,
        token_bytes: if tokenizer.vocab_size() <= 1 << 16 {
            2
        } else {
            4
        },
        shard_tokens,
    };
    manifest.key = format!("{:x}", Sha256::digest(to_json(&manifest)));
    Ok(manifest)
}

fn to_json(manifest: &Manifest) -> Vec<u8> {
    serde_json::to_vec_pretty(manifest).expect("numbers and strings are always JSON")
}

/// Tokenises the sources of `manifest` into `folder`, and writes the manifest with its counts last.
fn write_shards(
    options: &PrepareOptions,
    sizes: &Sizes,
    mut manifest: Manifest,
    folder: &Path,
) -> Result<()> {
    let PrepareOptions {
        name, tokenizer, ..
    } = options;
    let mut progress = Progress::new(name, &manifest.sources);
    let mut blocks = Blocks {
        documents: Documents::new(manifest.sources.clone()),
        split: options.split,
        block_bytes: sizes.block_bytes,
    };
    let mut shards = ShardWriter::new(folder, &manifest);
    let mut block = blocks.read()?;
    while !block.documents.is_empty() {
        // The next block is read and decompressed while this one is tokenised.
        let (next, ids) = rayon::join(
            || blocks.read(),
            || tokenizer.encode_batch(&block.documents),
        );
        for (text, ids) in block.documents.iter().zip(ids?) {
            shards.push(&ids)?;
            shards.push(&[manifest.end_of_text])?;
            manifest.documents += 1;
            manifest.text_bytes += text.len() as u64;
        }
        progress.report(block.bytes_read, shards.tokens());
        block = next?;
    }
    if manifest.documents == 0 {
        return Err(DataError::NoDocuments {
            name: (*name).into(),
        });
    }
    manifest.tokens = shards.finish()?;

    let path = folder.join(MANIFEST);
    let mut file = File::create_new(&path).map_err(cannot("create", &path))?;
    file.write_all(&to_json(&manifest))
        .and_then(|()| file.sync_all())
        .map_err(cannot("write", &path))?;
    progress.finish(&manifest);
    Ok(())
}

/// Renames `new` to `target`. If another process has put the same shards there in the meantime, those
/// are opened instead; anything else at `target` is moved to `old`.
fn move_into_place(new: &Path, target: &Path, key: &str, old: &Path) -> Result<TokenShards> {
    // One process at a time: otherwise two processes could both find a damaged folder, and the
    // second would move away the good shards that the first has put there.
    let lock = target.with_file_name(LOCK);
    let lock = File::create(&lock)
        .and_then(|file| file.lock().map(|()| file))
        .map_err(cannot("lock", &lock))?;
    if target.exists() {
        if let Ok(shards) = TokenShards::open(target, key) {
            return Ok(shards);
        }
        fs::rename(target, old).map_err(cannot("move away", target))?;
    }
    fs::rename(new, target).map_err(cannot("move the new shards to", target))?;
    drop(lock);
    TokenShards::open(target, key)
}

/// Reads documents in blocks: each has work for all cores, and the memory stays bounded.
struct Blocks {
    documents: Documents,
    split: Split,
    block_bytes: usize,
}

struct Block {
    /// Empty at the end of the sources.
    documents: Vec<String>,
    /// The bytes of the source files that were read up to the last of the documents.
    bytes_read: u64,
}

impl Blocks {
    fn read(&mut self) -> Result<Block> {
        let mut documents = Vec::new();
        let mut bytes = 0;
        for document in &mut self.documents {
            let document = document?;
            if self.split.contains(&document) {
                bytes += document.len();
                documents.push(document);
            }
            if bytes >= self.block_bytes {
                break;
            }
        }
        Ok(Block {
            documents,
            bytes_read: self.documents.bytes_read(),
        })
    }
}

#[cfg(test)]
mod tests;
