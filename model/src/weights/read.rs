//! From files to a network.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, sink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, TensorData};
use burn_store::pytorch::PytorchReader;
use burn_store::{ModuleSnapshot, ModuleStore, SafetensorsStore, TensorSnapshot};
use half::bf16;
use rayon::prelude::*;
use serde::Deserialize;
use zip::ZipArchive;

use super::{FileTensor, INDEX, PICKLE, SINGLE, TensorFault, WeightsError, io};
use crate::arch::Layout;
use crate::lm::CausalLm;
use crate::parameters::{NamedParameter, Part, named_parameters};

/// Tables that some versions of the published code keep beside the parameters, and that are
/// computed here: tensors whose names end so are passed over.
const IGNORED: [&str; 3] = [
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
];

/// Tensors by their names in the files. Their values are read when asked for.
type Tensors = BTreeMap<String, TensorSnapshot>;

/// `model` with the parameters that `folder` holds under `layout`'s names, in the dtype that `choose` gives for
/// the one that they are stored in, where that is one.
pub(super) fn fill<B: Backend>(
    mut model: CausalLm<B>,
    layout: Layout,
    folder: &Path,
    choose: impl Fn(Option<DType>) -> DType,
) -> Result<CausalLm<B>, WeightsError> {
    let (tensors, path) = open(folder)?;
    let parameters = named_parameters(&model, layout);
    let faults = faults(&parameters, &tensors);
    if !faults.is_empty() {
        let folder = folder.into();
        return Err(WeightsError::Tensors { folder, faults });
    }
    let mut stored = parameters
        .iter()
        .map(|parameter| tensors[&parameter.name].dtype);
    let first = stored.next();
    let dtype = choose(first.filter(|first| stored.all(|dtype| dtype == *first)));
    let snapshots = parameters.iter().filter_map(|parameter| {
        let tensor = tensors.get(&parameter.name)?;
        Some(for_module(tensor, parameter, dtype))
    });
    let result = model.apply(snapshots.collect(), None, None, false);
    if let Some(error) = result.errors.first() {
        let reason = error.to_string();
        return Err(WeightsError::Damaged { path, reason });
    }
    Ok(model)
}

/// `tensor` under the parameter's path in the module, in the dtype that it is to have there.
fn for_module(tensor: &TensorSnapshot, parameter: &NamedParameter, dtype: DType) -> TensorSnapshot {
    let source = tensor.clone();
    TensorSnapshot::from_closure(
        Rc::new(move || Ok(converted(source.to_data()?, dtype))),
        dtype,
        tensor.shape.clone(),
        parameter.path.split('.').map(str::to_owned).collect(),
        Vec::new(),
        parameter.id,
    )
}

/// `data` in `dtype`. The conversion that full-size models need uses all cores: one core takes longer than
/// reading the files.
fn converted(data: TensorData, dtype: DType) -> TensorData {
    if (data.dtype, dtype) != (DType::BF16, DType::F32) {
        return data.convert_dtype(dtype);
    }
    let numbers = data.bytes.par_chunks_exact(2).with_min_len(1 << 14);
    let number = |bytes: &[u8]| bf16::from_ne_bytes([bytes[0], bytes[1]]).to_f32();
    let values: Vec<f32> = numbers.map(number).collect();
    TensorData::new(values, data.shape)
}

/// Everything in which the files differ from what the network needs.
fn faults(parameters: &[NamedParameter], tensors: &Tensors) -> Vec<TensorFault> {
    let mut faults = Vec::new();
    for parameter in parameters {
        let (name, expected) = (parameter.name.clone(), parameter.shape.clone());
        match tensors.get(&name) {
            None => faults.push(TensorFault::Missing { name, expected }),
            Some(tensor) if tensor.shape.to_vec() != expected => {
                let found = tensor.shape.to_vec();
                faults.push(TensorFault::Shape {
                    name,
                    found,
                    expected,
                });
            }
            Some(tensor) if !is_float(tensor.dtype) => faults.push(TensorFault::Dtype {
                name,
                dtype: format!("{:?}", tensor.dtype),
            }),
            Some(_) => {}
        }
    }
    let known: BTreeSet<&str> = parameters.iter().map(|p| p.name.as_str()).collect();
    for (name, tensor) in tensors {
        if !known.contains(name.as_str()) && !is_ignored(name) {
            let (name, found) = (name.clone(), tensor.shape.to_vec());
            faults.push(TensorFault::Unexpected { name, found });
        }
    }
    faults
}

fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
}

/// The tensors of a folder, and the file that names them: one safetensors file before an index of
/// several before PyTorch's.
fn open(folder: &Path) -> Result<(Tensors, PathBuf), WeightsError> {
    let single = folder.join(SINGLE);
    if single.exists() {
        return Ok((safetensors(&single)?, single));
    }
    let index = folder.join(INDEX);
    if index.exists() {
        return Ok((sharded(folder, &index)?, index));
    }
    let pickle = folder.join(PICKLE);
    if pickle.exists() {
        return Ok((pytorch(&pickle)?, pickle));
    }
    Err(WeightsError::NoWeights {
        folder: folder.into(),
    })
}

/// What [`open`] finds, but for what is passed over, with the parts of the network that `layout` says.
pub(super) fn tensors(folder: &Path, layout: Layout) -> Result<Vec<FileTensor>, WeightsError> {
    let (tensors, _) = open(folder)?;
    let tensors = tensors.into_iter().filter(|(name, _)| !is_ignored(name));
    let tensors = tensors.map(|(name, tensor)| FileTensor {
        part: Part::of(&layout.path(&name)),
        name,
        shape: tensor.shape.to_vec(),
        dtype: tensor.dtype,
    });
    Ok(tensors.collect())
}

fn is_ignored(name: &str) -> bool {
    IGNORED.iter().any(|end| name.ends_with(end))
}

/// The files that [`open`] takes the weights from.
pub(super) fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, WeightsError> {
    let index = folder.join(INDEX);
    match [SINGLE, INDEX, PICKLE].map(|name| folder.join(name).exists()) {
        [true, _, _] => Ok(vec![folder.join(SINGLE)]),
        [_, true, _] => {
            let shards = shards(&index)?.into_iter();
            Ok(shards.map(|shard| folder.join(shard)).collect())
        }
        [_, _, true] => Ok(vec![folder.join(PICKLE)]),
        _ => Err(WeightsError::NoWeights {
            folder: folder.into(),
        }),
    }
}

fn damaged(path: &Path, reason: impl ToString) -> WeightsError {
    WeightsError::Damaged {
        path: path.into(),
        reason: reason.to_string(),
    }
}

fn safetensors(path: &Path) -> Result<Tensors, WeightsError> {
    // Opened here first for the operating system's own words if it cannot be.
    let length = File::open(path)
        .and_then(|file| file.metadata())
        .map_err(io(path))?
        .len();
    if length == 0 {
        return Err(damaged(path, "the file is empty"));
    }
    let mut store = SafetensorsStore::from_file(path);
    let tensors = store
        .get_all_snapshots()
        .map_err(|error| damaged(path, format!("not a whole safetensors file: {error}")))?;
    Ok(tensors.clone())
}

/// The names of the shards that an index speaks of.
pub(crate) fn shards(index: &Path) -> Result<BTreeSet<String>, WeightsError> {
    #[derive(Deserialize)]
    struct Index {
        /// From each tensor's name to its file's.
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(index).map_err(io(index))?;
    let parsed: Index = serde_json::from_str(&text).map_err(|error| damaged(index, error))?;
    let shards: BTreeSet<String> = parsed.weight_map.into_values().collect();
    let is_elsewhere = |shard: &&String| {
        let mut parts = Path::new(shard).components();
        let first_and_second = (parts.next(), parts.next());
        !matches!(first_and_second, (Some(Component::Normal(_)), None))
    };
    match shards.iter().find(is_elsewhere) {
        Some(shard) => Err(damaged(
            index,
            format!("`{shard}` is not the name of a file in this folder"),
        )),
        None => Ok(shards),
    }
}

fn sharded(folder: &Path, index: &Path) -> Result<Tensors, WeightsError> {
    let mut all = Tensors::new();
    for shard in shards(index)? {
        let shard = folder.join(shard);
        for (name, tensor) in safetensors(&shard)? {
            if all.contains_key(&name) {
                return Err(damaged(&shard, format!("`{name}` is in another shard too")));
            }
            all.insert(name, tensor);
        }
    }
    Ok(all)
}

/// The tensors of a file that `torch.save` wrote: a zip archive of a pickle and its storages.
///
/// burn-store reads the pickle, but fills what it cannot read with zeros, so the archive's checksums
/// are verified first, and that the storages are as long as the tensors need. It also still reads
/// PyTorch's formats from before 2020, which have no checksums; those are refused.
fn pytorch(path: &Path) -> Result<Tensors, WeightsError> {
    let file = File::open(path).map_err(io(path))?;
    let not_whole = |error| {
        damaged(
            path,
            format!("not a whole archive as torch.save writes it: {error}"),
        )
    };
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(not_whole)?;
    let mut stored = 0;
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).map_err(not_whole)?;
        let is_storage = entry.name().contains("/data/");
        // Reading an entry to its end compares its checksum.
        let n = std::io::copy(&mut entry, &mut sink())
            .map_err(|error| damaged(path, format!("{} is damaged: {error}", entry.name())))?;
        stored += if is_storage { n } else { 0 };
    }
    // An archive can be whole and the pickle in it still nonsense.
    let reader = catch_unwind(AssertUnwindSafe(|| PytorchReader::new(path)))
        .map_err(|_| damaged(path, "the pickle in it cannot be understood"))?
        .map_err(|error| damaged(path, error))?;
    let tensors: Tensors = reader.into_tensors().into_iter().collect();
    let needed = tensors.values().map(|tensor| tensor.data_len() as u64);
    let needed = needed.fold(0, u64::saturating_add);
    if needed > stored {
        return Err(damaged(
            path,
            format!("its tensors need {needed} bytes, but it stores {stored}"),
        ));
    }
    Ok(tensors)
}
