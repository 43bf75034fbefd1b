//! A session: a person and a model in turns.
//!
//! A base model continues texts and does not answer questions, so its session is one text that grows: a typed line is
//! appended, the model continues the text, and the next line is read from the model's state after that. Nothing is read
//! twice in a session of any length, and a Phi-Mamba's memory does not grow.
//!
//! A model with a chat template answers questions, and its session is a conversation (`chat`).

mod chat;
mod command;
mod interrupt;
mod screen;
mod session;
mod speaker;

use std::fs;
use std::io::{self, ErrorKind, IsTerminal};
use std::path::PathBuf;

use datasets::{Tokenizer, without_byte_order_mark};
use kernels::KernelBackend;
use model::CausalLm;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Editor};

use crate::chat::ChatTemplate;
use crate::error::GenerateError;
use crate::generate::GenerateOptions;
use crate::output::{TerminalError, not_utf8};
use chat::ChatSession;
use command::{CHAT_HELP, HELP, ReplCommand};
use interrupt::Interrupt;
use screen::note;
use session::TextSession;
use speaker::Speaker;

/// Why a session cannot continue.
#[derive(Debug, thiserror::Error)]
pub enum ReplError {
    /// The model cannot continue the text.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// Lines cannot be read, or the text cannot be written.
    #[error(transparent)]
    Terminal(#[from] TerminalError),
}

/// The turns of a person and a model.
trait Session {
    /// Executes a command, and returns a message for the user: what was done, or why it was not.
    fn obey(&mut self, command: ReplCommand) -> Result<String, String>;

    /// Takes a line, and has the model take its turn. `false` if standard output was closed.
    ///
    /// # Errors
    /// Every [`ReplError`] but that of standard input.
    fn take_turn(&mut self, line: &str) -> Result<bool, ReplError>;
}

/// Reads lines from standard input until they end or `/quit` is typed, and has the model take its turn after
/// each: it answers, if there is a chat template, and otherwise continues the text. What the model writes goes to
/// standard output, everything else to standard error.
///
/// # Errors
/// Every [`ReplError`]. A closed standard output ends the session without one.
pub(crate) fn run<B: KernelBackend>(
    model: &CausalLm<B>,
    device: &B::Device,
    tokenizer: &Tokenizer,
    options: GenerateOptions,
    chat: Option<&ChatTemplate>,
) -> Result<(), ReplError> {
    let interrupt = Interrupt::listen();
    let speaker = Speaker {
        model,
        device,
        tokenizer,
        options,
        interrupt: &interrupt,
        turns: 0,
    };
    match chat {
        Some(template) => take_turns(&mut ChatSession::new(speaker, template), CHAT_HELP),
        None => take_turns(&mut TextSession::new(speaker), HELP),
    }
}

fn take_turns(session: &mut impl Session, help: &str) -> Result<(), ReplError> {
    let mut lines = Lines::open()?;
    if io::stdin().is_terminal() {
        note("/help lists the commands, Ctrl-C stops the model, Ctrl-D ends this program");
    }
    while let Some(line) = lines.next()? {
        let continues = match line.strip_prefix('/') {
            None => session.take_turn(&line)?,
            Some(command) => obey(command, session, help),
        };
        if !continues {
            break;
        }
    }
    Ok(())
}

/// Executes a command. `false` if it ends the session.
fn obey(command: &str, session: &mut impl Session, help: &str) -> bool {
    let done = command.parse().and_then(|command| match command {
        ReplCommand::Quit => Ok(None),
        ReplCommand::Help => Ok(Some(help.to_owned())),
        command => session.obey(command).map(Some),
    });
    match done {
        Ok(None) => return false,
        Ok(Some(said)) | Err(said) => note(&said),
    }
    true
}

/// The lines that are typed, or that come from a pipe.
struct Lines {
    editor: Editor<(), FileHistory>,
    /// The file that keeps the lines, if standard input is a terminal and there is a place for it.
    history: Option<PathBuf>,
}

impl Lines {
    fn open() -> Result<Self, TerminalError> {
        let config = Config::builder().auto_add_history(true).build();
        let remembered = FileHistory::with_config(&config);
        let mut editor = Editor::with_history(config, remembered).map_err(cannot_read)?;
        let folder = dirs::state_dir().or_else(dirs::data_local_dir);
        let folder = folder.filter(|folder| folder.is_absolute() && io::stdin().is_terminal());
        let mut history = folder.map(|folder| folder.join("mohawk/repl-history"));
        if let Some(path) = &history
            && let Err(error) = editor.load_history(path)
            && !is_absent(&error)
        {
            // A history file that cannot be read must not be overwritten.
            note(&format!(
                "{}: {error}; lines are not remembered",
                path.display()
            ));
            history = None;
        }
        Ok(Self { editor, history })
    }

    /// The next line; `None` at the end.
    fn next(&mut self) -> Result<Option<String>, TerminalError> {
        loop {
            match self.editor.readline("> ") {
                Ok(line) => {
                    self.remember();
                    return Ok(Some(without_byte_order_mark(&line).to_owned()));
                }
                Err(ReadlineError::Eof) => return Ok(None),
                Err(ReadlineError::Interrupted) => note("Ctrl-D or /quit ends this program"),
                Err(error) => return Err(cannot_read(error)),
            }
        }
    }

    /// Saves the newest line at once, since Ctrl-C may end the program at any time. It is appended after the lines of
    /// other sessions.
    fn remember(&mut self) {
        let Some(path) = &self.history else {
            return;
        };
        let folder = path.parent().map_or(Ok(()), fs::create_dir_all);
        // A history that cannot be saved is no reason to stop.
        if folder.is_ok() {
            let _ = self.editor.append_history(path);
        }
    }
}

/// Whether a file is not there yet. Without a usable home it never is.
fn is_absent(error: &ReadlineError) -> bool {
    let ReadlineError::Io(error) = error else {
        return false;
    };
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::PermissionDenied
    )
}

fn cannot_read(error: ReadlineError) -> TerminalError {
    match error {
        ReadlineError::Io(error) if error.kind() == ErrorKind::InvalidData => not_utf8(b""),
        ReadlineError::Io(error) => TerminalError::Stdin(error),
        other => TerminalError::Stdin(io::Error::other(other)),
    }
}
