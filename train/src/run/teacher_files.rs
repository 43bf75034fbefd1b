//! The small files beside a teacher's weights. They are read when the run begins, so that the student gets the same
//! contents at the end, which may be days later.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use datasets::Tokenizer;
use model::{
    BESIDE_TOKENIZER, GENERATION, ModelConfig, PhiMamba, TOKENIZER, atomic_file, manifest,
};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use kernels::KernelBackend;

use crate::error::{TrainError, io_error};

/// The keys that name the tokens at the beginning and the end of a text. A teacher may have them only in its
/// `config.json`; the student's `config.json` has no place for them.
const ENDS: [&str; 2] = ["bos_token_id", "eos_token_id"];

/// Names and contents of files.
pub(super) struct TeacherFiles(Vec<(&'static str, Vec<u8>)>);

impl TeacherFiles {
    /// The file of the `tokenizer`, and the small files beside it and beside the weights in `teacher`.
    ///
    /// # Errors
    /// [`TrainError::Io`] if an existing file cannot be read; [`TrainError::ChangedWhileRead`] if the tokenizer's file
    /// has changed since it was loaded.
    pub(super) fn read(teacher: &Path, tokenizer: &Tokenizer) -> Result<Self, TrainError> {
        let path = tokenizer.path();
        let file = model::tokenizer_json(path)?;
        let bytes = file.map(|file| file.bytes).unwrap_or_default();
        if format!("{:x}", Sha256::digest(&bytes)) != tokenizer.hash() {
            return Err(TrainError::ChangedWhileRead(path.to_owned()));
        }
        let mut files = vec![(TOKENIZER, bytes)];
        let place = if model::is_model(path) {
            // A GGUF file has them inside, too.
            path
        } else {
            path.parent().unwrap_or(Path::new(""))
        };
        for name in BESIDE_TOKENIZER {
            let bytes = read_if_there(place, name)?;
            files.extend(bytes.map(|bytes| (name, bytes)));
        }
        let own = read_if_there(teacher, GENERATION)?;
        let config = read_if_there(teacher, "config.json")?;
        let generation = with_ends(own, &config.unwrap_or_default());
        files.extend(generation.map(|bytes| (GENERATION, bytes)));
        Ok(Self(files))
    }

    /// Writes the student in the published format into `folder`, these files beside it, and the checksums of all.
    ///
    /// # Errors
    /// [`TrainError::Io`], [`TrainError::Weights`] and [`TrainError::Manifest`].
    pub(super) fn export<B: KernelBackend>(
        &self,
        config: &ModelConfig,
        student: &PhiMamba<B>,
        folder: &Path,
    ) -> Result<(), TrainError> {
        // The checksums of an earlier student do not fit the new files.
        let old = folder.join(manifest::MANIFEST);
        match fs::remove_file(&old) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(io_error(&old)(error)),
            _ => {}
        }
        let known = model::save(config, student, folder)?;
        let mut names = vec![];
        for (name, bytes) in &self.0 {
            let path = folder.join(name);
            atomic_file::write(&path, bytes).map_err(io_error(&path))?;
            names.push(name);
        }
        Ok(manifest::write_known(folder, &names, known)?)
    }
}

/// The file `name` in the folder or the GGUF file `place`.
fn read_if_there(place: &Path, name: &str) -> Result<Option<Vec<u8>>, TrainError> {
    let file = model::small_file(place, name)?;
    Ok(file.map(|file| file.bytes))
}

/// The teacher's own file [`GENERATION`], completed with those of the [`ENDS`] that only its `config` names; `None` if
/// there is neither. A file that needs no addition stays as it is.
fn with_ends(own: Option<Vec<u8>>, config: &[u8]) -> Option<Vec<u8>> {
    let mut all: Map<String, Value> = match own.as_deref().map(serde_json::from_slice) {
        None => Map::new(),
        Some(Ok(all)) => all,
        Some(Err(_)) => return own,
    };
    let config: Map<String, Value> = serde_json::from_slice(config).unwrap_or_default();
    let names = |all: &Map<String, Value>, key: &str| match all.get(key) {
        None | Some(Value::Null) => false,
        Some(Value::Array(ids)) => !ids.is_empty(),
        Some(_) => true,
    };
    let mut changed = false;
    for key in ENDS {
        if names(&config, key) && !names(&all, key) {
            all.insert(key.to_owned(), config[key].clone());
            changed = true;
        }
    }
    if changed {
        Some(format!("{:#}\n", Value::Object(all)).into_bytes())
    } else {
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The files inside a GGUF file are written beside the student.
    #[test]
    fn a_gguf_file_s_tokenizer() {
        let path = ::tests::goldens_dir().join("gguf-llama/model.gguf");
        let json = model::tokenizer_json(&path).unwrap().unwrap();
        let tokenizer = Tokenizer::from_json(&json.bytes, &path).unwrap();
        let files = TeacherFiles::read(&path, &tokenizer).unwrap().0;
        let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, [TOKENIZER, "tokenizer_config.json", GENERATION]);
        assert_eq!(files[0].1, json.bytes);
        let ends: Value = serde_json::from_slice(&files[2].1).unwrap();
        assert_eq!(ends["eos_token_id"], 2);

        let other = [&json.bytes[..], b" "].concat();
        let tokenizer = Tokenizer::from_json(&other, &path).unwrap();
        assert!(matches!(
            TeacherFiles::read(&path, &tokenizer),
            Err(TrainError::ChangedWhileRead(_))
        ));
    }

    /// Wherever the teacher names the tokens that end a text, the student's folder names them.
    #[test]
    fn the_ends_of_texts_are_kept() {
        let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/phi-tiny");
        let tokenizer = Tokenizer::from_folder(assets).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.json");
        let exported = || {
            let files = TeacherFiles::read(folder.path(), &tokenizer).unwrap().0;
            let found = files.into_iter().find(|(name, _)| *name == GENERATION);
            found.map(|(_, bytes)| String::from_utf8(bytes).unwrap())
        };
        let value = || serde_json::from_str::<Value>(&exported().unwrap()).unwrap();
        fs::write(&config, r#"{"n": 1}"#).unwrap();
        assert_eq!(exported(), None);
        let ends = r#"{"eos_token_id": [7, 0], "bos_token_id": 3, "n": 1}"#;
        fs::write(&config, ends).unwrap();
        let both = serde_json::json!({"eos_token_id": [7, 0], "bos_token_id": 3});
        assert_eq!(value(), both);

        // What the file itself names decides; what it does not name is added.
        let generation = folder.path().join(GENERATION);
        let own = r#"{"eos_token_id": 5, "bos_token_id": [4], "m": 2}"#;
        for same in [own, "{", "[]"] {
            fs::write(&generation, same).unwrap();
            assert_eq!(exported().unwrap(), same);
        }
        for none in ["null", "[]"] {
            let own = format!(r#"{{"eos_token_id": {none}, "bos_token_id": 4}}"#);
            fs::write(&generation, own).unwrap();
            let expected = serde_json::json!({"eos_token_id": [7, 0], "bos_token_id": 4});
            assert_eq!(value(), expected);
        }
    }
}
