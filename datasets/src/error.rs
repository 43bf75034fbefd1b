//! Everything that can fail between a text file and a batch.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A result whose error is a [`DataError`].
pub type Result<T> = std::result::Result<T, DataError>;

/// An error of this crate. Its message names the cause and the remedy.
///
/// Each message is complete: causes are fields and not `source()`s, so that a report which prints
/// the whole chain of sources does not print them twice.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused an operation on a file or folder.
    #[error("cannot {action} {}: {reason}", path.display())]
    Io {
        /// The operation, as a verb: "open", "write".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        reason: io::Error,
    },

    /// A source file whose name does not end like a known format.
    #[error("{}: not a known text format; give .txt (one document per file), .jsonl (on each line one \
             JSON object with a \"text\") or .json (the same, or one array), each also as .gz or .zst, or \
             .parquet (with a column \"text\")", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },

    /// A source that is neither a file nor a folder.
    #[error("{}: not a file but a named pipe, a device or a socket; text is read more than once, so write it to a \
             file first (a run also reads standard input, as \"-\")", path.display())]
    NotAFile {
        /// The pipe or the device.
        path: PathBuf,
    },

    /// A source folder without text in a known format.
    #[error("{}: no text in this folder or below it{}; text is in .txt, .jsonl and .json files, also as \
             .gz or .zst, and in .parquet files; name another folder, or the file itself if one of these \
             is text", path.display(), others(passed_over))]
    NoTextFiles {
        /// The folder.
        path: PathBuf,
        /// The files that are there, by their kinds; empty if there are none.
        passed_over: String,
    },

    /// A pattern of paths that is invalid, or that no file matches.
    #[error("{pattern}: {reason}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A file that is not on this machine and could not be fetched.
    #[error("{name} cannot be had: {reason}")]
    Fetch {
        /// The file, as its source calls it.
        name: String,
        /// Why.
        reason: String,
    },

    /// A file that ended too early or could not be decompressed.
    #[error("{}, line {line}: cannot be read from here on ({reason}){}", path.display(), damage(reason))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The first line, from 1, that could not be read in full.
        line: u64,
        /// The error of the reader or the decompressor.
        reason: io::Error,
    },

    /// Text that is not UTF-8.
    #[error("{}, line {line}: not UTF-8; convert the file (`iconv -t UTF-8`)", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The line, from 1, of the first bad byte.
        line: u64,
        /// Whether only a record of the file is unusable, and not the whole file.
        is_record: bool,
    },

    /// A line that is not a JSON object with a string as its `text`.
    #[error("{}, line {line}, column {column}: {reason}; every line must be one JSON object with a \
             string as its \"text\"", path.display())]
    BadJson {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The column, in bytes, from 1.
        column: usize,
        /// The message of the JSON parser.
        reason: String,
    },

    /// A JSON object without a text in the field that should hold it.
    #[error("{}, line {line}: the object has no text in {column:?}; its fields are {fields}; give the name of \
             the one that holds the document as the column of this source", path.display())]
    NoText {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The field that should hold the text.
        column: String,
        /// The fields that the object has.
        fields: String,
    },

    /// A file that should be one JSON array, but is not.
    #[error("{}, line {line}: {reason}; the file must be one JSON array of objects with a \"text\" or of \
             strings, or have one object on each line", path.display())]
    BadArray {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong there.
        reason: &'static str,
    },

    /// A Parquet file that cannot be read.
    #[error("{}, {place}: no readable Parquet ({reason}); fetch or make the file again", path.display())]
    BadParquet {
        /// The file.
        path: PathBuf,
        /// The place of the error: "row 3" (from 1), or "its end", where a Parquet file describes its content.
        place: String,
        /// What is wrong there.
        reason: String,
    },

    /// A Parquet file without the column of the text.
    #[error("{}: no column {column:?} of text; the columns are {columns}; give the name of the one that \
             holds the documents as the column of this source", path.display())]
    NoColumn {
        /// The file.
        path: PathBuf,
        /// The missing column.
        column: String,
        /// The columns that the file has.
        columns: String,
    },

    /// A row of a Parquet file without a text.
    #[error("{}, row {row}: the column {column:?} is empty or not UTF-8", path.display())]
    NoTextInRow {
        /// The file.
        path: PathBuf,
        /// The column of the text.
        column: String,
        /// The row, from 1.
        row: u64,
    },

    /// A tokenizer that could not be loaded, or that failed on a text or on ids.
    #[error("tokenizer {}: {reason}", path.display())]
    Tokenizer {
        /// The `tokenizer.json`.
        path: PathBuf,
        /// The message of the tokenizer, or what is wrong with the file.
        reason: String,
    },

    /// The thread that fetches and tokenises a text has ended with this error. Every later read returns it too.
    #[error(transparent)]
    Incoming(Arc<DataError>),

    /// The caller asked to stop before the work was done.
    #[error("stopped before the text was encoded")]
    Stopped,

    /// A tokenizer without the token that separates documents.
    #[error("tokenizer {}: no {token} in its vocabulary, which must stand between documents; use \
             the tokenizer that belongs to the model", path.display())]
    NoEndOfText {
        /// The `tokenizer.json`.
        path: PathBuf,
        /// The missing token.
        token: &'static str,
    },

    /// Sources, or one side of their split, without a single document.
    #[error(
        "the {name} text has no document; give more text, or, if a share of other text is held \
             out for it by hash, a larger share or separate files"
    )]
    NoDocuments {
        /// Which corpus, as in `PrepareOptions::name`.
        name: String,
    },

    /// A folder of token shards whose files do not match its manifest.
    #[error("{}: {reason}; delete this folder and it will be made again", path.display())]
    DamagedShards {
        /// The folder of the shards.
        path: PathBuf,
        /// The mismatch.
        reason: String,
    },

    /// A shard that does not have the checksum of its manifest.
    #[error("{}: its content is not that of its checksum, so no token of it is used; start again, and the tokens \
             of this folder are made again", path.display())]
    DamagedShard {
        /// The shard.
        path: PathBuf,
    },

    /// More records without a document than are allowed, over all files.
    #[error(
        "the {name} text has {skipped} lines and rows without a document, and {allowed} may be skipped"
    )]
    TooManyBadLines {
        /// Which corpus, as in `PrepareOptions::name`.
        name: String,
        /// The number of such records.
        skipped: u64,
        /// How many are allowed.
        allowed: u64,
    },

    /// Weights of sources that cannot be used.
    #[error("the weights of the sources are {weights:?}; they must be 1 to 1,000 numbers above 0")]
    Weights {
        /// The weights.
        weights: Vec<f64>,
    },

    /// Sources whose windows have different lengths.
    #[error("the windows of the sources have the lengths {contexts:?}; they must be the same")]
    Contexts {
        /// The length of a window of each source, in tokens.
        contexts: Vec<usize>,
    },

    /// A shard that has changed since it was opened.
    #[error("{}: {reason}; another program has changed or cut this file while it was in use; start again, \
             and the tokens are made again", path.display())]
    ChangedShard {
        /// The shard.
        path: PathBuf,
        /// What was found.
        reason: String,
    },

    /// A range of tokens that ends after the end of the corpus.
    #[error("tokens {start} to {start} + {len} were asked for, the corpus has {tokens}")]
    OutOfRange {
        /// The first token of the range.
        start: u64,
        /// The length of the range, in tokens.
        len: usize,
        /// The length of the corpus, in tokens.
        tokens: u64,
    },

    /// A corpus too short for one window.
    #[error(
        "the text has {tokens} tokens, one window of context {context} takes {context} + 1; \
             give more text or a shorter context"
    )]
    TooShort {
        /// The length of the corpus, in tokens.
        tokens: u64,
        /// The context length, in tokens.
        context: usize,
    },

    /// A context length or a batch size of 0.
    #[error("the {what} is 0; it must be at least 1")]
    Zero {
        /// "context" or "batch size".
        what: &'static str,
    },
}

impl DataError {
    /// Whether the error concerns only one record of a file, so that the next records can still be read.
    pub(crate) fn is_bad_record(&self) -> bool {
        match self {
            Self::BadJson { .. } | Self::NoText { .. } | Self::NoTextInRow { .. } => true,
            Self::NotUtf8 { is_record, .. } => *is_record,
            _ => false,
        }
    }
}

/// The advice that follows the reason why a file cannot be read.
fn damage(reason: &io::Error) -> &'static str {
    if reason.kind() == io::ErrorKind::Unsupported {
        ""
    } else {
        "; the file is truncated or corrupt, fetch or make it again"
    }
}

fn others(passed_over: &str) -> String {
    if passed_over.is_empty() {
        String::new()
    } else {
        format!(", but {passed_over}")
    }
}

/// Turns an error of the operating system into a [`DataError::Io`]:
/// `.map_err(cannot("open", path))`.
pub(crate) fn cannot(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataError {
    move |reason| DataError::Io {
        action,
        path: path.into(),
        reason,
    }
}
