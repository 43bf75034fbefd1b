//! The tokens that end a text, as the files in a model's folder define them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use datasets::Tokenizer;
use model::{SmallFile, WeightsError};
use serde_json::Value;

/// The files that may name the tokens; the first file that names any decides. The order is that of transformers, which
/// has separate settings for generation.
const FILES: [&str; 2] = ["generation_config.json", "config.json"];
/// Their key in each file: an id, a list of ids, or null.
const KEY: &str = "eos_token_id";

/// Why the tokens that end a text cannot be determined.
#[derive(Debug, thiserror::Error)]
pub enum EndTokensError {
    /// The file cannot be read, or its checksum is not that in the folder's `SHA256SUMS`.
    #[error(transparent)]
    Model(#[from] WeightsError),
    /// The file is no JSON object.
    #[error("{}: not a JSON object: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file names something else than tokens.
    #[error("{}: `{KEY}` is {value}; it should be the id of a token, or a list of ids", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// The value.
        value: String,
    },
    /// The file names a token that the model does not have.
    #[error(
        "{}: `{KEY}` is {id}, and the model's vocabulary ends at {vocab_size}",
        path.display()
    )]
    Vocabulary {
        /// The file.
        path: PathBuf,
        /// The id.
        id: u64,
        /// The model's vocabulary, padding included.
        vocab_size: usize,
    },
}

/// The tokens that end a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndTokens {
    /// Their ids: any of them ends the text. None, if nothing does.
    pub ids: Arc<[u32]>,
    /// The name of the file that names them; `None` if no file does.
    pub file: Option<String>,
}

impl EndTokens {
    /// The tokens that end a text of the model in `folder`, which has embeddings for `vocab_size` tokens. They are read
    /// from `generation_config.json`, or, if it is missing or names none, from `config.json`; if neither names any,
    /// `file` is `None`. A value of null and an empty list name none.
    ///
    /// # Errors
    /// Every [`EndTokensError`].
    pub fn in_folder(folder: &Path, vocab_size: usize) -> Result<Self, EndTokensError> {
        for name in FILES {
            let Some(file) = model::small_file(folder, name)? else {
                continue;
            };
            let ids = read(&file, vocab_size)?;
            if !ids.is_empty() {
                let name = file.path.file_name().unwrap_or_default();
                return Ok(Self {
                    ids: ids.into(),
                    file: Some(name.to_string_lossy().into_owned()),
                });
            }
        }
        Ok(Self {
            ids: Arc::new([]),
            file: None,
        })
    }

    /// [`in_folder`](Self::in_folder); but if no file names any token, the tokenizer's end-of-text, if it has one.
    ///
    /// # Errors
    /// Every [`EndTokensError`].
    pub fn of(
        folder: &Path,
        tokenizer: &Tokenizer,
        vocab_size: usize,
    ) -> Result<Arc<[u32]>, EndTokensError> {
        let named = Self::in_folder(folder, vocab_size)?;
        Ok(match named.file {
            Some(_) => named.ids,
            None => tokenizer.end_of_text().into_iter().collect(),
        })
    }
}

/// The ids that a file names.
fn read(file: &SmallFile, vocab_size: usize) -> Result<Vec<u32>, EndTokensError> {
    let SmallFile { path, bytes } = file;
    let damaged = |reason: String| EndTokensError::Json {
        path: path.into(),
        reason,
    };
    let root: Value = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
    let Value::Object(members) = root else {
        return Err(damaged("it is another value".into()));
    };
    let value = members.get(KEY).unwrap_or(&Value::Null);
    let kind = || EndTokensError::Kind {
        path: path.into(),
        value: value.to_string(),
    };
    let ids = match value {
        Value::Null => &[][..],
        Value::Array(ids) => ids,
        id => std::slice::from_ref(id),
    };
    let ids = ids.iter().map(|id| {
        let id = id.as_u64().ok_or_else(kind)?;
        let known = u32::try_from(id).ok();
        let known = known.filter(|&id| (id as usize) < vocab_size);
        known.ok_or_else(|| EndTokensError::Vocabulary {
            path: path.into(),
            id,
            vocab_size,
        })
    });
    ids.collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use ::tests::mutations::each;

    fn folder(generation: Option<&str>, config: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        if let Some(generation) = generation {
            fs::write(folder.path().join(FILES[0]), generation).unwrap();
        }
        fs::write(folder.path().join(FILES[1]), config).unwrap();
        folder
    }

    #[test]
    fn the_generation_s_file_wins_over_the_model_s() {
        let found = |generation, config| {
            let folder = folder(generation, config);
            let found = EndTokens::in_folder(folder.path(), 10).unwrap();
            (found.ids.to_vec(), found.file)
        };
        let [of_generation, of_model] = FILES.map(|name| Some(name.to_owned()));
        let three = r#"{"eos_token_id": 3}"#;
        let several = r#"{"eos_token_id": [4, 9], "bos_token_id": 99}"#;
        let (of_three, of_several) = (vec![3], vec![4, 9]);
        assert_eq!(found(None, three), (of_three.clone(), of_model.clone()));
        assert_eq!(found(None, several), (of_several.clone(), of_model.clone()));
        assert_eq!(
            found(Some(several), three),
            (of_several, of_generation.clone())
        );
        assert_eq!(found(Some(three), several), (of_three, of_generation));
        for none in ["{}", r#"{"eos_token_id": null}"#, r#"{"eos_token_id": []}"#] {
            assert_eq!(
                found(Some(none), three),
                (vec![3], of_model.clone()),
                "{none}"
            );
            assert_eq!(found(Some(none), none), (vec![], None), "{none}");
            assert_eq!(found(None, none), (vec![], None), "{none}");
        }
    }

    #[test]
    fn the_tokenizer_s_end_is_the_last_resort() {
        let teacher = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/phi-tiny");
        let tokenizer = Tokenizer::from_folder(teacher).unwrap();
        let of = |config: &str| {
            let folder = folder(None, config);
            EndTokens::of(folder.path(), &tokenizer, 4096).unwrap()
        };
        assert_eq!(*of("{}"), [0]);
        assert_eq!(*of(r#"{"eos_token_id": [7, 8]}"#), [7, 8]);
    }

    #[test]
    fn what_is_no_token_is_refused_by_the_file_s_name() {
        let refused = |generation: &str| {
            let folder = folder(Some(generation), "{}");
            let error = EndTokens::in_folder(folder.path(), 10).unwrap_err();
            let said = error.to_string();
            assert!(said.contains(FILES[0]), "{said}");
            said
        };
        assert!(refused(r#"{"eos_token_id": 10}"#).contains("is 10, and the model's vocabulary"));
        assert!(refused(r#"{"eos_token_id": [3, 4294967299]}"#).contains("4294967299"));
        for value in ["-1", "3.0", "\"3\"", "true", "{}", "[[3]]", "[3, null]"] {
            let said = refused(&format!(r#"{{"eos_token_id": {value}}}"#));
            assert!(said.contains("`eos_token_id` is "), "{said}");
        }
        for text in ["", "{", "[3]", "3", "{\"eos_token_id\": NaN}"] {
            assert!(refused(text).contains("not a JSON object"), "{text}");
        }
    }

    /// Any file gives ids of the vocabulary, or an error that names it.
    #[test]
    fn thousands_of_damaged_files() {
        let folder = folder(None, r#"{"eos_token_id": 3}"#);
        let path = folder.path().join(FILES[0]);
        let whole = r#"{"eos_token_id": [4, 9], "bos_token_id": 1, "max_length": 20}"#;
        let (mut read, mut refused) = (0, 0);
        each(3000, |mutator| {
            fs::write(&path, mutator.json(whole)).unwrap();
            match EndTokens::in_folder(folder.path(), 10) {
                Ok(found) => {
                    read += 1;
                    assert!(found.ids.iter().all(|&id| id < 10));
                }
                Err(error) => {
                    refused += 1;
                    assert!(error.to_string().contains(FILES[0]), "{error}");
                }
            }
        });
        assert!(read > 300 && refused > 300, "{read}, {refused}");
    }
}
