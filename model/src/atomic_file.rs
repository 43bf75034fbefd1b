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
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/a");
        check(&path).unwrap();
        check(&folder.path().join("several/new/a")).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        write(&path, b"a longer first version").unwrap();
        check(&path).unwrap();
        write(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        // One that breaks off.
        let broken: io::Result<()> = replace(&path, |file| {
            file.write_all(b"thi")?;
            Err(ErrorKind::StorageFull.into())
        });
        assert_eq!(broken.unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), b"second");
        replace(&path, |file| file.write_all(b"third")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"third");
        // The longest name that there is.
        let long = folder.path().join("n".repeat(255));
        write(&long, b"long").unwrap();
        assert_eq!(fs::read(&long).unwrap(), b"long");
        fs::remove_file(long).unwrap();
        // A folder cannot be replaced by a file.
        let occupied = folder.path().join("new/b");
        fs::create_dir(&occupied).unwrap();
        let (in_file, a_folder) = (path.join("c"), folder.path().join("new/none/"));
        for path in [&*occupied, &in_file, &a_folder, "..".as_ref(), "".as_ref()] {
            assert!(check(path).is_err(), "{}", path.display());
            assert!(write(path, b"x").is_err(), "{}", path.display());
        }
        assert_eq!(fs::read_dir(folder.path().join("new")).unwrap().count(), 2);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_and_the_file_at_their_end_is_replaced() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("files")).unwrap();
        fs::create_dir_all(at("links")).unwrap();
        fs::write(at("files/a"), b"old").unwrap();
        symlink("../files/a", at("links/a")).unwrap();
        symlink("links", at("linked")).unwrap();
        // A link to a link, in a folder that is one.
        symlink("linked/a", at("again")).unwrap();
        symlink(at("files/new/b"), at("links/b")).unwrap();
        for (link, target) in [("again", "files/a"), ("linked/b", "files/new/b")] {
            check(&at(link)).unwrap();
            write(&at(link), link.as_bytes()).unwrap();
            assert_eq!(fs::read(at(target)).unwrap(), link.as_bytes());
            assert!(fs::symlink_metadata(at(target)).unwrap().is_file());
            assert!(fs::symlink_metadata(at(link)).unwrap().is_symlink());
            replace(&at(link), |file| file.write_all(b"other")).unwrap();
            assert_eq!(fs::read(at(target)).unwrap(), b"other");
        }
        for link in ["again", "linked", "links/a", "links/b"] {
            assert!(fs::read_link(at(link)).is_ok(), "{link}");
        }
        symlink("circle", at("circle")).unwrap();
        symlink(".", at("itself")).unwrap();
        for link in ["circle", "itself"] {
            assert!(check(&at(link)).is_err(), "{link}");
            assert!(write(&at(link), b"x").is_err(), "{link}");
        }
        assert_eq!(fs::read_dir(at("links")).unwrap().count(), 2);
        assert_eq!(fs::read_dir(at("files")).unwrap().count(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn permissions_and_the_owner_are_kept() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, b"old").unwrap();
        // The superuser may give it away.
        let given = chown(&path, Some(12), Some(34)).is_ok();
        for mode in [0o666, 0o604, 0o640, 0o755] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            write(&path, b"new").unwrap();
            let now = fs::metadata(&path).unwrap();
            assert_eq!(now.mode() & 0o7777, mode, "{mode:o}");
            assert!(!given || (now.uid(), now.gid()) == (12, 34));
        }
    }

    /// Another user's file in a folder like `/tmp` may be written, and not replaced.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_the_system_does_not_let_be_replaced_is_overwritten() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, b"a longer first version").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        // Only the superuser can give it away.
        if chown(&path, Some(12), Some(34)).is_err()
            || chown(folder.path(), Some(12), None).is_err()
        {
            return;
        }
        let theirs = path.clone();
        let other = std::thread::spawn(move || {
            // SAFETY: it changes as whom this thread opens files, and no memory.
            unsafe { libc::setfsuid(56) };
            check(&theirs).unwrap();
            write(&theirs, b"second").unwrap();
        });
        other.join().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::metadata(&path).unwrap().uid(), 12);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn devices_and_pipes_are_written_to() {
        use std::io::Read;
        use std::os::fd::AsRawFd;
        use std::os::unix::fs::{FileTypeExt, symlink};
        use std::os::unix::net::UnixListener;
        use std::process::Command;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        symlink("/dev/null", at("null")).unwrap();
        check(&at("null")).unwrap();
        write(&at("null"), b"x").unwrap();
        replace(&at("null"), |file| file.write_all(b"x")).unwrap();
        assert!(fs::symlink_metadata(at("null")).unwrap().is_symlink());
        let null = fs::metadata("/dev/null").unwrap().file_type();
        assert!(null.is_char_device());
        let full = write(Path::new("/dev/full"), b"x").unwrap_err();
        assert_eq!(full.kind(), ErrorKind::StorageFull);

        // A named pipe: the check does not end the input of its reader.
        let made = Command::new("mkfifo").arg(at("pipe")).status();
        assert!(made.unwrap().success());
        let pipe = at("pipe");
        let reader = std::thread::spawn(move || fs::read(pipe).unwrap());
        check(&at("pipe")).unwrap();
        write(&at("pipe"), b"through the pipe").unwrap();
        assert_eq!(reader.join().unwrap(), b"through the pipe");
        assert!(fs::metadata(at("pipe")).unwrap().file_type().is_fifo());

        // One without, as a shell's `>(command)`.
        let (mut reader, writer) = io::pipe().unwrap();
        let name = PathBuf::from(format!("/dev/fd/{}", writer.as_raw_fd()));
        check(&name).unwrap();
        write(&name, b"again").unwrap();
        drop(writer);
        let mut heard = String::new();
        reader.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "again");

        // A file that is open keeps what it has.
        let mut file = File::create(at("open")).unwrap();
        file.write_all(b"before, ").unwrap();
        let name = PathBuf::from(format!("/dev/fd/{}", file.as_raw_fd()));
        symlink(&name, at("link")).unwrap();
        check(&at("link")).unwrap();
        write(&at("link"), b"after").unwrap();
        assert_eq!(fs::read(at("open")).unwrap(), b"before, after");

        let _socket = UnixListener::bind(at("socket")).unwrap();
        for error in [
            check(&at("socket")).unwrap_err(),
            write(&at("socket"), b"x").unwrap_err(),
        ] {
            assert_eq!(error.to_string(), "neither a file nor a pipe");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 5);
    }
}
