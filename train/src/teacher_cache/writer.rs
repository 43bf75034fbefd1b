//! Makes a cache, shard by shard.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use model::atomic_file;
use sha2::{Digest, Sha256};

use super::{MANIFEST, Manifest, MeasuredTeacher, TopK, refused, shard_name};
use crate::error::{TrainError, io_error};

/// The lock file of a process that works on a cache.
const LOCK: &str = ".lock";
/// The ending of the names of files that are being written.
const TEMPORARY: &str = ".tmp";

/// The folder of a cache, locked by this process until it is dropped.
#[derive(Debug)]
pub(crate) struct CacheWriter {
    folder: PathBuf,
    manifest: Manifest,
    _lock: File,
}

impl CacheWriter {
    /// Opens the cache of `wanted` in `folder`: an existing cache is continued, otherwise a new one is made.
    ///
    /// # Errors
    /// [`TrainError::TeacherCache`] if another cache is there, or another process works on it; [`TrainError::Io`].
    pub(crate) fn open(folder: &Path, wanted: Manifest) -> Result<Self, TrainError> {
        fs::create_dir_all(folder).map_err(io_error(folder))?;
        // Before the lock file is made, so that a folder that is refused stays as it is.
        manifest_in(folder, &wanted)?;
        let path = folder.join(LOCK);
        let lock = File::create(&path).map_err(io_error(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let reason = "another process is making it; wait for it, or stop it".to_owned();
                return Err(refused(folder, reason));
            }
            // A file system without locks.
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(io_error(&path)(error)),
        }
        // Again, because another process may have written there until now.
        let manifest = manifest_in(folder, &wanted)?;
        for entry in fs::read_dir(folder).map_err(io_error(folder))?.flatten() {
            // Frees the space of files that a killed process has left; a failure does no harm.
            if entry.file_name().to_string_lossy().ends_with(TEMPORARY) {
                let _ = fs::remove_file(entry.path());
            }
        }
        let writer = Self {
            folder: folder.to_owned(),
            manifest,
            _lock: lock,
        };
        writer.write_manifest()?;
        Ok(writer)
    }

    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The shards that are not written yet, or whose file is gone.
    pub(crate) fn missing(&self) -> Vec<u64> {
        let is_there = |index: &u64| {
            let name = shard_name(*index);
            let file = fs::metadata(self.folder.join(&name));
            let bytes = self.manifest.shard_bytes(*index);
            self.manifest.shards.contains_key(&name) && file.is_ok_and(|file| file.len() == bytes)
        };
        (0..self.manifest.shard_count())
            .filter(|index| !is_there(index))
            .collect()
    }

    /// The rows of shard `index` in the endless sequence.
    pub(crate) fn rows_of(&self, index: u64) -> std::ops::Range<u64> {
        let rows = self.manifest.shard(index);
        let first = self.manifest.first_row;
        first + rows.start..first + rows.end
    }

    /// Writes shard `index`, whose rows are those of `top`.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub(crate) fn write(&mut self, index: u64, top: &TopK) -> Result<(), TrainError> {
        let manifest = &self.manifest;
        let mut bytes = Vec::with_capacity(manifest.shard_bytes(index) as usize);
        let rows = manifest.shard(index);
        for row in 0..(rows.end - rows.start) as usize {
            manifest.encode(top, row, &mut bytes);
        }
        let name = shard_name(index);
        let path = self.folder.join(&name);
        atomic_file::write(&path, &bytes).map_err(io_error(&path))?;
        let sha256 = format!("{:x}", Sha256::digest(&bytes));
        self.manifest.shards.insert(name, sha256);
        self.write_manifest()
    }

    /// Adds a perplexity of the teacher.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub(crate) fn measured(&mut self, measured: MeasuredTeacher) -> Result<(), TrainError> {
        self.manifest.measured.push(measured);
        self.write_manifest()
    }

    fn write_manifest(&self) -> Result<(), TrainError> {
        let path = self.folder.join(MANIFEST);
        let mut text = serde_json::to_string_pretty(&self.manifest)
            .map_err(std::io::Error::from)
            .map_err(io_error(&path))?;
        text.push('\n');
        atomic_file::write(&path, text.as_bytes()).map_err(io_error(&path))
    }
}

/// The manifest to work with in `folder`: the one that is there, if it is of `wanted`'s cache, or `wanted` if there are no
/// files of others.
fn manifest_in(folder: &Path, wanted: &Manifest) -> Result<Manifest, TrainError> {
    if let Some(found) = Manifest::read(folder)? {
        return continued(folder, found, wanted);
    }
    for entry in fs::read_dir(folder).map_err(io_error(folder))? {
        let name = entry.map_err(io_error(folder))?.file_name();
        let name = name.to_string_lossy();
        // Temporary files are those that a killed process has left.
        if name != LOCK && !name.ends_with(TEMPORARY) {
            let reason = "it has other files; choose an empty folder, or one that is not there yet";
            return Err(refused(folder, reason.to_owned()));
        }
    }
    Ok(wanted.clone())
}

/// The manifest `found` in `folder`, to be continued, if it has the same identity as `wanted`.
fn continued(folder: &Path, found: Manifest, wanted: &Manifest) -> Result<Manifest, TrainError> {
    let mut differences = found.key.differences(&wanted.key);
    for (what, found, wanted) in [
        ("first sequence", found.first_row, wanted.first_row),
        ("number of sequences", found.rows, wanted.rows),
        ("k", found.k as u64, wanted.k as u64),
        (
            "number of bytes a logarithm",
            found.dtype.bytes() as u64,
            wanted.dtype.bytes() as u64,
        ),
    ] {
        if found != wanted {
            differences.push(format!("a {what} of {found}, where {wanted} is asked for"));
        }
    }
    if differences.is_empty() {
        return Ok(found);
    }
    Err(refused(
        folder,
        format!(
            "the cache that is there has {}; choose another folder by --out",
            differences.join("; ")
        ),
    ))
}
