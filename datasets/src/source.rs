//! Files in, documents out: the formats of text files and the readers of them.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize, Serializer};

use crate::error::{DataError, Result, cannot};

mod array;
mod documents;
mod found;
mod groups;
mod long_line;
mod open;
mod own_files;
mod parquet;
mod passed_over;
mod put_back;
mod record;
mod records;
mod standard_input;

pub use documents::Documents;
pub(crate) use documents::{End, Parts, Position};
pub use found::is_pattern;
use found::{local_files, metadata};
pub(crate) use groups::{GROUP_BYTES, groups};
pub use open::open_text;
pub use parquet::{ParquetRows, parquet_rows};
pub use standard_input::keep_standard_input;

/// The field of a record, or the column of a table, that holds the text of a document, if a source names no other.
pub const TEXT: &str = "text";

/// Where text comes from.
#[derive(Debug, Clone)]
pub struct Source {
    place: Place,
    column: String,
}

#[derive(Debug, Clone)]
enum Place {
    /// A file, a folder or a pattern of paths.
    Local(PathBuf),
    Remote(Arc<Remote>),
}

/// Files that are not on this machine, and a function that fetches them.
pub struct Remote {
    /// Their names, in the order of their text. A name must identify the text, including its revision, because existing
    /// tokens are found by the name. It must have the ending of its file format.
    pub names: Vec<String>,
    /// Fetches the file with this name, and returns its path on this machine, which must have the same ending; or the
    /// reason why it cannot be fetched. It is called before the file is read, but not if its tokens already exist.
    pub fetch: Fetch,
}

/// A function that fetches a file to this machine; see [`Remote::fetch`].
pub type Fetch = Box<dyn Fn(&str) -> std::result::Result<PathBuf, String> + Send + Sync>;

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl Source {
    /// A file, a folder, or a pattern of paths, as [`source_files`] takes them.
    pub fn local(path: impl Into<PathBuf>) -> Self {
        Self {
            place: Place::Local(path.into()),
            column: TEXT.to_owned(),
        }
    }

    /// Files that are fetched one by one.
    pub fn remote(files: Remote) -> Self {
        Self {
            place: Place::Remote(Arc::new(files)),
            column: TEXT.to_owned(),
        }
    }

    /// The same with the text in another field or column than [`TEXT`].
    pub fn with_column(self, column: impl Into<String>) -> Self {
        Self {
            column: column.into(),
            ..self
        }
    }
}

impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Self {
        Self::local(path)
    }
}

impl From<&Path> for Source {
    fn from(path: &Path) -> Self {
        Self::local(path)
    }
}

impl From<&str> for Source {
    fn from(path: &str) -> Self {
        Self::local(path)
    }
}

/// A file whose text is to be read, and how to fetch it if it is not on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    pub(crate) file: SourceFile,
    remote: Option<Arc<Remote>>,
}

impl From<SourceFile> for Input {
    fn from(file: SourceFile) -> Self {
        Self { file, remote: None }
    }
}

impl Input {
    pub(crate) fn is_remote(&self) -> bool {
        self.remote.is_some()
    }

    /// The place of the file on this machine.
    fn locate(&self) -> Result<PathBuf> {
        let Some(remote) = &self.remote else {
            return Ok(self.file.path.clone());
        };
        let name = self.file.path.to_string_lossy();
        (remote.fetch)(&name).map_err(|reason| DataError::Fetch {
            name: name.into_owned(),
            reason,
        })
    }
}

/// `text` without the mark U+FEFF that some editors write before UTF-8 text.
///
/// Only a mark at the very beginning is removed; anywhere else the character is part of the text. This crate reads all
/// texts in this way; code that reads a prompt or a text by other means should call this function.
///
/// ```
/// assert_eq!(datasets::without_byte_order_mark("\u{feff}one\u{feff}"), "one\u{feff}");
/// ```
pub fn without_byte_order_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// The way in which a file's text holds documents.
#[derive(Clone, Copy)]
enum Layout {
    /// The whole file is one document.
    Whole,
    /// One JSON object with the text on every line.
    JsonLines,
    /// JSON lines, or one array of such objects or of strings.
    Json,
    /// Rows with a column of text.
    Parquet,
}

/// The layout of a file, by the ending of its name.
fn layout_of(path: &Path) -> Option<Layout> {
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    if name.ends_with(".parquet") {
        return Some(Layout::Parquet);
    }
    let unpacked = name
        .strip_suffix(".gz")
        .or_else(|| name.strip_suffix(".zst"));
    let name = unpacked.unwrap_or(&name);
    if name.ends_with(".txt") {
        Some(Layout::Whole)
    } else if name.ends_with(".jsonl") {
        Some(Layout::JsonLines)
    } else if name.ends_with(".json") {
        Some(Layout::Json)
    } else {
        None
    }
}

/// A file of text, with the size and the modification time that identify its current state.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SourceFile {
    /// The absolute path, or the name of a file that is fetched. Symbolic links are not resolved, because the
    /// name of a link gives the format.
    #[serde(serialize_with = "lossily")]
    pub path: PathBuf,
    /// The size on disk, in bytes; 0 for a file that is fetched, whose name says all.
    pub bytes: u64,
    /// The modification time, in nanoseconds since 1970; 0 if the file system has none, and as for `bytes`.
    pub modified_ns: u64,
    /// The field or column that holds the text.
    #[serde(default = "text", skip_serializing_if = "is_text")]
    pub column: String,
}

fn text() -> String {
    TEXT.to_owned()
}

fn is_text(column: &str) -> bool {
    column == TEXT
}

/// Writes a path into JSON, which must be UTF-8, as a path need not be.
fn lossily<S: Serializer>(path: &Path, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// The text files that `sources` name. A source is a file, a folder, or a pattern of paths with `*`, `?`, `[a-z]`
/// and `**`, unless a file or folder has that very name.
///
/// Files of text end in `.txt` (one document), `.jsonl` (on every line a JSON object with a `text`) or
/// `.json` (the same, or one array of such objects or of strings), each of them also compressed, as `.gz`
/// or `.zst`; or in `.parquet` (rows with a column `text`).
///
/// The files are in the order of `sources`; those of a folder, and of the folders below it, and those of a pattern
/// are sorted by path. A file that several sources name is taken once, at its first place.
///
/// In a folder, hidden entries are ignored. The following entries are skipped too, and a warning in the log names them:
/// files that this project's programs write (files of a run, checkpoints, models and folders of tokens); links without
/// a target; files in other formats; files whose name up to the first `.`, `-` or `_` is README, LICENSE, LICENCE,
/// COPYING or CHANGELOG; and `.json` files that are one object without a `text`, such as the description of a data set.
/// If a source is itself a file, it is read whatever its name.
///
/// # Errors
///
/// [`DataError::Io`] if a source does not exist or cannot be read, [`DataError::UnknownFormat`] for a file in no known
/// format, [`DataError::NotAFile`] for a named pipe or a device, [`DataError::NoTextFiles`] for a folder without text,
/// [`DataError::Pattern`] for a pattern that is invalid or that matches nothing.
pub fn source_files(sources: &[PathBuf]) -> Result<Vec<SourceFile>> {
    let sources: Vec<Source> = sources.iter().cloned().map(Source::from).collect();
    let inputs = inputs(&sources)?;
    Ok(inputs.into_iter().map(|input| input.file).collect())
}

/// The files of `sources`, each once for each column of text that is taken from it.
pub(crate) fn inputs(sources: &[Source]) -> Result<Vec<Input>> {
    let mut inputs = Vec::new();
    let mut seen = HashSet::new();
    for Source { place, column } in sources {
        let path = match place {
            Place::Local(path) => path,
            Place::Remote(remote) => {
                for name in &remote.names {
                    let path = PathBuf::from(name);
                    if layout_of(&path).is_none() {
                        return Err(DataError::UnknownFormat { path });
                    }
                    if seen.insert((path.clone(), column_in(&path, column))) {
                        let file = SourceFile {
                            path,
                            bytes: 0,
                            modified_ns: 0,
                            column: column.clone(),
                        };
                        let remote = Some(Arc::clone(remote));
                        inputs.push(Input { file, remote });
                    }
                }
                continue;
            }
        };
        for path in local_files(path, column)? {
            let file = describe(&path, column)?;
            let resolved = fs::canonicalize(&path).map_err(cannot("open", &path))?;
            if seen.insert((resolved, column_in(&path, column))) {
                inputs.push(file.into());
            }
        }
    }
    Ok(inputs)
}

/// The column that is read of a file, none where all of it is one document.
fn column_in<'a>(path: &Path, column: &'a str) -> &'a str {
    match layout_of(path) {
        Some(Layout::Whole) => "",
        _ => column,
    }
}

fn describe(path: &Path, column: &str) -> Result<SourceFile> {
    if layout_of(path).is_none() {
        return Err(DataError::UnknownFormat { path: path.into() });
    }
    let metadata = metadata(path)?;
    // To open a named pipe waits for a program that writes to it.
    if !metadata.is_file() {
        return Err(DataError::NotAFile { path: path.into() });
    }
    let modified = metadata.modified().ok();
    let since_1970 = modified.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    Ok(SourceFile {
        path: std::path::absolute(path).map_err(cannot("open", path))?,
        bytes: metadata.len(),
        modified_ns: since_1970.map_or(0, |time| time.as_nanos() as u64),
        column: column.to_owned(),
    })
}

#[cfg(test)]
mod tests;
