//! From a network to files.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;

use burn::tensor::DType;
use burn::tensor::backend::Backend;
use burn_store::{ModuleSnapshot, TensorSnapshot};
use kernels::KernelBackend;
use kernels::decode::projections::Form;
use safetensors::{Dtype, View};
use serde_json::json;

use super::packed::Part;
use super::{CONFIG, INDEX, SINGLE, WeightsError, error::io};
use crate::arch::{Family, Layout};
use crate::atomic_file;
use crate::lm::CausalLm;
use crate::manifest::{self, Digests, Hashing};

/// Writes the tensors `all` of a model and its configuration, whose `config.json` is `text`, into `folder`.
pub(super) fn folder<V: View>(
    all: Vec<(String, V)>,
    config: &impl Family,
    text: String,
    folder: &Path,
) -> Result<Digests, WeightsError> {
    fs::create_dir_all(folder).map_err(io(folder))?;
    let mut written = Written::new(folder);
    written.tensors(SINGLE, all)?;
    written.configuration(config, &text)?;
    written.list()
}

/// The tensors of `model` under their published names, in `dtype`, f32, f16 or bf16.
pub(super) fn stored<B: Backend>(
    model: &CausalLm<B>,
    layout: Layout,
    dtype: DType,
) -> Vec<(String, impl View + use<B>)> {
    let snapshots = model.collect(None, None, false).into_iter();
    let named = snapshots.map(|tensor| {
        let path = tensor.path_stack.clone().unwrap_or_default();
        (layout.name(&path.join(".")), Stored { tensor, dtype })
    });
    named.collect()
}

/// Names of modules by the form of their weights.
type Forms = Vec<(Form, Vec<String>)>;

/// The tensors of `model` under their published names, those of weights in bits as a file has them and all others in
/// `dtype`; and the modules whose weights are in bits.
pub(super) fn packed<B: KernelBackend>(
    model: &CausalLm<B>,
    layout: Layout,
    dtype: DType,
) -> (Vec<(String, impl View + use<B>)>, Forms) {
    let mut weights = HashMap::new();
    model.clone().each_linear(|linear| {
        if let Some(weight) = linear.packed() {
            weights.insert(linear.weight.id, weight);
        }
    });
    let mut forms = vec![(Form::Int4, vec![]), (Form::Int8, vec![])];
    let mut all = Vec::new();
    for tensor in model.collect(None, None, false) {
        let path = tensor.path_stack.clone().unwrap_or_default();
        let name = layout.name(&path.join("."));
        let weight = tensor.tensor_id.and_then(|id| weights.remove(&id));
        if let Some(weight) = weight {
            let modules = forms.iter_mut().find(|(form, _)| *form == weight.form());
            if let Some((_, modules)) = modules {
                modules.push(name.trim_end_matches(".weight").to_owned());
            }
            let parts = super::packed::parts(&name, weight).into_iter();
            all.extend(parts.map(|(name, part)| (name, Either::Part(part))));
        } else if !path.iter().any(|part| part == PACKED) {
            all.push((name, Either::Whole(Stored { tensor, dtype })));
        }
    }
    forms.retain(|(_, modules)| !modules.is_empty());
    (all, forms)
}

/// The field of a layer under which Burn collects the parts of a weight in bits.
const PACKED: &str = "packed";

/// A tensor of the network, or a part of a weight in bits.
enum Either {
    Whole(Stored),
    Part(Part),
}

impl View for Either {
    fn dtype(&self) -> Dtype {
        match self {
            Self::Whole(tensor) => tensor.dtype(),
            Self::Part(part) => part.dtype,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Self::Whole(tensor) => tensor.shape(),
            Self::Part(part) => &part.shape,
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Whole(tensor) => tensor.data(),
            Self::Part(part) => Cow::Borrowed(&part.bytes),
        }
    }

    fn data_len(&self) -> usize {
        match self {
            Self::Whole(tensor) => tensor.data_len(),
            Self::Part(part) => part.bytes.len(),
        }
    }
}

/// Writes `all` into `folder` as files of up to `bytes` each (more where a single tensor has more), in
/// their order, with the index that names them, and the configuration.
pub(super) fn shards<V: View>(
    folder: &Path,
    all: Vec<(String, V)>,
    bytes: usize,
    config: &impl Family,
) -> Result<Digests, WeightsError> {
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
    // First removes the index and the single file of an older model. The new shards replace the old ones one by one,
    // and a mixture of both must not be readable as a model. In addition, a single file would have priority over the
    // shards.
    for old in [INDEX, SINGLE] {
        remove(&folder.join(old))?;
    }
    let count = files.len();
    let mut weight_map = BTreeMap::new();
    let mut written = Written::new(folder);
    for (i, shard) in files.into_iter().enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
        weight_map.extend(shard.iter().map(|(name, _)| (name.clone(), file.clone())));
        written.tensors(&file, shard)?;
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    written.text(INDEX, &format!("{index:#}\n"))?;
    written.configuration(config, &config.to_json())?;
    written.list()
}

/// The files that were written into a folder, with their hashes. The hashes are computed from the bytes that go to the
/// disk, and the files are not read back: a fault of the disk shows when they are read later.
struct Written<'a> {
    folder: &'a Path,
    digests: Digests,
}

impl<'a> Written<'a> {
    fn new(folder: &'a Path) -> Self {
        Self {
            folder,
            digests: Digests::new(),
        }
    }

    /// Writes one file of tensors. Of their values, one's are in memory at a time.
    fn tensors<V: View>(&mut self, name: &str, all: Vec<(String, V)>) -> Result<(), WeightsError> {
        // What transformers looks for before it trusts a file.
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let path = self.folder.join(name);
        let digest = super::safetensors::write(&path, all, Some(metadata)).map_err(io(&path))?;
        self.digests.insert(name.to_owned(), digest);
        Ok(())
    }

    fn text(&mut self, name: &str, text: &str) -> Result<(), WeightsError> {
        let path = self.folder.join(name);
        let written = atomic_file::replace(&path, |file| {
            let mut file = Hashing::new(file);
            file.write_all(text.as_bytes())?;
            Ok(file.finish())
        });
        let digest = written.map_err(io(&path))?;
        self.digests.insert(name.to_owned(), digest);
        Ok(())
    }

    /// The `config.json`, which is `text`, and the module of Python that it names.
    fn configuration(&mut self, config: &impl Family, text: &str) -> Result<(), WeightsError> {
        if let Some(module) = config.python_module() {
            self.text(module.file, module.text)?;
        }
        self.text(CONFIG, text)
    }

    /// Lists all in the folder's manifest, and returns their checksums.
    fn list(self) -> Result<Digests, WeightsError> {
        manifest::add_known(self.folder, self.digests.clone())?;
        Ok(self.digests)
    }
}

/// Removes a file that may not be there.
fn remove(path: &Path) -> Result<(), WeightsError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io(path)(error)),
        _ => Ok(()),
    }
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
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        other => panic!("models are written in f32, f16 and bf16, not in {other:?}"),
    }
}
