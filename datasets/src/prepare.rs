//! How a folder of shards comes to be: once for each tokenizer and state of the sources.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use crate::error::cannot;
use crate::shards::{FORMAT, MANIFEST, Manifest, TokenShards, shard_name};
use crate::{DataError, Documents, Result, SourceFile, Split, Tokenizer, source_files};

/// Token ids in a shard: 256 MiB, where an id takes two bytes.
const SHARD_TOKENS: u64 = 128 << 20;

/// Text tokenised at a time, for each core. A few times this much is all the memory that a corpus of
/// any size takes, unless a single document is larger; and progress is told after each.
const BLOCK_BYTES: usize = 2 << 20;

/// The file in a cache folder that whoever puts shards there holds locked.
const LOCK: &str = ".lock";

/// How much is done at a time; the tests have less.
struct Sizes {
    shard_tokens: u64,
    block_bytes: usize,
}

/// The time between two lines of the log where there is no terminal to draw a bar on.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// What to tokenise, with what, and where to keep the result.
pub struct PrepareOptions<'a> {
    /// What this text is to the run, in a word fit for a file name: "train", "validation". It names
    /// the progress bar and begins the name of the folder.
    pub name: &'a str,
    /// Files and folders of text, as [`source_files`] takes them.
    pub sources: Vec<PathBuf>,
    /// Which of their documents.
    pub split: Split,
    /// The tokenizer. Its vocabulary must have [`END_OF_TEXT`](crate::END_OF_TEXT).
    pub tokenizer: &'a Tokenizer,
    /// The folder that holds the folders of shards; made when missing.
    pub cache: PathBuf,
}

impl TokenShards {
    /// The token ids of some text: every document's, each followed by end-of-text.
    ///
    /// The first call tokenises, with a progress bar on a terminal and a line in the log now and then
    /// where there is none. The result is kept in a folder of its own under `cache`, whose name holds
    /// a hash of the tokenizer file, of the paths, sizes and times of the source files and of the
    /// split; while all those stay the same, later calls only open it. Nothing ever removes the
    /// folders of states that are past.
    ///
    /// A folder whose files are not what its manifest says is made again. Shards are written to a
    /// temporary folder and renamed when complete, so that a process that is killed leaves nothing
    /// half-made in place (though perhaps a folder `.NAME-…`, which may be deleted), and of two
    /// processes that prepare the same text at the same time the later takes what the first has made.
    ///
    /// # Errors
    ///
    /// Sources that cannot be found, read or understood; a tokenizer without end-of-text or one that
    /// fails; not one document; a cache folder that cannot be written to.
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
    // Not `scratch` itself, which only its owner may enter.
    let new = scratch.path().join("new");
    fs::create_dir(&new).map_err(cannot("create", &new))?;
    write_shards(options, sizes, manifest, &new)?;
    move_into_place(&new, &target, &key, &scratch.path().join("old"))
}

/// The manifest of shards that are not made yet: its counts are 0.
fn plan(options: &PrepareOptions, shard_tokens: u64) -> Result<Manifest> {
    let tokenizer = options.tokenizer;
    let end_of_text = tokenizer
        .end_of_text()
        .ok_or_else(|| DataError::NoEndOfText {
            path: tokenizer.path().into(),
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

/// Tokenises the sources of `manifest` into `folder`; the manifest, with its counts, comes last.
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
        // While one block is tokenised the next is read and decompressed.
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
        progress.report(block.bytes_read, shards.tokens);
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

/// Renames `new` to `target`. Where another process has put the same shards there meanwhile, those
/// are taken; anything else that stands there is moved to `old`.
fn move_into_place(new: &Path, target: &Path, key: &str, old: &Path) -> Result<TokenShards> {
    // One at a time: who looked before another's shards were there would move them away as damaged.
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

/// Documents by the block, so that there is work for every core and a bound on the memory.
struct Blocks {
    documents: Documents,
    split: Split,
    block_bytes: usize,
}

struct Block {
    /// None at the end.
    documents: Vec<String>,
    /// How far into the sources the last of them is.
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

/// Appends ids, a shard after the other.
struct ShardWriter<'a> {
    folder: &'a Path,
    token_bytes: usize,
    shard_tokens: u64,
    tokens: u64,
    shard: Option<(PathBuf, BufWriter<File>)>,
}

impl<'a> ShardWriter<'a> {
    fn new(folder: &'a Path, manifest: &Manifest) -> Self {
        Self {
            folder,
            token_bytes: manifest.token_bytes,
            shard_tokens: manifest.shard_tokens,
            tokens: 0,
            shard: None,
        }
    }

    fn push(&mut self, mut ids: &[u32]) -> Result<()> {
        while !ids.is_empty() {
            let filled = self.tokens % self.shard_tokens;
            if filled == 0 {
                self.close_shard()?;
            }
            let room = (self.shard_tokens - filled).min(ids.len() as u64) as usize;
            let (now, later) = ids.split_at(room);
            let token_bytes = self.token_bytes;
            let (path, file) = self.shard()?;
            for id in now {
                // Little-endian: the bytes left out of a small id are its last.
                file.write_all(&id.to_le_bytes()[..token_bytes])
                    .map_err(cannot("write", path))?;
            }
            self.tokens += now.len() as u64;
            ids = later;
        }
        Ok(())
    }

    /// The shard that the next id belongs to.
    fn shard(&mut self) -> Result<&mut (PathBuf, BufWriter<File>)> {
        let shard = match self.shard.take() {
            Some(shard) => shard,
            None => {
                let name = shard_name(self.tokens / self.shard_tokens);
                let path = self.folder.join(name);
                let file = File::create_new(&path).map_err(cannot("create", &path))?;
                (path, BufWriter::with_capacity(1 << 20, file))
            }
        };
        Ok(self.shard.insert(shard))
    }

    fn close_shard(&mut self) -> Result<()> {
        match self.shard.take() {
            None => Ok(()),
            Some((path, file)) => file
                .into_inner()
                .map_err(io::IntoInnerError::into_error)
                .and_then(|file| file.sync_all())
                .map_err(cannot("write", &path)),
        }
    }

    /// Closes the last shard and tells how many ids there are in all.
    fn finish(mut self) -> Result<u64> {
        self.close_shard()?;
        Ok(self.tokens)
    }
}

/// A progress bar over the bytes of the source files or, where there is no terminal, lines in the log.
struct Progress<'a> {
    name: &'a str,
    bar: ProgressBar,
    begun: Instant,
    logged: Instant,
}

impl<'a> Progress<'a> {
    fn new(name: &'a str, sources: &[SourceFile]) -> Self {
        let style =
            ProgressStyle::with_template("{prefix} {wide_bar} {percent}%, {msg}, {eta} left")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(sources.iter().map(|file| file.bytes).sum())
            .with_style(style)
            .with_prefix(format!("tokenising {name}"))
            .with_message("0 tokens");
        bar.enable_steady_tick(Duration::from_millis(200));
        Self {
            name,
            bar,
            begun: Instant::now(),
            logged: Instant::now(),
        }
    }

    fn report(&mut self, bytes_read: u64, tokens: u64) {
        self.bar.set_position(bytes_read);
        let tokens = HumanCount(tokens);
        self.bar.set_message(format!("{tokens} tokens"));
        if self.bar.is_hidden() && self.logged.elapsed() >= LOG_EVERY {
            self.logged = Instant::now();
            let read = HumanBytes(bytes_read);
            let all = HumanBytes(self.bar.length().unwrap_or_default());
            log::info!("{}: {read} of {all} done, {tokens} tokens", self.name);
        }
    }

    fn finish(self, manifest: &Manifest) {
        self.bar.finish();
        log::info!(
            "{}: {} documents, {} tokens in {:.1} s",
            self.name,
            HumanCount(manifest.documents),
            HumanCount(manifest.tokens),
            self.begun.elapsed().as_secs_f64()
        );
    }
}

#[cfg(test)]
mod tests;
