//! Everything that can fail between a text file and a batch.

use std::io;
use std::path::{Path, PathBuf};

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
    #[error("{}: not a known text format; give .txt (one document per file) or, with one JSON \
             object with a \"text\" on each line, .jsonl, .jsonl.gz, .jsonl.zst or .json.gz", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },

    /// A source folder without text in a known format.
    #[error("{}: no .txt, .jsonl, .jsonl.gz, .jsonl.zst or .json.gz file in this folder or below \
             it; name another", path.display())]
    NoTextFiles {
        /// The folder.
        path: PathBuf,
    },

    /// A file that ended too early or could not be decompressed.
    #[error("{}, line {line}: cannot be read from here on ({reason}); the file is truncated or \
             corrupt, fetch or make it again", path.display())]
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
        /// The message of the tokenizer, or what is wrong with the file.
        reason: String,
    },

    /// The caller asked for an end before the work was done.
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

/// Turns an error of the operating system into a [`DataError::Io`]:
/// `.map_err(cannot("open", path))`.
pub(crate) fn cannot(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataError {
    move |reason| DataError::Io {
        action,
        path: path.into(),
        reason,
    }
}
