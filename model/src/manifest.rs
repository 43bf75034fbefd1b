//! Checksums of a folder's files, in one file beside them.
//!
//! `SHA256SUMS` has a line for each file, its SHA-256 and its name, as the program `sha256sum` writes and reads them:
//! `sha256sum -c SHA256SUMS` in the folder checks it by hand. The manifest is written last and replaced atomically, so
//! it lists only complete files. A folder without a manifest is not checked; to accept a deliberate change of a file,
//! remove the manifest.
//!
//! # Manifests of others
//!
//! [`verify`] is for folders that only this program writes: except comments and the form of `sha256sum --tag`, any line
//! that it would not write counts as damage. A model's folder may have a `SHA256SUMS` from another program, which must
//! not make the folder unreadable. So [`verify_files`], which compares only the files that it is asked for, ignores
//!
//! - lines with names outside the folder, and lines with other kinds of checksums;
//! - lines that cannot be parsed, unless they contain one of the names that it is asked for: such a line may be the
//!   damaged checksum of that file, and a file that was not compared must not count as verified;
//! - a missing line end after the last line, if this line names an existing file. Otherwise the manifest was truncated,
//!   perhaps in the line of a file that it is asked for, and this is an error.

mod hashing;
mod lines;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

pub use self::hashing::{Hashing, hash};
use self::lines::{Line, inside};
use crate::atomic_file;

/// SHA-256 in hexadecimal digits, by the names of files relative to a folder.
pub type Digests = BTreeMap<String, String>;

/// The manifest's name in its folder.
pub const MANIFEST: &str = "SHA256SUMS";

/// Bytes of a manifest that are read, at most: lines for a hundred thousand files.
const LIMIT: u64 = 16 << 20;

/// Why a folder's checksums could not be written or verified.
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
    /// The manifest cannot be parsed. None of the files that it lists has been checked.
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
    /// A name that cannot be listed, because it is not the name of a file inside the folder.
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
    /// The content of a listed file differs from its checksum.
    #[error(
        "{}: the file is damaged or was changed: its SHA-256 is {found}, and {MANIFEST} beside it says \
         {expected}; if the change is deliberate, remove {MANIFEST}",
        path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// Its SHA-256 in the manifest.
        expected: String,
        /// Its SHA-256 now.
        found: String,
    },
}

/// The result of a comparison with the manifest in which no file differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verified {
    /// There is no manifest, so no file was checked.
    Absent,
    /// The names of the files that are listed and have the right checksum, sorted. Other files were not checked.
    Files(Vec<String>),
}

impl Verified {
    /// Whether the file `name` is listed and has the right checksum.
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
    write_known(folder, names, Digests::new())
}

/// Writes the manifest of `folder` as [`write()`] does, with the checksums that are `known`, as of files that were
/// hashed while they were written ([`Hashing`]). Those of `names` that are not among them are read.
///
/// # Errors
/// As [`write()`].
pub fn write_known(
    folder: impl AsRef<Path>,
    names: &[impl AsRef<str> + Sync],
    known: Digests,
) -> Result<(), ManifestError> {
    let folder = folder.as_ref();
    let mut all = inside_folder(known)?;
    all.extend(hashes(folder, names, &all)?);
    put(folder, &all)
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
    let new = hashes(folder, names, &Digests::new())?;
    add_known(folder, new)
}

/// Writes the checksums that are `known` into the manifest of `folder`, as [`add`] does; no file is read.
///
/// # Errors
/// As [`write()`].
pub fn add_known(folder: impl AsRef<Path>, known: Digests) -> Result<(), ManifestError> {
    let folder = folder.as_ref();
    let mut all: Digests = match read(folder, None) {
        Ok(listed) => listed.unwrap_or_default().into_iter().collect(),
        Err(ManifestError::Unreadable { .. }) => Digests::new(),
        Err(error) => return Err(error),
    };
    let is_gone = |kind| matches!(kind, ErrorKind::NotFound | ErrorKind::NotADirectory);
    all.retain(|name, _| match fs::symlink_metadata(folder.join(name)) {
        Err(error) => !is_gone(error.kind()),
        Ok(_) => true,
    });
    all.extend(inside_folder(known)?);
    put(folder, &all)
}

/// The checksums that the manifest of `folder` lists, by the names of the files, if there is one. Nothing is
/// compared. Of several checksums for one file it is the last: loading the file fails then.
pub(crate) fn listed(folder: &Path) -> Result<Option<Digests>, ManifestError> {
    Ok(read(folder, Some(&[]))?.map(|listed| listed.into_iter().collect()))
}

/// Compares every file that the manifest of `folder` lists with it, and expects a manifest of this program.
///
/// # Errors
/// [`ManifestError`] for the first file, in the manifest's order, that is missing or differs, or if the manifest
/// cannot be understood.
pub fn verify(folder: impl AsRef<Path>) -> Result<Verified, ManifestError> {
    compare(folder.as_ref(), None)
}

/// Compares those of the files `names` that the manifest of `folder` lists with it. What it does not list is not
/// read, and is not in [`Verified::Files`]. The manifest may be of another program, as the module says.
///
/// # Errors
/// As [`verify`].
pub fn verify_files(
    folder: impl AsRef<Path>,
    names: &[impl AsRef<str>],
) -> Result<Verified, ManifestError> {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    compare(folder.as_ref(), Some(&names))
}

fn io(path: &Path) -> impl FnOnce(io::Error) -> ManifestError + '_ {
    |source| ManifestError::Io {
        path: path.into(),
        source,
    }
}

/// Compares the files `asked`, or all that are listed.
fn compare(folder: &Path, asked: Option<&[&str]>) -> Result<Verified, ManifestError> {
    let Some(mut listed) = read(folder, asked)? else {
        return Ok(Verified::Absent);
    };
    listed.retain(|(name, _)| asked.is_none_or(|asked| asked.contains(&&**name)));
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
    // All comparisons are awaited, so that the error names the first file in the manifest's order.
    let compared: Vec<_> = compared.collect();
    compared.into_iter().collect::<Result<(), _>>()?;
    let mut names: Vec<String> = listed.into_iter().map(|(name, _)| name).collect();
    names.sort();
    names.dedup();
    Ok(Verified::Files(names))
}

/// The name by which a file of the folder is listed.
fn listed_name(name: &str) -> Result<String, ManifestError> {
    inside(name).ok_or_else(|| ManifestError::Name { name: name.into() })
}

fn inside_folder(known: Digests) -> Result<Digests, ManifestError> {
    let known = known.into_iter().filter(|(name, _)| name != MANIFEST);
    let known = known.map(|(name, digest)| Ok((listed_name(&name)?, digest)));
    known.collect()
}

/// The checksums of those of `names` that are not `known`.
fn hashes(
    folder: &Path,
    names: &[impl AsRef<str> + Sync],
    known: &Digests,
) -> Result<Digests, ManifestError> {
    let others = names.par_iter().map(|name| -> &str { name.as_ref() });
    let others = others.filter(|name| *name != MANIFEST);
    let inside = others.map(listed_name);
    let unknown = inside.filter(|name| !name.as_ref().is_ok_and(|name| known.contains_key(name)));
    let hashed = unknown.map(|name| {
        let name = name?;
        let path = folder.join(&name);
        let digest = hash(&path).map_err(io(&path))?;
        Ok((name, digest))
    });
    hashed.collect()
}

fn put(folder: &Path, all: &Digests) -> Result<(), ManifestError> {
    let lines = all.iter().map(|(name, digest)| Line::of(name, digest));
    let text: String = lines.collect();
    let path = folder.join(MANIFEST);
    atomic_file::write(&path, text.as_bytes()).map_err(io(&path))
}

/// The manifest's names and checksums in its order, if there is one. Where files are `asked` for, it may be another
/// program's. It is not listed itself: a `sha256sum *` by hand has the checksum of a file that was not yet written.
fn read(
    folder: &Path,
    asked: Option<&[&str]>,
) -> Result<Option<Vec<(String, String)>>, ManifestError> {
    let path = folder.join(MANIFEST);
    let unreadable = |reason: String| ManifestError::Unreadable {
        path: path.clone(),
        reason,
    };
    // Opening a pipe would wait for a writer.
    match fs::metadata(&path) {
        Ok(kind) if kind.is_file() => {}
        Ok(_) => return Err(unreadable("not a regular file".into())),
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(io(&path)(error)),
        Err(_) if fs::symlink_metadata(&path).is_err() => return Ok(None),
        Err(_) => return Err(unreadable("a link to what is not there".into())),
    }
    let file = File::open(&path).map_err(io(&path))?;
    let mut bytes = Vec::new();
    let n = file.take(LIMIT + 1).read_to_end(&mut bytes);
    if n.map_err(io(&path))? as u64 > LIMIT {
        return Err(unreadable(format!("longer than {LIMIT} bytes")));
    }
    // A name that is no UTF-8 is not one that is asked for.
    let text = match asked {
        Some(_) => String::from_utf8_lossy(&bytes).into_owned(),
        None => String::from_utf8(bytes).map_err(|error| unreadable(error.to_string()))?,
    };
    if asked.is_none() && text.is_empty() {
        return Err(unreadable("it is empty".into()));
    }
    let mut listed = Vec::new();
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let whole = line.strip_suffix('\n');
        let line = whole.map_or(line, |line| line.strip_suffix('\r').unwrap_or(line));
        let parsed = Line::parse(line);
        if whole.is_none() {
            let is_there = match &parsed {
                Line::File { name, .. } => folder.join(name).exists(),
                Line::Nothing | Line::Other => true,
                Line::Unknown => false,
            };
            if asked.is_none() || !is_there {
                return Err(unreadable("its last line is cut".into()));
            }
        }
        let is_damage = match &parsed {
            Line::File { .. } | Line::Nothing => false,
            Line::Other => asked.is_none(),
            Line::Unknown => asked.is_none_or(|asked| asked.iter().any(|name| line.contains(name))),
        };
        if is_damage {
            return Err(unreadable(format!(
                "line {} is not a SHA-256 and the name of a file in this folder",
                i + 1
            )));
        }
        if let Line::File { name, digest } = parsed
            && name != MANIFEST
        {
            listed.push((name, digest));
        }
    }
    Ok(Some(listed))
}

#[cfg(test)]
mod tests;
