//! One file of token ids.

use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use crate::error::{DataError, Result, cannot};

/// The largest number of shards that stay open, over all corpora of the process. The number of open files of a process
/// is limited (to 1,024 on many systems); further shards are opened for each read.
const KEPT_OPEN: usize = 512;

/// The shards of this process that stay open.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// A file that stays open, and is counted as long as it does.
#[derive(Debug)]
struct Kept {
    file: File,
    open: &'static AtomicUsize,
}

impl Kept {
    /// `file`, unless as many as `most` are `open`.
    fn new(file: File, open: &'static AtomicUsize, most: usize) -> Option<Self> {
        let before = open.fetch_add(1, Ordering::Relaxed);
        // It is counted until it is dropped, which is here if it is too many.
        let kept = Self { file, open };
        (before < most).then_some(kept)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A file of token ids, read by position. It is not mapped into memory, since a file that another program
/// cuts would then end this process with a signal.
#[derive(Debug)]
pub(super) struct Shard {
    path: PathBuf,
    /// The SHA-256 that the manifest has.
    sha256: Option<String>,
    kept: Option<Kept>,
    /// The state of the file when it was opened, or when it last had its checksum.
    stamp: Mutex<Stamp>,
    /// Whether the file has its checksum, once it was compared.
    verified: Mutex<Option<bool>>,
}

/// Properties of a file that change when a program writes to it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Stamp {
    bytes: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            bytes: metadata.len(),
            modified: metadata.modified().ok(),
        }
    }
}

impl Shard {
    /// Opens the file, and keeps it open if not too many are.
    pub(super) fn open(path: PathBuf, sha256: Option<String>) -> Result<Self> {
        let file = File::open(&path).map_err(cannot("open", &path))?;
        let metadata = file.metadata().map_err(cannot("open", &path))?;
        Ok(Self {
            path,
            sha256,
            kept: Kept::new(file, &OPEN, KEPT_OPEN),
            stamp: Mutex::new(Stamp::of(&metadata)),
            verified: Mutex::new(None),
        })
    }

    /// The size of the file when it was opened.
    pub(super) fn bytes(&self) -> u64 {
        self.stamp().bytes
    }

    /// Checks that the file has its checksum. The first call reads the file, and others wait for it.
    ///
    /// # Errors
    /// The file cannot be read, or [`DataError::DamagedShard`].
    pub(super) fn verify(&self) -> Result<()> {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        let verified = match *verified {
            Some(known) => known,
            None => *verified.insert(self.has_its_checksum()?),
        };
        if verified {
            Ok(())
        } else {
            let path = self.path.clone();
            Err(DataError::DamagedShard { path })
        }
    }

    /// Whether the file has the checksum of the manifest, if that has one.
    fn has_its_checksum(&self) -> Result<bool> {
        match &self.sha256 {
            Some(sha256) => Ok(checksum(&self.path)? == *sha256),
            None => Ok(true),
        }
    }

    /// Fills `bytes` with those from `offset` on.
    ///
    /// # Errors
    /// The file cannot be read, ends before, does not have its checksum, or was changed after it was opened.
    pub(super) fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.verify()?;
        let opened;
        let file = if let Some(kept) = &self.kept {
            &kept.file
        } else {
            opened = File::open(&self.path).map_err(cannot("open", &self.path))?;
            &opened
        };
        read_exact_at(file, bytes, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.changed("it is shorter than it was"),
            _ => cannot("read", &self.path)(error),
        })?;
        let metadata = file.metadata().map_err(cannot("read", &self.path))?;
        let now = Stamp::of(&metadata);
        let earlier = self.stamp();
        if now == earlier {
            return Ok(());
        }
        if now.bytes != earlier.bytes {
            return Err(self.changed("it has another length than it had"));
        }
        // It may be that only its modification time has changed, as after a copy of its attributes.
        if self.sha256.is_none() {
            return Err(self.changed("it was written to, and it has no checksum"));
        }
        if !self.has_its_checksum()? {
            return Err(self.changed("it has another checksum than it had"));
        }
        *self.stamp.lock().unwrap_or_else(PoisonError::into_inner) = now;
        Ok(())
    }

    fn stamp(&self) -> Stamp {
        *self.stamp.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, reason: &str) -> DataError {
        DataError::ChangedShard {
            path: self.path.clone(),
            reason: reason.into(),
        }
    }
}

/// The SHA-256 of a file, in hexadecimal digits.
pub(super) fn checksum(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(cannot("open", path))?;
    let mut hasher = Sha256::new();
    io::copy(&mut file, &mut hasher).map_err(cannot("read", path))?;
    Ok(format!("{:x}", hasher.finalize()))
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let read = std::os::windows::fs::FileExt::seek_read(file, bytes, offset)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes = &mut bytes[read..];
        offset += read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_files_stay_open() {
        static OPEN: AtomicUsize = AtomicUsize::new(0);
        let keep = || Kept::new(tempfile::tempfile().unwrap(), &OPEN, 2);
        let (first, second) = (keep(), keep());
        assert!(first.is_some() && second.is_some() && keep().is_none());
        drop(first);
        assert!(keep().is_some());
        drop(second);
        assert_eq!(OPEN.load(Ordering::Relaxed), 0);
    }
}
