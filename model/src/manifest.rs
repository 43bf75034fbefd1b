//! Checksums of a folder's files, in one file beside them.
//!
//! `SHA256SUMS` has a line for each file, its SHA-256 and its name, as the program `sha256sum` writes and reads
//! them: `sha256sum -c SHA256SUMS` in the folder checks it by hand. The file is written last and replaced whole,
//! so it speaks of files that were whole. A folder without it is not checked; to accept a deliberate change of a
//! file, remove it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Component, Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::atomic_file;

/// The manifest's name in its folder.
pub const MANIFEST: &str = "SHA256SUMS";

/// Bytes of a manifest that are read, at most: lines for a hundred thousand files.
const LIMIT: u64 = 16 << 20;

/// Bytes of a file that are read at a time.
const PIECE: usize = 1 << 20;

/// Why a folder's checksums could not be written, or what differs from them.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The manifest itself is not one. Nothing that it lists has been checked.
    #[error(
        "{}: {reason}; if the files beside it are known to be good, remove it",
        path.display()
    )]
    Unreadable {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A name that cannot be listed: not that of a file inside the folder.
    #[error("{name:?} is not the name of a file inside its folder")]
    Name {
        /// The name.
        name: String,
    },
    /// A listed file is not there.
    #[error("{}: {MANIFEST} beside it lists the file, and it is missing", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A listed file is another than it was.
    #[error(
        "{}: the file is damaged or was changed: its SHA-256 is {found}, and {MANIFEST} beside it says \
         {expected}; if the change is deliberate, remove {MANIFEST}",
        path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// Its SHA-256 by the manifest.
        expected: String,
        /// Its SHA-256 now.
        found: String,
    },
}

/// What is known of a folder's files after they were compared with its manifest and none differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verified {
    /// There is no manifest: nothing is known.
    Absent,
    /// The names of the files that are listed and equal, sorted. What is not among them is not known.
    Files(Vec<String>),
}

impl Verified {
    /// Whether the file `name` is listed and equal.
    pub fn covers(&self, name: &str) -> bool {
        match self {
            Self::Absent => false,
            Self::Files(names) => names.iter().any(|known| known == name),
        }
    }
}

/// Writes the manifest of `folder`: the checksums of the files `names`, relative to it, and of no others; never its
/// own. The files are read, several at a time, and the manifest is replaced whole.
///
/// # Errors
/// [`ManifestError::Name`] and [`ManifestError::Io`].
pub fn write(
    folder: impl AsRef<Path>,
    names: &[impl AsRef<str> + Sync],
) -> Result<(), ManifestError> {
    let folder = folder.as_ref();
    put(folder, &hashes(folder, names)?)
}

/// Writes the checksums of the files `names` into the manifest of `folder`, which is made if there is none.
/// It keeps what it says of others that are still there. A manifest that cannot be understood is replaced.
///
/// # Errors
/// As [`write()`].
pub fn add(
    folder: impl AsRef<Path>,
    names: &[impl AsRef<str> + Sync],
) -> Result<(), ManifestError> {
    let folder = folder.as_ref();
    let mut all = match read(folder) {
        Ok(listed) => listed.unwrap_or_default().into_iter().collect(),
        Err(ManifestError::Unreadable { .. }) => BTreeMap::new(),
        Err(error) => return Err(error),
    };
    all.retain(|name, _| folder.join(name).exists());
    all.extend(hashes(folder, names)?);
    put(folder, &all)
}

/// The checksums that the manifest of `folder` lists, by the names of the files, if there is one. Nothing is
/// compared. Of several checksums for one file it is the last: loading the file fails then.
pub(crate) fn listed(folder: &Path) -> Result<Option<BTreeMap<String, String>>, ManifestError> {
    Ok(read(folder)?.map(|listed| listed.into_iter().collect()))
}

/// Compares every file that the manifest of `folder` lists with it.
///
/// # Errors
/// [`ManifestError`] for the first file, in the manifest's order, that is missing or differs, or if the manifest
/// cannot be understood.
pub fn verify(folder: impl AsRef<Path>) -> Result<Verified, ManifestError> {
    compare(folder.as_ref(), |_| true)
}

/// Compares those of the files `names` that the manifest of `folder` lists with it. What it does not list is not
/// read, and is not in [`Verified::Files`].
///
/// # Errors
/// As [`verify`].
pub fn verify_files(
    folder: impl AsRef<Path>,
    names: &[impl AsRef<str>],
) -> Result<Verified, ManifestError> {
    compare(folder.as_ref(), |listed| {
        names.iter().any(|name| name.as_ref() == listed)
    })
}

/// The SHA-256 of a file in hexadecimal digits. The file is read in pieces.
///
/// # Errors
/// What the system says, or that `path` is no regular file: reading a device or a pipe may never end.
pub fn hash(path: impl AsRef<Path>) -> io::Result<String> {
    let path = path.as_ref();
    let kind = fs::metadata(path)?;
    if kind.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    }
    if !kind.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut piece = vec![0; PIECE.min(usize::try_from(kind.len()).unwrap_or(PIECE) + 1)];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(format!("{:x}", digest.finalize())),
            Ok(n) => digest.update(&piece[..n]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn io(path: &Path) -> impl FnOnce(io::Error) -> ManifestError + '_ {
    |source| ManifestError::Io {
        path: path.into(),
        source,
    }
}

fn compare(folder: &Path, is_asked: impl Fn(&str) -> bool) -> Result<Verified, ManifestError> {
    let Some(mut listed) = read(folder)? else {
        return Ok(Verified::Absent);
    };
    listed.retain(|(name, _)| is_asked(name));
    let compared = listed.par_iter().map(|(name, expected)| {
        let path = folder.join(name);
        match hash(&path) {
            Ok(found) if found == *expected => Ok(()),
            Ok(found) => Err(ManifestError::Changed {
                path,
                expected: expected.clone(),
                found,
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(ManifestError::Missing { path })
            }
            Err(error) => Err(io(&path)(error)),
        }
    });
    // All are awaited, so that it is the first in order which is named.
    let compared: Vec<_> = compared.collect();
    compared.into_iter().collect::<Result<(), _>>()?;
    let mut names: Vec<String> = listed.into_iter().map(|(name, _)| name).collect();
    names.sort();
    names.dedup();
    Ok(Verified::Files(names))
}

fn hashes(
    folder: &Path,
    names: &[impl AsRef<str> + Sync],
) -> Result<BTreeMap<String, String>, ManifestError> {
    let others = names.par_iter().map(|name| -> &str { name.as_ref() });
    let others = others.filter(|name| *name != MANIFEST);
    let hashed = others.map(|name: &str| {
        let inside = inside(name).ok_or_else(|| ManifestError::Name { name: name.into() })?;
        let path = folder.join(&inside);
        let digest = hash(&path).map_err(io(&path))?;
        Ok((inside, digest))
    });
    hashed.collect()
}

fn put(folder: &Path, all: &BTreeMap<String, String>) -> Result<(), ManifestError> {
    let mut text = String::new();
    for (name, digest) in all {
        let escaped = escape(name);
        // So `sha256sum` says that a name has escapes.
        let mark = if escaped == *name { "" } else { "\\" };
        writeln!(text, "{mark}{digest}  {escaped}").expect("a string takes everything");
    }
    let path = folder.join(MANIFEST);
    atomic_file::write(&path, text.as_bytes()).map_err(io(&path))
}

/// The manifest's names and checksums in its order, if there is one. It is not listed itself: a `sha256sum *`
/// by hand has the checksum of a file that was not yet written.
fn read(folder: &Path) -> Result<Option<Vec<(String, String)>>, ManifestError> {
    let path = folder.join(MANIFEST);
    let file = match File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.map_err(io(&path))?,
    };
    let unreadable = |reason: String| ManifestError::Unreadable {
        path: path.clone(),
        reason,
    };
    if !file.metadata().map_err(io(&path))?.is_file() {
        return Err(unreadable("not a regular file".into()));
    }
    let mut bytes = Vec::new();
    let n = file.take(LIMIT + 1).read_to_end(&mut bytes);
    if n.map_err(io(&path))? as u64 > LIMIT {
        return Err(unreadable(format!("longer than {LIMIT} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|error| unreadable(error.to_string()))?;
    let Some(whole) = text.strip_suffix('\n') else {
        return Err(unreadable("it is empty or its last line is cut".into()));
    };
    let mut listed = Vec::new();
    for (i, line) in whole.split('\n').enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, digest) = parse(line).ok_or_else(|| {
            unreadable(format!(
                "line {} is not a SHA-256 and the name of a file in this folder",
                i + 1
            ))
        })?;
        if name != MANIFEST {
            listed.push((name, digest));
        }
    }
    Ok(Some(listed))
}

/// A line's name and checksum.
fn parse(line: &str) -> Option<(String, String)> {
    let (is_escaped, line) = match line.strip_prefix('\\') {
        Some(rest) => (true, rest),
        None => (false, line),
    };
    let (digest, name) = line.split_at_checked(64)?;
    // A star says that the file was read as bytes, which here all are.
    let name = name.strip_prefix("  ").or(name.strip_prefix(" *"))?;
    if !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let name = if is_escaped {
        unescape(name)?
    } else {
        name.into()
    };
    Some((inside(&name)?, digest.to_ascii_lowercase()))
}

/// `name` without dots for the folder itself, if it is that of a file inside of it.
fn inside(name: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in Path::new(name).components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            _ => return None,
        }
    }
    (!parts.is_empty() && !name.contains('\0')).then(|| parts.join("/"))
}

fn escape(name: &str) -> String {
    name.replace('\\', "\\\\")
        .replace('\n', "\\n")
        .replace('\r', "\\r")
}

fn unescape(name: &str) -> Option<String> {
    let mut text = String::new();
    let mut rest = name.chars();
    while let Some(c) = rest.next() {
        text.push(match c {
            '\\' => match rest.next()? {
                'n' => '\n',
                'r' => '\r',
                '\\' => '\\',
                _ => return None,
            },
            c => c,
        });
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn what_changed_is_named() {
        let folder = folder(&[("a", "abc"), ("deep/b", ""), ("c", "not listed")]);
        let path = folder.path();
        assert_eq!(verify(path).unwrap(), Verified::Absent);
        write(path, &["./deep/b", "a", MANIFEST]).unwrap();
        let text = fs::read_to_string(path.join(MANIFEST)).unwrap();
        // The published examples of SHA-256.
        let expected = "\
            ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  a\n\
            e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  deep/b\n";
        assert_eq!(text, expected);
        let both = Verified::Files(vec!["a".into(), "deep/b".into()]);
        assert_eq!(verify(path).unwrap(), both);
        assert!(both.covers("a") && !both.covers("c"));

        fs::write(path.join("a"), "abd").unwrap();
        let error = verify(path).unwrap_err().to_string();
        assert!(
            error.contains("/a: ") && error.contains(MANIFEST),
            "{error}"
        );
        let some = verify_files(path, &["deep/b", "c"]).unwrap();
        assert_eq!(some, Verified::Files(vec!["deep/b".into()]));
        add(path, &["a", "c"]).unwrap();
        assert!(verify(path).unwrap().covers("c"));
        fs::remove_file(path.join("deep/b")).unwrap();
        let error = verify(path).unwrap_err();
        assert!(matches!(error, ManifestError::Missing { .. }), "{error}");
        // What is gone on purpose is no longer listed.
        add(path, &["c"]).unwrap();
        let known = Verified::Files(vec!["a".into(), "c".into()]);
        assert_eq!(verify(path).unwrap(), known);
        for name in ["../a", "/a", "", "."] {
            let error = write(path, &[name]).unwrap_err();
            assert!(matches!(error, ManifestError::Name { .. }), "{name}");
        }
    }

    #[test]
    fn what_sha256sum_writes_is_read_and_nothing_else() {
        let files = [("a", "abc"), ("back\\slash\nline", "abc"), ("*", "abc")];
        let folder = folder(&files);
        let path = folder.path();
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let upper = digest.to_uppercase();
        write(path, &files.map(|(name, _)| name)).unwrap();
        assert!(verify(path).unwrap().covers(files[1].0));
        for (text, expected) in [
            (format!("{digest}  a\n"), Some(1)),
            (
                format!("# by hand\n{upper} *./a\r\n{digest}  {MANIFEST}\n"),
                Some(1),
            ),
            (
                format!("{digest}  a\n{digest}  *\n\\{digest}  back\\\\slash\\nline\n"),
                Some(3),
            ),
            (String::new(), None),
            (format!("{digest}  a"), None),
            (format!("{digest} a\n"), None),
            (format!("{}  a\n", &digest[1..]), None),
            (format!("{digest}  ../a\n"), None),
            (format!("{digest}  /dev/zero\n"), None),
            (format!("\\{digest}  a\\x\n"), None),
            (format!("{}é{digest}  a\n", &digest[..63]), None),
        ] {
            fs::write(path.join(MANIFEST), &text).unwrap();
            match (verify(path), expected) {
                (Ok(Verified::Files(names)), Some(n)) => assert_eq!(names.len(), n, "{text}"),
                (Err(ManifestError::Unreadable { .. }), None) => {}
                (other, _) => panic!("{text}: {other:?}"),
            }
        }
        // Of two checksums for one file, one is wrong.
        fs::write(
            path.join(MANIFEST),
            format!("{digest}  a\n{}  a\n", "0".repeat(64)),
        )
        .unwrap();
        let error = verify(path).unwrap_err();
        assert!(matches!(error, ManifestError::Changed { .. }), "{error}");
        // One that cannot be understood does not stop what is written anew.
        fs::write(path.join(MANIFEST), [0xff, 0xfe]).unwrap();
        add(path, &["a"]).unwrap();
        assert_eq!(verify(path).unwrap(), Verified::Files(vec!["a".into()]));
    }
}
