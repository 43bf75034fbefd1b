//! Standard input and output: results, which must be delivered; notes, which may be lost; and readers that may close
//! their end early.
//!
//! Nothing else in this crate writes to a terminal. Rust's own `println!` and similar macros panic if a stream is
//! closed or its disk is full, and a program that has worked for hours would lose its results because of a line of
//! progress.

use std::fmt::Display;
use std::io::{self, ErrorKind, Read, Write};

use datasets::without_byte_order_mark;

use crate::generate::Stop;

/// Why standard input or output cannot be used. A closed standard output is not an error.
#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    /// The prompt cannot be read.
    #[error("the prompt cannot be read from standard input: {0}")]
    Stdin(io::Error),
    /// The prompt is in another encoding, or is no text.
    #[error("the prompt from standard input is not UTF-8{hint}")]
    NotUtf8 {
        /// A hint about the encoding that it may have, or empty.
        hint: &'static str,
    },
    /// The text cannot be written.
    #[error("the text cannot be written to standard output: {0}")]
    Stdout(io::Error),
}

/// Writes text and flushes it. `false` if the reader has closed its end.
pub(crate) fn print(out: &mut impl Write, text: &str) -> Result<bool, TerminalError> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(TerminalError::Stdout(error)),
    }
}

/// Writes a whole result to standard output. `false` if the reader has closed its end, which is not an error.
pub(crate) fn say(text: &str) -> Result<bool, TerminalError> {
    print(&mut io::stdout().lock(), text)
}

/// Writes a line to standard error that the work does not depend on: progress, speed, a warning. If standard error is
/// closed, the line is dropped and the work continues.
pub(crate) fn note(line: impl Display) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// All of standard input, without a byte-order mark at its beginning and a line break at its very end.
pub(crate) fn read_stdin() -> Result<String, TerminalError> {
    let mut bytes = Vec::new();
    let read = io::stdin().read_to_end(&mut bytes);
    read.map_err(TerminalError::Stdin)?;
    let text = String::from_utf8(bytes).map_err(|error| not_utf8(error.as_bytes()))?;
    let line = text
        .strip_suffix("\r\n")
        .or_else(|| text.strip_suffix('\n'));
    Ok(without_byte_order_mark(line.unwrap_or(&text)).to_owned())
}

/// What is wrong with a prompt of these bytes, as far as they were read.
pub(crate) fn not_utf8(bytes: &[u8]) -> TerminalError {
    let is_utf16 = bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff");
    TerminalError::NotUtf8 {
        hint: if is_utf16 {
            ": it begins as UTF-16 does; `iconv -f UTF-16 -t UTF-8` converts it"
        } else {
            ""
        },
    }
}

/// Why a text ended, in words. `None` is a text that the user interrupted.
pub(crate) fn why(stop: Option<Stop>) -> &'static str {
    match stop {
        Some(Stop::EndOfText) => "the model ended the text",
        Some(Stop::MaxTokens) => "--max-tokens were made",
        Some(Stop::ContextFull) => "the model has no position left",
        None => "interrupted",
    }
}
