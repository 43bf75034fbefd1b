//! What a run reads before it begins: teacher, tokenizer and text, as the configuration names them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::module::AutodiffModule;
use datasets::{PrepareOptions, Split, TokenShards, TokenWindows, Tokenizer};
use kernels::{KernelBackend, TrainBackend};
use model::{DiscreteMamba2Config, Family, ModelConfig, Phi, PhiMamba, WeightsError};

use crate::config::{Config, Precision, resolve_path};
use crate::error::TrainError;

/// The folder of the teacher called `name`: a path, or a model on the hub.
pub(super) fn teacher_folder(name: &str) -> Result<PathBuf, TrainError> {
    let missing = match resolve_path(name) {
        Ok(folder) => return Ok(folder),
        Err(missing) => missing,
    };
    // Nobody means the hub by a path that begins in a folder which is here.
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

/// The student's configuration, checked against the teacher's.
///
/// # Errors
/// [`TrainError::Student`] or [`TrainError::Mismatch`] says which sizes do not fit.
pub fn student_config(config: &Config, teacher: &impl Family) -> Result<ModelConfig, TrainError> {
    let student = &config.student;
    let mixer = DiscreteMamba2Config {
        d_state: student.d_state,
        n_qk_heads: student.n_qk_heads,
        n_v_heads: student.n_v_heads,
        d_conv: student.d_conv,
        conv_bias: student.conv_bias,
        expand: student.expand,
        chunk_size: student.chunk_size,
        activation: student.activation,
        bias: student.bias,
    };
    let mixers = teacher.network().mixers;
    let heads = mixers.first().map_or(0, |mixer| mixer.n_heads());
    if config.stages.contains(&1) && student.n_v_heads != heads {
        return Err(TrainError::Mismatch(format!(
            "stage 1 compares the matrices of every head: student.n_v_heads is {} and the teacher \
             has {heads} heads; set it to {heads} or leave stage 1 out",
            student.n_v_heads,
        )));
    }
    Ok(teacher.student(&mixer.into(), &student.attention_layers)?)
}

/// The student as training begins: the teacher's but for the mixers, which are drawn from `seed`.
///
/// # Errors
/// [`TrainError::Transfer`] if the two do not fit.
pub(crate) fn untrained_student<B: TrainBackend>(
    config: &ModelConfig,
    seed: u64,
    teacher: &Phi<B::InnerBackend>,
    device: &B::Device,
) -> Result<PhiMamba<B>, TrainError> {
    let mut student = PhiMamba::<B>::init(config, seed, device);
    model::transfer_weights(&mut student, &Phi::<B>::from_inner(teacher.clone()))?;
    Ok(student)
}

/// The teacher as the stages read it: with as many ids as the student knows, in the dtype of `precision`. In
/// bf16, hence on a GPU, with fewer and wider products.
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
    let tokenizer = match path.is_dir() {
        true => Tokenizer::from_folder(path)?,
        false => Tokenizer::from_file(path)?,
    };
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

/// The training and the held-out windows.
pub(super) fn windows(
    config: &Config,
    tokenizer: &Tokenizer,
) -> Result<(TokenWindows, TokenWindows), TrainError> {
    let paths = |paths: &[String]| -> Result<Vec<PathBuf>, TrainError> {
        Ok(paths
            .iter()
            .map(|path| resolve_path(path))
            .collect::<Result<_, _>>()?)
    };
    let cache = match config.data.cache.as_str() {
        "" => dirs::cache_dir()
            .unwrap_or_else(std::env::temp_dir)
            .join("mohawk"),
        path => PathBuf::from(path),
    };
    let train = paths(&config.data.train)?;
    // Without held-out text of its own, one document in a hundred is held out.
    const PER_MILLE: u16 = 10;
    let (train_split, held_out, held_out_split) = match &config.data.validation[..] {
        [] => {
            let per_mille = PER_MILLE;
            (
                Split::Train { per_mille },
                train.clone(),
                Split::HeldOut { per_mille },
            )
        }
        validation => (Split::All, paths(validation)?, Split::All),
    };
    let prepare = |name, sources, split| {
        TokenShards::prepare(&PrepareOptions {
            name,
            sources,
            split,
            tokenizer,
            cache: cache.clone(),
        })
    };
    let train = Arc::new(prepare("train", train, train_split)?);
    let held_out = Arc::new(prepare("validation", held_out, held_out_split)?);
    Ok((
        TokenWindows::new(train, config.data.context)?,
        TokenWindows::new(held_out, config.evaluation.context)?,
    ))
}
