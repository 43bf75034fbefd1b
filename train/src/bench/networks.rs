//! The networks that are timed: real ones if they are on this machine, or else random ones of the same shapes.

use std::fs;
use std::path::{Path, PathBuf};

use kernels::TrainBackend;
use model::{
    Hub, Initialisation, ModelConfig, NetworkConfig, Phi, PhiConfig, PhiMamba, WeightsError,
};

use crate::config::{Config, resolve_path};
use crate::error::TrainError;
use crate::logging::say;
use crate::run::{student_config, teacher_of_stages, untrained_student};

/// The teacher of the presets at full size, whose shapes random weights have.
const PHI: &str = "microsoft/phi-1_5";

/// Teacher and student, as a run has them.
pub(super) struct Networks<B: TrainBackend> {
    /// In the dtype of the precision.
    pub(super) teacher: Phi<B::InnerBackend>,
    /// In f32; `None` if only the teacher is timed.
    pub(super) student: Option<PhiMamba<B>>,
    pub(super) teacher_config: NetworkConfig,
    pub(super) student_config: NetworkConfig,
    /// The same as the student's files have it.
    pub(super) student_model: ModelConfig,
    /// What the teacher's weights are, in words.
    pub(super) of_teacher: String,
}

/// Where the teacher's weights are.
struct Weights {
    folder: PathBuf,
    /// What they are, in words.
    name: String,
}

impl<B: TrainBackend> Networks<B> {
    /// The networks of `config`: the teacher in the folder `teacher`, or the configured one if it is on this machine,
    /// or else random weights of Phi-1.5's shapes, which are kept in the folder `weights`. Nothing is downloaded.
    pub(super) fn open(
        config: &Config,
        teacher: Option<&Path>,
        weights: &Path,
        with_student: bool,
        device: &B::Device,
    ) -> Result<Self, TrainError> {
        let weights = match teacher {
            Some(folder) => Weights::at(folder, folder.display()),
            None => Weights::find::<B>(&config.teacher.model, weights, device)?,
        };
        say(format_args!(
            "reading the teacher in {}",
            weights.folder.display()
        ));
        let (phi, teacher) =
            model::load_any(&weights.folder, device).map_err(TrainError::Teacher)?;
        let of_student = student_config(config, &phi)?;
        // The values of the weights do not affect the times, so no text is read for a start.
        let how = Initialisation::Published;
        let untrained = || {
            let never = || false;
            untrained_student::<B>(&of_student, config.seed, &teacher, how, &[], &never, device)
        };
        let student = with_student.then(untrained).transpose()?;
        let student = student.map(|(student, _)| student);
        Ok(Self {
            teacher: teacher_of_stages(teacher, &of_student, config.precision),
            student,
            teacher_config: NetworkConfig::from(&phi),
            student_config: NetworkConfig::from(&of_student),
            student_model: of_student,
            of_teacher: weights.name,
        })
    }
}

impl Weights {
    fn at(folder: impl Into<PathBuf>, name: impl ToString) -> Self {
        Self {
            folder: folder.into(),
            name: name.to_string(),
        }
    }

    /// The model called `name` if it is on this machine, else the one in `folder`, else random weights there.
    fn find<B: TrainBackend>(
        name: &str,
        folder: &Path,
        device: &B::Device,
    ) -> Result<Self, TrainError> {
        let missing = match resolve_path(name) {
            Ok(folder) => return Ok(Self::at(folder, name)),
            Err(missing) => missing,
        };
        if let Ok(folder) = cached(name) {
            return Ok(Self::at(folder, name));
        }
        if name != PHI {
            return Err(missing.into());
        }
        // The last file to be written.
        if folder.join("config.json").exists() {
            let name = format!("the weights in {}", folder.display());
            return Ok(Self::at(folder, name));
        }
        if holds_weights(folder) {
            return Err(TrainError::ForeignWeights(folder.to_owned()));
        }
        say(format_args!(
            "{name} is not on this machine: writing random weights of its shapes, 2.8 GB, into {}",
            folder.display()
        ));
        model::save_random_teacher::<B>(&PhiConfig::default(), folder, device)?;
        Ok(Self::at(folder, "random weights of Phi-1.5's shapes"))
    }
}

/// The model called `name` in the cache of the hub.
fn cached(name: &str) -> Result<PathBuf, WeightsError> {
    let mut hub = Hub::from_env()?;
    hub.offline = true;
    hub.locate(name)
}

/// Whether there are files of tensors in `folder`.
fn holds_weights(folder: &Path) -> bool {
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths = names.map(|entry| entry.path());
    paths.any(|path| {
        path.extension()
            .is_some_and(|extension| extension == "safetensors")
    })
}
