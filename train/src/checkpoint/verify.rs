//! Which checkpoints are undamaged: the checksums of their files are compared before their contents are used.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use model::manifest::{self, MANIFEST, ManifestError, Verified};
use serde::{Deserialize, Serialize};
use walkdir::WalkDir;

use super::{INPUTS, OPTIMIZER, PROGRESS};
use crate::error::{TrainError, io_error};

/// The files that every checkpoint has, beside those that are amended.
const FILES: [&str; 3] = [
    OPTIMIZER,
    "student/config.json",
    "student/model.safetensors",
];

/// The checkpoint to resume from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Its folder.
    pub path: PathBuf,
    /// The file in it that says how far the run had come.
    pub progress: String,
    /// The file in it that says what the run was made from. `None` if an earlier version of this program wrote the
    /// checkpoint, without this file and without checksums: whether such a checkpoint is damaged is not known.
    pub inputs: Option<String>,
    /// Newer ones of the run, which are damaged, newest first.
    pub damaged: Vec<Damaged>,
}

/// A checkpoint whose files are not what was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damaged {
    /// Its folder.
    pub path: PathBuf,
    /// Which file in it, and what is wrong with that.
    pub reason: String,
}

/// The name of the file called `stem` when a checkpoint has been amended `n` times.
pub(super) fn amended(stem: &str, n: usize) -> String {
    match n {
        0 => format!("{stem}.toml"),
        n => format!("{stem}-{n}.toml"),
    }
}

/// The file called `stem` in `listed` that counts: the one with the highest number.
fn last(stem: &str, listed: &[String]) -> Result<String, String> {
    let number = |name: &String| -> Option<usize> {
        let rest = name.strip_prefix(stem)?.strip_suffix(".toml")?;
        let n = match rest.strip_prefix('-') {
            Some(n) => n.parse().ok()?,
            None => 0,
        };
        (amended(stem, n) == *name).then_some(n)
    };
    match listed.iter().filter_map(number).max() {
        Some(n) => Ok(amended(stem, n)),
        None => Err(format!("{MANIFEST} does not list {}", amended(stem, 0))),
    }
}

/// The files in `checkpoint`, relative to it.
pub(super) fn files(checkpoint: &Path) -> Result<Vec<String>, TrainError> {
    let mut names = vec![];
    for entry in WalkDir::new(checkpoint).sort_by_file_name() {
        let entry = entry.map_err(|error| io_error(checkpoint)(error.into()))?;
        if entry.file_type().is_file()
            && let Ok(name) = entry.path().strip_prefix(checkpoint)
        {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// The newest checkpoint of `all` (oldest first) that is undamaged or of an earlier version, and the newer ones. Older
/// checkpoints are not read.
pub(super) fn newest(all: Vec<PathBuf>) -> Result<Option<Found>, TrainError> {
    let mut damaged = vec![];
    for path in all.into_iter().rev() {
        let names = if is_earlier(&path) {
            Ok((amended(PROGRESS, 0), None))
        } else {
            let listed = listed(&path)?;
            listed.and_then(|all| Ok((last(PROGRESS, &all)?, Some(last(INPUTS, &all)?))))
        };
        match names {
            Ok((progress, inputs)) => {
                return Ok(Some(Found {
                    path,
                    progress,
                    inputs,
                    damaged,
                }));
            }
            Err(reason) => damaged.push(Damaged { path, reason }),
        }
    }
    if damaged.is_empty() {
        Ok(None)
    } else {
        Err(TrainError::NoWholeCheckpoint(damaged))
    }
}

/// Whether a version of this program wrote `checkpoint` that knew neither checksums nor inputs.
fn is_earlier(checkpoint: &Path) -> bool {
    let is_there = |name: &str| checkpoint.join(name).exists();
    let (progress, inputs) = (amended(PROGRESS, 0), amended(INPUTS, 0));
    let mut files = FILES.into_iter().chain([progress.as_str()]);
    !is_there(MANIFEST) && !is_there(&inputs) && files.all(is_there)
}

/// The files of an undamaged checkpoint, or a description of the damage.
///
/// # Errors
/// [`TrainError::Manifest`] if this process is not allowed to read a file, which is no damage.
fn listed(checkpoint: &Path) -> Result<Result<Vec<String>, String>, TrainError> {
    let within = |path: &Path| {
        let name = path.strip_prefix(checkpoint).unwrap_or(path);
        name.display().to_string()
    };
    let listed = match manifest::verify(checkpoint) {
        Ok(Verified::Files(names)) => names,
        Ok(Verified::Absent) => return Ok(Err(format!("{MANIFEST} is missing"))),
        Err(ManifestError::Io { source, path }) if source.kind() == ErrorKind::PermissionDenied => {
            return Err(ManifestError::Io { path, source }.into());
        }
        Err(ManifestError::Io { path, source }) => {
            return Ok(Err(format!("{}, in {MANIFEST}: {source}", within(&path))));
        }
        Err(ManifestError::Unreadable { path, reason }) => {
            return Ok(Err(format!("{}: {reason}", within(&path))));
        }
        Err(ManifestError::Missing { path }) => {
            return Ok(Err(format!(
                "{} is missing, which {MANIFEST} lists",
                within(&path)
            )));
        }
        Err(ManifestError::Changed { path, .. }) => {
            return Ok(Err(format!(
                "{} is not what was written: its checksum is another than that in {MANIFEST}",
                within(&path)
            )));
        }
        Err(other) => return Ok(Err(other.to_string())),
    };
    let lacks = (FILES.into_iter()).find(|name| !listed.iter().any(|known| known == name));
    Ok(match lacks {
        Some(name) => Err(format!("{MANIFEST} does not list {name}")),
        None => Ok(listed),
    })
}
