//! Model folders: a `config.json` and files of tensors, read and written in the layout of any [family](crate::arch).
//!
//! Wherever a folder is read, there may be a GGUF file instead: the only one in the folder, or given by its own path.
//! It contains a configuration, quantised tensors and a tokenizer in one file.
//!
//! The modules have the same structure as the files, so loading only maps names ([`Layout`](crate::arch::Layout)) and
//! dtypes. Tensors are f32, f16, bf16 or f64 on disk, or quantised in a GGUF file, and get the backend's default float
//! dtype in memory, which widens exactly. Weights of projections may be in 8 or 4 bits too, as [`save_packed`] writes
//! them, and [`load_packed_as`] keeps them so. **Every tensor is accounted for**: one that is missing, unexpected,
//! mis-shaped or not a float is an error, and one error lists them all; so is one with a number that is NaN or
//! infinite, as stored or in the dtype that it gets. A head that is tied to the embedding may also be stored, if it is
//! equal to the embedding. A truncated or damaged file is also an error, which is detected before its numbers are used.
//! The memory of a reader is bounded by a multiple of the file's size, whatever the file contains.
//!
//! The checksums of all files that are written here go to [`SHA256SUMS`](crate::manifest). Whenever a file that the
//! folder's `SHA256SUMS` lists is read, it is compared with its checksum. A folder without `SHA256SUMS` is read without
//! this check.

mod archive;
mod error;
mod file;
mod gguf;
mod host;
mod packed;
mod pickle;
mod random;
mod read;
mod safetensors;
mod small_file;
mod stored;
mod torch;
mod weight_files;
mod write;

use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Element};
use kernels::KernelBackend;

pub use error::{NotFinite, TensorFault, WeightsError};
pub use host::{HostModel, HostTensor};
pub use random::save_random_teacher;
pub use safetensors::write as write_tensors;
pub use small_file::{BESIDE_TOKENIZER, SmallFile, small_file, tokenizer_json};

use self::error::io;
use self::read::PackedWeights;
use crate::arch::{Family, HeadConfig, ModelConfig};
use crate::layers::Linear;
use crate::lm::CausalLm;
use crate::manifest::{self, Digests};
use crate::parameters::Part;

pub(crate) use weight_files::{shards, weight_form};

/// The configuration's file name.
pub const CONFIG: &str = "config.json";
/// The folder of the student in the folder of a run, as `train` writes it.
const STUDENT: &str = "student";
/// The tokenizer's file name, beside the weights.
pub const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// The file name of the generation options, which say how texts begin and end; it is beside the weights.
pub const GENERATION: &str = "generation_config.json";
/// The forms that weights come in: one file or an index of several, of safetensors or as `torch.save` writes them.
pub(crate) const SINGLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";
pub(crate) const PICKLE: &str = "pytorch_model.bin";
pub(crate) const PICKLE_INDEX: &str = "pytorch_model.bin.index.json";

/// Whether `path` is a folder or a GGUF file, and so neither a name on the hub nor any other file.
pub fn is_model(path: impl AsRef<Path>) -> bool {
    let path = path.as_ref();
    path.is_dir() || gguf::is_one(path)
}

/// Whether the name of `path` is that of a GGUF file.
pub(crate) fn has_gguf_ending(path: &Path) -> bool {
    gguf::has_ending(path)
}

/// Reads a model's folder: its configuration and its network, with parameters in the backend's dtype.
///
/// ```no_run
/// use burn_flex::Flex;
/// use model::{load_any, locate};
///
/// let folder = locate("microsoft/phi-1_5")?; // a folder, or a name on the hub
/// let (config, network) = load_any::<Flex>(folder, &Default::default())?;
/// println!("{}: {} layers", config.name(), network.backbone.layers.len());
/// # Ok::<(), model::WeightsError>(())
/// ```
///
/// # Errors
/// [`WeightsError`], as the module says.
pub fn load_any<B: Backend>(
    folder: impl AsRef<Path>,
    device: &B::Device,
) -> Result<(ModelConfig, CausalLm<B>), WeightsError> {
    let own = <B::FloatElem as Element>::dtype();
    load_any_as(folder, |_| own, device)
}

/// [`load_any`] with parameters in the dtype that `choose` returns. The argument of `choose` is the dtype in which they
/// are stored, or `None` if they are stored in several dtypes.
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
    let model = CausalLm::init(&config, 0, device);
    let model = read::fill(model, config.layout(), folder, choose, |_, _| Ok(()))?;
    Ok((config, model))
}

/// [`load_any_as`], but projection weights that are stored in 8 or 4 bits stay in this form, bit for bit.
///
/// # Errors
/// [`WeightsError`], as the module says.
pub fn load_packed_as<B: KernelBackend>(
    folder: impl AsRef<Path>,
    choose: impl Fn(Option<DType>) -> DType,
    device: &B::Device,
) -> Result<(ModelConfig, CausalLm<B>), WeightsError> {
    let folder = folder.as_ref();
    let config = load_config(folder)?;
    let model = CausalLm::init(&config, 0, device);
    let keep = |model: &mut CausalLm<B>, weights: &mut PackedWeights| {
        let dtype = weights.dtype;
        let mut result = Ok(());
        model.each_linear(|linear| {
            let found = weights.of_projections.remove(&linear.weight.id);
            if let Some(tensor) = found
                && result.is_ok()
            {
                let read = weights.read(tensor, device);
                result = read.map(|weight| linear.set_packed(weight, dtype));
            }
        });
        result?;
        if let Some(tensor) = weights.tied_head.take() {
            let weight = weights.read(tensor, device)?;
            model.lm_head = Some(Linear::of_packed(weight, dtype));
        }
        Ok(())
    };
    let model = read::fill(model, config.layout(), folder, choose, keep)?;
    Ok((config, model))
}

/// Reads the `config.json` of a folder, or what a GGUF file says in its place.
///
/// # Errors
/// [`WeightsError::Io`], [`WeightsError::Config`], [`WeightsError::Damaged`] for a GGUF file, [`WeightsError::Manifest`] if
/// it is not the file that the folder's manifest lists, and [`WeightsError::OfRun`] for the folder around a student.
pub fn load_config(folder: impl AsRef<Path>) -> Result<ModelConfig, WeightsError> {
    let folder = folder.as_ref();
    if let Some(path) = gguf::at(folder)? {
        return gguf::config(&path);
    }
    let student = folder.join(STUDENT);
    if !folder.join(CONFIG).exists() && student.join(CONFIG).exists() {
        let folder = folder.into();
        return Err(WeightsError::OfRun { folder, student });
    }
    manifest::verify_files(folder, &[CONFIG])?;
    read_config_file(folder.join(CONFIG))
}

/// Whether the folder `path` is there and has a configuration or weights.
///
/// # Errors
/// [`WeightsError::Io`] if that cannot be found out.
pub fn has_model(path: impl AsRef<Path>) -> Result<bool, WeightsError> {
    let path = path.as_ref();
    if !path.is_dir() {
        return Ok(is_model(path));
    }
    let has_config = path.join(CONFIG).symlink_metadata().is_ok();
    Ok(has_config || weight_form(path)?.is_some() || gguf::at(path)?.is_some())
}

/// The dtype in which a model's parameters are stored: f16 or bf16 if all parameters except those in 8 or 4 bits are
/// stored in it, and f32 otherwise.
///
/// # Errors
/// As [`describe`].
pub fn stored_dtype(folder: impl AsRef<Path>) -> Result<DType, WeightsError> {
    let (_, tensors) = describe(folder)?;
    let in_bits = ["int4", "int8"];
    let floats = tensors.iter().map(|tensor| tensor.stored_as.as_str());
    let mut floats = floats.filter(|name| !in_bits.contains(name));
    let first = floats
        .next()
        .filter(|first| floats.all(|name| name == *first));
    Ok(match first {
        Some("f16") => DType::F16,
        Some("bf16") => DType::BF16,
        _ => DType::F32,
    })
}

/// Reads a configuration, whatever its file's name.
///
/// # Errors
/// [`WeightsError::Io`] and [`WeightsError::Config`].
pub fn read_config_file(path: impl AsRef<Path>) -> Result<ModelConfig, WeightsError> {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path).map_err(io(path))?;
    let parsed = packed::without_key(text).and_then(|text| ModelConfig::from_json(&text));
    parsed.map_err(|source| WeightsError::Config {
        path: path.into(),
        source,
    })
}

/// One tensor of a model's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileTensor {
    /// Its name there.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The format of its numbers, in small letters: a dtype, or a GGUF type such as `q4_1`.
    pub stored_as: String,
    /// The bytes that they take there.
    pub bytes: u64,
    /// The part of the network that it belongs to, by its name.
    pub part: Part,
}

/// The configuration of a folder, and a description of its stored parameters. Their values are not read, and no device
/// is needed.
///
/// # Errors
/// [`WeightsError`], as the module says; but the tensors are not compared with the configuration.
pub fn describe(folder: impl AsRef<Path>) -> Result<(ModelConfig, Vec<FileTensor>), WeightsError> {
    let folder = folder.as_ref();
    let config = load_config(folder)?;
    let mut tensors = read::tensors(folder, config.layout())?;
    if config.network().head == HeadConfig::Tied {
        // Where it is stored all the same, it is no second parameter.
        let head = config.layout().name(read::HEAD);
        tensors.retain(|tensor| tensor.name != head);
    }
    Ok((config, tensors))
}

/// The files that decide what a model computes: its `config.json` and those of its weights, or its GGUF file.
///
/// # Errors
/// [`WeightsError::NoWeights`], or another [`WeightsError`] if the index of the shards cannot be read.
pub fn model_files(folder: impl AsRef<Path>) -> Result<Vec<PathBuf>, WeightsError> {
    let folder = folder.as_ref();
    if let Some(path) = gguf::at(folder)? {
        return Ok(vec![path]);
    }
    let mut files = vec![folder.join(CONFIG)];
    files.extend(weight_files::weight_files(folder)?);
    Ok(files)
}

/// Writes a model in the form that its family's own code loads (a student with `strict=True`): `model.safetensors` in
/// f32, `config.json`, and for a student the Python module that opens it in transformers. Each file is replaced
/// atomically; the checksums are written last. The folder is created if it does not exist. Other files of the folder
/// can be added to the checksums by [`manifest::add`]. Returns the checksums, for a manifest of a folder around this
/// one; they are computed while the files are written, so no file is read again.
///
/// # Errors
/// [`WeightsError::Io`] or [`WeightsError::Manifest`] if a file cannot be written.
pub fn save<B: Backend>(
    config: &impl Family,
    model: &CausalLm<B>,
    folder: impl AsRef<Path>,
) -> Result<Digests, WeightsError> {
    let tensors = write::stored(model, config.layout(), DType::F32);
    write::folder(tensors, config, config.to_json(), folder.as_ref())
}

/// Writes a model as [`save`] does, but projection weights in 8 or 4 bits are written in this form, and all other
/// parameters in `dtype`: f32, f16 or bf16. The `config.json` is `text`, from which `config` was read; `text` may
/// contain more keys than `config`, such as how texts end. A key that describes the packed weights is added.
///
/// # Errors
/// [`WeightsError::Io`] or [`WeightsError::Manifest`] if a file cannot be written; [`WeightsError::Config`] if `text` is
/// no object of JSON.
///
/// # Panics
/// If `dtype` is another one.
pub fn save_packed<B: KernelBackend>(
    (config, text): (&impl Family, &str),
    model: &CausalLm<B>,
    dtype: DType,
    folder: impl AsRef<Path>,
) -> Result<Digests, WeightsError> {
    let folder = folder.as_ref();
    let (tensors, packed) = write::packed(model, config.layout(), dtype);
    let text = packed::with_key(text, &packed).map_err(|source| WeightsError::Config {
        path: folder.join(CONFIG),
        source,
    })?;
    write::folder(tensors, config, text, folder)
}

/// Writes a model as [`save`] does, but in `dtype`, f32 or bf16, and in several files: `config.json`, shards of up to
/// `bytes` each with their index, and the checksums. Each file is written atomically, and the index after the shards;
/// while the shards are written, an older model in the folder can no longer be read. The folder is created if it does
/// not exist.
///
/// This is for tests and tools; a training run does not use it.
///
/// # Errors
/// [`WeightsError::Io`] or [`WeightsError::Manifest`] if a file cannot be written.
///
/// # Panics
/// If `dtype` is another one.
pub fn save_in_shards<B: Backend>(
    config: &impl Family,
    model: &CausalLm<B>,
    dtype: DType,
    bytes: usize,
    folder: impl AsRef<Path>,
) -> Result<Digests, WeightsError> {
    let tensors = write::stored(model, config.layout(), dtype);
    write::shards(folder.as_ref(), tensors, bytes, config)
}
