//! The folder in which shards are made, and their progress.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::error::{Result, cannot};
use crate::source::Position;

/// The file in a cache folder that a process locks while it moves shards into the folder, or takes a folder to make
/// them in.
pub(super) const LOCK: &str = ".lock";

/// The file in a folder of unfinished shards that says how far they are.
const STATE: &str = "state.json";

/// How far the shards of a group are, at the end of a document.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// The documents before are done.
    pub(super) position: Position,
    pub(super) documents: u64,
    pub(super) text_bytes: u64,
    pub(super) tokens: u64,
    pub(super) skipped: u64,
    pub(super) duplicates: u64,
}

/// A folder to make shards in, for this process alone.
pub(super) struct Scratch {
    path: PathBuf,
    /// Locked as long as this process works there; `None` if the folder is of no use to a later process.
    lock: Option<File>,
}

impl Scratch {
    /// Takes the folder for the shards of `target`: the one with the unfinished work of an earlier process, unless
    /// another process is working there.
    pub(super) fn take(target: &Path) -> Result<Self> {
        let cache = target.parent().unwrap_or(Path::new(""));
        fs::create_dir_all(cache).map_err(cannot("create", cache))?;
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        // A folder is taken and removed under this lock, so that none is taken that is just removed.
        let _cache_lock = lock(cache)?;
        let path = cache.join(format!(".{name}.part"));
        fs::create_dir_all(&path).map_err(cannot("create", &path))?;
        let own = path.join(LOCK);
        let own = File::create(&own).map_err(cannot("create", &own))?;
        // Some network file systems have no locks: there, two processes in one folder would not notice each other.
        if own.try_lock().is_ok() {
            return Ok(Self {
                path,
                lock: Some(own),
            });
        }
        let temporary = tempfile::Builder::new()
            .prefix(&format!(".{name}-"))
            .tempdir_in(cache);
        let path = temporary.map(TempDir::keep);
        Ok(Self {
            path: path.map_err(cannot("create a folder in", cache))?,
            lock: None,
        })
    }

    /// The folder of the shards. It is moved to its place, and only the owner may enter a temporary folder, so it is
    /// inside.
    pub(super) fn shards(&self) -> PathBuf {
        self.path.join("new")
    }

    /// A place for what is in the way of the shards.
    pub(super) fn old(&self) -> PathBuf {
        self.path.join("old")
    }

    /// How far an earlier process came.
    pub(super) fn state(&self) -> Option<State> {
        let json = fs::read(self.path.join(STATE)).ok()?;
        serde_json::from_slice(&json).ok()
    }

    /// Keeps `state`, up to which the shards are on the disk.
    pub(super) fn save(&self, state: &State) -> Result<()> {
        if self.lock.is_none() {
            return Ok(());
        }
        let path = self.path.join(STATE);
        let json = serde_json::to_vec(state).expect("numbers are always JSON");
        let new = self.path.join("state.new.json");
        File::create(&new)
            .and_then(|mut file| {
                file.write_all(&json)?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&new, &path))
            .map_err(cannot("write", &path))
    }

    /// Begins with no shard.
    pub(super) fn clear(&self) -> Result<()> {
        let (state, shards) = (self.path.join(STATE), self.shards());
        if state.exists() {
            fs::remove_file(&state).map_err(cannot("remove", &state))?;
        }
        if shards.exists() {
            fs::remove_dir_all(&shards).map_err(cannot("remove", &shards))?;
        }
        fs::create_dir(&shards).map_err(cannot("create", &shards))
    }

    /// Leaves the folder for a later process, or removes it if a later process cannot use it.
    pub(super) fn leave(self) {
        if self.lock.is_none() {
            self.remove();
        }
    }

    /// Removes the folder. The lock of the cache must be held if the folder is not temporary.
    fn remove(self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            log::warn!("{} cannot be removed: {error}", self.path.display());
        }
    }

    /// Removes the folder with what is in it.
    pub(super) fn give_up(self) {
        let _cache_lock = self.path.parent().map(lock);
        self.remove();
    }

    /// As [`give_up`](Self::give_up) for a caller that holds the lock of the cache.
    pub(super) fn give_up_locked(self, _cache_lock: &File) {
        self.remove();
    }
}

/// The lock of a cache folder, which is held until it is dropped.
pub(super) fn lock(cache: &Path) -> Result<File> {
    let path = cache.join(LOCK);
    let file = File::create(&path).map_err(cannot("create", &path))?;
    wait_for(&file, File::lock);
    Ok(file)
}

/// Waits until this process holds the lock of a file. Some network file systems have no locks, and nothing
/// is waited for there; two processes that prepare the same text at once then do the work twice.
pub(super) fn wait_for(file: &File, lock: impl FnOnce(&File) -> io::Result<()>) {
    if let Err(error) = lock(file) {
        log::debug!("the cache folder is not locked: {error}");
    }
}
