//! Atomic writes to files, through links, and to devices and pipes.

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
    if chown(&path, Some(12), Some(34)).is_err() || chown(folder.path(), Some(12), None).is_err() {
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
