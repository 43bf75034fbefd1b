//! State files: a text and the model's state after it, saved on disk, so that a long text is read once and can be
//! continued many times.
//!
//! A state file is a safetensors file, which Hugging Face's tools can open:
//!
//! | tensor | |
//! |---|---|
//! | `token_ids` | u32 `[n]`, the text |
//! | `logits` | f32 `[v]`, after its last token, so that a continuation reads nothing again |
//! | `layers.I.conv`, `layers.I.ssm` | the state of a Mamba-2 layer |
//! | `layers.I.keys`, `layers.I.values` | the cache of an attention layer |
//!
//! The metadata are `format`; `version`; `model`, the [`ModelHash`] of the only model that can load the file;
//! `kept_in`, what the model's parameters were kept in, such as `f32` or `int8` (older files lack it); and `sha256`, a
//! checksum of the tensors, without which a damaged state would lead to a wrong text. It is the SHA-256 of all tensors in
//! the order of their names: for each, the name, the dtype and the shape as a line of text (`logits F32 [4096]`), and
//! then the bytes. Files of version 1 are the same, but have no checksum.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Tensor, TensorData};
use kernels::KernelBackend;
use model::{CausalLm, ModelHash, StateError};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};

use crate::device::read;
use crate::generate::Reading;
use model::atomic_file;

const FORMAT: &str = "mohawk-state";
const VERSION: &str = "2";
/// The version without a checksum, which can still be read.
const WITHOUT_CHECKSUM: &str = "1";
const CHECKSUM: &str = "sha256";
const KEPT_IN: &str = "kept_in";

/// Why a state cannot be saved or loaded. Each message is complete.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateFileError {
    /// The file cannot be read.
    #[error("the state cannot be read from {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        reason: io::Error,
    },
    /// The file cannot be written.
    #[error("the state cannot be saved in {}: {reason}", path.display())]
    Write {
        /// The file, which is unchanged.
        path: PathBuf,
        /// The operating system's error.
        reason: io::Error,
    },
    /// The state cannot be copied from the device.
    #[error("the state cannot be read from the device: {0}")]
    Device(String),
    /// The text ends with a token that the model has made but not read.
    #[error("the text has a last token that the model has not read; a state is saved before that")]
    Unread,
    /// The file is truncated or damaged.
    #[error("{}: not a whole state file: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file is not a state file.
    #[error("{}: not a state file, as `infer generate --save-state` writes it", path.display())]
    NotAState {
        /// The file.
        path: PathBuf,
    },
    /// The file is of an unknown version.
    #[error(
        "{}: a state file of version {found:?}, and this program reads versions {WITHOUT_CHECKSUM} \
         and {VERSION}; save the state anew",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// The file belongs to another model.
    #[error(
        "{}: the state of another model: its config.json or its weights are not those of this one \
         (SHA-256 {saved}, here {here})",
        path.display()
    )]
    OtherModel {
        /// The file.
        path: PathBuf,
        /// The hash of the model that has saved the state.
        saved: String,
        /// The hash of the model that loads it.
        here: ModelHash,
    },
    /// The file's tensors are not those of the model's state.
    #[error("{}: the state does not fit the model: {reason}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: StateError,
    },
}

/// Writes `reading` as a state of `model`, whose parameters are `kept_in` this precision; the model must have read all
/// of its tokens. The file is replaced completely or stays as it was.
///
/// # Errors
/// [`StateFileError::Unread`], [`StateFileError::Device`] and [`StateFileError::Write`].
pub fn save<B: KernelBackend>(
    path: &Path,
    model: &ModelHash,
    kept_in: &str,
    reading: &Reading<B>,
) -> Result<(), StateFileError> {
    let logits = reading.logits.as_ref().ok_or(StateFileError::Unread)?;
    let tensors = reading.state.to_tensors();
    let mut tensors = tensors.map_err(|error| StateFileError::Device(error.to_string()))?;
    let [_, v] = logits.dims();
    let logits = read(logits.clone()).map_err(|error| StateFileError::Device(error.to_string()))?;
    let logits = TensorData::new(logits, [v]);
    let ids = TensorData::new(reading.ids.clone(), [reading.ids.len()]);
    tensors.push(("logits".into(), logits));
    tensors.push(("token_ids".into(), ids));
    let views = tensors.iter().map(|(name, data)| {
        let dtype = on_disk(data.dtype).ok_or_else(|| format!("{name}: {:?}", data.dtype))?;
        let view = TensorView::new(dtype, data.shape.to_vec(), data.as_bytes());
        let view = view.map_err(|error| format!("{name}: {error}"))?;
        Ok((name.as_str(), view))
    });
    let views: Result<BTreeMap<_, _>, String> = views.collect();
    let bytes = views.and_then(|views| {
        let metadata = [
            ("format", FORMAT.to_owned()),
            ("version", VERSION.to_owned()),
            ("model", model.to_string()),
            (KEPT_IN, kept_in.to_owned()),
            (CHECKSUM, checksum(&views)),
        ];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value));
        let bytes = safetensors::serialize(views, Some(HashMap::from(metadata)));
        bytes.map_err(|error| error.to_string())
    });
    let write = |bytes: Vec<u8>| atomic_file::write(path, &bytes);
    let written = bytes.map_err(io::Error::other).and_then(write);
    written.map_err(cannot_write(path))
}

/// Checks that [`save`] can probably write `path`, before a long text is read.
///
/// # Errors
/// [`StateFileError::Write`].
pub fn check(path: &Path) -> Result<(), StateFileError> {
    atomic_file::check(path).map_err(cannot_write(path))
}

fn cannot_write(path: &Path) -> impl FnOnce(io::Error) -> StateFileError {
    move |reason| StateFileError::Write {
        path: path.into(),
        reason,
    }
}

/// The checksum of a state's tensors.
fn checksum(tensors: &BTreeMap<&str, TensorView<'_>>) -> String {
    let mut digest = Sha256::new();
    for (name, tensor) in tensors {
        let line = format!("{name} {:?} {:?}\n", tensor.dtype(), tensor.shape());
        digest.update(line);
        digest.update(tensor.data());
    }
    format!("{:x}", digest.finalize())
}

/// The bytes of a state file that is undamaged, as far as that [can be known](Self::has_checksum). It is not known yet
/// whether it fits the model's state.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    bytes: Vec<u8>,
    has_checksum: bool,
    kept_in: Option<String>,
}

impl StateFile {
    /// Reads a state file that `model` has saved.
    ///
    /// # Errors
    /// Every [`StateFileError`] but those of saving and [`StateFileError::State`].
    pub fn open(path: &Path, model: &ModelHash) -> Result<Self, StateFileError> {
        let bytes = fs::read(path).map_err(|reason| StateFileError::Read {
            path: path.into(),
            reason,
        })?;
        let mut file = Self {
            path: path.into(),
            bytes,
            has_checksum: false,
            kept_in: None,
        };
        let mut metadata = file.metadata()?;
        file.has_checksum = file.check(model, &metadata)?;
        file.kept_in = metadata.remove(KEPT_IN);
        Ok(file)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file has a checksum, which was compared. Files of version 1 have none, so damage inside their
    /// tensors is not noticed.
    pub fn has_checksum(&self) -> bool {
        self.has_checksum
    }

    /// What the parameters of the model were kept in that has saved the state; `None` if the file does not say it. In
    /// another precision, the same model would have read the text to a slightly different state.
    pub fn kept_in(&self) -> Option<&str> {
        self.kept_in.as_deref()
    }

    fn metadata(&self) -> Result<HashMap<String, String>, StateFileError> {
        let header = SafeTensors::read_metadata(&self.bytes);
        let (_, header) = header.map_err(|error| self.damaged(error))?;
        Ok(header.metadata().clone().unwrap_or_default())
    }

    /// Checks everything except whether the tensors fit the model, and returns whether there is a checksum.
    fn check(
        &self,
        model: &ModelHash,
        metadata: &HashMap<String, String>,
    ) -> Result<bool, StateFileError> {
        let path = || self.path.clone();
        let get = |key: &str| metadata.get(key).cloned().unwrap_or_default();
        if get("format") != FORMAT {
            return Err(StateFileError::NotAState { path: path() });
        }
        let (found, saved) = (get("version"), get("model"));
        if found != VERSION && found != WITHOUT_CHECKSUM {
            return Err(StateFileError::Version {
                path: path(),
                found,
            });
        }
        if saved != model.to_string() {
            return Err(StateFileError::OtherModel {
                path: path(),
                saved,
                here: model.clone(),
            });
        }
        let tensors = SafeTensors::deserialize(&self.bytes).map_err(|error| self.damaged(error))?;
        if found == WITHOUT_CHECKSUM && !metadata.contains_key(CHECKSUM) {
            return Ok(false);
        }
        let tensors = tensors.iter().collect();
        if get(CHECKSUM) != checksum(&tensors) {
            return Err(self.damaged("it has changed since it was saved (its checksum is another)"));
        }
        Ok(true)
    }

    /// The text and the state after it, on `device`.
    ///
    /// # Errors
    /// [`StateFileError::Damaged`] and [`StateFileError::State`].
    pub fn restore<B: KernelBackend>(
        &self,
        model: &CausalLm<B>,
        device: &B::Device,
    ) -> Result<Reading<B>, StateFileError> {
        let tensors = SafeTensors::deserialize(&self.bytes).map_err(|error| self.damaged(error))?;
        let mut unused: BTreeSet<&str> = tensors.names().into_iter().collect();
        let mut data = |name: &str| {
            unused.remove(name);
            in_memory(tensors.tensor(name).ok()?)
        };
        let mut row = |name: &str, dtype, length: Option<usize>| {
            let found = data(name).filter(|data| {
                let fits = |length| data.shape[..] == [length];
                data.dtype == dtype && length.map_or(data.shape.len() == 1, fits)
            });
            found.ok_or_else(|| self.damaged(format!("`{name}` is missing or of the wrong kind")))
        };
        let v = model.vocab_size();
        let ids = row("token_ids", DType::U32, None)?;
        let logits = row("logits", DType::F32, Some(v))?;
        // `row` has checked both types.
        let ids: Vec<u32> = ids.iter().collect();
        let logits = TensorData::new(logits.iter::<f32>().collect(), [1, v]);
        let logits = Tensor::from_data(logits, (device, DType::F32));
        if let Some(id) = ids.iter().find(|&&id| id as usize >= v) {
            let reason = format!("it has token {id}, and the model's vocabulary ends at {v}");
            return Err(self.damaged(reason));
        }
        if ids.is_empty() {
            return Err(self.damaged("it has no token"));
        }
        let state = model.state_from_tensors(ids.len(), data, device);
        let state = state.map_err(|reason| StateFileError::State {
            path: self.path.clone(),
            reason,
        })?;
        if let Some(name) = unused.first() {
            return Err(self.damaged(format!("`{name}` belongs to no part of the model")));
        }
        Ok(Reading {
            ids,
            state,
            logits: Some(logits),
        })
    }

    fn damaged(&self, reason: impl ToString) -> StateFileError {
        StateFileError::Damaged {
            path: self.path.clone(),
            reason: reason.to_string(),
        }
    }
}

/// The dtypes that Burn and safetensors both know.
const DTYPES: [(DType, Dtype); 5] = [
    (DType::F32, Dtype::F32),
    (DType::F16, Dtype::F16),
    (DType::BF16, Dtype::BF16),
    (DType::F64, Dtype::F64),
    (DType::U32, Dtype::U32),
];

fn on_disk(dtype: DType) -> Option<Dtype> {
    let found = DTYPES.iter().find(|(here, _)| *here == dtype);
    found.map(|(_, there)| *there)
}

fn in_memory(tensor: TensorView<'_>) -> Option<TensorData> {
    let (dtype, _) = DTYPES.iter().find(|(_, there)| *there == tensor.dtype())?;
    let (bytes, shape) = (tensor.data().to_vec(), tensor.shape().to_vec());
    Some(TensorData::from_bytes_vec(bytes, shape, *dtype))
}
