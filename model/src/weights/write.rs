//! From a network to files.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;

use burn::tensor::DType;
use burn::tensor::backend::Backend;
use burn_store::{ModuleSnapshot, TensorSnapshot};
use safetensors::{Dtype, View};

use super::names::Layout;
use super::{CONFIG, WeightsError, io};
use crate::lm::CausalLm;

/// Writes `model` and the text of its configuration into `folder`.
pub(super) fn folder<B: Backend>(
    model: &CausalLm<B>,
    layout: Layout,
    config: &str,
    folder: &Path,
) -> Result<(), WeightsError> {
    fs::create_dir_all(folder).map_err(io(folder))?;
    replace(&folder.join("model.safetensors"), |temporary| {
        let snapshots = model.collect(None, None, false).into_iter();
        let tensors = snapshots.map(|tensor| {
            let path = tensor.path_stack.clone().unwrap_or_default();
            (layout.name(&path), InF32(tensor))
        });
        // What transformers looks for before it trusts a file.
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize_to_file(tensors, Some(metadata), temporary).map_err(|error| {
            WeightsError::Damaged {
                path: temporary.into(),
                reason: format!("cannot be written: {error}"),
            }
        })
    })?;
    replace(&folder.join(CONFIG), |temporary| {
        fs::write(temporary, config).map_err(io(temporary))
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
struct InF32(TensorSnapshot);

impl View for InF32 {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // Fails only if the device does, like any other read of a tensor.
        let data = self
            .0
            .to_data()
            .unwrap_or_else(|error| panic!("{}: {error}", self.0.full_path()));
        Cow::Owned(data.convert_dtype(DType::F32).bytes.to_vec())
    }

    fn data_len(&self) -> usize {
        self.0.shape.num_elements() * size_of::<f32>()
    }
}
