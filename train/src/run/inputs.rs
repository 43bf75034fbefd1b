//! What a run reads before it begins: teacher, tokenizer and text, as the configuration names them.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use burn::module::AutodiffModule;
use burn::tensor::{Int, Tensor, TensorData};
use datasets::{Batch, DataError, TokenWindows, Tokenizer};
use kernels::{KernelBackend, TrainBackend};
use model::arch::student_mixers;
use model::{
    Family, Fit, Initialisation, MixerConfig, ModelConfig, NetworkConfig, Phi, PhiMamba,
    WeightsError,
};

use crate::config::{Config, Precision, StageConfig, resolve_path};
use crate::error::{TrainError, io_error};
use crate::provenance::Provenance;

/// Tokens for the calibration of mixers. Eight times as many gave the same perplexity.
const CALIBRATION_TOKENS: usize = 131_072;
/// The number of these tokens that are in the device's memory at the same time.
const CALIBRATION_BATCH: usize = 16_384;

/// The folder or the GGUF file of the teacher called `name`: a path, or a model on the hub. A resumed run uses the
/// place that it had `before`, whatever the hub and its cache now have under that name.
pub(super) fn teacher_folder(
    name: &str,
    before: Option<&Provenance>,
) -> Result<PathBuf, TrainError> {
    if let Some(before) = before
        && before.teacher_model() == Some(name)
        && model::is_model(&before.teacher_folder)
    {
        return Ok(PathBuf::from(&before.teacher_folder));
    }
    let missing = match resolve_path(name) {
        // What is there and no model is an error that says so.
        Ok(found) => return model::locate(found).map_err(TrainError::Teacher),
        Err(missing) => missing,
    };
    // A path whose first folder exists on this machine is not a name on the hub.
    let is_path = name
        .split('/')
        .next()
        .is_none_or(|first| resolve_path(first).is_ok());
    if is_path {
        return Err(missing.into());
    }
    model::locate(name).map_err(|error| match error {
        WeightsError::NoSuchModel { .. } => missing.into(),
        other => TrainError::Teacher(other),
    })
}

/// A file, its size and when it was changed.
pub(super) type Stamp = (PathBuf, u64, Option<SystemTime>);

/// Paths, sizes and times of the model's files in `folder`, which show whether a file has changed without reading it.
pub(super) fn stamps(folder: &Path) -> Result<Vec<Stamp>, TrainError> {
    let stamp = |path: PathBuf| {
        let data = path.metadata().map_err(io_error(&path))?;
        Ok((path, data.len(), data.modified().ok()))
    };
    let files = model::model_files(folder).map_err(TrainError::Teacher)?;
    files.into_iter().map(stamp).collect()
}

/// The first file that differs between the two lists.
pub(super) fn changed(before: &[Stamp], after: &[Stamp]) -> Option<PathBuf> {
    let new = after.iter().find(|stamp| !before.contains(stamp));
    let gone = || before.iter().find(|stamp| !after.contains(stamp));
    new.or_else(gone).map(|(path, ..)| path.clone())
}

/// The student's configuration, checked against the teacher's.
///
/// # Errors
/// [`TrainError::Student`] says which sizes do not fit.
pub fn student_config(config: &Config, teacher: &impl Family) -> Result<ModelConfig, TrainError> {
    let network = teacher.network();
    let (options, d_model) = (&config.student.mixer, network.d_model);
    let how = initialisation(config);
    let mixer = |layer: usize, of_teacher: &MixerConfig| {
        let mixer = options.mixer(layer, of_teacher, d_model)?;
        Ok(how.options_of(mixer, of_teacher, d_model))
    };
    let kept = &config.student.attention_layers;
    options.check(network.mixers.len(), kept)?;
    let mixers = student_mixers(network.mixers, kept, mixer)?;
    Ok(teacher.student_with(mixers)?)
}

/// How the mixers start.
pub(crate) fn initialisation(config: &Config) -> Initialisation {
    // The names were checked with the configuration.
    Initialisation::named(&config.student.init).unwrap_or_default()
}

/// Checks that `stage` can train the student, and returns the layers that have nothing to learn in it.
///
/// # Errors
/// [`TrainError::Untrainable`] names the stage, the layer and its mixer.
pub(crate) fn check_layers(
    stage: &StageConfig,
    teacher: &NetworkConfig,
    student: &NetworkConfig,
) -> Result<Vec<usize>, TrainError> {
    let idle = stage.kind.idle_layers(teacher, student);
    idle.map_err(|reason| TrainError::Untrainable {
        stage: stage.name.clone(),
        reason,
    })
}

/// Checks that `stage` compares no more of the teacher's likeliest tokens than there are.
///
/// # Errors
/// [`TrainError::Mismatch`] names the key.
pub(super) fn check_top_k(stage: &StageConfig, student: &NetworkConfig) -> Result<(), TrainError> {
    let (top_k, vocab_size) = (stage.kind.cached_ids(), student.vocab_size);
    if top_k <= vocab_size {
        return Ok(());
    }
    Err(TrainError::Mismatch(format!(
        "{}.top_k is {top_k}, and the vocabulary has {vocab_size} tokens; lower it, or set it to 0, which compares all",
        stage.name
    )))
}

/// The student before training: it has the teacher's weights, and mixers that are drawn from `seed` and start by `how`,
/// on `text` if the start reads any. The second value says how near each fitted layer is to the teacher's. While text
/// is read, `stop` is called; if it returns true, the work ends.
///
/// # Errors
/// [`TrainError::Transfer`] and [`TrainError::Initialisation`] if teacher and student do not fit; the latter also if
/// `stop` has returned true.
pub(crate) fn untrained_student<B: TrainBackend>(
    config: &ModelConfig,
    seed: u64,
    teacher: &Phi<B::InnerBackend>,
    how: Initialisation,
    text: &[Tensor<B::InnerBackend, 2, Int>],
    stop: &dyn Fn() -> bool,
    device: &B::Device,
) -> Result<(PhiMamba<B>, Vec<Fit>), TrainError> {
    let mut student = PhiMamba::<B::InnerBackend>::init(config, seed, device);
    model::transfer_weights(&mut student, teacher)?;
    let fits = how.apply(&mut student, teacher, text, stop)?;
    Ok((PhiMamba::<B>::from_inner(student), fits))
}

/// Checks that the student in `folder` to start from has the sizes of `config`, without its weights.
///
/// # Errors
/// [`TrainError::Mismatch`] if its sizes are others, or its configuration cannot be read.
pub(super) fn check_student_from(folder: &str, config: &ModelConfig) -> Result<(), TrainError> {
    let found = model::load_config(folder).map_err(|error| {
        TrainError::Mismatch(format!(
            "student.from is \"{folder}\", and no student can be read there: {error}"
        ))
    })?;
    if found == *config {
        return Ok(());
    }
    Err(TrainError::Mismatch(format!(
        "{folder}: this student, which student.from names, is not one that [student] and the teacher make; change the \
         keys of [student] to those that it was made with, or name another"
    )))
}

/// The student in `folder` to start from, whose sizes must be those of `config`, and an empty list, since no mixer was
/// fitted.
///
/// # Errors
/// Those of [`check_student_from`]; [`TrainError::Weights`] if its weights cannot be read.
pub(super) fn student_from<B: TrainBackend>(
    folder: &str,
    config: &ModelConfig,
    device: &B::Device,
) -> Result<(PhiMamba<B>, Vec<Fit>), TrainError> {
    check_student_from(folder, config)?;
    let (_, student) = model::load_any(folder, device)?;
    Ok((student, vec![]))
}

/// The text for the calibration of mixers: the first windows of the first stage's text, as ids `[b, l]` of up to
/// [`CALIBRATION_BATCH`] tokens each, or of one window if that is longer.
///
/// # Errors
/// [`TrainError::Data`] if it cannot be read.
pub(super) fn calibration_text<B: KernelBackend>(
    windows: &TokenWindows,
    device: &B::Device,
) -> Result<Vec<Tensor<B, 2, Int>>, TrainError> {
    let context = windows.context();
    let rows = (CALIBRATION_BATCH / context).max(1);
    let batches = CALIBRATION_TOKENS.div_ceil(rows * context);
    let tensor = |batch: Result<Batch, DataError>| {
        let Batch {
            ids,
            batch,
            context,
            ..
        } = batch?;
        let data = TensorData::new(ids, [batch, context]);
        Ok(Tensor::from_data(data, device))
    };
    windows.sequential(rows).take(batches).map(tensor).collect()
}

/// The teacher for the stages: with as many ids as the student has, and in the dtype of `precision`. In bf16, which
/// means on a GPU, its projections are fused into fewer and wider products.
pub(crate) fn teacher_of_stages<B: KernelBackend>(
    teacher: Phi<B>,
    student: &ModelConfig,
    precision: Precision,
) -> Phi<B> {
    let teacher = model::pad_vocabulary(teacher, student.network().vocab_size);
    let teacher = teacher.cast(precision.dtype());
    match precision {
        Precision::F32 => teacher,
        Precision::Bf16 => teacher.fuse_projections(),
    }
}

/// The tokenizer of a `tokenizer.json`, its folder or a GGUF file.
pub(super) fn tokenizer_at(path: &Path) -> Result<Tokenizer, TrainError> {
    Ok(match model::tokenizer_json(path)? {
        Some(file) => Tokenizer::from_json(&file.bytes, file.path)?,
        // This call returns the error that there is no tokenizer.
        None => Tokenizer::from_folder(path)?,
    })
}

/// The teacher's tokenizer, or the one that the configuration names instead.
pub(super) fn tokenizer(
    config: &Config,
    teacher_folder: &Path,
    teacher: &ModelConfig,
) -> Result<Tokenizer, TrainError> {
    let path = match config.data.tokenizer.as_str() {
        "" => teacher_folder.to_owned(),
        path => resolve_path(path)?,
    };
    let tokenizer = tokenizer_at(&path)?;
    let vocab_size = teacher.network().vocab_size;
    if tokenizer.vocab_size() > vocab_size {
        return Err(TrainError::Mismatch(format!(
            "{}: the tokenizer has {} ids and the teacher knows {}; data.tokenizer must be the \
             teacher's",
            tokenizer.path().display(),
            tokenizer.vocab_size(),
            vocab_size,
        )));
    }
    Ok(tokenizer)
}
