//! What a run reads before it begins: teacher, tokenizer and text, by the names in the configuration.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::module::AutodiffModule;
use datasets::{PrepareOptions, Split, TokenShards, TokenWindows, Tokenizer};
use kernels::{KernelBackend, TrainBackend};
use model::{
    DiscreteMamba2Config, Family, ModelConfig, NetworkConfig, Phi, PhiMamba, WeightsError,
};

use crate::config::{Config, Precision, StageConfig, resolve_path};
use crate::error::TrainError;

/// The folder of the teacher called `name`: a path, or a model on the hub.
pub(super) fn teacher_folder(name: &str) -> Result<PathBuf, TrainError> {
    let missing = match resolve_path(name) {
        Ok(folder) => return Ok(folder),
        Err(missing) => missing,
    };
    // A path that begins with a folder on this machine is no name on the hub.
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
/// [`TrainError::Student`] says which sizes do not fit.
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
    Ok(teacher.student(&mixer.into(), &student.attention_layers)?)
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

/// The student before training: the teacher's weights, and mixers that are drawn from `seed`.
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

/// The teacher that the stages read: with as many ids as the student has, in the dtype of `precision`. In
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
    let tokenizer = if path.is_dir() {
        Tokenizer::from_folder(path)?
    } else {
        Tokenizer::from_file(path)?
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

/// The text of a run.
pub(super) struct Text {
    /// For each stage of the list, the windows that it trains on.
    pub(super) train: Vec<TokenWindows>,
    /// What no stage trains on.
    pub(super) held_out: TokenWindows,
    /// Training tokens, over all different texts.
    pub(super) training_tokens: u64,
}

/// The training windows of every stage, and the held-out ones.
pub(super) fn text(config: &Config, tokenizer: &Tokenizer) -> Result<Text, TrainError> {
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
    let prepare = |name, sources, split| {
        let shards = TokenShards::prepare(&PrepareOptions {
            name,
            sources,
            split,
            tokenizer,
            cache: cache.clone(),
            skip_bad_lines: 0,
        });
        shards.map(Arc::new)
    };
    // Without held-out text in the configuration, one document in a hundred is held out, of a stage's own
    // text too, since that may be a part of the same.
    let per_mille = 10;
    let (train_split, held_out, held_out_split) = match &config.data.validation[..] {
        [] => (
            Split::Train { per_mille },
            &config.data.train,
            Split::HeldOut { per_mille },
        ),
        _ => (Split::All, &config.data.validation, Split::All),
    };
    let mut texts: HashMap<&[String], Arc<TokenShards>> = HashMap::new();
    let (mut train, mut training_tokens) = (vec![], 0);
    for stage in &config.stages {
        let sources = config.text(stage);
        let shards = match texts.get(sources) {
            Some(shards) => shards.clone(),
            None => {
                let shards = prepare("train", paths(sources)?, train_split)?;
                training_tokens += shards.tokens();
                texts.insert(sources, shards.clone());
                shards
            }
        };
        train.push(TokenWindows::new(shards, config.context(stage))?);
    }
    let held_out = prepare("validation", paths(held_out)?, held_out_split)?;
    Ok(Text {
        train,
        held_out: TokenWindows::new(held_out, config.evaluation.context)?,
        training_tokens,
    })
}
