//! The networks that are timed: real ones where they are at hand, else random ones of the same shapes.

use std::path::{Path, PathBuf};

use burn::module::AutodiffModule;
use kernels::TrainBackend;
use model::{Hub, NetworkConfig, Phi, PhiConfig, PhiMamba, WeightsError};
use tempfile::TempDir;

use crate::config::{Config, resolve_path};
use crate::error::{TrainError, io_error};
use crate::logging::say;
use crate::run::student_config;

/// The teacher of the presets at full size, whose shapes random weights have.
const PHI: &str = "microsoft/phi-1_5";

/// Teacher and student, as a run has them.
pub(super) struct Networks<B: TrainBackend> {
    /// In the dtype of the precision.
    pub(super) teacher: Phi<B::InnerBackend>,
    /// In f32; none where only the teacher is wanted.
    pub(super) student: Option<PhiMamba<B>>,
    pub(super) teacher_config: NetworkConfig,
    pub(super) student_config: NetworkConfig,
    /// Whether the teacher's weights are random.
    pub(super) random: bool,
}

/// Where the teacher's weights are.
struct Weights {
    folder: PathBuf,
    random: bool,
    /// The folder, where it goes once it is read.
    _temporary: Option<TempDir>,
}

impl<B: TrainBackend> Networks<B> {
    /// Those of `config`: the teacher in `teacher`, or the configured one if it is on this machine, else
    /// random weights of Phi-1.5's shapes, kept in `weights`. Nothing is fetched.
    pub(super) fn open(
        config: &Config,
        teacher: Option<&Path>,
        weights: Option<&Path>,
        with_student: bool,
        device: &B::Device,
    ) -> Result<Self, TrainError> {
        let weights = match teacher {
            Some(folder) => Weights::at(folder.to_owned()),
            None => Weights::find::<B>(&config.teacher.model, weights, device)?,
        };
        say(format_args!(
            "reading the teacher in {}",
            weights.folder.display()
        ));
        let (phi, teacher) =
            model::load_teacher(&weights.folder, device).map_err(TrainError::Teacher)?;
        let of_student = student_config(config, &phi)?;
        let student = match with_student {
            true => {
                let mut student = PhiMamba::<B>::init(&of_student, config.seed, device);
                model::transfer_weights(&mut student, &Phi::<B>::from_inner(teacher.clone()))?;
                Some(student)
            }
            false => None,
        };
        let teacher = model::pad_vocabulary(teacher, of_student.padded_vocab_size());
        Ok(Self {
            teacher: teacher.cast(config.precision.dtype()),
            student,
            teacher_config: NetworkConfig::from(&phi),
            student_config: NetworkConfig::from(&of_student),
            random: weights.random,
        })
    }
}

impl Weights {
    fn at(folder: PathBuf) -> Self {
        Self {
            folder,
            random: false,
            _temporary: None,
        }
    }

    /// The model called `name` if it is here, else random weights in `folder` or a temporary one.
    fn find<B: TrainBackend>(
        name: &str,
        folder: Option<&Path>,
        device: &B::Device,
    ) -> Result<Self, TrainError> {
        let missing = match resolve_path(name) {
            Ok(folder) => return Ok(Self::at(folder)),
            Err(missing) => missing,
        };
        if name != PHI {
            return Err(missing.into());
        }
        if let Ok(folder) = cached(name) {
            return Ok(Self::at(folder));
        }
        let (folder, temporary) = match folder {
            Some(folder) => (folder.to_owned(), None),
            None => {
                let place = std::env::temp_dir();
                let temporary = tempfile::Builder::new().prefix("phi-random-").tempdir();
                let temporary = temporary.map_err(io_error(&place))?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        // The last file to be written.
        if !folder.join("config.json").exists() {
            say(format_args!(
                "{name} is not on this machine: writing random weights of its shapes, 2.8 GB, into {}",
                folder.display()
            ));
            model::save_random_teacher::<B>(&PhiConfig::default(), &folder, device)?;
        }
        Ok(Self {
            folder,
            random: true,
            _temporary: temporary,
        })
    }
}

/// The model called `name` in the cache of the hub.
fn cached(name: &str) -> Result<PathBuf, WeightsError> {
    let mut hub = Hub::from_env()?;
    hub.offline = true;
    hub.locate(name)
}
