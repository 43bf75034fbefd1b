//! From a network to files.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::Path;

use burn::tensor::DType;
use burn::tensor::backend::Backend;
use burn_store::{ModuleSnapshot, TensorSnapshot};
use safetensors::{Dtype, View};
use serde_json::json;

use super::names::Layout;
use super::{CONFIG, INDEX, SINGLE, WeightsError, io};
use crate::lm::CausalLm;

/// Writes `model` and the text of its configuration into `folder`.
pub(super) fn folder<B: Backend>(
    model: &CausalLm<B>,
    layout: Layout,
    config: &str,
    folder: &Path,
) -> Result<(), WeightsError> {
    fs::create_dir_all(folder).map_err(io(folder))?;
    tensors(&folder.join(SINGLE), stored(model, layout, DType::F32))?;
    text(&folder.join(CONFIG), config)
}

/// The tensors of `model` under their published names, in `dtype`, f32 or bf16.
pub(super) fn stored<B: Backend>(
    model: &CausalLm<B>,
    layout: Layout,
    dtype: DType,
) -> Vec<(String, impl View + use<B>)> {
    let snapshots = model.collect(None, None, false).into_iter();
    let named = snapshots.map(|tensor| {
        let path = tensor.path_stack.clone().unwrap_or_default();
        (layout.name(&path), Stored { tensor, dtype })
    });
    named.collect()
}

/// Writes `all` into `folder` as files of up to `bytes` each (more where a single tensor has more), in
/// their order, with the index that names them, and the text of a configuration.
pub(super) fn shards<V: View>(
    folder: &Path,
    all: Vec<(String, V)>,
    bytes: usize,
    config: &str,
) -> Result<(), WeightsError> {
    fs::create_dir_all(folder).map_err(io(folder))?;
    let total: usize = all.iter().map(|(_, tensor)| tensor.data_len()).sum();
    let mut files: Vec<Vec<(String, V)>> = vec![];
    let mut room = 0;
    for (name, tensor) in all {
        let n = tensor.data_len();
        if files.is_empty() || n > room {
            files.push(vec![]);
            room = bytes.max(n);
        }
        room -= n;
        files
            .last_mut()
            .expect("one was added")
            .push((name, tensor));
    }
    let count = files.len();
    let mut weight_map = BTreeMap::new();
    for (i, shard) in files.into_iter().enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
        weight_map.extend(shard.iter().map(|(name, _)| (name.clone(), file.clone())));
        tensors(&folder.join(&file), shard)?;
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    text(&folder.join(INDEX), &format!("{index:#}\n"))?;
    text(&folder.join(CONFIG), config)?;
    // A single file would be read in place of the shards.
    match fs::remove_file(folder.join(SINGLE)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(folder)(error)),
        _ => Ok(()),
    }
}

/// Writes one file of tensors. Of their values, one's are in memory at a time.
fn tensors<V: View>(path: &Path, all: Vec<(String, V)>) -> Result<(), WeightsError> {
    replace(path, |temporary| {
        // What transformers looks for before it trusts a file.
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize_to_file(all, Some(metadata), temporary).map_err(|error| {
            WeightsError::Damaged {
                path: temporary.into(),
                reason: format!("cannot be written: {error}"),
            }
        })
    })
}

fn text(path: &Path, text: &str) -> Result<(), WeightsError> {
    replace(path, |temporary| {
        fs::write(temporary, text).map_err(io(temporary))
    })
}

/// Writes a file beside `path`, then puts it in its place, so that `path` is never half-written.
fn replace(
    path: &Path,
    write: impl FnOnce(&Path) -> Result<(), WeightsError>,
) -> Result<(), WeightsError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let written = write(&temporary).and_then(|()| {
        let synced = File::open(&temporary).and_then(|file| file.sync_all());
        synced.map_err(io(&temporary))?;
        fs::rename(&temporary, path).map_err(io(path))
    });
    if written.is_err() {
        // The error that counts is the first.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// One tensor, fetched from its device and converted when the writer comes to it.
struct Stored {
    tensor: TensorSnapshot,
    dtype: DType,
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        name_of(self.dtype)
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // Fails only if the device does, like any other read of a tensor.
        let data = self
            .tensor
            .to_data()
            .unwrap_or_else(|error| panic!("{}: {error}", self.tensor.full_path()));
        Cow::Owned(data.convert_dtype(self.dtype).bytes.to_vec())
    }

    fn data_len(&self) -> usize {
        self.tensor.shape.num_elements() * self.dtype.size()
    }
}

/// How safetensors calls a dtype that models are written in.
fn name_of(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::BF16 => Dtype::BF16,
        other => panic!("models are written in f32 and bf16, not in {other:?}"),
    }
}
