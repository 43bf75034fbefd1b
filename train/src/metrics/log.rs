//! `metrics.jsonl`: one JSON object a line, appended as the run goes.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Position, Record};
use crate::retry::{retry, sleep};

/// An open `metrics.jsonl`.
///
/// Each record is one write to the file, so that a run that is killed leaves at worst a torn last
/// line, which [`read`] and [`MetricsLog::resume`] ignore.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    /// `None` if another process writes the log.
    file: Option<File>,
    /// The length of all that was recorded.
    bytes: u64,
    digest: Sha256,
}

/// The length and the checksum of a log. A checkpoint has the mark of the log at its step, so that the beginning of the
/// log, which has grown since, can be verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogMark {
    /// Its bytes.
    pub bytes: u64,
    /// Their SHA-256, in hexadecimal digits.
    pub sha256: String,
}

/// What can go wrong with `metrics.jsonl`.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The disk refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line that no run wrote.
    #[error("{} line {line}: {source}; remove the line to continue", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl MetricsLog {
    /// The log of a process whose records another process writes: it keeps none.
    pub fn nowhere() -> Self {
        Self {
            path: PathBuf::new(),
            file: None,
            bytes: 0,
            digest: Sha256::new(),
        }
    }

    /// Starts an empty log at `path`.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub fn create(path: &Path) -> Result<Self, MetricsError> {
        let file = File::create(path).map_err(io_error(path))?;
        Ok(Self {
            path: path.to_owned(),
            file: Some(file),
            bytes: 0,
            digest: Sha256::new(),
        })
    }

    /// Continues the log at `path` from the checkpoint at `position`. `mark` is the log's mark at that checkpoint; it
    /// is `None` for a checkpoint of a version that kept none. `evaluated` is the last stage whose evaluation the
    /// checkpoint has (`None` if it has only the one before the first stage), and `stages` are the names of the run's
    /// stages, in order.
    ///
    /// The interrupted run will write again what it wrote after that checkpoint, so this is removed first, atomically.
    /// If there is no mark, or if the log no longer begins as it did at the checkpoint, the lines that can be read are
    /// kept, up to the checkpoint's step. In the second case the second value says what is wrong.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub fn resume(
        path: &Path,
        mark: Option<&LogMark>,
        position: &Position,
        evaluated: Option<&str>,
        stages: &[String],
    ) -> Result<(Self, Option<String>), MetricsError> {
        let bytes = bytes(path)?;
        let known = mark.and_then(|mark| {
            let length = usize::try_from(mark.bytes).ok()?;
            let known = bytes.get(..length)?;
            (LogMark::of(known) == *mark).then_some(known)
        });
        let readable = || up_to(&bytes, position, evaluated, stages);
        let (kept, damage) = match (known, mark) {
            (Some(known), _) => (known.to_owned(), None),
            (None, None) => (readable(), None),
            (None, Some(mark)) => {
                let kept = readable();
                let lines = kept.iter().filter(|&&byte| byte == b'\n').count();
                let damage = format!(
                    "{} is not what it was when the checkpoint was written: of its first {} bytes, {} can be \
                     read, in {lines} lines; the curves of the report may have gaps or wrong points",
                    path.display(),
                    mark.bytes,
                    kept.len(),
                );
                (kept, Some(damage))
            }
        };
        model::atomic_file::write(path, &kept).map_err(io_error(path))?;
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(io_error(path))?;
        let log = Self {
            path: path.to_owned(),
            file: Some(file),
            bytes: kept.len() as u64,
            digest: Sha256::new_with_prefix(&kept),
        };
        Ok((log, damage))
    }

    /// Appends `record`. If the disk is full it waits, and removes the incomplete line.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub fn record(&mut self, record: &Record) -> Result<(), MetricsError> {
        let (Some(file), bytes) = (&mut self.file, self.bytes) else {
            return Ok(());
        };
        let mut line =
            serde_json::to_string(record).map_err(|source| io_error(&self.path)(source.into()))?;
        line.push('\n');
        retry(sleep, || {
            file.write_all(line.as_bytes()).inspect_err(|_| {
                // Otherwise the line would follow the part of it that was written.
                let _ = cut(file, bytes);
            })
        })
        .map_err(io_error(&self.path))?;
        self.bytes += line.len() as u64;
        self.digest.update(&line);
        Ok(())
    }

    /// Flushes all records to the disk, so that they survive a loss of power.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub fn sync(&self) -> Result<(), MetricsError> {
        let synced = self.file.as_ref().map_or(Ok(()), File::sync_data);
        synced.map_err(io_error(&self.path))
    }

    /// The mark of all that was recorded.
    pub fn mark(&self) -> LogMark {
        LogMark {
            bytes: self.bytes,
            sha256: format!("{:x}", self.digest.clone().finalize()),
        }
    }

    /// Whether the file has exactly what was recorded: another program may have changed or removed it.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub fn is_intact(&self) -> Result<bool, MetricsError> {
        if self.file.is_none() {
            return Ok(true);
        }
        Ok(LogMark::of(&bytes(&self.path)?) == self.mark())
    }
}

impl LogMark {
    fn of(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.len() as u64,
            sha256: format!("{:x}", Sha256::digest(bytes)),
        }
    }
}

/// Removes an incomplete line, which begins after the first `bytes` of `file`.
fn cut(file: &mut File, bytes: u64) -> io::Result<()> {
    if file.metadata()?.len() > bytes {
        file.set_len(bytes)?;
        file.seek(SeekFrom::Start(bytes))?;
    }
    Ok(())
}

/// The records of the log at `path`; none if there is no such file.
///
/// # Errors
/// [`MetricsError`].
pub fn read(path: &Path) -> Result<Vec<Record>, MetricsError> {
    let bytes = bytes(path)?;
    let record = |(index, line): (usize, &[u8])| {
        serde_json::from_slice(line).map_err(|source| MetricsError::Line {
            path: path.to_owned(),
            line: index + 1,
            source,
        })
    };
    lines(&bytes).enumerate().map(record).collect()
}

/// The records of the log at `path` that can be read.
///
/// # Errors
/// [`MetricsError::Io`].
pub fn read_what_can_be(path: &Path) -> Result<Vec<Record>, MetricsError> {
    let bytes = bytes(path)?;
    Ok(lines(&bytes)
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect())
}

fn bytes(path: &Path) -> Result<Vec<u8>, MetricsError> {
    match std::fs::read(path) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(vec![]),
        other => other.map_err(io_error(path)),
    }
}

/// The complete lines of `bytes`, without their ends.
fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes
        .split_inclusive(|&byte| byte == b'\n')
        .filter_map(|line| line.strip_suffix(b"\n"))
}

/// The lines of `bytes` that can be read and are not beyond `position`.
fn up_to(bytes: &[u8], position: &Position, evaluated: Option<&str>, stages: &[String]) -> Vec<u8> {
    // Stages that are not of the run can only come after those that are done.
    let place = |name: &str| stages.iter().position(|stage| stage == name);
    let place = |name: &str| place(name).unwrap_or(stages.len());
    let here = (place(&position.stage), position.step);
    let mut kept = vec![];
    for line in lines(bytes) {
        let beyond = match serde_json::from_slice(line) {
            Ok(Record::Step(step)) => (place(&step.stage), step.step) > here,
            Ok(Record::Note(note)) => (place(&note.stage), note.step) > here,
            Ok(Record::Evaluation(evaluation)) => {
                let stage = evaluation.stage.as_deref().map(place);
                match (stage, evaluation.step) {
                    (Some(stage), Some(step)) => (stage, step) > here,
                    _ => stage > evaluated.map(place),
                }
            }
            Err(_) => continue,
        };
        if beyond {
            break;
        }
        kept.extend_from_slice(line);
        kept.push(b'\n');
    }
    kept
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> MetricsError {
    let path = path.to_owned();
    move |source| MetricsError::Io { path, source }
}

#[cfg(test)]
mod tests;
