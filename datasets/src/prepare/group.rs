//! Makes the folder of shards of one group of files.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::HumanCount;

use super::blocks::{Block, Blocks};
use super::progress::Progress;
use super::scratch::{Scratch, State, lock};
use super::seen::Seen;
use super::{PrepareOptions, Sizes};
use crate::error::{DataError, Result, cannot};
use crate::shards::folder::Folder;
use crate::shards::writer::ShardWriter;
use crate::shards::{MANIFEST, Manifest};
use crate::source::Input;

/// Files that are tokenised together, and the manifest of their shards, with counts of 0.
pub(super) struct Group {
    pub(super) inputs: Vec<Input>,
    pub(super) manifest: Manifest,
}

/// What is needed to make a group.
pub(super) struct Work<'a> {
    pub(super) options: &'a PrepareOptions<'a>,
    pub(super) sizes: &'a Sizes,
    /// The number of the group, from 0, and how many there are.
    pub(super) of_all: (usize, usize),
    /// The most records that may be skipped.
    pub(super) bad_lines: u64,
}

impl Work<'_> {
    /// The shards of `group`, opened or made.
    pub(super) fn done(
        &self,
        group: &Group,
        earlier: &[Group],
        seen: &mut Option<Seen>,
    ) -> Result<Folder> {
        let target = self.target(&group.manifest);
        if let Some(folder) = self.found(&target, group) {
            return Ok(folder);
        }
        let scratch = Scratch::take(&target)?;
        // Another process may have made it meanwhile.
        if target.exists()
            && let Ok(folder) = self.open(&target, group)
        {
            scratch.give_up();
            return Ok(folder);
        }
        if let Some(seen) = seen {
            let caught_up = seen.catch_up(earlier, self.sizes.block_bytes, self.options.stopped);
            if let Err(error) = caught_up {
                scratch.leave();
                return Err(error);
            }
        }
        match self.write_shards(group, &scratch, seen.as_mut()) {
            Ok(()) => {}
            Err(error) => {
                if is_of_the_text(&error) {
                    scratch.give_up();
                } else {
                    scratch.leave();
                }
                return Err(error);
            }
        }
        if let Some(seen) = seen {
            seen.has_groups(earlier.len() + 1);
        }
        self.move_into_place(scratch, &target, group)
    }

    fn target(&self, manifest: &Manifest) -> PathBuf {
        let PrepareOptions { name, cache, .. } = self.options;
        cache.join(format!("{name}-{:.16}", manifest.key))
    }

    fn open(&self, target: &Path, group: &Group) -> Result<Folder> {
        Folder::open(target, &group.manifest.key, self.sizes.verified_at_open)
    }

    /// The shards, if they exist and are valid.
    fn found(&self, target: &Path, group: &Group) -> Option<Folder> {
        if !target.exists() {
            return None;
        }
        match self.open(target, group) {
            Ok(folder) => {
                let tokens = HumanCount(folder.manifest().tokens);
                let name = self.options.name;
                log::info!("{name}: {tokens} tokens found in {}", target.display());
                self.warn_of_skipped(folder.manifest());
                Some(folder)
            }
            Err(error) => {
                log::warn!("{error}: making it again");
                None
            }
        }
    }

    /// Tokenises the group into the folder of `scratch`, continuing from the place that an earlier process reached, and
    /// writes the manifest with its counts last.
    fn write_shards(
        &self,
        group: &Group,
        scratch: &Scratch,
        seen: Option<&mut Seen>,
    ) -> Result<()> {
        let folder = scratch.shards();
        let (name, of_all) = (self.options.name, self.of_all);
        let mut progress = Progress::new(name, of_all, &group.manifest.sources);
        let mut state = scratch.state().unwrap_or_default();
        let resumed = if state == State::default() {
            None
        } else {
            ShardWriter::resume(&folder, &group.manifest, state.tokens)?
        };
        let mut shards = if let Some(shards) = resumed {
            shards
        } else {
            scratch.clear()?;
            state = State::default();
            ShardWriter::new(&folder, &group.manifest)
        };
        let bytes = self.sizes.block_bytes;
        let inputs = group.inputs.clone();
        let mut blocks = Blocks::new(self.options, inputs, self.bad_lines, bytes, seen);
        if !blocks.pass_over(&state)? {
            scratch.clear()?;
            let path = &group.manifest.sources[0].path;
            let reason = io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "there is less text in it, or in the files after it, than before; start again",
            );
            return Err(cannot("go on reading", path)(reason));
        }
        let worked = self.tokenise(&mut blocks, &mut shards, scratch, &mut state, &mut progress);
        if let Err(error) = worked {
            // If this fails, an earlier saved state remains.
            let _ = shards.sync().and_then(|()| scratch.save(&state));
            return Err(error);
        }

        let mut manifest = group.manifest.clone();
        manifest.documents = state.documents;
        manifest.text_bytes = state.text_bytes;
        manifest.skipped = state.skipped;
        manifest.duplicates = state.duplicates;
        if manifest.documents == 0 && of_all.1 == 1 {
            return Err(DataError::NoDocuments { name: name.into() });
        }
        (manifest.tokens, manifest.sha256) = shards.finish()?;

        let path = folder.join(MANIFEST);
        let mut file = File::create(&path).map_err(cannot("create", &path))?;
        file.write_all(&manifest.to_json())
            .and_then(|()| file.sync_all())
            .map_err(cannot("write", &path))?;
        progress.finish(&manifest);
        self.warn_of_skipped(&manifest);
        Ok(())
    }

    /// Tokenises the rest of the documents. `state` is that of the shards at the end of the last block, also after an
    /// error.
    fn tokenise(
        &self,
        blocks: &mut Blocks,
        shards: &mut ShardWriter,
        scratch: &Scratch,
        state: &mut State,
        progress: &mut Progress,
    ) -> Result<()> {
        let PrepareOptions {
            tokenizer, stopped, ..
        } = self.options;
        let end_of_text = tokenizer.end_of_text().unwrap_or_default();
        let mut saved = Instant::now();
        // The bytes of text of the document whose parts are written.
        let mut text_bytes = 0;
        let mut block = blocks.read()?;
        while !block.parts.is_empty() {
            let parts: Vec<(&str, &str)> = block.parts.iter().map(|part| part.texts()).collect();
            // The next block is read and decompressed while this one is tokenised.
            let (next, ids) =
                rayon::join(|| blocks.read(), || tokenizer.encode_parts(&parts, stopped));
            let mut done = state.clone();
            for (part, ids) in block.parts.iter().zip(ids?) {
                shards.push(&ids)?;
                text_bytes += part.text.len() as u64;
                match part.kept {
                    None => continue,
                    Some(false) => shards.truncate(done.tokens)?,
                    Some(true) => {
                        shards.push(&[end_of_text])?;
                        done.documents += 1;
                        done.text_bytes += text_bytes;
                    }
                }
                (done.tokens, text_bytes) = (shards.tokens(), 0);
            }
            let Block { at_end, .. } = block;
            (done.position, done.skipped, done.duplicates) =
                (at_end.position, at_end.skipped, at_end.duplicates);
            *state = done;
            progress.report(block.bytes_read, shards.tokens());
            if saved.elapsed() >= self.sizes.save_every {
                shards.sync()?;
                scratch.save(state)?;
                saved = Instant::now();
            }
            block = next?;
        }
        let at_end = block.at_end;
        (state.skipped, state.duplicates) = (at_end.skipped, at_end.duplicates);
        Ok(())
    }

    fn warn_of_skipped(&self, manifest: &Manifest) {
        if manifest.skipped > 0 {
            let skipped = HumanCount(manifest.skipped);
            log::warn!("{}: {skipped} bad lines were skipped", self.options.name);
        }
    }

    /// Renames the shards of `scratch` to `target`. If another process has put the same shards there in the meantime,
    /// those are opened instead; anything else at `target` is moved away.
    fn move_into_place(&self, scratch: Scratch, target: &Path, group: &Group) -> Result<Folder> {
        // One process at a time: otherwise two processes could both find a damaged folder, and the
        // second would move away the good shards that the first has put there.
        let lock = lock(target.parent().unwrap_or(Path::new("")))?;
        let placed = self.place(&scratch, target, group);
        scratch.give_up_locked(&lock);
        drop(lock);
        placed
    }

    fn place(&self, scratch: &Scratch, target: &Path, group: &Group) -> Result<Folder> {
        if target.exists() {
            if let Ok(folder) = self.open(target, group) {
                return Ok(folder);
            }
            fs::rename(target, scratch.old()).map_err(cannot("move away", target))?;
        }
        if let Err(reason) = fs::rename(scratch.shards(), target) {
            // Without locks another process can be faster here too.
            return self
                .open(target, group)
                .map_err(|_| cannot("move the new shards to", target)(reason));
        }
        self.open(target, group)
    }
}

/// Whether the cause of the error is the text, so that another try would fail again; not a disk, the hub, or a request
/// to stop.
fn is_of_the_text(error: &DataError) -> bool {
    !matches!(
        error,
        DataError::Io { .. } | DataError::Fetch { .. } | DataError::Stopped
    )
}
