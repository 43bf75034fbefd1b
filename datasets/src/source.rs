//! Files in, documents out: the formats of text files and the readers of them.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize, Serializer};
use walkdir::{DirEntry, WalkDir};

use crate::error::{DataError, Result, cannot};

mod array;
mod documents;
mod long_line;
mod open;
mod own_files;
mod parquet;
mod passed_over;
mod put_back;
mod record;

pub use documents::Documents;
pub(crate) use documents::{End, Parts};
pub use open::open_text;
pub use parquet::{ParquetRows, parquet_rows};
use passed_over::PassedOver;

/// The field of a record, or the column of a table, that holds the text of a document.
const TEXT: &str = "text";

/// `text` without the mark U+FEFF that some editors write before UTF-8 text.
///
/// Only the first such mark is none of the text; the character is text anywhere else. This
/// crate reads all texts so; code that reads a prompt or a text by other means should call this.
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
    /// One JSON object with a `text` on every line.
    JsonLines,
    /// JSON lines, or one array of such objects or of strings.
    Json,
    /// Rows with a column `text`.
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

/// A file of text, with the size and time that identify its present state.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SourceFile {
    /// The absolute path. Symbolic links are not resolved, because the name of a link gives the
    /// format.
    #[serde(serialize_with = "lossily")]
    pub path: PathBuf,
    /// The size on disk, in bytes.
    pub bytes: u64,
    /// The modification time, in nanoseconds since 1970; 0 if the file system has none.
    pub modified_ns: u64,
}

/// Writes a path into JSON, which must be UTF-8, as a path need not be.
fn lossily<S: Serializer>(path: &Path, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// The text files that `sources` name. A source is a file or a folder.
///
/// Files of text end in `.txt` (one document), `.jsonl` (on every line a JSON object with a `text`) or
/// `.json` (the same, or one array of such objects or of strings), each of them also compressed, as `.gz`
/// or `.zst`; or in `.parquet` (rows with a column `text`).
///
/// The files are in the order of `sources`; those of a folder, and of the folders below it, are
/// sorted by path. A file that several sources name is taken once, at its first place.
///
/// In a folder, hidden entries are ignored. Others are passed over, and named in a warning of the log: what
/// this project's programs write, which is the files of a run, checkpoints, models and folders of tokens; links
/// that lead nowhere; files in other formats; those whose name up to the first `.`, `-` or `_` is README,
/// LICENSE, LICENCE, COPYING or CHANGELOG; and `.json` files that are one object without a `text`, like a data
/// set's description. A source that is a file is read whatever its name.
///
/// # Errors
///
/// [`DataError::Io`] if a source does not exist or cannot be read, [`DataError::UnknownFormat`] for
/// a file in no known format, [`DataError::NoTextFiles`] for a folder without text.
pub fn source_files(sources: &[PathBuf]) -> Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    let mut seen = HashSet::new();
    for source in sources {
        let found = if metadata(source)?.is_dir() {
            text_files_below(source)?
        } else {
            vec![source.clone()]
        };
        for path in found {
            let file = describe(&path)?;
            let resolved = fs::canonicalize(&path).map_err(cannot("open", &path))?;
            if seen.insert(resolved) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

fn metadata(path: &Path) -> Result<fs::Metadata> {
    fs::metadata(path).map_err(cannot("open", path))
}

fn text_files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let is_shown = |entry: &DirEntry| {
        entry.depth() == 0 || !entry.file_name().to_string_lossy().starts_with('.')
    };
    let mut paths = Vec::new();
    let mut passed_over = PassedOver::default();
    let walk = WalkDir::new(folder).follow_links(true).sort_by_file_name();
    let mut walk = walk.into_iter();
    while let Some(entry) = walk.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if leads_nowhere(&error) => {
                passed_over.add_link(folder, error.path().unwrap_or(folder));
                continue;
            }
            Err(error) => {
                return Err(DataError::Io {
                    action: "list",
                    path: error.path().unwrap_or(folder).into(),
                    reason: error.into(),
                });
            }
        };
        let is_own = entry.depth() > 0 && own_files::is_own(entry.path());
        if is_own && is_shown(&entry) {
            passed_over.add_own(folder, entry.path());
        }
        if is_own || !is_shown(&entry) {
            if entry.file_type().is_dir() {
                walk.skip_current_dir();
            }
        } else if entry.file_type().is_file() {
            let path = entry.into_path();
            if passed_over.takes(&path)? {
                passed_over.add(folder, &path);
            } else {
                paths.push(path);
            }
        }
    }
    if paths.is_empty() {
        return Err(DataError::NoTextFiles {
            path: folder.into(),
            passed_over: passed_over.to_string(),
        });
    }
    if !passed_over.is_empty() {
        log::warn!(
            "{}: {} files of text are read, and other files passed over: {passed_over}",
            folder.display(),
            paths.len()
        );
    }
    paths.sort();
    Ok(paths)
}

/// Whether a link has no target, or one around itself.
fn leads_nowhere(error: &walkdir::Error) -> bool {
    let is_link = || error.path().is_some_and(Path::is_symlink);
    let is_missing = error
        .io_error()
        .is_some_and(|reason| reason.kind() == ErrorKind::NotFound);
    error.loop_ancestor().is_some() || is_missing && is_link()
}

fn describe(path: &Path) -> Result<SourceFile> {
    if layout_of(path).is_none() {
        return Err(DataError::UnknownFormat { path: path.into() });
    }
    let metadata = metadata(path)?;
    let modified = metadata.modified().ok();
    let since_1970 = modified.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    Ok(SourceFile {
        path: std::path::absolute(path).map_err(cannot("open", path))?,
        bytes: metadata.len(),
        modified_ns: since_1970.map_or(0, |time| time.as_nanos() as u64),
    })
}

#[cfg(test)]
mod tests;
