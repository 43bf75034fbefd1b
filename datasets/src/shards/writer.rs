//! Writes the ids of a corpus into files of equal length.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::shard::checksum;
use super::{Manifest, shard_name};
use crate::error::{Result, cannot};

/// Appends token ids to the shards of a folder, and begins a new shard when one is full.
pub(crate) struct ShardWriter<'a> {
    folder: &'a Path,
    token_bytes: usize,
    shard_tokens: u64,
    /// The number of ids written so far, in all shards.
    tokens: u64,
    /// The shard that is not full yet: its path and its file.
    shard: Option<(PathBuf, BufWriter<File>)>,
}

impl<'a> ShardWriter<'a> {
    /// A writer for an empty `folder`, with the sizes of `manifest`.
    pub(crate) fn new(folder: &'a Path, manifest: &Manifest) -> Self {
        Self {
            folder,
            token_bytes: manifest.token_bytes,
            shard_tokens: manifest.shard_tokens,
            tokens: 0,
            shard: None,
        }
    }

    /// A writer that appends to the first `tokens` ids in `folder`; the ids after these are removed.
    /// `None` if the files hold fewer.
    pub(crate) fn resume(
        folder: &'a Path,
        manifest: &Manifest,
        tokens: u64,
    ) -> Result<Option<Self>> {
        let mut writer = Self::new(folder, manifest);
        let (full, rest) = (tokens / writer.shard_tokens, tokens % writer.shard_tokens);
        let holds = |index: u64, tokens: u64| {
            let file = fs::metadata(folder.join(shard_name(index)));
            file.is_ok_and(|file| file.len() / writer.token_bytes as u64 >= tokens)
        };
        let is_full = |index: u64| holds(index, writer.shard_tokens);
        if !(0..full).all(is_full) || !(rest == 0 || holds(full, rest)) {
            return Ok(None);
        }
        writer.cut(tokens)?;
        Ok(Some(writer))
    }

    /// The number of the shard that the next id belongs to.
    fn next_shard(&self) -> u64 {
        self.tokens / self.shard_tokens
    }

    /// Appends `ids`.
    pub(crate) fn push(&mut self, mut ids: &[u32]) -> Result<()> {
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
                // Little-endian: the bytes that a small id leaves out are the last ones.
                file.write_all(&id.to_le_bytes()[..token_bytes])
                    .map_err(cannot("write", path))?;
            }
            self.tokens += now.len() as u64;
            ids = later;
        }
        Ok(())
    }

    /// The number of ids written so far.
    pub(crate) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The shard of the next id; created if the last one was closed.
    fn shard(&mut self) -> Result<&mut (PathBuf, BufWriter<File>)> {
        let shard = match self.shard.take() {
            Some(shard) => shard,
            None => {
                let name = shard_name(self.next_shard());
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

    /// Waits until all ids are on the disk.
    pub(crate) fn sync(&mut self) -> Result<()> {
        let Some((path, file)) = &mut self.shard else {
            return Ok(());
        };
        file.flush()
            .and_then(|()| file.get_ref().sync_data())
            .map_err(cannot("write", path))
    }

    /// Removes all ids after the first `tokens`.
    pub(crate) fn truncate(&mut self, tokens: u64) -> Result<()> {
        if tokens >= self.tokens {
            return Ok(());
        }
        self.close_shard()?;
        self.cut(tokens)
    }

    /// Keeps the first `tokens` ids of the files, removes the others, and appends from there.
    fn cut(&mut self, tokens: u64) -> Result<()> {
        for index in tokens.div_ceil(self.shard_tokens).. {
            let path = self.folder.join(shard_name(index));
            if !path.exists() {
                break;
            }
            fs::remove_file(&path).map_err(cannot("remove", &path))?;
        }
        let filled = tokens % self.shard_tokens;
        if filled > 0 {
            let path = self.folder.join(shard_name(tokens / self.shard_tokens));
            let file = OpenOptions::new().write(true).open(&path);
            let file = file.and_then(|mut file| {
                file.set_len(filled * self.token_bytes as u64)?;
                file.seek(SeekFrom::End(0))?;
                Ok(file)
            });
            let file = file.map_err(cannot("shorten", &path))?;
            self.shard = Some((path, BufWriter::with_capacity(1 << 20, file)));
        }
        self.tokens = tokens;
        Ok(())
    }

    /// Closes the last shard. Returns the number of ids in all shards, and the checksum of each.
    pub(crate) fn finish(mut self) -> Result<(u64, Vec<String>)> {
        self.close_shard()?;
        let shards: Vec<u64> = (0..self.tokens.div_ceil(self.shard_tokens)).collect();
        let sums = shards
            .into_par_iter()
            .map(|index| checksum(&self.folder.join(shard_name(index))));
        Ok((self.tokens, sums.collect::<Result<_>>()?))
    }
}
