//! The small files of a model (configuration and tokenizer), from a folder or from inside a GGUF file.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::error::{WeightsError, io};
use super::{TOKENIZER, gguf, is_model};
use crate::manifest;

/// The files that other programs read in addition to `tokenizer.json`.
pub const BESIDE_TOKENIZER: [&str; 7] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

/// A small file of a model, or what a GGUF file has in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmallFile {
    /// The file on disk: it itself, or the GGUF file.
    pub path: PathBuf,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// The file `name` of the model at `model`, a folder or a GGUF file; `None` if there is no such file.
///
/// A GGUF file has `config.json`, `tokenizer.json`, `tokenizer_config.json` (in which the chat template is) and
/// `generation_config.json`, made of its keys. In a folder that holds one, what lies beside it comes first.
///
/// # Errors
/// [`WeightsError::Io`]; [`WeightsError::Manifest`] if it is not the file that the folder's manifest lists; for a
/// GGUF file, [`WeightsError::Damaged`], and [`WeightsError::Config`] if its tokenizer is of a kind that is not
/// implemented.
pub fn small_file(model: impl AsRef<Path>, name: &str) -> Result<Option<SmallFile>, WeightsError> {
    let model = model.as_ref();
    if model.is_dir() {
        manifest::verify_files(model, &[name])?;
        let path = model.join(name);
        match fs::read(&path) {
            Ok(bytes) => return Ok(Some(SmallFile { path, bytes })),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(io(&path)(error)),
        }
    }
    let Some(path) = gguf::at(model)? else {
        return Ok(None);
    };
    let bytes = gguf::small_file(&path, name)?;
    Ok(bytes.map(|bytes| SmallFile { path, bytes }))
}

/// The `tokenizer.json` at `place`: that file itself, a folder with it, or a GGUF file; `None` if there is none.
///
/// # Errors
/// As [`small_file`].
pub fn tokenizer_json(place: impl AsRef<Path>) -> Result<Option<SmallFile>, WeightsError> {
    let place = place.as_ref();
    if is_model(place) {
        return small_file(place, TOKENIZER);
    }
    let bytes = fs::read(place).map_err(io(place))?;
    let path = place.into();
    Ok(Some(SmallFile { path, bytes }))
}
