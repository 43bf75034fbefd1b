//! Files in, documents out: the formats of text files and the readers of them.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize, Serializer};
use walkdir::WalkDir;

use crate::error::{DataError, Result, cannot};

/// Bytes read from a file at a time.
const READ_BYTES: usize = 256 * 1024;

/// `text` without the mark U+FEFF that some editors write before UTF-8 text.
///
/// Only the first such mark is none of the text; the character is text anywhere else. All texts of this
/// crate are read so, and whoever reads a prompt or a text by other means should call this.
///
/// ```
/// assert_eq!(datasets::without_byte_order_mark("\u{feff}one\u{feff}"), "one\u{feff}");
/// ```
pub fn without_byte_order_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// The compression of a file.
#[derive(Clone, Copy)]
enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// The way in which a file's text holds documents.
#[derive(Clone, Copy)]
enum Layout {
    /// One JSON object with a `text` on every line.
    JsonLines,
    /// The whole file is one document.
    Whole,
}

/// All known formats, by the ending of the file's name.
const FORMATS: [(&str, Packing, Layout); 5] = [
    (".json.gz", Packing::Gzip, Layout::JsonLines),
    (".jsonl", Packing::Plain, Layout::JsonLines),
    (".jsonl.gz", Packing::Gzip, Layout::JsonLines),
    (".jsonl.zst", Packing::Zstd, Layout::JsonLines),
    (".txt", Packing::Plain, Layout::Whole),
];

fn format_of(path: &Path) -> Option<(Packing, Layout)> {
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    FORMATS
        .into_iter()
        .find(|(ending, ..)| name.ends_with(ending))
        .map(|(_, packing, layout)| (packing, layout))
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
/// The files are in the order of `sources`; those of a folder, and of the folders below it, are
/// sorted by path. Hidden entries of a folder and files in other formats are ignored. A file that
/// several sources name is taken once, at its first place.
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
            let found = text_files_below(source)?;
            if found.is_empty() {
                return Err(DataError::NoTextFiles {
                    path: source.clone(),
                });
            }
            found
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
    let shown = |entry: &walkdir::DirEntry| {
        entry.depth() == 0 || !entry.file_name().to_string_lossy().starts_with('.')
    };
    let mut paths = Vec::new();
    for entry in WalkDir::new(folder)
        .follow_links(true)
        .into_iter()
        .filter_entry(shown)
    {
        let entry = entry.map_err(|error| DataError::Io {
            action: "list",
            path: error.path().unwrap_or(folder).into(),
            reason: error.into(),
        })?;
        if entry.file_type().is_file() && format_of(entry.path()).is_some() {
            paths.push(entry.into_path());
        }
    }
    paths.sort();
    Ok(paths)
}

fn describe(path: &Path) -> Result<SourceFile> {
    if format_of(path).is_none() {
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

/// An iterator over the documents of some files. It reads each document when it is requested, so that
/// never more than one is in memory.
///
/// Blank lines between JSON objects and a byte-order mark at the beginning of a file are ignored. An
/// empty text is a document too. An item is an error if a file cannot be opened, read, decompressed
/// or parsed; no item follows an error.
///
/// ```
/// use datasets::{Documents, source_files};
///
/// # fn main() -> datasets::Result<()> {
/// let files = source_files(&["../assets/text/pd-validation.json.gz".into()])?;
/// let documents: Vec<String> = Documents::new(files).collect::<Result<_, _>>()?;
/// assert_eq!(documents.len(), 26);
/// # Ok(())
/// # }
/// ```
pub struct Documents {
    files: std::vec::IntoIter<SourceFile>,
    current: Option<OpenFile>,
    bytes_read: Arc<AtomicU64>,
}

struct OpenFile {
    path: PathBuf,
    layout: Layout,
    text: Box<dyn BufRead + Send>,
    /// The number of the last line read, from 1; 0 before the first.
    line: u64,
}

impl Documents {
    /// The documents of `files`, in their order.
    pub fn new(files: Vec<SourceFile>) -> Self {
        Self {
            files: files.into_iter(),
            current: None,
            bytes_read: Arc::default(),
        }
    }

    /// The number of bytes read from disk so far, of the [`SourceFile::bytes`] of all files.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    fn next_document(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(file) = &mut self.current {
                if let Some(document) = file.next_document()? {
                    return Ok(Some(document));
                }
                self.current = None;
            }
            match self.files.next() {
                Some(file) => self.current = Some(OpenFile::open(file.path, &self.bytes_read)?),
                None => return Ok(None),
            }
        }
    }
}

impl Iterator for Documents {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_document();
        if next.is_err() {
            self.current = None;
            self.files = Vec::new().into_iter();
        }
        next.transpose()
    }
}

impl OpenFile {
    fn open(path: PathBuf, bytes_read: &Arc<AtomicU64>) -> Result<Self> {
        let Some((packing, layout)) = format_of(&path) else {
            return Err(DataError::UnknownFormat { path });
        };
        let file = File::open(&path).map_err(cannot("open", &path))?;
        let bytes_read = Arc::clone(bytes_read);
        let file = BufReader::with_capacity(READ_BYTES, CountedFile { file, bytes_read });
        let text: Box<dyn BufRead + Send> = match packing {
            Packing::Plain => Box::new(file),
            // A file may consist of several gzip streams.
            Packing::Gzip => Box::new(BufReader::with_capacity(
                READ_BYTES,
                MultiGzDecoder::new(file),
            )),
            Packing::Zstd => Box::new(BufReader::with_capacity(
                READ_BYTES,
                zstd::Decoder::with_buffer(file).map_err(cannot("open", &path))?,
            )),
        };
        Ok(Self {
            path,
            layout,
            text,
            line: 0,
        })
    }

    fn next_document(&mut self) -> Result<Option<String>> {
        match self.layout {
            Layout::JsonLines => self.next_json(),
            Layout::Whole => self.whole(),
        }
    }

    fn next_json(&mut self) -> Result<Option<String>> {
        loop {
            self.line += 1;
            let mut bytes = Vec::new();
            let read = self.text.read_until(b'\n', &mut bytes);
            if read.map_err(|reason| self.unreadable(reason))? == 0 {
                return Ok(None);
            }
            let line = self.utf8(bytes)?;
            if !line.trim().is_empty() {
                return self.parse(&line).map(Some);
            }
        }
    }

    fn parse(&self, line: &str) -> Result<String> {
        #[derive(Deserialize)]
        struct Object<'a> {
            #[serde(borrow)]
            text: Option<Cow<'a, str>>,
        }
        match serde_json::from_str::<Object>(line) {
            Ok(Object { text: Some(text) }) => Ok(text.into_owned()),
            Ok(Object { text: None }) => Err(DataError::NoText {
                path: self.path.clone(),
                line: self.line,
            }),
            Err(error) => {
                // The parser saw a single line and counts it as line 1; our error has its number.
                let reason = error.to_string();
                let place = format!(" at line 1 column {}", error.column());
                Err(DataError::BadJson {
                    path: self.path.clone(),
                    line: self.line,
                    column: error.column(),
                    reason: reason.strip_suffix(&place).unwrap_or(&reason).into(),
                })
            }
        }
    }

    /// The whole file at the first call, `None` afterwards.
    fn whole(&mut self) -> Result<Option<String>> {
        if self.line > 0 {
            return Ok(None);
        }
        self.line = 1;
        let mut bytes = Vec::new();
        let read = self.text.read_to_end(&mut bytes);
        read.map_err(|reason| self.unreadable(reason))?;
        self.utf8(bytes).map(Some)
    }

    /// The text of `bytes`, which begin at the current line.
    fn utf8(&self, bytes: Vec<u8>) -> Result<String> {
        let mut text = String::from_utf8(bytes).map_err(|error| {
            let good = error
                .as_bytes()
                .iter()
                .take(error.utf8_error().valid_up_to());
            DataError::NotUtf8 {
                path: self.path.clone(),
                line: self.line + good.filter(|&&byte| byte == b'\n').count() as u64,
            }
        })?;
        if self.line == 1 {
            let mark = text.len() - without_byte_order_mark(&text).len();
            text.drain(..mark);
        }
        Ok(text)
    }

    fn unreadable(&self, reason: io::Error) -> DataError {
        DataError::Unreadable {
            path: self.path.clone(),
            line: self.line,
            reason,
        }
    }
}

/// Counts the bytes that are read from a file, before they are decompressed.
struct CountedFile {
    file: File,
    bytes_read: Arc<AtomicU64>,
}

impl Read for CountedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.file.read(buffer)?;
        self.bytes_read.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests;
