//! The files with a model's chat template. As in transformers, the first of these that exists is used.
//!
//! | | |
//! |---|---|
//! | `additional_chat_templates/default.jinja` | goes before all others |
//! | `chat_template.jinja` | the usual place today |
//! | `tokenizer_config.json`: `chat_template` | a text; or a list of texts with names, of which `default` is taken |
//!
//! The special tokens are those of `tokenizer_config.json` and, for tokenizers of earlier versions, of
//! `special_tokens_map.json`. A GGUF file has its own template and special tokens.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use model::{SmallFile, WeightsError};
use serde_json::{Map, Value};

use super::{ChatTemplate, TemplateError};

const CONFIG: &str = "tokenizer_config.json";
const TOKENS: &str = "special_tokens_map.json";
const FILE: &str = "chat_template.jinja";
const FOLDER: &str = "additional_chat_templates";
/// The name of the template for chats without tools, among several.
const DEFAULT: &str = "default";
/// The key of a template, or of a list of them.
const KEY: &str = "chat_template";

/// Why a folder's chat template cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatFileError {
    /// There is none.
    #[error(
        "{}: no chat template here, neither {FILE} nor `{KEY}` in {CONFIG}, so this model continues texts and \
         does not chat",
        folder.display()
    )]
    None {
        /// The folder of the tokenizer.
        folder: PathBuf,
    },
    /// A file cannot be read, or its checksum is not that in the folder's `SHA256SUMS`.
    #[error(transparent)]
    File(#[from] WeightsError),
    /// A folder of templates, or one of them, cannot be read.
    #[error("{}: {reason}", path.display())]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
    /// A file is no JSON object.
    #[error("{}: not a JSON object: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The value is no template.
    #[error(
        "{}: `{KEY}` is neither a text nor a list of objects with a `name` and a `template`",
        path.display()
    )]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// There are several, and none of them is the default.
    #[error(
        "{}: there are the chat templates {}, and none of them is called {DEFAULT}",
        path.display(),
        names.join(", ")
    )]
    NoDefault {
        /// The file or folder that has them.
        path: PathBuf,
        /// Their names.
        names: Vec<String>,
    },
    /// The template cannot be read.
    #[error("{}: {reason}", path.display())]
    Template {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: TemplateError,
    },
}

impl ChatTemplate {
    /// The chat template in the `folder` of a tokenizer, or in a GGUF file.
    ///
    /// # Errors
    /// Every [`ChatFileError`].
    pub fn in_folder(folder: &Path) -> Result<Self, ChatFileError> {
        let config = object(folder, CONFIG)?;
        let (path, source) = source(folder, &config)?.ok_or_else(|| ChatFileError::None {
            folder: folder.into(),
        })?;
        let special_tokens = special_tokens(folder, config.members)?;
        Self::new(&source, special_tokens)
            .map_err(|reason| ChatFileError::Template { path, reason })
    }
}

/// A file with an object, which may be absent.
struct Object {
    path: PathBuf,
    members: Map<String, Value>,
}

/// The template, and the file that it is in.
fn source(folder: &Path, config: &Object) -> Result<Option<(PathBuf, String)>, ChatFileError> {
    let additional = folder.join(FOLDER);
    let default = additional.join(format!("{DEFAULT}.jinja"));
    match fs::read(&default) {
        Ok(bytes) => return Ok(Some((default.clone(), text(default, bytes)?))),
        Err(error) if is_absent(&error) => {}
        Err(reason) => {
            let path = default;
            return Err(ChatFileError::Io { path, reason });
        }
    }
    if let Some(SmallFile { path, bytes }) = model::small_file(folder, FILE)? {
        return Ok(Some((path.clone(), text(path, bytes)?)));
    }
    let names = names(&additional)?;
    if !names.is_empty() {
        let path = additional;
        return Err(ChatFileError::NoDefault { path, names });
    }
    let path = config.path.clone();
    let source = match config.members.get(KEY) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(source)) => source,
        Some(Value::Array(all)) => {
            let entry = |entry: &Value| {
                let name = entry.get("name")?.as_str()?.to_owned();
                Some((name, entry.get("template")?.as_str()?.to_owned()))
            };
            let all: Option<BTreeMap<String, String>> = all.iter().map(entry).collect();
            let all = all.ok_or_else(|| ChatFileError::Kind { path: path.clone() })?;
            return match all.get(DEFAULT) {
                Some(source) => Ok(Some((path, source.clone()))),
                None => Err(ChatFileError::NoDefault {
                    path,
                    names: all.into_keys().collect(),
                }),
            };
        }
        Some(_) => return Err(ChatFileError::Kind { path }),
    };
    Ok(Some((path, source.clone())))
}

/// The names of the templates in a folder, if it is there.
fn names(folder: &Path) -> Result<Vec<String>, ChatFileError> {
    let failed = |reason| ChatFileError::Io {
        path: folder.into(),
        reason,
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_string_lossy();
        names.extend(name.strip_suffix(".jinja").map(str::to_owned));
    }
    names.sort_unstable();
    Ok(names)
}

/// The texts of the special tokens by their names.
fn special_tokens(
    folder: &Path,
    mut config: Map<String, Value>,
) -> Result<BTreeMap<String, String>, ChatFileError> {
    // A tokenizer of the present form has its tokens in one file.
    if !config.contains_key("added_tokens_decoder") {
        config.extend(object(folder, TOKENS)?.members);
    }
    // These have names that need not end like the others'.
    let named = match config.remove("extra_special_tokens") {
        Some(Value::Object(named)) => named,
        _ => Map::new(),
    };
    let usual = config.into_iter();
    let usual = usual.filter(|(name, _)| name.ends_with("_token"));
    let all = usual.chain(named);
    Ok(all
        .filter_map(|(name, token)| Some((name, text_of(&token)?)))
        .collect())
}

/// The text of a token, which is written as such or with its properties.
fn text_of(token: &Value) -> Option<String> {
    let text = token.as_str().or_else(|| token.get("content")?.as_str());
    text.map(str::to_owned)
}

/// What a file holds, as text.
fn text(path: PathBuf, bytes: Vec<u8>) -> Result<String, ChatFileError> {
    String::from_utf8(bytes).map_err(|error| ChatFileError::Io {
        path,
        reason: io::Error::new(ErrorKind::InvalidData, error),
    })
}

/// Whether there is no such file.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// The file `name` of a folder or of a GGUF file; without members if there is none.
fn object(folder: &Path, name: &str) -> Result<Object, ChatFileError> {
    let Some(SmallFile { path, bytes }) = model::small_file(folder, name)? else {
        return Ok(Object {
            path: folder.join(name),
            members: Map::new(),
        });
    };
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(members)) => Ok(Object { path, members }),
        Ok(_) => Err(ChatFileError::Json {
            path,
            reason: "it is another value".to_owned(),
        }),
        Err(error) => Err(ChatFileError::Json {
            path,
            reason: error.to_string(),
        }),
    }
}
