//! What a model has read, on disk: a long text is read once and continued many times.
//!
//! A state file is a safetensors file, which any of Hugging Face's tools can look into:
//!
//! | tensor | |
//! |---|---|
//! | `token_ids` | u32 `[n]`, the text |
//! | `logits` | f32 `[v]`, behind its last token, so that a continuation needs nothing read again |
//! | `layers.I.conv`, `layers.I.ssm` | the state of a layer of Mamba-2 |
//! | `layers.I.keys`, `layers.I.values` | the cache of a layer of attention |
//!
//! Its metadata say `format`, `version`, and by `model` the [`ModelHash`] of the one model that can
//! make sense of it.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Tensor, TensorData};
use kernels::KernelBackend;
use model::{CausalLm, StateError};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::generate::read;
use crate::{ModelHash, Reading, atomic_file};

const FORMAT: &str = "mohawk-state";
const VERSION: &str = "1";

/// Why a state cannot be saved or loaded. Each message is whole in itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The operating system does not give the file.
    #[error("the state cannot be read from {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What it said.
        reason: io::Error,
    },
    /// The operating system does not take the file.
    #[error("the state cannot be saved in {}: {reason}", path.display())]
    Write {
        /// The file, which is as it was.
        path: PathBuf,
        /// What it said.
        reason: io::Error,
    },
    /// The device does not give the state.
    #[error("the state cannot be read from the device: {0}")]
    Device(String),
    /// The text ends with a token that was made and not read.
    #[error("the text has a last token that the model has not read; a state is saved before that")]
    Unread,
    /// The file is cut short, damaged, or not what it says.
    #[error("{}: not a whole state file: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file is of another kind.
    #[error("{}: not a state file, as `infer generate --save-state` writes it", path.display())]
    NotAState {
        /// The file.
        path: PathBuf,
    },
    /// The file is of a version that is not known here.
    #[error(
        "{}: a state file of version {found:?}, and this program reads version {VERSION}; save the \
         state anew",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// The file is another model's.
    #[error(
        "{}: the state of another model: its config.json or its weights are not those of this one \
         (SHA-256 {saved}, here {here})",
        path.display()
    )]
    OtherModel {
        /// The file.
        path: PathBuf,
        /// The hash of the model that the state was saved of.
        saved: String,
        /// That of the model that it was loaded for.
        here: ModelHash,
    },
    /// The tensors are not those that the model needs.
    #[error("{}: the state does not fit the model: {reason}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: StateError,
    },
}

/// Writes what `reading` holds, of which everything has been read, as the state of `model`. The file
/// is replaced whole or stays as it was.
///
/// # Errors
/// [`SnapshotError::Unread`], [`SnapshotError::Device`] and [`SnapshotError::Write`].
pub fn save<B: KernelBackend>(
    path: &Path,
    model: &ModelHash,
    reading: &Reading<B>,
) -> Result<(), SnapshotError> {
    let logits = reading.logits.as_ref().ok_or(SnapshotError::Unread)?;
    let tensors = reading.state.to_tensors();
    let mut tensors = tensors.map_err(|error| SnapshotError::Device(error.to_string()))?;
    let [_, v] = logits.dims();
    let logits = read(logits.clone()).map_err(|error| SnapshotError::Device(error.to_string()))?;
    let logits = TensorData::new(logits, [v]);
    let ids = TensorData::new(reading.ids.clone(), [reading.ids.len()]);
    tensors.push(("logits".into(), logits));
    tensors.push(("token_ids".into(), ids));
    let metadata = [
        ("format", FORMAT.to_owned()),
        ("version", VERSION.to_owned()),
        ("model", model.to_string()),
    ];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value));
    let views = tensors.iter().map(|(name, data)| {
        let dtype = on_disk(data.dtype).ok_or_else(|| format!("{name}: {:?}", data.dtype))?;
        let view = TensorView::new(dtype, data.shape.to_vec(), data.as_bytes());
        Ok((name, view.map_err(|error| format!("{name}: {error}"))?))
    });
    let views: Result<Vec<_>, String> = views.collect();
    let bytes = views.and_then(|views| {
        let bytes = safetensors::serialize(views, Some(HashMap::from(metadata)));
        bytes.map_err(|error| error.to_string())
    });
    let write = |bytes: Vec<u8>| atomic_file::write(path, &bytes);
    let written = bytes.map_err(io::Error::other).and_then(write);
    written.map_err(cannot_write(path))
}

/// That [`save`] has a chance to write `path`, for those who have long to read before.
///
/// # Errors
/// [`SnapshotError::Write`].
pub fn check(path: &Path) -> Result<(), SnapshotError> {
    atomic_file::check(path).map_err(cannot_write(path))
}

fn cannot_write(path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    move |reason| SnapshotError::Write {
        path: path.into(),
        reason,
    }
}

/// A state file as it was read, not yet believed.
#[derive(Debug)]
pub struct Snapshot {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Snapshot {
    /// Reads a state file, which must be one of `model`'s.
    ///
    /// # Errors
    /// Every [`SnapshotError`] but those of saving and [`SnapshotError::State`].
    pub fn open(path: &Path, model: &ModelHash) -> Result<Self, SnapshotError> {
        let bytes = fs::read(path).map_err(|reason| SnapshotError::Read {
            path: path.into(),
            reason,
        })?;
        let snapshot = Self {
            path: path.into(),
            bytes,
        };
        snapshot.check(model)?;
        Ok(snapshot)
    }

    fn check(&self, model: &ModelHash) -> Result<(), SnapshotError> {
        let path = || self.path.clone();
        let header = SafeTensors::read_metadata(&self.bytes);
        let (_, header) = header.map_err(|error| self.damaged(error))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let get = |key: &str| metadata.get(key).cloned().unwrap_or_default();
        if get("format") != FORMAT {
            return Err(SnapshotError::NotAState { path: path() });
        }
        let (found, saved) = (get("version"), get("model"));
        if found != VERSION {
            return Err(SnapshotError::Version {
                path: path(),
                found,
            });
        }
        if saved != model.to_string() {
            return Err(SnapshotError::OtherModel {
                path: path(),
                saved,
                here: model.clone(),
            });
        }
        Ok(())
    }

    /// The text and its state, on `device`.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] and [`SnapshotError::State`].
    pub fn restore<B: KernelBackend>(
        &self,
        model: &CausalLm<B>,
        device: &B::Device,
    ) -> Result<Reading<B>, SnapshotError> {
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
        // Both are of the type that they were just found to be of.
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
        let state = state.map_err(|reason| SnapshotError::State {
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

    fn damaged(&self, reason: impl ToString) -> SnapshotError {
        SnapshotError::Damaged {
            path: self.path.clone(),
            reason: reason.to_string(),
        }
    }
}

/// What both sides have a word for.
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
