//! Files that are replaced whole or not at all.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use tempfile::{Builder, NamedTempFile};

/// Replaces the content of the file `path` by `bytes`, or makes it, together with its folder.
///
/// The bytes go to a file of a new name in the same folder, to the disk, and then to `path` by renaming, which
/// a crash cannot halve: a reader finds the old content or the new, never a part.
///
/// # Errors
/// What the system says, or that `path` is something else than a file; it is then as it was.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = beside(path)?;
    file.write_all(bytes)?;
    place(file, path)
}

/// Replaces the file `path` by the one that `write` makes under the name that it is given, as
/// [`write()`] does.
///
/// # Errors
/// That of `write`, or those of [`write()`]; `path` is then as it was.
pub fn replace(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let file = beside(path)?;
    write(file.path())?;
    place(file, path)
}

/// That [`write()`] has a chance, for a program that works long before it writes.
///
/// # Errors
/// What the system would say then.
pub fn check(path: &Path) -> io::Result<()> {
    beside(path)?.close()
}

fn place(file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// A file beside `path` that may take its place, and is removed if it does not.
fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let refused = |reason| io::Error::new(io::ErrorKind::InvalidInput, reason);
    let name = path.file_name();
    let name = name.ok_or_else(|| refused("not the name of a file"))?;
    match fs::metadata(path) {
        Ok(there) if there.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
        // A device, say, which must not be replaced by a file.
        Ok(there) if !there.is_file() => return Err(refused("not a regular file")),
        _ => {}
    }
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder)?;
    let mut temporary = Builder::new();
    #[cfg(unix)]
    temporary.permissions(permissions(path));
    temporary.prefix(name).suffix(".tmp").tempfile_in(folder)
}

/// Those of the file that is replaced, which its owner must be able to write, or what any new file has (the
/// system takes its umask off).
#[cfg(unix)]
fn permissions(path: &Path) -> fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    let replaced = fs::metadata(path).map(|there| there.permissions().mode());
    fs::Permissions::from_mode(replaced.map_or(0o666, |mode| mode | 0o600))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/a");
        check(&path).unwrap();
        assert!(!path.exists());
        write(&path, b"a longer first version").unwrap();
        check(&path).unwrap();
        write(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        // One that breaks off.
        let broken = replace(&path, |temporary| {
            fs::write(temporary, b"thi")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert_eq!(broken.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), b"second");
        replace(&path, |temporary| fs::write(temporary, b"third")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"third");
        // A folder cannot be replaced by a file.
        let occupied = folder.path().join("new/b");
        fs::create_dir(&occupied).unwrap();
        for path in [&*occupied, &path.join("c"), Path::new(".."), Path::new("")] {
            assert!(check(path).is_err(), "{}", path.display());
            assert!(write(path, b"x").is_err(), "{}", path.display());
        }
        assert_eq!(fs::read_dir(folder.path().join("new")).unwrap().count(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_left_alone() {
        use std::os::unix::net::UnixListener;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _socket = UnixListener::bind(&path).unwrap();
        for error in [check(&path).unwrap_err(), write(&path, b"x").unwrap_err()] {
            assert_eq!(error.to_string(), "not a regular file");
        }
        assert!(!fs::metadata(&path).unwrap().is_file());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
