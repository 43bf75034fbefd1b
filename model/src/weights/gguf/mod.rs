//! GGUF files: a model's configuration, its weights and its tokenizer in one file, the weights mostly quantised.
//!
//! A file stands for a model's folder. Its keys become the small files of one (`config.json`, `tokenizer.json` and
//! others), and its tensors get Hugging Face's names and order; so nothing outside this folder needs to know the
//! format. Weights are dequantised while they are read, some rows at a time on all cores.
//!
//! The format is ggml's (`docs/gguf.md` of its repository), versions 2 and 3 for little-endian machines.

mod blocks;
mod header;
mod tensor;
mod tokenizer;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use self::header::Header;
use self::tensor::Blocks;
use super::error::{WeightsError, damaged, io};
use super::stored::{Stored, Tensors};
use super::{CONFIG, GENERATION, TOKENIZER, TOKENIZER_CONFIG};
use crate::arch::{ModelConfig, gguf};

/// How the names of such files end.
const ENDING: &str = "gguf";

/// The GGUF file that `model` is or, in a folder without a [`CONFIG`], the only one there; `None` if there is none.
pub(super) fn at(model: &Path) -> Result<Option<PathBuf>, WeightsError> {
    if is_one(model) {
        return Ok(Some(model.into()));
    }
    let has_config = fs::symlink_metadata(model.join(CONFIG)).is_ok();
    if !model.is_dir() || has_config {
        return Ok(None);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(model).map_err(io(model))? {
        let path = entry.map_err(io(model))?.path();
        if has_ending(&path) && !path.is_dir() {
            found.push(path);
        }
    }
    match found.len() {
        0 | 1 => Ok(found.pop()),
        n => Err(damaged(
            model,
            format!("no {CONFIG} here and {n} GGUF files; give the path of one of them"),
        )),
    }
}

/// Whether `path` is a file that is named or begins like a GGUF file.
pub(super) fn is_one(path: &Path) -> bool {
    path.is_file() && (has_ending(path) || begins_like_one(path))
}

/// Whether the name of `path` is that of a GGUF file.
pub(super) fn has_ending(path: &Path) -> bool {
    let ending = path.extension();
    ending.is_some_and(|ending| ending.eq_ignore_ascii_case(ENDING))
}

fn begins_like_one(path: &Path) -> bool {
    let mut start = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && start == *header::MAGIC
}

/// The tensors of the file at `path`.
pub(super) fn open(path: &Path) -> Result<Tensors, WeightsError> {
    let header = Header::open(path)?;
    let file = header.file();
    let mut tensors = Tensors::new();
    for info in &header.tensors {
        // What it says is in the configuration.
        if info.name == gguf::ROPE_FREQS {
            continue;
        }
        let interleaved = gguf::interleaved_heads(&header.values, &info.name);
        let values = Blocks::new(file.clone(), info, interleaved)?;
        let stored_as = info.kind.name.to_lowercase();
        let tensor = Stored::in_f32(info.shape.clone(), stored_as, info.length, values);
        let name = gguf::tensor_name(&info.name);
        if tensors.insert(name, tensor).is_some() {
            return Err(file.damaged(format!("it has `{}` twice", info.name)));
        }
    }
    Ok(tensors)
}

/// The configuration of the model in the file at `path`.
pub(super) fn config(path: &Path) -> Result<ModelConfig, WeightsError> {
    let header = Header::open(path)?;
    let text = config_json(&header)?.to_string();
    ModelConfig::from_json(&text).map_err(|source| header.error(source))
}

/// What the file at `path` has in the place of the small file `name` of a model's folder, if it has that.
pub(super) fn small_file(path: &Path, name: &str) -> Result<Option<Vec<u8>>, WeightsError> {
    let make = match name {
        CONFIG => |header: &Header| config_json(header).map(Some),
        TOKENIZER => tokenizer::tokenizer_json,
        TOKENIZER_CONFIG => tokenizer::tokenizer_config_json,
        GENERATION => tokenizer::generation_config_json,
        _ => return Ok(None),
    };
    let made = make(&Header::open(path)?)?;
    Ok(made.map(|value| value.to_string().into_bytes()))
}

fn config_json(header: &Header) -> Result<serde_json::Value, WeightsError> {
    let tensor = |name: &str| header.tensors.iter().find(|tensor| tensor.name == name);
    let shape = |name: &str| Some(tensor(name)?.shape.clone());
    let rope_freqs = match tensor(gguf::ROPE_FREQS) {
        Some(info) => Some(Blocks::new(header.file().clone(), info, None)?.values()?.0),
        None => None,
    };
    let config = gguf::config_json(&header.values, shape, rope_freqs.as_deref());
    config.map_err(|source| header.error(source))
}
