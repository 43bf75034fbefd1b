//! Model folders: a `config.json` beside tensors, in Hugging Face's layout for teachers and in the
//! published Phi-Mamba layout for students, both read and written.
//!
//! Modules are laid out as the files are, so loading is a matter of names ([`Layout`]) and dtypes.
//! Tensors are f32, f16, bf16 or f64 on disk, and get the backend's default float dtype in memory,
//! which widens exactly. **Every tensor is accounted for**: one that is missing, unexpected,
//! mis-shaped or not a float is an error, and one error lists them all. A file that is cut short or
//! damaged is an error too, found before its numbers are used.
//!
//! [`locate`] finds the folder of a model by its name, on the Hugging Face hub if need be.

mod dataset;
mod error;
mod fetch;
mod hub;
mod names;
mod random;
mod read;
mod write;

use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Element};

pub use error::{TensorFault, WeightsError};
pub use hub::{Hub, locate};
pub use names::{Layout, NamedParameter, named_parameters};
pub use random::save_random_teacher;

use self::error::io;
use crate::config::{ConfigError, NetworkConfig, PhiConfig, PhiMambaConfig};
use crate::lm::CausalLm;

/// The configuration's file name.
const CONFIG: &str = "config.json";
/// The forms that weights come in: one file, an index of several, a pickle.
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const PICKLE: &str = "pytorch_model.bin";

/// The configuration of a folder that holds either kind of model.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelConfig {
    /// Hugging Face's.
    Phi(PhiConfig),
    /// The published Phi-Mamba's, pure or hybrid.
    PhiMamba(PhiMambaConfig),
}

impl ModelConfig {
    /// The positions that attention was trained on, where that limits the model: a Phi's
    /// `max_position_embeddings`.
    pub fn max_positions(&self) -> Option<usize> {
        match self {
            Self::Phi(config) => Some(config.max_position_embeddings),
            Self::PhiMamba(_) => None,
        }
    }
}

impl From<&ModelConfig> for NetworkConfig {
    fn from(config: &ModelConfig) -> Self {
        match config {
            ModelConfig::Phi(config) => config.into(),
            ModelConfig::PhiMamba(config) => config.into(),
        }
    }
}

/// Reads a `PhiForCausalLM` folder.
///
/// # Errors
/// [`WeightsError`], as the module says.
pub fn load_teacher<B: Backend>(
    folder: impl AsRef<Path>,
    device: &B::Device,
) -> Result<(PhiConfig, CausalLm<B>), WeightsError> {
    let folder = folder.as_ref();
    let config = read_config(folder, PhiConfig::from_json)?;
    let model = CausalLm::init(&config, 0, device);
    let model = read::fill(model, Layout::Phi, folder, own_dtype::<B>)?;
    Ok((config, model))
}

/// Reads a published Phi-Mamba folder, pure or hybrid.
///
/// # Errors
/// [`WeightsError`], as the module says.
pub fn load_student<B: Backend>(
    folder: impl AsRef<Path>,
    device: &B::Device,
) -> Result<(PhiMambaConfig, CausalLm<B>), WeightsError> {
    let folder = folder.as_ref();
    let config = read_config(folder, PhiMambaConfig::from_json)?;
    let model = CausalLm::init(&config, 0, device);
    let model = read::fill(model, Layout::PhiMamba, folder, own_dtype::<B>)?;
    Ok((config, model))
}

/// Reads a folder of either kind, which its `config.json` tells.
///
/// # Errors
/// [`WeightsError`], as the module says.
pub fn load_any<B: Backend>(
    folder: impl AsRef<Path>,
    device: &B::Device,
) -> Result<(ModelConfig, CausalLm<B>), WeightsError> {
    load_any_as(folder, own_dtype::<B>, device)
}

/// Reads a folder of either kind with its parameters in the dtype that `choose` makes of the one that they
/// are stored in; of `None` if they are stored in several.
///
/// # Errors
/// [`WeightsError`], as the module says.
pub fn load_any_as<B: Backend>(
    folder: impl AsRef<Path>,
    choose: impl Fn(Option<DType>) -> DType,
    device: &B::Device,
) -> Result<(ModelConfig, CausalLm<B>), WeightsError> {
    let folder = folder.as_ref();
    let config = load_config(folder)?;
    let layout = match &config {
        ModelConfig::PhiMamba(_) => Layout::PhiMamba,
        ModelConfig::Phi(_) => Layout::Phi,
    };
    let model = CausalLm::init(&config, 0, device);
    let model = read::fill(model, layout, folder, choose)?;
    Ok((config, model))
}

/// Reads the `config.json` of a folder of either kind.
///
/// # Errors
/// [`WeightsError::Io`] and [`WeightsError::Config`].
pub fn load_config(folder: impl AsRef<Path>) -> Result<ModelConfig, WeightsError> {
    read_config_file(folder.as_ref().join(CONFIG))
}

/// Reads a configuration of either kind, whatever its file's name.
///
/// # Errors
/// [`WeightsError::Io`] and [`WeightsError::Config`].
pub fn read_config_file(path: impl AsRef<Path>) -> Result<ModelConfig, WeightsError> {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path).map_err(io(path))?;
    let parse = || {
        let root: serde_json::Value = serde_json::from_str(&text)?;
        Ok(match root.get("LanguageModel") {
            Some(_) => ModelConfig::PhiMamba(PhiMambaConfig::from_json(&text)?),
            None => ModelConfig::Phi(PhiConfig::from_json(&text)?),
        })
    };
    parse().map_err(|source| WeightsError::Config {
        path: path.into(),
        source,
    })
}

/// The dtype of the backend, whatever is stored.
fn own_dtype<B: Backend>(_stored: Option<DType>) -> DType {
    <B::FloatElem as Element>::dtype()
}

/// One tensor of a model's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileTensor {
    /// Its name there.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// What its numbers are stored as.
    pub dtype: DType,
}

/// What a folder of either kind says of itself: its configuration, and its parameters as they are
/// stored. Their values are not read, and it takes no device.
///
/// # Errors
/// [`WeightsError`], as the module says, but that the tensors are not compared with the configuration.
pub fn describe(folder: impl AsRef<Path>) -> Result<(ModelConfig, Vec<FileTensor>), WeightsError> {
    let folder = folder.as_ref();
    Ok((load_config(folder)?, read::tensors(folder)?))
}

/// The files that decide what a model computes: its `config.json` and those of its weights.
///
/// # Errors
/// [`WeightsError::NoWeights`], or that the index of the shards cannot be read.
pub fn model_files(folder: impl AsRef<Path>) -> Result<Vec<PathBuf>, WeightsError> {
    let folder = folder.as_ref();
    let mut files = vec![folder.join(CONFIG)];
    files.extend(read::weight_files(folder)?);
    Ok(files)
}

/// Writes a student as the authors' Python loads it with `strict=True`: `model.safetensors` in f32
/// and `config.json`, each replaced whole or not at all. The folder is made if need be.
///
/// # Errors
/// [`WeightsError::Io`] if a file cannot be written.
pub fn save_student<B: Backend>(
    config: &PhiMambaConfig,
    model: &CausalLm<B>,
    folder: impl AsRef<Path>,
) -> Result<(), WeightsError> {
    write::folder(model, Layout::PhiMamba, &config.to_json(), folder.as_ref())
}

/// Writes a teacher as transformers loads it: `model.safetensors` in f32 and `config.json`, each
/// replaced whole or not at all. The folder is made if need be.
///
/// No run writes its teacher: this is for tests and tools.
///
/// # Errors
/// [`WeightsError::Io`] if a file cannot be written.
pub fn save_teacher<B: Backend>(
    config: &PhiConfig,
    model: &CausalLm<B>,
    folder: impl AsRef<Path>,
) -> Result<(), WeightsError> {
    write::folder(model, Layout::Phi, &config.to_json(), folder.as_ref())
}

/// Writes a teacher as transformers loads it, in `dtype`, f32 or bf16: `config.json`, and shards of up to
/// `bytes` each with their index. A file is there whole or not at all, and the index after the shards; until
/// then a model that was in the folder before cannot be read. The folder is made if need be.
///
/// No run writes its teacher: this is for tests and tools.
///
/// # Errors
/// [`WeightsError::Io`] if a file cannot be written.
///
/// # Panics
/// In another `dtype`.
pub fn save_teacher_in_shards<B: Backend>(
    config: &PhiConfig,
    model: &CausalLm<B>,
    dtype: DType,
    bytes: usize,
    folder: impl AsRef<Path>,
) -> Result<(), WeightsError> {
    let tensors = write::stored(model, Layout::Phi, dtype);
    write::shards(folder.as_ref(), tensors, bytes, &config.to_json())
}

fn read_config<T>(
    folder: &Path,
    parse: impl Fn(&str) -> Result<T, ConfigError>,
) -> Result<T, WeightsError> {
    let path = folder.join(CONFIG);
    let text = std::fs::read_to_string(&path).map_err(io(&path))?;
    parse(&text).map_err(|source| WeightsError::Config { path, source })
}
