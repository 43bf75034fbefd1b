//! Files that are there whole or not at all.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Replaces the content of the file `path` by `bytes`, as [`replace`] does.
///
/// # Errors
/// Whatever the file system reports; `path` is then as it was.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, |temporary| fs::write(temporary, bytes))
}

/// Replaces the file `path` by the one that `write` makes under the name that it is given.
///
/// That is `NAME.tmp` in the same folder; it goes to the disk, and then to `path` by renaming, which a
/// crash cannot halve: a reader finds the old content or the new, never a part.
///
/// # Errors
/// That of `write`, or whatever the file system reports; `path` is then as it was.
pub fn replace(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let mut name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a file name"))?
        .to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let written = write(&temporary)
        .and_then(|()| File::options().write(true).open(&temporary)?.sync_all())
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The error that counts is the first.
        let _ = fs::remove_file(&temporary);
    }
    written
}
