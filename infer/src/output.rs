//! Standard input and output: text that is shown at once, and a reader that may leave.

use std::io::{self, Read, Write};

use crate::generate::Stop;

/// Why standard input or output cannot be used. A closed standard output is no error.
#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    /// The prompt cannot be read.
    #[error("the prompt cannot be read from standard input: {0}")]
    Stdin(io::Error),
    /// The text cannot be written.
    #[error("the text cannot be written to standard output: {0}")]
    Stdout(io::Error),
}

/// Writes text and flushes it. `false` if the reader has closed its end.
pub(crate) fn print(out: &mut impl Write, text: &str) -> Result<bool, TerminalError> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(TerminalError::Stdout(error)),
    }
}

/// Writes a whole result to standard output. A closed standard output is no error.
pub(crate) fn say(text: &str) -> Result<(), TerminalError> {
    print(&mut io::stdout().lock(), text).map(|_| ())
}

/// All of standard input, without a line break at the very end.
pub(crate) fn read_stdin() -> Result<String, TerminalError> {
    let mut text = String::new();
    let read = io::stdin().read_to_string(&mut text);
    read.map_err(TerminalError::Stdin)?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
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
