//! Opens a teacher and held-out text for a study, without a run.

use std::sync::Arc;

use datasets::{TokenWindows, Tokenizer};
use kernels::KernelBackend;
use model::{CausalLm, ModelConfig, NetworkConfig};

use super::inputs;
use super::text::text;
use crate::config::{Config, Source};
use crate::error::TrainError;

/// What a study reads.
pub(crate) struct TeacherAndText<B: KernelBackend> {
    /// The teacher's sizes.
    pub(crate) network: NetworkConfig,
    /// The teacher.
    pub(crate) teacher: CausalLm<B>,
    /// The text, in windows.
    pub(crate) windows: TokenWindows,
}

impl<B: KernelBackend> TeacherAndText<B> {
    /// The teacher called `model`, and windows of `context` tokens of the files and folders in `paths`; the `tiny`
    /// preset's teacher and held-out text where they are empty. `cache` is the folder of tokenised text; empty for the
    /// user's cache folder.
    ///
    /// # Errors
    /// [`TrainError`] if a name leads to nothing, or what it leads to cannot be read.
    pub(crate) fn open(
        model: &str,
        paths: &[String],
        context: usize,
        cache: &str,
        device: &B::Device,
    ) -> Result<Self, TrainError> {
        let mut config = Config::load(Source::Preset("tiny"), &[])?;
        if !model.is_empty() {
            config.teacher.model = model.to_owned();
        }
        if !paths.is_empty() {
            config.data.validation = paths.iter().map(|path| path.as_str().into()).collect();
        }
        config.data.cache = cache.to_owned();
        // No stage reads any other text.
        config.data.train = config.data.validation.clone();
        config.stages.truncate(1);
        (config.data.context, config.evaluation.context) = (context, context);
        config.validate()?;
        // For messages about its text.
        config.stages[0].name = "the study".to_owned();
        let (of_teacher, teacher, tokenizer) = teacher_and_tokenizer(&config, device)?;
        let tokenizer = Arc::new(tokenizer);
        Ok(Self {
            network: NetworkConfig::from(&of_teacher),
            teacher,
            windows: text(&config, &tokenizer)?.held_out,
        })
    }
}

/// The teacher that `config` names, and its tokenizer.
///
/// # Errors
/// [`TrainError`] if a name leads to nothing, or what it leads to cannot be read.
pub(crate) fn teacher_and_tokenizer<B: KernelBackend>(
    config: &Config,
    device: &B::Device,
) -> Result<(ModelConfig, CausalLm<B>, Tokenizer), TrainError> {
    let folder = inputs::teacher_folder(&config.teacher.model, None)?;
    let (of_teacher, teacher) = model::load_any(&folder, device).map_err(TrainError::Teacher)?;
    let tokenizer = inputs::tokenizer(config, &folder, &of_teacher)?;
    Ok((of_teacher, teacher, tokenizer))
}
