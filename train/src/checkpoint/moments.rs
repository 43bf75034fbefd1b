//! The file of the optimizer's moments. They are copied into the host's memory all at once, since the next step changes
//! them, and are read back from the file one tensor at a time, since together they are twice as large as the student.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use kernels::TrainBackend;
use kernels::runtime::collective::Place;
use model::{HostTensor, Layout, PhiMamba, named_parameters};
use safetensors::tensor::{Dtype, Metadata};

use super::OPTIMIZER;
use crate::error::{TrainError, io_error};
use crate::optimizer::{AdamW, Moments};
use crate::parallel::share;

/// The key in the header of the file under which the step counts of the moments stand.
const TIMES: &str = "times";

/// The key under which a file that holds a share says which one it is, as in `1 of 4`.
const PLACE: &str = "place";

/// The moments of an optimizer in the host's memory, under the published names of their parameters.
#[derive(Debug)]
pub(super) struct HostMoments {
    tensors: Vec<(String, HostTensor)>,
    times: BTreeMap<String, u64>,
    /// The rank whose shares these are; `None` if the moments are whole.
    place: Option<Place>,
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
        Self {
            tensors,
            times,
            place: optimizer.place.filter(|place| place.world > 1),
        }
    }

    /// The rank whose shares these are; `None` if the moments are whole.
    pub(super) fn place(&self) -> Option<Place> {
        self.place
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
                let mut metadata = HashMap::from([(TIMES.to_owned(), times)]);
                if let Some(Place { rank, world }) = self.place {
                    metadata.insert(PLACE.to_owned(), format!("{rank} of {world}"));
                }
                model::weights::write_tensors(path, tensors, Some(metadata))
            })
            .map_err(io_error(path))
    }
}

/// The file of the moments of rank `rank`, in a checkpoint.
pub(super) fn file_of(rank: usize) -> String {
    match rank {
        0 => OPTIMIZER.to_owned(),
        rank => format!("optimizer-{rank}.safetensors"),
    }
}

/// A file of moments: all, or those of a rank.
struct Part {
    name: String,
    file: File,
    header: Metadata,
    /// Where the values begin.
    data: u64,
    times: BTreeMap<String, u64>,
    place: Place,
}

impl Part {
    fn open(folder: &Path, rank: usize) -> Result<Self, String> {
        let name = file_of(rank);
        let in_file = |error: String| format!("{name}: {error}");
        let mut file =
            File::open(folder.join(&name)).map_err(|error| in_file(error.to_string()))?;
        let (header, data) = read_header(&mut file).map_err(in_file)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let times = metadata.get(TIMES);
        let times = times.ok_or_else(|| in_file(format!("its header has no `{TIMES}`")))?;
        let times =
            serde_json::from_str(times).map_err(|error| in_file(format!("`{TIMES}`: {error}")))?;
        let place = match metadata.get(PLACE) {
            None => Place { rank: 0, world: 1 },
            Some(words) => place(words).ok_or_else(|| in_file(format!("`{PLACE}`: {words}")))?,
        };
        if place.rank != rank {
            return Err(in_file(format!("it is that of rank {}", place.rank)));
        }
        Ok(Self {
            name,
            file,
            header,
            data,
            times,
            place,
        })
    }

    /// The part of the elements `wanted` that this file has of the tensor `name`. `elements` is the size of the whole
    /// parameter.
    fn read(
        &mut self,
        name: &str,
        elements: usize,
        wanted: &Range<usize>,
    ) -> Result<Vec<f32>, String> {
        let own = share(elements, self.place);
        let range = wanted.start.max(own.start)..wanted.end.min(own.end);
        if range.is_empty() {
            return Ok(vec![]);
        }
        let file = self.name.clone();
        let in_file = |error: String| format!("{file}: `{name}`{error}");
        let info = self.header.info(name);
        let info = info.ok_or_else(|| in_file(" is missing".into()))?;
        if info.dtype != Dtype::F32 || info.shape != [own.len()] {
            let (dtype, shape) = (info.dtype, &info.shape);
            let expected = own.len();
            return Err(in_file(format!(
                " is {dtype:?} {shape:?}; it should be F32 [{expected}]"
            )));
        }
        let start = (range.start - own.start) * size_of::<f32>();
        let offset = (self.data)
            .saturating_add(info.data_offsets.0 as u64)
            .saturating_add(start as u64);
        let read = read_f32(&mut self.file, offset, range.len());
        read.map_err(|error| in_file(format!(": {error}")))
    }
}

/// The place in `1 of 4`.
fn place(words: &str) -> Option<Place> {
    let (rank, world) = words.split_once(" of ")?;
    let place = Place {
        rank: rank.parse().ok()?,
        world: world.parse().ok()?,
    };
    (place.rank < place.world).then_some(place)
}

/// Reads the moments in the checkpoint `folder` into `optimizer`, under the ids of `student`, one tensor at a time,
/// since all together are twice as large as the student. If ranks share the moments, it reads this rank's share,
/// whichever ranks have written it.
pub(super) fn load<B: TrainBackend>(
    folder: &Path,
    student: &PhiMamba<B>,
    layout: Layout,
    optimizer: &mut AdamW<B::InnerBackend>,
    device: &B::Device,
) -> Result<(), String> {
    let first = Part::open(folder, 0)?;
    let world = first.place.world;
    let mut parts = vec![first];
    for rank in 1..world {
        let part = Part::open(folder, rank)?;
        if part.place.world != world {
            let name = &part.name;
            return Err(format!(
                "{name}: it is of {} ranks, and not of {world}",
                part.place.world
            ));
        }
        parts.push(part);
    }
    let parameters = named_parameters(student, layout);
    let mut times = BTreeMap::new();
    for part in &parts {
        // A rank that has no element of a parameter has no step count of it either.
        times.extend(part.times.iter().map(|(name, time)| (name.clone(), *time)));
    }
    for (name, time) in times {
        let parameter = (parameters.iter().find(|parameter| parameter.name == name))
            .ok_or_else(|| format!("{OPTIMIZER}: `{name}` is no parameter of the student"))?;
        let n = parameter.shape.iter().product();
        let own = optimizer.place.map_or(0..n, |place| share(n, place));
        if own.is_empty() {
            continue;
        }
        let mut read = |letter: &str| {
            let name = format!("{letter}.{name}");
            let mut values = vec![];
            for part in &mut parts {
                values.extend(part.read(&name, n, &own)?);
            }
            let shape = [values.len()];
            Ok::<_, String>(Tensor::from_data(TensorData::new(values, shape), device))
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
