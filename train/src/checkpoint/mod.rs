//! Checkpoints: all that a run needs to resume, nothing else.
//!
//! A checkpoint is a folder: `student/` in the published format (so that a checkpoint can be used as
//! a model), `optimizer.safetensors` with the moments under published names, `progress.toml`
//! (TOML since it keeps every number to the bit, also those that are none), `inputs.toml` with what the run is
//! made from, and `SHA256SUMS` with the checksums of all of these. There is no random state
//! to keep: batches are a function of seed and step.
//!
//! Its values are read into the host's memory at their step ([`Snapshot`]), and another thread writes them while the
//! training goes on (`run/writer.rs`). A checkpoint is written under another name, and renamed once all of it is on the disk; before
//! it is removed, it is renamed too. So a folder with a checkpoint's name is always complete, whatever happens to the
//! process, the machine or the space on the disk. One takes 12 bytes on the disk for each parameter that trains, 4
//! for each other, and there are `checkpoint.keep` of them, and one more while it is written. What happens to its bytes
//! afterwards is found by the checksums: one that is damaged is named, and the one before it is taken. A checkpoint of an
//! earlier version, without `SHA256SUMS` and `inputs.toml`, is taken if changes are accepted, and gets both then.
//!
//! Where ranks share the moments, each writes its share (`optimizer-1.safetensors` and so on, beside that of rank 0), and
//! rank 0 the rest. A checkpoint is read by any number of ranks: each takes its own share, from whatever files have it.
//!
//! What is learnt about a checkpoint later, as its evaluation, goes to another file, `progress-1.toml` and so on,
//! of which the last that `SHA256SUMS` lists counts. A file that is listed never changes, so that a process may
//! die between any two writes.

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
    /// Steps between two that are due. The last that was due is kept, too, where a run may go back to it.
    due: Option<usize>,
    /// The names of the run's stages, in order.
    stages: Vec<String>,
}

impl Checkpoints {
    /// Those in `folder`, of which `keep` stay, of a run of the `stages` with these names.
    pub fn new(folder: PathBuf, keep: usize, stages: Vec<String>) -> Self {
        Self {
            folder,
            keep,
            due: None,
            stages,
        }
    }

    /// The same for a run that may go back to the last checkpoint that was due, of those after `every` steps.
    pub fn with_due(mut self, every: usize) -> Self {
        self.due = Some(every);
        self
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes `snapshot` and removes those that are too many. `is_there` is asked before the checkpoint gets its name
    /// whether the run's folder is still where it was: files that are written under the name of one that was moved
    /// away make another.
    ///
    /// One that is there already stays as it is: only the checkpoint that the run was resumed from can
    /// be, and it holds the same state.
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::Weights`], or that of `is_there`; the checkpoints before are then as they
    /// were, and nothing is left of this one.
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
            // That the folder is gone is the reason for whatever else went wrong.
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

    /// Whether the checkpoint at `path` is one that a run may go back to.
    fn is_due(&self, path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let position = position_of(&name);
        let steps = self.due.zip(position);
        steps.is_some_and(|(every, position)| position.step.is_multiple_of(every))
    }

    /// The newest whole one of `stage` that was due.
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

    /// Removes those after `position`, and what is left of any that were being written. Nothing may be written meanwhile.
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
        // What may be left of other ranks' shares would be taken for those of the same step when it comes again.
        self.remove_partial()
    }

    /// See [`save`](Self::save).
    fn write(
        &self,
        snapshot: &Snapshot,
        is_there: impl Fn() -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        // Not the folders above it: a run's folder that is gone is not made anew.
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
            // Frees its space, as the disk may be full; the error to report is the first.
            let removed = fs::remove_dir_all(&partial);
            if removed.is_ok() && is_there().is_err() {
                self.remove_empty();
            }
        } else if snapshot.place().is_some() {
            // What is left of it is removed when the run is resumed.
            let _ = fs::remove_dir_all(&shares);
        }
        written
    }

    /// What a rank other than 0 writes of a checkpoint. One that is there already has it.
    fn write_share(&self, snapshot: &Snapshot, rank: usize) -> Result<(), TrainError> {
        let whole = self.folder.join(name_of(&snapshot.position()));
        if whole.exists() {
            return Ok(());
        }
        snapshot.write_share(&shares_of(&whole), rank)
    }

    /// Removes the folder of checkpoints and the run's, if nothing is in them: they were made anew by what was written
    /// under the names of those that were moved away.
    fn remove_empty(&self) {
        let of_run = self.folder.parent();
        for folder in std::iter::once(&*self.folder).chain(of_run) {
            // Fails if something is in it.
            let _ = fs::remove_dir(folder);
        }
    }

    /// Adds `progress` to the checkpoint that is there at its position, since it holds what has been learnt
    /// since, and if need be what the run is made from now. The rest of the checkpoint stays.
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::Manifest`]; it then counts as it was.
    pub fn amend(
        &self,
        progress: &Progress,
        inputs: Option<&Provenance>,
    ) -> Result<(), TrainError> {
        let checkpoint = self.folder.join(name_of(&progress.position()));
        // If it was removed meanwhile, it is not made anew of a part.
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
            // One of an earlier version: from now on it is known what its files were.
            manifest::write(&checkpoint, &verify::files(&checkpoint)?)?;
        }
        sync_folder(&checkpoint);
        Ok(())
    }

    /// The newest that is whole or of an earlier version, and the newer ones that are damaged. `None` if there
    /// are no checkpoints.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the folder cannot be listed; [`TrainError::Mismatch`] if there is one of a stage
    /// that the run does not have; [`TrainError::NoWholeCheckpoint`] if none is whole.
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

    /// Gives those that are damaged another name, by which they do not count.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn set_aside(&self, damaged: &[Damaged]) -> Result<(), TrainError> {
        for Damaged { path, .. } in damaged {
            let aside = path.with_added_extension("damaged");
            // Of the same step, from before.
            match fs::remove_dir_all(&aside) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(io_error(&aside)(error));
                }
                _ => fs::rename(path, &aside).map_err(io_error(&aside))?,
            }
        }
        Ok(())
    }

    /// Those of the run's stages, oldest first.
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

    /// Removes what a process that died left of a checkpoint it was writing or removing.
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

/// Makes what was made and renamed in `folder` last through a loss of power, where the system can.
fn sync_folder(folder: &Path) {
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}

#[cfg(test)]
mod tests;
