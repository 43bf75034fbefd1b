//! The folder of a run: whether a process works in it, whether it is finished, and the student that it ends
//! with.

use std::fs::{self, File, TryLockError};
use std::path::Path;

use datasets::Tokenizer;
use kernels::KernelBackend;
use model::{ModelConfig, PhiMamba, atomic_file};

use super::{CHECKPOINTS, CONFIG, SUMMARY};
use crate::error::{TrainError, io_error};
use crate::summary::Summary;

/// Whether a run has begun in `folder`, with or without a configuration that has survived.
pub(super) fn is_run(folder: &Path) -> bool {
    folder.join(CONFIG).exists() || folder.join(CHECKPOINTS).exists()
}

/// The result of the run in `folder`, if it is finished.
pub(super) fn finished(folder: &Path) -> Result<Option<Summary>, TrainError> {
    let path = folder.join(SUMMARY);
    Summary::read(&path).map_err(io_error(&path))
}

/// Keeps other processes from working in `folder` for as long as the file is open. Where a folder
/// cannot be locked (Windows, some network file systems), nothing keeps them.
pub(super) fn lock(folder: &Path) -> Result<Option<File>, TrainError> {
    let Ok(lock) = File::open(folder) else {
        return Ok(None);
    };
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => Err(TrainError::InUse(folder.to_owned())),
        Ok(()) | Err(TryLockError::Error(_)) => Ok(Some(lock)),
    }
}

/// The student in the published format, with its tokenizer beside it.
pub(super) fn export<B: KernelBackend>(
    config: &ModelConfig,
    student: &PhiMamba<B>,
    tokenizer: &Tokenizer,
    folder: &Path,
) -> Result<(), TrainError> {
    model::save(config, student, folder)?;
    let copy = folder.join("tokenizer.json");
    let bytes = fs::read(tokenizer.path()).map_err(io_error(tokenizer.path()))?;
    atomic_file::write(&copy, &bytes).map_err(io_error(&copy))
}
