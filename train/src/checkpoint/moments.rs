//! The optimizer's moments as a file: read into the host's memory at once, since they change with the next step, and
//! back from the file a tensor at a time, since all of them are twice as large as the student.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use kernels::TrainBackend;
use model::{HostTensor, Layout, PhiMamba, named_parameters};
use safetensors::tensor::{Dtype, Metadata};

use crate::error::{TrainError, io_error};
use crate::optimizer::{AdamW, Moments};

/// The key in the header of the file under which the step counts of the moments stand.
const TIMES: &str = "times";

/// The moments of an optimizer in the host's memory, under the published names of their parameters.
#[derive(Debug)]
pub(super) struct HostMoments {
    tensors: Vec<(String, HostTensor)>,
    times: BTreeMap<String, u64>,
}

impl HostMoments {
    /// Reads those of the parameters of `student` from their device.
    pub(super) fn read<B: TrainBackend>(
        student: &PhiMamba<B>,
        optimizer: &AdamW<B::InnerBackend>,
        layout: Layout,
    ) -> Self {
        let mut tensors = vec![];
        let mut times = BTreeMap::new();
        for parameter in named_parameters(student, layout) {
            if let Some(Moments { values, time }) = optimizer.moments.get(&parameter.id) {
                for (letter, values) in ["m", "v"].into_iter().zip(values) {
                    let name = format!("{letter}.{}", parameter.name);
                    tensors.push((name, values.to_data().into()));
                }
                times.insert(parameter.name, *time);
            }
        }
        Self { tensors, times }
    }

    /// Writes them to `path`, and returns the file's SHA-256.
    pub(super) fn write(&self, path: &Path) -> Result<String, TrainError> {
        let tensors = self.tensors.iter();
        let tensors: Vec<_> = tensors
            .map(|(name, tensor)| (name.clone(), tensor))
            .collect();
        serde_json::to_string(&self.times)
            .map_err(std::io::Error::from)
            .and_then(|times| {
                let metadata = HashMap::from([(TIMES.to_owned(), times)]);
                model::weights::write_tensors(path, tensors, Some(metadata))
            })
            .map_err(io_error(path))
    }
}

/// Reads moments into `optimizer`, under the ids of `student`, one tensor at a time: all of them
/// together are twice as large as the student.
pub(super) fn load<B: TrainBackend>(
    path: &Path,
    student: &PhiMamba<B>,
    layout: Layout,
    optimizer: &mut AdamW<B::InnerBackend>,
    device: &B::Device,
) -> Result<(), String> {
    let mut file = File::open(path).map_err(|error| error.to_string())?;
    let (header, data) = read_header(&mut file)?;
    let times = header
        .metadata()
        .as_ref()
        .and_then(|metadata| metadata.get(TIMES));
    let times = times.ok_or_else(|| format!("its header has no `{TIMES}`"))?;
    let times: BTreeMap<String, u64> =
        serde_json::from_str(times).map_err(|error| format!("`{TIMES}`: {error}"))?;
    let parameters = named_parameters(student, layout);
    for (name, time) in times {
        let parameter = (parameters.iter().find(|parameter| parameter.name == name))
            .ok_or_else(|| format!("`{name}` is no parameter of the student"))?;
        let n = parameter.shape.iter().product();
        let mut read = |letter: &str| {
            let name = format!("{letter}.{name}");
            let info = header
                .info(&name)
                .ok_or_else(|| format!("`{name}` is missing"))?;
            if info.dtype != Dtype::F32 || info.shape != [n] {
                let (dtype, shape) = (info.dtype, &info.shape);
                return Err(format!(
                    "`{name}` is {dtype:?} {shape:?}; it should be F32 [{n}]"
                ));
            }
            let values = read_f32(
                &mut file,
                data.saturating_add(info.data_offsets.0 as u64),
                n,
            )
            .map_err(|error| format!("`{name}`: {error}"))?;
            Ok(Tensor::from_data(TensorData::new(values, [n]), device))
        };
        let values = [read("m")?, read("v")?];
        optimizer
            .moments
            .insert(parameter.id, Moments { values, time });
    }
    Ok(())
}

/// The header of a safetensors file, and where the values begin.
fn read_header(file: &mut File) -> Result<(Metadata, u64), String> {
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    let mut size = [0; 8];
    file.read_exact(&mut size)
        .map_err(|_| "not a safetensors file".to_owned())?;
    let size = u64::from_le_bytes(size);
    if size > length.saturating_sub(8) {
        return Err("its header is cut short".to_owned());
    }
    let mut header = vec![0; size as usize];
    file.read_exact(&mut header)
        .map_err(|error| error.to_string())?;
    let header: Metadata = serde_json::from_slice(&header)
        .map_err(|error| format!("its header cannot be understood: {error}"))?;
    let data = 8 + size;
    match data.checked_add(header.data_len() as u64) {
        Some(expected) if expected == length => Ok((header, data)),
        _ => Err(format!(
            "it has {length} bytes, which is not what its header says"
        )),
    }
}

fn read_f32(file: &mut File, offset: u64, n: usize) -> std::io::Result<Vec<f32>> {
    let mut bytes = vec![0; n * size_of::<f32>()];
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes
        .as_chunks()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect())
}
