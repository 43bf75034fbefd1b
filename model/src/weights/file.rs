//! An open file of weights, and pieces of it.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::error::{WeightsError, damaged, io};

/// Bytes that one core reads at a time: a multiple of every number's size.
const PIECE: usize = 1 << 20;

/// An open file. Reads go to this file, even if another file gets its name meanwhile.
pub(super) struct WeightFile {
    path: PathBuf,
    file: File,
    length: u64,
}

impl WeightFile {
    pub(super) fn open(path: &Path) -> Result<Self, WeightsError> {
        // Opening a pipe would wait for a writer.
        let kind = fs::metadata(path).map_err(io(path))?;
        if kind.is_dir() {
            return Err(io(path)(ErrorKind::IsADirectory.into()));
        }
        if !kind.is_file() {
            return Err(damaged(path, "not a regular file"));
        }
        let file = File::open(path).map_err(io(path))?;
        let length = file.metadata().map_err(io(path))?.len();
        let path = path.to_path_buf();
        let opened = Self { path, file, length };
        if length == 0 {
            return Err(opened.damaged("the file is empty"));
        }
        let start = opened.bytes(0, length.min(200))?;
        if start.starts_with(b"version https://git-lfs") {
            return Err(opened.damaged(
                "this is Git LFS's note of where the file is, and not the file: get it by \
                 `git lfs pull`",
            ));
        }
        Ok(opened)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn len(&self) -> u64 {
        self.length
    }

    /// An error of this file.
    pub(super) fn damaged(&self, reason: impl ToString) -> WeightsError {
        damaged(&self.path, reason)
    }

    /// `length` bytes from `at` on.
    pub(super) fn bytes(&self, at: u64, length: u64) -> Result<Vec<u8>, WeightsError> {
        let end = at.checked_add(length).filter(|end| *end <= self.length);
        if end.is_none() {
            return Err(self.damaged(format!(
                "it has {} bytes, and something in it is said to be {length} bytes from {at} on",
                self.length
            )));
        }
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes, at, |_| 0)?;
        Ok(bytes)
    }

    /// Reads as many bytes as `bytes` has, from `at` on, on all cores, and returns the sum of what `count` gives
    /// for the pieces, each of whole numbers.
    pub(super) fn fill(
        &self,
        bytes: &mut [u8],
        at: u64,
        count: impl Fn(&[u8]) -> usize + Sync,
    ) -> Result<usize, WeightsError> {
        let read = |(i, piece): (usize, &mut [u8])| {
            read_at(&self.file, piece, at + (i * PIECE) as u64)?;
            Ok(count(piece))
        };
        let sum = if bytes.len() <= PIECE {
            read((0, bytes))
        } else {
            let pieces = bytes.par_chunks_mut(PIECE).enumerate();
            pieces.map(read).try_reduce(|| 0, |a, b| Ok(a + b))
        };
        sum.map_err(|error: io::Error| match error.kind() {
            ErrorKind::UnexpectedEof => self.damaged("it was cut while it was read"),
            _ => io(&self.path)(error),
        })
    }

    /// The CRC-32 of `length` bytes from `at` on.
    pub(super) fn crc32(&self, at: u64, length: u64) -> Result<u32, WeightsError> {
        let pieces = length.div_ceil(PIECE as u64);
        let hashed = (0..pieces).into_par_iter().map(|i| {
            let start = i * PIECE as u64;
            let n = (length - start).min(PIECE as u64);
            let mut hasher = crc32fast::Hasher::new();
            let mut piece = vec![0; n as usize];
            read_at(&self.file, &mut piece, at + start)?;
            hasher.update(&piece);
            Ok(hasher)
        });
        let hashed: io::Result<Vec<_>> = hashed.collect();
        let mut all = crc32fast::Hasher::new();
        for piece in hashed.map_err(io(&self.path))? {
            all.combine(&piece);
        }
        Ok(all.finalize())
    }
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(windows)]
fn read_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, bytes, at)?;
        if n == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        bytes = &mut bytes[n..];
        at += n as u64;
    }
    Ok(())
}
