//! Reading a checkpoint.

use kernels::TrainBackend;
use model::{ModelConfig, PhiMamba};

use super::{Found, Progress, STUDENT, moments, name_of};
use crate::config::Config;
use crate::error::TrainError;
use crate::optimizer::AdamW;
use crate::provenance::Provenance;

/// The content of a checkpoint, except for the moments.
pub struct Loaded<B: TrainBackend> {
    /// How far the run had come.
    pub progress: Progress,
    /// The student then.
    pub student: PhiMamba<B>,
}

/// Reads what the run was made from, as the checkpoint `found` has it; `None` if the checkpoint does not have it.
///
/// # Errors
/// [`TrainError::Checkpoint`].
pub fn inputs(found: &Found) -> Result<Option<Provenance>, TrainError> {
    let Some(name) = &found.inputs else {
        return Ok(None);
    };
    let read = Provenance::read(&found.path.join(name));
    read.map(Some).map_err(|reason| TrainError::Checkpoint {
        path: found.path.clone(),
        reason: format!("{name}: {reason}"),
    })
}

/// Reads the checkpoint `found` of a run of `config`; its moments go into `optimizer`.
///
/// # Errors
/// [`TrainError::Checkpoint`] names the file, tensor or value that is wrong; [`TrainError::Mismatch`] if
/// its student is not that of `student_config`.
pub fn load<B: TrainBackend>(
    found: &Found,
    config: &Config,
    student_config: &ModelConfig,
    optimizer: &mut AdamW<B::InnerBackend>,
    device: &B::Device,
) -> Result<Loaded<B>, TrainError> {
    let checkpoint = &found.path;
    let damaged = |reason: String| TrainError::Checkpoint {
        path: checkpoint.clone(),
        reason,
    };
    let in_file = |name: &str, reason: String| damaged(format!("{name}: {reason}"));

    let name = &found.progress;
    let progress =
        Progress::read(&checkpoint.join(name)).map_err(|reason| in_file(name, reason))?;
    (progress.check(config)).map_err(|wrong| in_file(name, wrong.to_string()))?;
    let own = name_of(&progress.position());
    if checkpoint.file_name().is_none_or(|name| *name != *own) {
        return Err(in_file(name, format!("it is that of {own}")));
    }
    let (of_student, student) = model::load_any(checkpoint.join(STUDENT), device)
        .map_err(|error| damaged(error.to_string()))?;
    if of_student != *student_config {
        return Err(TrainError::Mismatch(format!(
            "{}: the student in it is not the one that config.toml and the teacher ask for; undo \
             what was changed in either, or start another run",
            checkpoint.display(),
        )));
    }
    let layout = student_config.layout();
    moments::load(checkpoint, &student, layout, optimizer, device).map_err(damaged)?;
    Ok(Loaded { progress, student })
}
