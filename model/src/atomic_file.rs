//! Atomic writes: a file is replaced as a whole or not at all.
//!
//! A path need not name a regular file:
//!
//! - It may be a symbolic link, or a chain of links. The links stay, and the file that the last one names is replaced
//!   or created.
//! - It may be a character device, a pipe, or a file that a process has open (`/dev/null`, `/dev/stdout`, a shell's
//!   `>(command)`). Such a target is not replaced: the bytes are appended to it.
//!
//! A file that is replaced keeps its permissions and, if the system allows it, its owner. A file that may not be
//! written is not replaced either. If the system allows a file to be written but not replaced (a file that is a mount
//! point, or another user's file in a sticky folder), its content is overwritten in place.

use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile};

/// Replaces the content of the file `path` by `bytes`, or creates the file and its folder.
///
/// The bytes are written to a temporary file in the same folder and synced to the disk; then this file is renamed to
/// `path`. A rename is atomic, also in a crash: a reader finds the old content or the new content, never a part. To
/// devices and pipes the bytes are written directly.
///
/// # Errors
/// The error of the operating system, or an error if `path` is something other than a file, a device or a pipe. After
/// an error, a file has its old content.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, |file| file.write_all(bytes))
}

/// Replaces the content of the file `path` by the bytes that `write` writes, as [`write()`] does, and returns the
/// result of `write`.
///
/// # Errors
/// The error of `write`, or those of [`write()`]. After an error, a file has its old content.
pub fn replace<T>(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<T>,
) -> io::Result<T> {
    match Destination::of(path)? {
        Destination::File(place) => {
            let file = place.beside()?;
            let value = buffered(file.as_file(), write)?;
            place.take(file)?;
            Ok(value)
        }
        Destination::Stream(place) => buffered(&open(&place)?, write),
    }
}

fn buffered<T>(file: &File, write: impl FnOnce(&mut dyn Write) -> io::Result<T>) -> io::Result<T> {
    let mut writer = BufWriter::new(file);
    let value = write(&mut writer)?;
    writer.flush()?;
    Ok(value)
}

/// Checks that [`write()`] can write to `path`, for a program that works for a long time before it writes. The check
/// leaves nothing behind: folders that it had to create are removed again.
///
/// # Errors
/// The error that [`write()`] would return.
pub fn check(path: &Path) -> io::Result<()> {
    match Destination::of(path)? {
        Destination::File(place) => place.check(),
        // A named pipe is not opened for the check: to open it would wait for a reader, and to close it again would end
        // the reader's input.
        Destination::Stream(place) if is_pipe(&place) => Ok(()),
        Destination::Stream(place) => open(&place).map(|_| ()),
    }
}

/// The largest number of links that are followed; it is the limit of the Linux kernel.
const LINKS: usize = 40;

/// Where the bytes for a path go.
enum Destination {
    File(Place),
    /// A device, a pipe, or a file that a process has open.
    Stream(PathBuf),
}

/// A regular file, or one that can be made.
struct Place {
    /// Its path, which is no link.
    path: PathBuf,
    /// What the file is now, if it is there.
    now: Option<Metadata>,
}

fn refused<T>(reason: &str) -> io::Result<T> {
    Err(io::Error::new(ErrorKind::InvalidInput, reason))
}

impl Destination {
    fn of(path: &Path) -> io::Result<Self> {
        let mut path = path.to_owned();
        for _ in 0..LINKS {
            if is_open_file(&path) {
                return Ok(Self::Stream(path));
            }
            let now = match fs::symlink_metadata(&path) {
                Ok(now) if now.is_symlink() => {
                    path = folder(&path).join(fs::read_link(&path)?);
                    continue;
                }
                Ok(now) if now.is_dir() => return Err(ErrorKind::IsADirectory.into()),
                Ok(now) if is_stream(&now) => return Ok(Self::Stream(path)),
                Ok(now) if !now.is_file() => return refused("neither a file nor a pipe"),
                Ok(now) => Some(now),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
            return Ok(Self::File(Place { path, now }));
        }
        refused("its links lead in a circle")
    }
}

impl Place {
    /// Checks that a file can be created in the folder of this one.
    fn check(&self) -> io::Result<()> {
        let folders = folder(&self.path).ancestors();
        let new: Vec<&Path> = folders.take_while(|folder| !folder.exists()).collect();
        let checked = self.beside().and_then(NamedTempFile::close);
        for folder in new {
            // If another program has put a file into the folder meanwhile, the folder stays.
            let _ = fs::remove_dir(folder);
        }
        checked
    }

    /// A temporary file in the folder of this one. It may replace this one; if it does not, it is removed when it is
    /// dropped.
    fn beside(&self) -> io::Result<NamedTempFile> {
        let bytes = self.path.as_os_str().as_encoded_bytes();
        let name = self.path.file_name().filter(|_| !bytes.ends_with(b"/"));
        let Some(name) = name else {
            return refused("not the name of a file");
        };
        if self.now.is_some() {
            File::options().write(true).open(&self.path)?;
        }
        let folder = folder(&self.path);
        fs::create_dir_all(folder)?;
        let mut temporary = Builder::new();
        #[cfg(unix)]
        temporary.permissions(self.permissions());
        // The temporary name must not exceed the system's limit: a long name is not made a part of it.
        if name.len() < 200 {
            temporary.prefix(name);
        }
        temporary.suffix(".tmp").tempfile_in(folder)
    }

    /// Moves `file` to this place.
    fn take(&self, file: NamedTempFile) -> io::Result<()> {
        #[cfg(unix)]
        self.keep_owner(file.as_file());
        file.as_file().sync_all()?;
        match file.persist(&self.path) {
            // A rename cannot replace a file that is a mount point, as in a container, or another user's file in a
            // sticky folder.
            Err(refused) => match refused.error.kind() {
                ErrorKind::ResourceBusy | ErrorKind::PermissionDenied if self.now.is_some() => {
                    self.overwrite(&refused.file)
                }
                _ => Err(refused.error),
            },
            Ok(_) => Ok(()),
        }
    }

    /// Overwrites this file in place with the content of `file`. It keeps its owner and permissions.
    fn overwrite(&self, file: &NamedTempFile) -> io::Result<()> {
        let mut here = File::options()
            .write(true)
            .truncate(true)
            .open(&self.path)?;
        io::copy(&mut file.reopen()?, &mut here)?;
        here.sync_all()
    }

    /// The permissions of the temporary file while it is written: those of the file that it replaces, and read and
    /// write for the owner; or those of any new file, if it replaces none. The system then applies its umask.
    #[cfg(unix)]
    fn permissions(&self) -> fs::Permissions {
        use std::os::unix::fs::PermissionsExt;
        let mode = self.now.as_ref().map(|now| now.permissions().mode());
        fs::Permissions::from_mode(mode.map_or(0o666, |mode| mode & 0o777 | 0o600))
    }

    /// Gives `file` the owner and the permissions of the file that it replaces, as far as the system allows. Only the
    /// superuser can change a file's owner, other users can set only their own groups, and some file systems store
    /// neither.
    #[cfg(unix)]
    fn keep_owner(&self, file: &File) {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
        let Some(now) = &self.now else { return };
        let _ = fchown(file, None, Some(now.gid()));
        let _ = fchown(file, Some(now.uid()), None);
        let _ = file.set_permissions(fs::Permissions::from_mode(now.mode() & 0o777));
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Whether `path` names a file that a process has open, as `/dev/stdout` and `/dev/fd/3` do. The system shows these as
/// links. But the link of a pipe has no target, and the target of another link may be a file to which the process is
/// writing at the same time.
fn is_open_file(path: &Path) -> bool {
    let folder = fs::canonicalize(folder(path));
    folder.is_ok_and(|folder| folder.starts_with("/proc") || folder == Path::new("/dev/fd"))
}

#[cfg(unix)]
fn is_stream(now: &Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    now.file_type().is_char_device() || now.file_type().is_fifo()
}

#[cfg(not(unix))]
fn is_stream(_: &Metadata) -> bool {
    false
}

#[cfg(unix)]
fn is_pipe(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    fs::metadata(path).is_ok_and(|now| now.file_type().is_fifo())
}

#[cfg(not(unix))]
fn is_pipe(_: &Path) -> bool {
    false
}

/// Opens a device, a pipe, or what a process has open, to write after what is there.
fn open(path: &Path) -> io::Result<File> {
    #[cfg(unix)]
    if let Some(own) = standard(path) {
        return own;
    }
    File::options().append(true).open(path)
}

/// Standard output or standard error, if `path` is the name of its file. Writing continues after the program's earlier
/// output. (It may be a socket, which cannot be opened by name.)
#[cfg(unix)]
fn standard(path: &Path) -> Option<io::Result<File>> {
    use std::os::fd::AsFd;
    let own = fs::canonicalize("/dev/fd").or_else(|_| fs::canonicalize("/proc/self/fd"));
    if own.ok()? != fs::canonicalize(folder(path)).ok()? {
        return None;
    }
    let copy = match path.file_name()?.to_str()? {
        "1" => io::stdout().as_fd().try_clone_to_owned(),
        "2" => io::stderr().as_fd().try_clone_to_owned(),
        _ => return None,
    };
    Some(copy.map(File::from))
}

#[cfg(test)]
mod tests;
