//! Checkpoints: all that a run needs to resume, nothing else.
//!
//! A checkpoint is a folder: `student/` in the published format (so that a checkpoint can be used as
//! a model), `optimizer.safetensors` with the moments under published names, and `progress.toml`
//! (TOML since it keeps every number to the bit, also those that are none). There is no random state
//! to keep: batches are a function of seed and step.
//!
//! It is written under another name and renamed when whole and on the disk; one that is removed is
//! renamed first. So a folder with a checkpoint's name is always complete, whatever happens to the
//! process, the machine or the space on the disk.

mod moments;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use kernels::TrainBackend;
use model::{ModelConfig, PhiMamba, atomic_file};
use serde::{Deserialize, Serialize};

use crate::error::{TrainError, io_error};
use crate::logging::say;
use crate::metrics::Position;
use crate::optimizer::AdamW;
use crate::summary::StageSummary;

const PROGRESS: &str = "progress.toml";
/// The last line of [`PROGRESS`]: TOML that is cut short may be TOML still.
const END: &str = "# end\n";
const OPTIMIZER: &str = "optimizer.safetensors";
const STUDENT: &str = "student";

/// How far a run has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The stage that it is in.
    pub stage: String,
    /// Steps of that stage done; also the position in its data.
    pub step: usize,
    /// Training tokens so far, over all stages.
    pub tokens: u64,
    /// Seconds this stage has trained.
    pub stage_seconds: f64,
    /// Seconds of the run so far, over all resumptions.
    pub seconds: f64,
    /// Non-finite steps of the run.
    pub skipped: usize,
    /// Those of them that came last, one after the other.
    pub skipped_in_a_row: usize,
    /// The last finite loss of the stage, smoothed as the closing table shows it.
    pub loss: Option<f64>,
    /// Perplexity of the teacher.
    pub teacher_perplexity: f64,
    /// Stages done.
    pub finished: Vec<StageSummary>,
}

impl Progress {
    /// As the metrics count it.
    pub fn position(&self) -> Position {
        Position {
            stage: self.stage.clone(),
            step: self.step,
        }
    }

    /// The last stage that is done, its evaluation included; `None` if none is.
    pub fn evaluated(&self) -> Option<&str> {
        self.finished.last().map(|done| done.stage.as_str())
    }

    /// The tokens of stage [`stage`](Self::stage) so far; 0 if it is done.
    pub fn stage_tokens(&self) -> u64 {
        let finished = self.finished.iter().map(|done| done.tokens);
        self.tokens.saturating_sub(finished.sum())
    }
}

/// The checkpoints of one run, the newest of them kept.
#[derive(Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
    /// The names of the run's stages, in order.
    stages: Vec<String>,
}

impl Checkpoints {
    /// Those in `folder`, of which `keep` stay, of a run of the `stages` with these names.
    pub fn new(folder: PathBuf, keep: usize, stages: Vec<String>) -> Self {
        Self {
            folder,
            keep,
            stages,
        }
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes one and removes those that are too many.
    ///
    /// One that is there already stays as it is: only the checkpoint that the run was resumed from can
    /// be, and it holds the same state.
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::Weights`]; the checkpoints before are then as they were.
    pub fn save<B: TrainBackend>(
        &self,
        progress: &Progress,
        config: &ModelConfig,
        student: &PhiMamba<B>,
        optimizer: &AdamW<B::InnerBackend>,
    ) -> Result<(), TrainError> {
        fs::create_dir_all(&self.folder).map_err(io_error(&self.folder))?;
        let name = name_of(&progress.position());
        let whole = self.folder.join(&name);
        if whole.exists() {
            return Ok(());
        }
        let partial = partial(&whole);
        let written = write(&partial, progress, config, student, optimizer)
            .and_then(|()| fs::rename(&partial, &whole).map_err(io_error(&whole)));
        if let Err(error) = written {
            // Frees its space, as the disk may be full; the error to report is the first.
            let _ = fs::remove_dir_all(&partial);
            return Err(error);
        }
        sync_folder(&self.folder);
        let all = self.list()?;
        for old in &all[..all.len().saturating_sub(self.keep)] {
            // Renamed first, so that no half-removed folder has the name of a checkpoint.
            let partial = self::partial(old);
            let removed = fs::rename(old, &partial).and_then(|()| fs::remove_dir_all(&partial));
            if let Err(error) = removed {
                // No error: the new checkpoint is written.
                say(format_args!("warning: {} stays: {error}", old.display()));
            }
        }
        Ok(())
    }

    /// Writes `progress` into the checkpoint that is there at its position: it holds what has been measured
    /// since. The rest of the checkpoint stays.
    ///
    /// # Errors
    /// [`TrainError::Io`]; it is then as it was.
    pub fn amend(&self, progress: &Progress) -> Result<(), TrainError> {
        write_progress(progress, &self.folder.join(name_of(&progress.position())))
    }

    /// The newest, if there is one.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the folder cannot be listed; [`TrainError::Mismatch`] if there is one of a stage
    /// that the run does not have.
    pub fn newest(&self) -> Result<Option<PathBuf>, TrainError> {
        for name in self.names()? {
            if let Some(position) = position_of(&name)
                && self.number_of(&position).is_none()
            {
                return Err(TrainError::Mismatch(format!(
                    "{}: config.toml lists no stage `{}`, whose checkpoint this is; undo what was changed of the \
                     list, or remove the checkpoint",
                    self.folder.join(&name).display(),
                    position.stage,
                )));
            }
        }
        Ok(self.list()?.pop())
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

/// Makes what was made and renamed in `folder` last through a loss of power, where the system can.
fn sync_folder(folder: &Path) {
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}

fn write<B: TrainBackend>(
    folder: &Path,
    progress: &Progress,
    config: &ModelConfig,
    student: &PhiMamba<B>,
    optimizer: &AdamW<B::InnerBackend>,
) -> Result<(), TrainError> {
    fs::create_dir(folder).map_err(io_error(folder))?;
    let of_student = folder.join(STUDENT);
    model::save(config, student, &of_student)?;
    moments::save(student, optimizer, config.layout(), &folder.join(OPTIMIZER))?;
    write_progress(progress, folder)?;
    // The names of the files as well as what is in them.
    sync_folder(&of_student);
    sync_folder(folder);
    Ok(())
}

fn write_progress(progress: &Progress, checkpoint: &Path) -> Result<(), TrainError> {
    let path = checkpoint.join(PROGRESS);
    toml::to_string(progress)
        .map_err(std::io::Error::other)
        .and_then(|text| atomic_file::write(&path, (text + END).as_bytes()))
        .map_err(io_error(&path))
}

/// Reads the student, how far the run had come, and into `optimizer` its moments.
///
/// # Errors
/// [`TrainError::Checkpoint`] names the file or tensor that is damaged; [`TrainError::Mismatch`] if
/// its student is not that of `config`.
pub fn load<B: TrainBackend>(
    checkpoint: &Path,
    config: &ModelConfig,
    optimizer: &mut AdamW<B::InnerBackend>,
    device: &B::Device,
) -> Result<(Progress, PhiMamba<B>), TrainError> {
    let damaged = |reason: String| TrainError::Checkpoint {
        path: checkpoint.into(),
        reason,
    };
    let in_file = |name, reason: String| damaged(format!("{name}: {reason}"));

    let progress =
        read_progress(&checkpoint.join(PROGRESS)).map_err(|reason| in_file(PROGRESS, reason))?;
    let (found, student) = model::load_any(checkpoint.join(STUDENT), device)
        .map_err(|error| damaged(error.to_string()))?;
    if found != *config {
        return Err(TrainError::Mismatch(format!(
            "{}: the student in it is not the one that config.toml and the teacher ask for; undo \
             what was changed in either, or start another run",
            checkpoint.display(),
        )));
    }
    let moments = checkpoint.join(OPTIMIZER);
    moments::load(&moments, &student, config.layout(), optimizer, device)
        .map_err(|reason| in_file(OPTIMIZER, reason))?;
    Ok((progress, student))
}

fn read_progress(path: &Path) -> Result<Progress, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    if !text.ends_with(END) {
        return Err("it is cut short".to_owned());
    }
    toml::from_str(&text).map_err(|error| error.message().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_positions() {
        for (stage, step) in [
            ("stage1", 0),
            ("b", 40),
            ("a-step7", 9_999_999),
            ("a", 10_000_000),
        ] {
            let position = Position {
                stage: stage.to_owned(),
                step,
            };
            assert_eq!(position_of(&name_of(&position)), Some(position));
        }
        for name in [
            "stage1",
            "stage1-step40",
            "stage1-step0000040.bak",
            ".stage1-step0000040",
        ] {
            assert_eq!(position_of(name), None, "{name}");
        }
    }

    /// By the run's list, and not by the letters.
    #[test]
    fn the_newest_is_that_of_the_last_stage() {
        let folder = tempfile::tempdir().unwrap();
        let stages = ["wide", "narrow"].map(str::to_owned).to_vec();
        let checkpoints = Checkpoints::new(folder.path().to_owned(), 2, stages);
        assert_eq!(checkpoints.newest().unwrap(), None);
        let steps = [
            ("wide", 5),
            ("narrow", 1),
            ("narrow", 10_000_000),
            ("wide", 700),
        ];
        for (stage, step) in steps {
            let name = format!("{stage}-step{step:07}");
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let newest = folder.path().join("narrow-step10000000");
        assert_eq!(checkpoints.newest().unwrap(), Some(newest));

        fs::create_dir(folder.path().join("gone-step0000001")).unwrap();
        let message = checkpoints.newest().unwrap_err().to_string();
        assert!(message.contains("no stage `gone`"), "{message}");
    }
}
