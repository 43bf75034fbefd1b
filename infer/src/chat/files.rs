//! The files with a model's chat template, in the order of transformers.
//!
//! | | |
//! |---|---|
//! | `additional_chat_templates/default.jinja` | goes before all others |
//! | `chat_template.jinja` | the usual place today |
//! | `tokenizer_config.json`: `chat_template` | a text; or a list of texts with names, of which `default` is taken |
//!
//! The special tokens are those of `tokenizer_config.json` and, for tokenizers of earlier versions, of
//! `special_tokens_map.json`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use model::manifest::{self, ManifestError};
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
    /// A file is not the one that the folder was made with.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A file cannot be read.
    #[error("{}: {reason}", path.display())]
    Io {
        /// The file.
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
    /// The chat template in the `folder` of a tokenizer.
    ///
    /// # Errors
    /// Every [`ChatFileError`].
    pub fn in_folder(folder: &Path) -> Result<Self, ChatFileError> {
        manifest::verify_files(folder, &[CONFIG, TOKENS, FILE])?;
        let config = read_object(&folder.join(CONFIG))?.unwrap_or_default();
        let (path, source) = source(folder, &config)?.ok_or_else(|| ChatFileError::None {
            folder: folder.into(),
        })?;
        let special_tokens = special_tokens(folder, config)?;
        Self::new(&source, special_tokens)
            .map_err(|reason| ChatFileError::Template { path, reason })
    }
}

/// The template, and the file that it is in.
fn source(
    folder: &Path,
    config: &Map<String, Value>,
) -> Result<Option<(PathBuf, String)>, ChatFileError> {
    let additional = folder.join(FOLDER);
    let alone = folder.join(FILE);
    for path in [additional.join(format!("{DEFAULT}.jinja")), alone] {
        if let Some(source) = read(&path)? {
            return Ok(Some((path, source)));
        }
    }
    let names = names(&additional)?;
    if !names.is_empty() {
        let path = additional;
        return Err(ChatFileError::NoDefault { path, names });
    }
    let path = folder.join(CONFIG);
    let source = match config.get(KEY) {
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
    if !config.contains_key("added_tokens_decoder")
        && let Some(tokens) = read_object(&folder.join(TOKENS))?
    {
        config.extend(tokens);
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

/// The text of a file, if there is one.
fn read(path: &Path) -> Result<Option<String>, ChatFileError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(reason) => Err(ChatFileError::Io {
            path: path.into(),
            reason,
        }),
    }
}

/// Whether there is no such file.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// The members of a file, if there is one.
fn read_object(path: &Path) -> Result<Option<Map<String, Value>>, ChatFileError> {
    let json = |reason: String| ChatFileError::Json {
        path: path.into(),
        reason,
    };
    let Some(text) = read(path)? else {
        return Ok(None);
    };
    match serde_json::from_str(&text) {
        Ok(Value::Object(members)) => Ok(Some(members)),
        Ok(_) => Err(json("it is another value".to_owned())),
        Err(error) => Err(json(error.to_string())),
    }
}
