//! Checkpoints: everything that a run needs to resume, and nothing else.
//!
//! A checkpoint is a folder: `student/` in the published format (so that a checkpoint can be used as a model),
//! `optimizer.safetensors` with the moments under the published names of their parameters, `progress.toml` (TOML
//! because it keeps every number to the bit, also NaN and infinities), `inputs.toml` with what the run is made from,
//! and `SHA256SUMS` with the checksums of all of these. No random state is saved: batches are a function of seed and
//! step.
//!
//! The values are copied into the host's memory at their step ([`Snapshot`]), and another thread writes them while the
//! training continues (`run/writer.rs`). A checkpoint is written under another name, and renamed when all of it is on
//! the disk; before it is removed, it is renamed too. So a folder with a checkpoint's name is always complete, whatever
//! happens to the process, the machine or the space on the disk. A checkpoint takes 12 bytes on the disk for each
//! parameter that trains and 4 for each other parameter; `checkpoint.keep` of them are kept, and there is one more
//! while it is written. Damage after that is found by the checksums: a damaged checkpoint is named, and the one before
//! it is used. A checkpoint of an earlier version, without `SHA256SUMS` and `inputs.toml`, is used if changes are
//! accepted, and then gets both.
//!
//! If ranks share the moments, each rank writes its share (`optimizer-1.safetensors` and so on, beside that of rank 0),
//! and rank 0 writes the rest. A checkpoint can be read by any number of ranks: each reads its own share from all files
//! that have a part of it.
//!
//! Information about a checkpoint that comes later, such as its evaluation, goes into another file, `progress-1.toml`
//! and so on; the last of these that `SHA256SUMS` lists is used. A file that is listed never changes, so that a process
//! may die between any two writes.

mod load;
mod moments;
mod progress;
mod shares;
mod snapshot;
mod verify;

pub use load::{Loaded, inputs, load};
pub use progress::Progress;
pub use snapshot::Snapshot;
pub use verify::{Damaged, Found};

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use model::manifest;

use crate::error::{TrainError, io_error};
use crate::logging::say;
use crate::metrics::Position;
use crate::provenance::Provenance;

use verify::amended;

/// The files that are amended, by their names without number and ending.
const PROGRESS: &str = "progress";
const INPUTS: &str = "inputs";
const OPTIMIZER: &str = "optimizer.safetensors";
const STUDENT: &str = "student";

/// The checkpoints of one run, the newest of them kept.
#[derive(Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
    /// Steps between two scheduled checkpoints. The last scheduled one is kept too if a run may be rolled back to it.
    due: Option<usize>,
    /// The names of the run's stages, in order.
    stages: Vec<String>,
}

impl Checkpoints {
    /// The checkpoints in `folder`, of which the newest `keep` are kept, of a run whose stages have these names.
    pub fn new(folder: PathBuf, keep: usize, stages: Vec<String>) -> Self {
        Self {
            folder,
            keep,
            due: None,
            stages,
        }
    }

    /// Also keeps the last scheduled checkpoint, one after `every` steps, for a run that may be rolled back to it.
    pub fn with_due(mut self, every: usize) -> Self {
        self.due = Some(every);
        self
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes `snapshot` and removes the checkpoints that are too many. `is_there` is asked, before the checkpoint gets
    /// its name, whether the run's folder is still in its place: if the folder was moved away, files written under its
    /// old name would make another folder.
    ///
    /// A checkpoint that already exists stays as it is: it can only be the one that the run was resumed from, which
    /// holds the same state.
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::Weights`], or the error of `is_there`; the older checkpoints are then
    /// unchanged, and nothing of this one remains.
    pub fn save(
        &self,
        snapshot: &Snapshot,
        is_there: impl Fn() -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        let written = is_there().and_then(|()| match snapshot.place() {
            Some(place) if place.rank > 0 => self.write_share(snapshot, place.rank),
            _ => self.write(snapshot, &is_there),
        });
        if let Err(error) = written {
            // If the folder is gone, that is the cause of any other error.
            return Err(is_there().err().unwrap_or(error));
        }
        if snapshot.place().is_some_and(|place| place.rank > 0) {
            return Ok(());
        }
        sync_folder(&self.folder);
        let all = self.list()?;
        let last_due = all.iter().rfind(|path| self.is_due(path));
        for old in &all[..all.len().saturating_sub(self.keep)] {
            if last_due == Some(old) {
                continue;
            }
            if let Err(error) = remove(old) {
                // No error: the new checkpoint is written.
                say(format_args!("warning: {} stays: {error}", old.display()));
            }
        }
        Ok(())
    }

    /// Whether a run may be rolled back to the checkpoint at `path`.
    fn is_due(&self, path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let position = position_of(&name);
        let steps = self.due.zip(position);
        steps.is_some_and(|(every, position)| position.step.is_multiple_of(every))
    }

    /// The newest undamaged scheduled checkpoint of `stage`.
    ///
    /// # Errors
    /// As [`newest`](Self::newest); [`TrainError::Mismatch`] if there is none.
    pub fn last_due(&self, stage: &str) -> Result<Found, TrainError> {
        let mut due = self.list()?;
        due.retain(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_of_stage = position_of(&name).is_some_and(|position| position.stage == stage);
            is_of_stage && self.is_due(path)
        });
        verify::newest(due)?.ok_or_else(|| {
            TrainError::Mismatch(format!(
                "{}: there is no checkpoint of stage {stage} to go back to after a spike of the loss",
                self.folder.display()
            ))
        })
    }

    /// Removes the checkpoints after `position`, and incomplete ones. Nothing may be written at the same time.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn remove_after(&self, position: &Position) -> Result<(), TrainError> {
        let whole = self.folder.join(name_of(position));
        let all = self.list()?;
        let after = all.iter().skip_while(|path| **path != whole).skip(1);
        // The newest first: a process may die between any two.
        for path in after.collect::<Vec<_>>().into_iter().rev() {
            remove(path).map_err(io_error(path))?;
        }
        // Leftover shares of other ranks would be taken for those of the same step when that step is done again.
        self.remove_partial()
    }

    /// See [`save`](Self::save).
    fn write(
        &self,
        snapshot: &Snapshot,
        is_there: impl Fn() -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        // Parent folders are not made: if the run's folder is gone, it must not be made again.
        match fs::create_dir(&self.folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(io_error(&self.folder)(error));
            }
            _ => {}
        }
        let whole = self.folder.join(name_of(&snapshot.position()));
        if whole.exists() {
            return Ok(());
        }
        let partial = partial(&whole);
        let shares = shares_of(&whole);
        let written = snapshot
            .write(&partial, &shares)
            .and_then(|()| is_there())
            .and_then(|()| fs::rename(&partial, &whole).map_err(io_error(&whole)));
        if written.is_err() {
            // Frees its space, since the disk may be full. The first error is the one to report.
            let removed = fs::remove_dir_all(&partial);
            if removed.is_ok() && is_there().is_err() {
                self.remove_empty();
            }
        } else if snapshot.place().is_some() {
            // The rest of it is removed when the run is resumed.
            let _ = fs::remove_dir_all(&shares);
        }
        written
    }

    /// Writes a rank's share of a checkpoint, for ranks other than 0. If the checkpoint exists, it has the share
    /// already.
    fn write_share(&self, snapshot: &Snapshot, rank: usize) -> Result<(), TrainError> {
        let whole = self.folder.join(name_of(&snapshot.position()));
        if whole.exists() {
            return Ok(());
        }
        snapshot.write_share(&shares_of(&whole), rank)
    }

    /// Removes the folder of checkpoints and the run's folder if they are empty: after the original folder was moved
    /// away, writing under its old name had made them again.
    fn remove_empty(&self) {
        let of_run = self.folder.parent();
        for folder in std::iter::once(&*self.folder).chain(of_run) {
            // Fails if something is in it.
            let _ = fs::remove_dir(folder);
        }
    }

    /// Adds `progress` to the existing checkpoint at its position, because `progress` has newer information, and, if
    /// needed, what the run is made from now. The rest of the checkpoint stays as it is.
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::Manifest`]; the checkpoint then counts as it was before.
    pub fn amend(
        &self,
        progress: &Progress,
        inputs: Option<&Provenance>,
    ) -> Result<(), TrainError> {
        let checkpoint = self.folder.join(name_of(&progress.position()));
        // If the checkpoint was removed meanwhile, a part of it must not be made again.
        fs::metadata(&checkpoint).map_err(io_error(&checkpoint))?;
        let unused = |stem: &str| {
            let mut names = (1..).map(|n| amended(stem, n));
            let unused = names.find(|name| !checkpoint.join(name).exists());
            unused.expect("there are more names than files")
        };
        let mut names = vec![unused(PROGRESS)];
        progress.write(&checkpoint.join(&names[0]))?;
        if let Some(inputs) = inputs {
            let name = unused(INPUTS);
            inputs.write(&checkpoint.join(&name))?;
            names.push(name);
        }
        if checkpoint.join(manifest::MANIFEST).exists() {
            manifest::add(&checkpoint, &names)?;
        } else {
            // A checkpoint of an earlier version: from now on it has checksums.
            manifest::write(&checkpoint, &verify::files(&checkpoint)?)?;
        }
        sync_folder(&checkpoint);
        Ok(())
    }

    /// The newest checkpoint that is undamaged or of an earlier version, and the newer ones that are damaged. `None` if
    /// there are no checkpoints.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the folder cannot be listed; [`TrainError::Mismatch`] if there is a checkpoint of a stage
    /// that the run does not have; [`TrainError::NoWholeCheckpoint`] if all are damaged.
    pub fn newest(&self) -> Result<Option<Found>, TrainError> {
        for name in self.names()? {
            if let Some(position) = position_of(&name)
                && self.number_of(&position).is_none()
            {
                return Err(TrainError::Mismatch(format!(
                    "{}: config.toml lists no stage `{}`, whose checkpoint this is; undo what was changed of the \
                     list, or give the checkpoint another name",
                    self.folder.join(&name).display(),
                    position.stage,
                )));
            }
        }
        verify::newest(self.list()?)
    }

    /// Renames the damaged checkpoints, so that they no longer count as checkpoints.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn set_aside(&self, damaged: &[Damaged]) -> Result<(), TrainError> {
        for Damaged { path, .. } in damaged {
            let aside = path.with_added_extension("damaged");
            // A damaged checkpoint of the same step that was set aside earlier.
            match fs::remove_dir_all(&aside) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(io_error(&aside)(error));
                }
                _ => fs::rename(path, &aside).map_err(io_error(&aside))?,
            }
        }
        Ok(())
    }

    /// The checkpoints of the run's stages, oldest first.
    fn list(&self) -> Result<Vec<PathBuf>, TrainError> {
        let mut found = vec![];
        for name in self.names()? {
            if let Some(position) = position_of(&name)
                && let Some(number) = self.number_of(&position)
            {
                found.push((number, position.step, self.folder.join(name)));
            }
        }
        found.sort();
        Ok(found.into_iter().map(|(.., path)| path).collect())
    }

    /// Which of the run's stages `position` is in, from 0.
    fn number_of(&self, position: &Position) -> Option<usize> {
        let mut stages = self.stages.iter();
        stages.position(|stage| *stage == position.stage)
    }

    /// Removes incomplete checkpoints, which a process left that died while it was writing or removing them.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn remove_partial(&self) -> Result<(), TrainError> {
        for name in self.names()? {
            if name.starts_with('.') && name.ends_with(PARTIAL) {
                let path = self.folder.join(name);
                fs::remove_dir_all(&path).map_err(io_error(&path))?;
            }
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>, TrainError> {
        if !self.folder.exists() {
            return Ok(vec![]);
        }
        let entries = fs::read_dir(&self.folder).map_err(io_error(&self.folder))?;
        let name = |entry: std::io::Result<fs::DirEntry>| {
            let entry = entry.map_err(io_error(&self.folder))?;
            Ok(entry.file_name().to_string_lossy().into_owned())
        };
        entries.map(name).collect()
    }
}

/// The ending of the name of a folder that is being written or removed.
const PARTIAL: &str = ".partial";

fn partial(whole: &Path) -> PathBuf {
    let name = whole.file_name().unwrap_or_default().to_string_lossy();
    whole.with_file_name(format!(".{name}{PARTIAL}"))
}

/// The folder through which the other ranks' moments come into the checkpoint `whole`.
fn shares_of(whole: &Path) -> PathBuf {
    let name = whole.file_name().unwrap_or_default().to_string_lossy();
    whole.with_file_name(format!(".{name}.shares{PARTIAL}"))
}

fn name_of(position: &Position) -> String {
    format!("{}-step{:07}", position.stage, position.step)
}

/// The position in the name of a checkpoint; none if it is not such a name.
fn position_of(name: &str) -> Option<Position> {
    let (stage, step) = name.rsplit_once("-step")?;
    let position = Position {
        stage: stage.to_owned(),
        step: step.parse().ok()?,
    };
    (!stage.starts_with('.') && name_of(&position) == name).then_some(position)
}

/// Removes the checkpoint at `path`: renamed first, so that no half-removed folder has the name of a checkpoint.
fn remove(path: &Path) -> std::io::Result<()> {
    let partial = partial(path);
    fs::rename(path, &partial).and_then(|()| fs::remove_dir_all(&partial))
}

/// Flushes `folder` to the disk, where the system can, so that new and renamed files in it survive a loss of power.
fn sync_folder(folder: &Path) {
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}

#[cfg(test)]
mod tests;
