//! From files to a network.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;

use burn::module::ParamId;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Shape, TensorData};
use burn_store::{ModuleSnapshot, TensorSnapshot, TensorSnapshotError};
use half::bf16;
use kernels::decode::projections::Weight;
use rayon::prelude::*;

use super::error::{NotFinite, damaged};
use super::stored::{Stored, Tensors, not_finite};
use super::weight_files::Files;
use super::{FileTensor, TensorFault, WeightsError, packed};
use crate::arch::Layout;
use crate::lm::CausalLm;
use crate::manifest;
use crate::parameters::{NamedParameter, Part, named_parameters};

/// Tables that some versions of the published code keep beside the parameters, and that are
/// computed here: tensors whose names end so are passed over.
const IGNORED: [&str; 3] = [
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
];

/// The paths of a tied head's weight and of what it is tied to.
pub(super) const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "backbone.embedding.weight";

/// Fills `model` with the parameters in `folder`, whose names are those of `layout`. Their dtype is the one that
/// `choose` returns; its argument is the dtype in which they are stored, or `None` if there are several.
///
/// Packed weights are converted to floats, except those that `keep` takes out of its argument.
///
/// Meanwhile another thread compares the files with the folder's manifest, if it has one.
pub(super) fn fill<B: Backend>(
    model: CausalLm<B>,
    layout: Layout,
    folder: &Path,
    choose: impl Fn(Option<DType>) -> DType,
    keep: impl Fn(&mut CausalLm<B>, &mut PackedWeights) -> Result<(), WeightsError>,
) -> Result<CausalLm<B>, WeightsError> {
    let files = Files::of(folder)?;
    let (names, in_folder) = (files.names()?, files.folder.clone());
    std::thread::scope(|scope| {
        let compared = scope.spawn(|| manifest::verify_files(&in_folder, &names));
        let filled = fill_from(&files, model, layout, folder, choose, keep);
        match compared.join() {
            // If a file is damaged, this error comes first, because all other faults may follow from it.
            Ok(compared) => compared.map(|_| filled)?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn fill_from<B: Backend>(
    files: &Files,
    mut model: CausalLm<B>,
    layout: Layout,
    folder: &Path,
    choose: impl Fn(Option<DType>) -> DType,
    keep: impl Fn(&mut CausalLm<B>, &mut PackedWeights) -> Result<(), WeightsError>,
) -> Result<CausalLm<B>, WeightsError> {
    let mut tensors = files.open()?;
    let mut faults = packed::join(&mut tensors)?;
    let parameters = named_parameters(&model, layout);
    let mut tied = TiedHead::default();
    if model.lm_head.is_none() {
        tied = take_tied_head(layout, &mut tensors)?;
    }
    let is_known = |fault: &TensorFault| {
        // A packed weight with a faulty part is not also reported as missing.
        let TensorFault::Missing { name, .. } = fault else {
            return false;
        };
        faults.iter().any(|fault| fault.name().starts_with(name))
    };
    let mut others = self::faults(&parameters, &tensors);
    others.retain(|fault| !is_known(fault));
    faults.extend(others);
    faults.extend(tied.fault);
    if !faults.is_empty() {
        let folder = folder.into();
        return Err(WeightsError::Tensors { folder, faults });
    }
    let stored = parameters.iter().map(|parameter| &tensors[&parameter.name]);
    let floats = stored.filter(|tensor| tensor.packed().is_none());
    let mut floats = floats.map(|tensor| tensor.dtype);
    let first = floats.next();
    let dtype = choose(first.filter(|first| floats.all(|dtype| dtype == *first)));
    let mut in_bits = PackedWeights {
        dtype,
        of_projections: BTreeMap::new(),
        tied_head: tied.in_bits,
        not_finite: Vec::new(),
    };
    for parameter in &parameters {
        let name = &parameter.name;
        let Some(tensor) = tensors.remove(name) else {
            continue;
        };
        if tensor.packed().is_some() {
            let of_projection = (name.clone(), tensor);
            in_bits.of_projections.insert(parameter.id, of_projection);
        } else {
            tensors.insert(name.clone(), tensor);
        }
    }
    keep(&mut model, &mut in_bits)?;
    tensors.extend(in_bits.of_projections.into_values());
    let problems = Rc::new(RefCell::new(Problems {
        error: None,
        not_finite: in_bits.not_finite,
    }));
    let snapshots = parameters.iter().filter_map(|parameter| {
        let tensor = tensors.remove(&parameter.name)?;
        Some(for_module(tensor, parameter, dtype, &problems))
    });
    let result = model.apply(snapshots.collect(), None, None, false);
    let problems = problems.take();
    if let Some(error) = problems.error {
        return Err(error);
    }
    if let Some(error) = result.errors.first() {
        return Err(damaged(folder, error));
    }
    if !problems.not_finite.is_empty() {
        return Err(WeightsError::NotFinite {
            folder: folder.into(),
            tensors: problems.not_finite,
        });
    }
    Ok(model)
}

/// What was found while values were read.
#[derive(Default)]
struct Problems {
    /// The first that ended the reading of a tensor.
    error: Option<WeightsError>,
    not_finite: Vec<NotFinite>,
}

/// `tensor` under the parameter's path in the module, in the dtype that it is to have there. Its values are read
/// when the module asks for them.
fn for_module(
    tensor: Stored,
    parameter: &NamedParameter,
    dtype: DType,
    problems: &Rc<RefCell<Problems>>,
) -> TensorSnapshot {
    let shape = Shape::from(tensor.shape.clone());
    let (name, problems) = (parameter.name.clone(), problems.clone());
    let read = move || {
        let (data, mut count) = tensor.read().map_err(|error| {
            let said = error.to_string();
            problems.borrow_mut().error.get_or_insert(error);
            TensorSnapshotError::DataError(said)
        })?;
        let mut counted = data.dtype;
        let data = converted(data, dtype);
        // A large number may be infinite in a smaller dtype.
        if count == 0 && dtype != counted && dtype.size() <= counted.size() {
            count = not_finite(&data.bytes, dtype);
            counted = dtype;
        }
        if count > 0 {
            problems.borrow_mut().not_finite.push(NotFinite {
                name: name.clone(),
                count,
                all: data.num_elements(),
                dtype: counted,
            });
        }
        Ok(data)
    };
    TensorSnapshot::from_closure(
        Rc::new(read),
        dtype,
        shape,
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

/// The weights in bits of a model's files. What is taken out is no longer read as floats.
pub(super) struct PackedWeights {
    /// What all else gets.
    pub(super) dtype: DType,
    /// By the ids of the parameters that they stand for, with their names.
    pub(super) of_projections: BTreeMap<ParamId, (String, Stored)>,
    /// A head that is tied to the embedding, which is in floats.
    pub(super) tied_head: Option<(String, Stored)>,
    /// Those whose scales are NaN or infinite.
    not_finite: Vec<NotFinite>,
}

impl PackedWeights {
    /// The weight in `tensor`, called `name`, on `device`, as it is.
    pub(super) fn read<B: Backend>(
        &mut self,
        (name, tensor): (String, Stored),
        device: &B::Device,
    ) -> Result<Weight<B>, WeightsError> {
        let packed = tensor.packed().expect("it is in bits");
        let (weight, count) = packed.weight(device)?;
        if count > 0 {
            self.not_finite.push(NotFinite {
                name,
                count,
                all: packed.scales(),
                dtype: packed.dtype_of_scales(),
            });
        }
        Ok(weight)
    }
}

/// A head that is tied to the embedding and stored all the same.
#[derive(Default)]
struct TiedHead {
    /// The fault that it is not equal to the embedding.
    fault: Option<TensorFault>,
    /// Its name, and it, in bits.
    in_bits: Option<(String, Stored)>,
}

/// Takes the head out of `tensors` if the configuration ties it to the embedding but the files contain it. Some
/// programs write such files, and a packed head is stored beside an embedding in floats.
fn take_tied_head(layout: Layout, tensors: &mut Tensors) -> Result<TiedHead, WeightsError> {
    let other = layout.name(EMBEDDING);
    let name = layout.name(HEAD);
    let Some(embedding) = tensors.get(&other) else {
        return Ok(TiedHead::default());
    };
    let Some(head) = tensors.get(&name) else {
        return Ok(TiedHead::default());
    };
    let (fault, in_bits) = if head.packed().is_some() {
        let (expected, found) = (embedding.shape.clone(), head.shape.clone());
        let fault = (found != expected).then(|| TensorFault::Shape {
            name: name.clone(),
            found,
            expected,
        });
        (fault, true)
    } else {
        let is_alike = head.shape == embedding.shape && head.dtype == embedding.dtype;
        let is_tied = is_alike && head.read()?.0.bytes == embedding.read()?.0.bytes;
        let name = name.clone();
        let fault = (!is_tied).then_some(TensorFault::Untied { name, other });
        (fault, false)
    };
    let head = tensors.remove(&name).filter(|_| in_bits);
    Ok(TiedHead {
        fault,
        in_bits: head.map(|head| (name, head)),
    })
}

/// Everything in which the files differ from what the network needs.
fn faults(parameters: &[NamedParameter], tensors: &Tensors) -> Vec<TensorFault> {
    let mut faults = Vec::new();
    for parameter in parameters {
        let (name, expected) = (parameter.name.clone(), parameter.shape.clone());
        match tensors.get(&name) {
            None => faults.push(TensorFault::Missing { name, expected }),
            Some(tensor) if tensor.shape != expected => {
                let found = tensor.shape.clone();
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
            let (name, found) = (name.clone(), tensor.shape.clone());
            faults.push(TensorFault::Unexpected { name, found });
        }
    }
    faults
}

fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
}

/// The tensors of a folder, but for what is passed over, with the parts of the network that `layout` says.
pub(super) fn tensors(folder: &Path, layout: Layout) -> Result<Vec<FileTensor>, WeightsError> {
    let mut tensors = Files::of(folder)?.open()?;
    let faults = packed::join(&mut tensors)?;
    if !faults.is_empty() {
        let folder = folder.into();
        return Err(WeightsError::Tensors { folder, faults });
    }
    let tensors = tensors.into_iter();
    let tensors = tensors.filter(|(name, _)| !is_ignored(name));
    let tensors = tensors.map(|(name, tensor)| FileTensor {
        part: Part::of(&layout.path(&name)),
        name,
        shape: tensor.shape,
        stored_as: tensor.stored_as,
        bytes: tensor.length,
    });
    Ok(tensors.collect())
}

fn is_ignored(name: &str) -> bool {
    IGNORED.iter().any(|end| name.ends_with(end))
}
