//! Makes a folder of shards, once for each tokenizer and state of the sources.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use indicatif::HumanCount;

use crate::error::{DataError, Result, cannot};
use crate::shards::writer::ShardWriter;
use crate::shards::{FORMAT, MANIFEST, Manifest, TokenShards};
use crate::source::source_files;
use crate::split::Split;
use crate::tokenizer::{END_OF_TEXT, Tokenizer};

mod blocks;
mod progress;

use blocks::Blocks;
use progress::Progress;

/// Token ids in a shard: 256 MiB if an id takes two bytes.
const SHARD_TOKENS: u64 = 128 << 20;

/// Bytes of text that are tokenised at a time, for each core. The memory needed is a few times this and
/// some megabytes for each core, whatever the size of the corpus and of its documents. Progress is reported
/// after each block.
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
    /// The most records of the sources, over all files, that are left out because they hold no document:
    /// lines and rows that are no JSON, not UTF-8 or without a text. The next one is an error, which names
    /// it. The number left out is logged, and is [`Manifest::skipped`].
    pub skip_bad_lines: u64,
}

impl TokenShards {
    /// The token ids of a text: those of each document, followed by one end-of-text.
    ///
    /// The first call tokenises. It shows a progress bar on a terminal, or logs a line every ten
    /// seconds if there is none. The result stays in a separate folder under `cache`. The name of
    /// that folder contains a hash of the tokenizer's file, of the split, and of the paths, sizes and
    /// modification times of the source files; as long as all of these stay the same, later calls
    /// only open the folder, after reading its files once to compare their checksums. Folders of earlier
    /// states are never removed.
    ///
    /// The text is read and tokenised in blocks, long documents too, so that the memory needed does not
    /// depend on the size of the corpus or of a document.
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
    ///     skip_bad_lines: 0,
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
                warn_of_skipped(name, shards.manifest());
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
        skip_bad_lines: options.skip_bad_lines,
        skipped: 0,
        sha256: Vec::new(),
    };
    manifest.key = manifest.hash();
    Ok(manifest)
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
    let sources = manifest.sources.clone();
    let mut blocks = Blocks::new(options, sources, sizes.block_bytes);
    let mut shards = ShardWriter::new(folder, &manifest);
    // Where the document begins whose parts are written, and its bytes of text.
    let (mut begun, mut text_bytes) = (0, 0);
    let mut block = blocks.read()?;
    while !block.parts.is_empty() {
        let parts: Vec<(&str, &str)> = block.parts.iter().map(|part| part.texts()).collect();
        // The next block is read and decompressed while this one is tokenised.
        let (next, ids) = rayon::join(
            || blocks.read(),
            || tokenizer.encode_parts(&parts, &|| false),
        );
        for (part, ids) in block.parts.iter().zip(ids?) {
            shards.push(&ids)?;
            text_bytes += part.text.len() as u64;
            match part.kept {
                None => continue,
                Some(false) => shards.truncate(begun)?,
                Some(true) => {
                    shards.push(&[manifest.end_of_text])?;
                    manifest.documents += 1;
                    manifest.text_bytes += text_bytes;
                }
            }
            (begun, text_bytes) = (shards.tokens(), 0);
        }
        progress.report(block.bytes_read, shards.tokens());
        block = next?;
    }
    manifest.skipped = blocks.skipped();
    if manifest.documents == 0 {
        return Err(DataError::NoDocuments {
            name: (*name).into(),
        });
    }
    (manifest.tokens, manifest.sha256) = shards.finish()?;

    let path = folder.join(MANIFEST);
    let mut file = File::create_new(&path).map_err(cannot("create", &path))?;
    file.write_all(&manifest.to_json())
        .and_then(|()| file.sync_all())
        .map_err(cannot("write", &path))?;
    progress.finish(&manifest);
    warn_of_skipped(name, &manifest);
    Ok(())
}

fn warn_of_skipped(name: &str, manifest: &Manifest) {
    if manifest.skipped > 0 {
        let skipped = HumanCount(manifest.skipped);
        log::warn!("{name}: {skipped} bad lines were skipped");
    }
}

/// Renames `new` to `target`. If another process has put the same shards there in the meantime, those
/// are opened instead; anything else at `target` is moved to `old`.
fn move_into_place(new: &Path, target: &Path, key: &str, old: &Path) -> Result<TokenShards> {
    // One process at a time: otherwise two processes could both find a damaged folder, and the
    // second would move away the good shards that the first has put there.
    let lock = target.with_file_name(LOCK);
    let lock = File::create(&lock).map_err(cannot("create", &lock))?;
    wait_for(&lock, File::lock);
    if target.exists() {
        if let Ok(shards) = TokenShards::open(target, key) {
            return Ok(shards);
        }
        fs::rename(target, old).map_err(cannot("move away", target))?;
    }
    if let Err(reason) = fs::rename(new, target) {
        // Without locks another process can be faster here too.
        return TokenShards::open(target, key)
            .map_err(|_| cannot("move the new shards to", target)(reason));
    }
    drop(lock);
    TokenShards::open(target, key)
}

/// Waits until this process holds the lock of a file. Some network file systems have no locks, and nothing
/// is waited for there; two processes that prepare the same text at once then do the work twice.
fn wait_for(file: &File, lock: impl FnOnce(&File) -> io::Result<()>) {
    if let Err(error) = lock(file) {
        log::debug!("the cache folder is not locked: {error}");
    }
}

#[cfg(test)]
mod tests;
