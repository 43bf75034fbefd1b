//! Checkpoints: all that a run needs to go on, nothing else.
//!
//! A checkpoint is a folder: `student/` in the published format (so that a checkpoint can be used as
//! a model), `optimizer.safetensors` with the moments under published names, and `progress.json`.
//! There is no random state to keep: batches are a function of seed and step. It is written under
//! another name and renamed when whole, so a folder with a checkpoint's name is always complete.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::module::ParamId;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use kernels::TrainBackend;
use model::{Layout, PhiMamba, PhiMambaConfig, named_parameters, save_student};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::error::{TrainError, io_error};
use crate::metrics::Position;
use crate::optimizer::{AdamW, Moments};
use crate::summary::StageSummary;

const PROGRESS: &str = "progress.json";
const OPTIMIZER: &str = "optimizer.safetensors";
const STUDENT: &str = "student";

/// How far a run has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The stage it is in, 1 to 3.
    pub stage: u8,
    /// Steps of that stage done; also the position in its data.
    pub step: usize,
    /// Training tokens so far, over all stages.
    pub tokens: u64,
    /// Seconds this stage has trained.
    pub stage_seconds: f64,
    /// Seconds of the run so far, over all resumptions.
    pub seconds: f64,
    /// Non-finite steps in a row, up to the last.
    pub skipped_in_a_row: usize,
    /// The last finite loss of the stage, smoothed as the closing table shows it.
    pub loss: Option<f64>,
    /// Perplexity of the teacher.
    pub teacher_perplexity: f64,
    /// Stages done.
    pub finished: Vec<StageSummary>,
}

impl Progress {
    /// As the metrics count it.
    pub fn position(&self) -> Position {
        Position {
            stage: self.stage,
            step: self.step,
        }
    }
}

/// The checkpoints of one run, the newest of them kept.
#[derive(Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
}

impl Checkpoints {
    /// Those in `folder`, of which `keep` stay.
    pub fn new(folder: PathBuf, keep: usize) -> Self {
        Self { folder, keep }
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes one and removes those that are too many.
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::Weights`]; the checkpoints before are then as they were.
    pub fn save<B: TrainBackend>(
        &self,
        progress: &Progress,
        config: &PhiMambaConfig,
        student: &PhiMamba<B>,
        optimizer: &AdamW<B::InnerBackend>,
    ) -> Result<(), TrainError> {
        let name = format!("stage{}-step{:07}", progress.stage, progress.step);
        let partial = self.folder.join(format!(".{name}.partial"));
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(io_error(&partial))?;
        }
        fs::create_dir_all(&partial).map_err(io_error(&partial))?;
        save_student(config, student, &partial.join(STUDENT))?;
        save_moments(student, optimizer, &partial.join(OPTIMIZER))?;
        let path = partial.join(PROGRESS);
        let json = serde_json::to_vec_pretty(progress)
            .map_err(|error| io_error(&path)(std::io::Error::other(error)))?;
        fs::write(&path, json).map_err(io_error(&path))?;

        let whole = self.folder.join(&name);
        if whole.exists() {
            fs::remove_dir_all(&whole).map_err(io_error(&whole))?;
        }
        fs::rename(&partial, &whole).map_err(io_error(&whole))?;
        let all = self.list()?;
        for old in &all[..all.len().saturating_sub(self.keep)] {
            fs::remove_dir_all(old).map_err(io_error(old))?;
        }
        Ok(())
    }

    /// The newest, if there is one.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the folder cannot be listed.
    pub fn newest(&self) -> Result<Option<PathBuf>, TrainError> {
        Ok(self.list()?.pop())
    }

    /// Oldest first: names sort as they follow each other.
    fn list(&self) -> Result<Vec<PathBuf>, TrainError> {
        if !self.folder.exists() {
            return Ok(vec![]);
        }
        let entries = fs::read_dir(&self.folder).map_err(io_error(&self.folder))?;
        let mut paths = vec![];
        for entry in entries {
            let path = entry.map_err(io_error(&self.folder))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("stage") && path.is_dir() {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    }
}

/// Reads the progress of a checkpoint.
///
/// # Errors
/// [`TrainError::Io`] or [`TrainError::Checkpoint`].
pub fn load_progress(checkpoint: &Path) -> Result<Progress, TrainError> {
    let path = checkpoint.join(PROGRESS);
    let json = fs::read(&path).map_err(io_error(&path))?;
    serde_json::from_slice(&json).map_err(|error| TrainError::Checkpoint {
        path,
        reason: error.to_string(),
    })
}

/// Reads the student of a checkpoint.
///
/// # Errors
/// [`TrainError::Weights`].
pub fn load_student<B: TrainBackend>(
    checkpoint: &Path,
    device: &B::Device,
) -> Result<PhiMamba<B>, TrainError> {
    let (_, student) = model::load_student(&checkpoint.join(STUDENT), device)?;
    Ok(student)
}

fn save_moments<B: TrainBackend>(
    student: &PhiMamba<B>,
    optimizer: &AdamW<B::InnerBackend>,
    path: &Path,
) -> Result<(), TrainError> {
    let mut tensors: Vec<(String, Vec<u8>, usize)> = vec![];
    let mut times = HashMap::new();
    for parameter in named_parameters(student, Layout::PhiMamba) {
        let Some(moments) = optimizer.moments.get(&parameter.id) else {
            continue;
        };
        for (letter, value) in ["m", "v"].into_iter().zip(&moments.values) {
            let data = value.to_data();
            let bytes = data.iter::<f32>().flat_map(f32::to_le_bytes).collect();
            let name = format!("{letter}.{}", parameter.name);
            tensors.push((name, bytes, data.num_elements()));
        }
        times.insert(parameter.name, moments.time.to_string());
    }
    let failed = |error: safetensors::SafeTensorError| io_error(path)(std::io::Error::other(error));
    let views = tensors.iter().map(|(name, bytes, n)| {
        let view = TensorView::new(Dtype::F32, vec![*n], bytes)?;
        Ok((name.clone(), view))
    });
    let views = views.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    safetensors::serialize_to_file(views, Some(times), path).map_err(failed)
}

/// Reads the moments of a checkpoint into `optimizer`, under the ids of `student`.
///
/// # Errors
/// [`TrainError::Io`], or [`TrainError::Checkpoint`] naming the tensor that does not fit.
pub fn load_moments<B: TrainBackend>(
    checkpoint: &Path,
    student: &PhiMamba<B>,
    optimizer: &mut AdamW<B::InnerBackend>,
    device: &B::Device,
) -> Result<(), TrainError> {
    let path = checkpoint.join(OPTIMIZER);
    let bytes = fs::read(&path).map_err(io_error(&path))?;
    let damaged = |reason: String| TrainError::Checkpoint {
        path: path.clone(),
        reason,
    };
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| damaged(e.to_string()))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| damaged(e.to_string()))?;
    let times = header.metadata().clone().unwrap_or_default();
    let ids: HashMap<String, (ParamId, usize)> = named_parameters(student, Layout::PhiMamba)
        .into_iter()
        .map(|parameter| (parameter.name, (parameter.id, parameter.shape.iter().product())))
        .collect();
    for (name, time) in times {
        let &(id, n) = ids
            .get(&name)
            .ok_or_else(|| damaged(format!("`{name}` is no parameter of the student")))?;
        let time = time
            .parse()
            .map_err(|_| damaged(format!("the step count of `{name}` is `{time}`")))?;
        let read = |letter: &str| read_moment(&tensors, &format!("{letter}.{name}"), n, device);
        let values = [read("m").map_err(damaged)?, read("v").map_err(damaged)?];
        optimizer.moments.insert(id, Moments { values, time });
    }
    Ok(())
}

fn read_moment<B: Backend>(
    tensors: &SafeTensors,
    name: &str,
    n: usize,
    device: &B::Device,
) -> Result<Tensor<B, 1>, String> {
    let view = tensors.tensor(name).map_err(|_| format!("`{name}` is missing"))?;
    if view.dtype() != Dtype::F32 || view.shape() != [n] {
        let (dtype, shape) = (view.dtype(), view.shape());
        return Err(format!("`{name}` is {dtype:?} {shape:?}; it should be F32 [{n}]"));
    }
    let values: Vec<f32> = (view.data().as_chunks().0.iter())
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect();
    Ok(Tensor::from_data(TensorData::new(values, [n]), device))
}
