//! Everything that can go wrong between a text file and a batch.

use std::io;
use std::path::{Path, PathBuf};

/// A result whose error is a [`DataError`].
pub type Result<T> = std::result::Result<T, DataError>;

/// An error of this crate: what is at fault, and what to do about it.
///
/// Each message is whole in itself: causes are fields, not `source()`s, so that a report of the whole
/// chain does not say them twice.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused a file or folder.
    #[error("cannot {action} {}: {reason}", path.display())]
    Io {
        /// What was tried, as a verb: "open", "write".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        reason: io::Error,
    },

    /// A file was named whose ending is not one of the known formats.
    #[error("{}: not a known text format; give .txt (one document a file) or, with one JSON object \
             holding a \"text\" a line, .jsonl, .jsonl.gz, .jsonl.zst or .json.gz", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },

    /// A folder was named that holds no text in a known format.
    #[error("{}: no .txt, .jsonl, .jsonl.gz, .jsonl.zst or .json.gz file in this folder or below \
             it; name another", path.display())]
    NoTextFiles {
        /// The folder.
        path: PathBuf,
    },

    /// A file broke off or could not be decompressed.
    #[error("{}, line {line}: cannot be read on from here ({reason}); the file is truncated or \
             corrupt, fetch or make it again", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The line (from 1) that could not be read whole.
        line: u64,
        /// What the reader or the decompressor said.
        reason: io::Error,
    },

    /// Text that is not UTF-8.
    #[error("{}, line {line}: not UTF-8; convert the file (`iconv -t UTF-8`)", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The line (from 1) of the first bad byte.
        line: u64,
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
        /// What the JSON parser said.
        reason: String,
    },

    /// A JSON object without a `text`.
    #[error("{}, line {line}: the object has no \"text\"; rename the field that holds the document",
            path.display())]
    NoText {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
    },

    /// A tokenizer that could not be loaded, or that failed on a text or on ids.
    #[error("tokenizer {}: {reason}", path.display())]
    Tokenizer {
        /// The `tokenizer.json`.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A tokenizer without the token that separates documents.
    #[error("tokenizer {}: no {} in its vocabulary, which must stand between documents; use the \
             tokenizer that belongs to the model", path.display(), crate::END_OF_TEXT)]
    NoEndOfText {
        /// The `tokenizer.json`.
        path: PathBuf,
    },

    /// Sources (or a side of their split) without a single document.
    #[error(
        "the {name} text has no document; give more text, or, where it is a share split off by \
             hash, a larger share or files of its own"
    )]
    NoDocuments {
        /// Which corpus, as in `PrepareOptions::name`.
        name: String,
    },

    /// Token shards that do not hold what their manifest says.
    #[error("{}: {reason}; delete this folder and it will be made again", path.display())]
    DamagedShards {
        /// The folder of the shards.
        path: PathBuf,
        /// What was found.
        reason: String,
    },

    /// A read behind the end of the corpus.
    #[error("tokens {start} to {start} + {len} were asked for, the corpus has {tokens}")]
    OutOfRange {
        /// The first token asked for.
        start: u64,
        /// How many were asked for.
        len: usize,
        /// How many there are.
        tokens: u64,
    },

    /// A corpus too short for one window.
    #[error(
        "the text has {tokens} tokens, one window of context {context} takes {context} + 1; \
             give more text or a shorter context"
    )]
    TooShort {
        /// Tokens in the corpus.
        tokens: u64,
        /// The context length.
        context: usize,
    },

    /// A context length or a batch size of nothing.
    #[error("the {what} is 0; it must be at least 1")]
    Zero {
        /// "context" or "batch size".
        what: &'static str,
    },
}

/// Makes an [`DataError::Io`] of what the operating system says: `.map_err(cannot("open", path))`.
pub(crate) fn cannot(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataError {
    move |reason| DataError::Io {
        action,
        path: path.into(),
        reason,
    }
}
