//! The token that begins a text, as the files beside a tokenizer define it.
//!
//! - `bos_token` and `eos_token` of `tokenizer_config.json`, or in earlier versions of `special_tokens_map.json`, are
//!   the tokens' texts.
//! - Where those files have no such key, `bos_token_id` and `eos_token_id` of `generation_config.json`, then of
//!   `config.json`, are their ids.
//! - `add_bos_token` of `tokenizer_config.json` says whether prompts begin with it. Without this key, `tokenizer.json`
//!   decides.
//!
//! A GGUF file has these keys too. Their meaning is that in transformers.

use std::path::{Path, PathBuf};

use datasets::Tokenizer;
use model::{SmallFile, WeightsError};
use serde_json::{Map, Value};

const CONFIG: &str = "tokenizer_config.json";
const TOKENS: &str = "special_tokens_map.json";
/// The files that name tokens by their ids; the first file with the key decides.
const OF_MODEL: [&str; 2] = ["generation_config.json", "config.json"];

const BOS: &str = "bos_token";
const EOS: &str = "eos_token";
const ADD_BOS: &str = "add_bos_token";

/// Why the token that begins a text cannot be determined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BeginningError {
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
    /// A key has a value of another kind.
    #[error("{}: `{key}` is {value}; it should be {expected}", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The file names an id that the tokenizer does not have.
    #[error(
        "{}: `{key}` is {id}, and the tokenizer's vocabulary ends at {vocab_size}",
        path.display()
    )]
    Vocabulary {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The id.
        id: u64,
        /// The size of the tokenizer's vocabulary.
        vocab_size: usize,
    },
    /// Prompts should begin with a token that the tokenizer does not have.
    #[error(
        "{}: `{ADD_BOS}` is true, and the tokenizer has no token {token:?}, which is the `{BOS}`; use the \
         tokenizer.json that belongs to this file",
        path.display()
    )]
    NoSuchToken {
        /// The file that asks for the token.
        path: PathBuf,
        /// The token's text.
        token: String,
    },
}

/// The tokenizer, completed with what the files in `place`, its folder or its GGUF file, say about the beginning of a
/// text.
///
/// Its [`begin`](Tokenizer::begin) has the tokens that transformers puts before a prompt. Its
/// [`prefix`](Tokenizer::prefix) is the token from which lm-evaluation-harness predicts the first token of a text: the
/// begin-of-text or, if there is none, the end-of-text.
///
/// # Errors
/// Every [`BeginningError`].
pub fn with_beginning(tokenizer: Tokenizer, place: &Path) -> Result<Tokenizer, BeginningError> {
    let (begin, prefix) = beginning(&tokenizer, place)?;
    Ok(tokenizer.with_beginning(begin, prefix))
}

/// The tokens before a prompt, and that before a text that is scored, by the files in `place`.
fn beginning(
    tokenizer: &Tokenizer,
    place: &Path,
) -> Result<(Vec<u32>, Option<u32>), BeginningError> {
    let files = Files::read(place)?;
    let bos = files.token(BOS, tokenizer)?;
    let config = files.config.as_ref();
    let begin = match config.and_then(|file| Some((file, file.members.get(ADD_BOS)?))) {
        None | Some((_, Value::Null)) => tokenizer.begin().to_vec(),
        Some((_, Value::Bool(false))) => Vec::new(),
        Some((file, Value::Bool(true))) => {
            if let (None, Some(token)) = (bos, files.text(BOS)?) {
                let path = file.path.clone();
                return Err(BeginningError::NoSuchToken { path, token });
            }
            bos.into_iter().collect()
        }
        Some((file, value)) => return Err(file.kind(ADD_BOS, value, "true or false")),
    };
    let prefix = match bos.or(begin.first().copied()) {
        Some(bos) => Some(bos),
        None => files.token(EOS, tokenizer)?,
    };
    Ok((begin, prefix))
}

/// A file with a JSON object.
struct Object {
    path: PathBuf,
    members: Map<String, Value>,
}

/// The files beside a tokenizer.
struct Files<'p> {
    place: &'p Path,
    config: Option<Object>,
    tokens: Option<Object>,
}

impl<'p> Files<'p> {
    fn read(place: &'p Path) -> Result<Self, BeginningError> {
        let config = object(place, CONFIG)?;
        // In a tokenizer of the present form, all tokens are in one file.
        let has_all = config
            .as_ref()
            .is_some_and(|file| file.members.contains_key("added_tokens_decoder"));
        let tokens = if has_all {
            None
        } else {
            object(place, TOKENS)?
        };
        Ok(Self {
            place,
            config,
            tokens,
        })
    }

    /// The text of the token `name`. The outer `None`: no file has that key; the inner `None`: the key has no text.
    fn named(&self, name: &str) -> Result<Option<Option<String>>, BeginningError> {
        for file in self.tokens.iter().chain(&self.config) {
            let Some(value) = file.members.get(name) else {
                continue;
            };
            // The token is written as its text, or as an object with its properties.
            let text = value.as_str().or_else(|| value.get("content")?.as_str());
            if text.is_none() && !value.is_null() {
                return Err(file.kind(name, value, "the text of a token"));
            }
            return Ok(Some(text.map(str::to_owned)));
        }
        Ok(None)
    }

    /// The text of the token `name`, if a file has one.
    fn text(&self, name: &str) -> Result<Option<String>, BeginningError> {
        Ok(self.named(name)?.flatten())
    }

    /// The id of the token `name`. `None` if no file names one that the tokenizer has.
    fn token(&self, name: &str, tokenizer: &Tokenizer) -> Result<Option<u32>, BeginningError> {
        if let Some(text) = self.named(name)? {
            return Ok(text.and_then(|text| tokenizer.id_of(&text)));
        }
        let key = format!("{name}_id");
        for name in OF_MODEL {
            let Some(file) = object(self.place, name)? else {
                continue;
            };
            let value = file.members.get(&key).unwrap_or(&Value::Null);
            let first = match value {
                Value::Null => None,
                Value::Array(ids) => ids.first(),
                id => Some(id),
            };
            let Some(id) = first else {
                continue;
            };
            let kind = || file.kind(&key, value, "the id of a token");
            let id = id.as_u64().ok_or_else(kind)?;
            let vocab_size = tokenizer.vocab_size();
            let known = u32::try_from(id).ok();
            let known = known.filter(|&id| (id as usize) < vocab_size);
            let known = known.ok_or_else(|| BeginningError::Vocabulary {
                path: file.path.clone(),
                key: key.clone(),
                id,
                vocab_size,
            })?;
            return Ok(Some(known));
        }
        Ok(None)
    }
}

impl Object {
    fn kind(&self, key: &str, value: &Value, expected: &'static str) -> BeginningError {
        BeginningError::Kind {
            path: self.path.clone(),
            key: key.to_owned(),
            value: value.to_string(),
            expected,
        }
    }
}

/// The file `name` of a folder or of a GGUF file, if there is one.
fn object(place: &Path, name: &str) -> Result<Option<Object>, BeginningError> {
    let found = match model::small_file(place, name) {
        // A GGUF file of an unsupported architecture may lie beside the tokenizer.json that is used.
        Err(WeightsError::Config { .. }) => None,
        found => found?,
    };
    let Some(SmallFile { path, bytes }) = found else {
        return Ok(None);
    };
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(members)) => Ok(Some(Object { path, members })),
        Ok(_) => Err(BeginningError::Json {
            path,
            reason: "it is another value".to_owned(),
        }),
        Err(error) => Err(BeginningError::Json {
            path,
            reason: error.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;
    use tempfile::TempDir;

    use super::*;
    use ::tests::mutations::each;

    fn bundled() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/phi-tiny")
    }

    /// The bundled tokenizer, to whose texts token 7 is put if `adds` is true, and files beside it.
    fn read(adds: bool, files: &[(&str, Value)]) -> Result<Tokenizer, BeginningError> {
        let json = fs::read(bundled().join("tokenizer.json")).unwrap();
        let mut json: Value = serde_json::from_slice(&json).unwrap();
        if adds {
            json["post_processor"] = json!({
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": "<s>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                ],
                "pair": [
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"Sequence": {"id": "B", "type_id": 1}},
                ],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [7], "tokens": ["<s>"]}},
            });
        }
        let folder = TempDir::new().unwrap();
        for (name, value) in files {
            fs::write(folder.path().join(name), value.to_string()).unwrap();
        }
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), "t.json").unwrap();
        with_beginning(tokenizer, folder.path())
    }

    /// The text of a token of the bundled vocabulary.
    fn name(id: u32) -> String {
        let json = fs::read(bundled().join("tokenizer.json")).unwrap();
        let json: Value = serde_json::from_slice(&json).unwrap();
        let vocab = json["model"]["vocab"].as_object().unwrap();
        let found = vocab.iter().find(|(_, value)| **value == json!(id));
        found.unwrap().0.clone()
    }

    #[test]
    fn each_file_has_its_say() {
        let (three, four) = (name(3), name(4));
        let none: [u32; 0] = [];
        let found = |adds, files: &[(&str, Value)]| {
            let tokenizer = read(adds, files).unwrap();
            (tokenizer.begin().to_vec(), tokenizer.prefix())
        };
        // Nothing is there: the tokenizer's own.
        assert_eq!(found(false, &[]), (none.to_vec(), Some(0)));
        assert_eq!(found(true, &[]), (vec![7], Some(7)));
        // A begin-of-text without a setting for prompts is only used when texts are scored.
        let named = json!({"bos_token": three, "eos_token": four});
        let config = |more: Value| {
            let mut members = named.clone();
            for (key, value) in more.as_object().unwrap() {
                members[key] = value.clone();
            }
            (CONFIG, members)
        };
        assert_eq!(found(false, &[config(json!({}))]), (none.to_vec(), Some(3)));
        let adds = config(json!({"add_bos_token": true}));
        assert_eq!(found(false, &[adds]), (vec![3], Some(3)));
        let properties = json!({"bos_token": {"content": four}, "add_bos_token": true});
        assert_eq!(found(true, &[config(properties)]), (vec![4], Some(4)));
        let adds_none = config(json!({"add_bos_token": false}));
        assert_eq!(found(true, &[adds_none]), (none.to_vec(), Some(3)));
        // No token, as in Qwen2's file, whatever the model's says.
        let of_model = (OF_MODEL[1], json!({"bos_token_id": 9, "eos_token_id": 8}));
        let without = config(json!({"bos_token": null, "add_bos_token": true}));
        let files = [without, of_model.clone()];
        assert_eq!(found(false, &files), (none.to_vec(), Some(4)));
        // The map of earlier versions goes before, unless the tokenizer is of the present form.
        let map = (TOKENS, json!({"bos_token": {"content": four}}));
        let files = [config(json!({})), map.clone()];
        assert_eq!(found(false, &files).1, Some(4));
        let files = [config(json!({"added_tokens_decoder": {}})), map];
        assert_eq!(found(false, &files).1, Some(3));
        // The model's files are asked last.
        let files = [(CONFIG, json!({"model_max_length": 9})), of_model];
        assert_eq!(found(false, &files), (none.to_vec(), Some(9)));
        let generation = |value| (OF_MODEL[0], value);
        let ends = generation(json!({"bos_token_id": null, "eos_token_id": [5, 6]}));
        assert_eq!(found(false, std::slice::from_ref(&ends)).1, Some(5));
        assert_eq!(found(true, &[ends]), (vec![7], Some(7)));
        // A name that is not a token of the vocabulary counts as no name.
        let other = (CONFIG, json!({"bos_token": "<no>", "eos_token": "<no>"}));
        assert_eq!(found(false, &[other]), (none.to_vec(), Some(0)));
    }

    /// Phi's tokenizer begins a text with the token that ends it, and only where a text is scored.
    #[test]
    fn the_bundled_tokenizer_stays_as_it_is() {
        let folder = bundled();
        let tokenizer = Tokenizer::from_folder(&folder).unwrap();
        let tokenizer = with_beginning(tokenizer, &folder).unwrap();
        assert_eq!(tokenizer.begin(), [0_u32; 0]);
        assert_eq!(tokenizer.prefix(), tokenizer.end_of_text());
        let text = "It was";
        assert_eq!(
            tokenizer.encode_prompt(text).unwrap(),
            tokenizer.encode(text).unwrap()
        );
    }

    /// A GGUF file has the tokens and the order to add one in its keys.
    #[test]
    fn a_gguf_file_has_it_inside() {
        use ::tests::gguf::{Value, tiny};
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("m.gguf");
        for (adds, begin) in [(false, vec![]), (true, vec![22])] {
            let file = tiny().with("tokenizer.ggml.add_bos_token", Value::Bool(adds));
            fs::write(&path, file.bytes()).unwrap();
            let json = model::tokenizer_json(&path).unwrap().unwrap();
            let tokenizer = Tokenizer::from_json(&json.bytes, json.path).unwrap();
            assert_eq!(tokenizer.begin(), begin);
            let tokenizer = with_beginning(tokenizer, &path).unwrap();
            assert_eq!(
                (tokenizer.begin(), tokenizer.prefix()),
                (&begin[..], Some(22))
            );
        }
    }

    #[test]
    fn what_is_no_token_is_refused_by_the_file_s_name() {
        let refused = |name, value: Value| {
            let error = read(false, &[(name, value)]).err().unwrap().to_string();
            assert!(error.contains(name), "{error}");
            error
        };
        for value in [json!(3), json!([]), json!({}), json!(true)] {
            let said = refused(CONFIG, json!({"bos_token": value}));
            assert!(said.contains("`bos_token` is "), "{said}");
        }
        let said = refused(CONFIG, json!({"add_bos_token": "yes"}));
        assert!(said.contains("true or false"), "{said}");
        let said = refused(CONFIG, json!({"add_bos_token": true, "bos_token": "<no>"}));
        assert!(said.contains("<no>"), "{said}");
        for value in [json!(-1), json!("3"), json!([2.5])] {
            let said = refused(OF_MODEL[1], json!({"bos_token_id": value}));
            assert!(said.contains("`bos_token_id` is "), "{said}");
        }
        for id in [4096_u64, 1 << 40] {
            let said = refused(OF_MODEL[0], json!({"eos_token_id": [id]}));
            assert!(said.contains(&id.to_string()), "{said}");
        }
        assert!(refused(CONFIG, json!([])).contains("not a JSON object"));
    }

    /// Any file gives ids of the vocabulary, or an error that names it.
    #[test]
    fn thousands_of_damaged_files() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join(CONFIG);
        let whole = json!({
            "bos_token": {"content": name(3)}, "eos_token": name(4), "add_bos_token": true,
        });
        let (whole, mut read, mut refused) = (whole.to_string(), 0, 0);
        let tokenizer = Tokenizer::from_folder(bundled()).unwrap();
        each(2000, |mutator| {
            fs::write(&path, mutator.json(&whole)).unwrap();
            match beginning(&tokenizer, folder.path()) {
                Ok((begin, prefix)) => {
                    read += 1;
                    assert!(begin.into_iter().chain(prefix).all(|id| id < 4096));
                }
                Err(error) => {
                    refused += 1;
                    assert!(error.to_string().contains(CONFIG), "{error}");
                }
            }
        });
        assert!(read > 100 && refused > 100, "{read}, {refused}");
    }
}
