//! `infer repl`: a text that a person and a model write in turns.
//!
//! A base model continues texts and answers nobody, so a session is one text that grows: a line that
//! is typed joins it, the model writes on, and the state that it has then is where the next line is
//! read. Nothing is read twice, however long the session; a Phi-Mamba's memory does not grow with it.

mod command;
mod interrupt;
mod screen;
mod session;

use std::fs;
use std::io::{self, IsTerminal};
use std::path::PathBuf;

use clap::Args;
use datasets::Tokenizer;
use kernels::KernelBackend;
use kernels::backends::{Backend, Work};
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Editor};

use crate::SamplingSettings;
use crate::cli::{CliError, SamplingArgs, chosen, find, load};
use crate::precision::Precision;
use command::{Command, HELP};
use interrupt::Interrupt;
use screen::note;
use session::Session;

/// Writes a text with a model, in turns.
///
/// Each line that is typed is appended to the text, and the model continues it. Of a base model do
/// not expect answers: begin what it is to go on with. An empty line lets it go on from where it
/// stopped. A line that begins with / is a command; /help lists them.
///
/// Ctrl-C stops the model, Ctrl-D at the prompt ends the program. Lines can also come from a pipe;
/// standard output then has what the model writes, and standard error the rest.
#[derive(Debug, Args)]
pub struct ReplArgs {
    /// The folder of the model, or its name on the Hugging Face hub
    #[arg(long, value_name = "FOLDER|OWNER/NAME")]
    model: PathBuf,

    /// A tokenizer.json, a folder with one, or a name on the hub, in place of the model's own
    #[arg(long, value_name = "FILE|FOLDER|OWNER/NAME")]
    tokenizer: Option<PathBuf>,

    /// The most tokens that the model makes in its turn
    #[arg(long, default_value_t = 256, allow_negative_numbers = true)]
    max_tokens: usize,

    /// What computes: cuda, wgpu, flex or ndarray, of those built in
    #[arg(long, value_name = "NAME")]
    backend: Option<Backend>,

    /// What parameters are kept in
    #[arg(long, value_enum, default_value_t)]
    dtype: Precision,

    #[command(flatten)]
    sampling: SamplingArgs,
}

impl ReplArgs {
    /// Reads lines until there are no more.
    ///
    /// # Errors
    ///
    /// Every [`CliError`] but those of the other commands.
    pub fn run(self) -> Result<(), CliError> {
        let backend = chosen(self.backend)?;
        let sampling = SamplingSettings::from(self.sampling);
        sampling.validate()?;
        let (model, tokenizer) = find(&self.model, self.tokenizer.as_deref())?;
        backend.dispatch(Repl {
            model,
            tokenizer,
            sampling,
            max_tokens: self.max_tokens,
            precision: self.dtype,
        })?
    }
}

struct Repl {
    model: PathBuf,
    tokenizer: Tokenizer,
    sampling: SamplingSettings,
    max_tokens: usize,
    precision: Precision,
}

impl Work for Repl {
    type Output = Result<(), CliError>;

    fn run<B: KernelBackend>(self, device: B::Device) -> Self::Output {
        let (model, options) = load::<B>(
            &self.model,
            &self.tokenizer,
            self.sampling,
            self.max_tokens,
            self.precision,
            &device,
        )?;
        let interrupt = Interrupt::listen();
        let mut session = Session::new(&model, &device, &self.tokenizer, options, &interrupt);
        let mut lines = Lines::open()?;
        if lines.history.is_some() {
            note("/help lists the commands, Ctrl-C stops the model, Ctrl-D ends this program");
        }
        while let Some(line) = lines.next()? {
            let goes_on = match line.strip_prefix('/') {
                None => session.take_turn(&line)?,
                Some(command) => obey(command, &mut session),
            };
            if !goes_on {
                break;
            }
        }
        Ok(())
    }
}

/// Whether there is more to come.
fn obey<B: KernelBackend>(command: &str, session: &mut Session<'_, B>) -> bool {
    let done = command.parse().and_then(|command| match command {
        Command::Quit => Ok(None),
        Command::Help => Ok(Some(HELP.to_owned())),
        command => session.obey(command).map(Some),
    });
    match done {
        Ok(None) => return false,
        Ok(Some(said)) | Err(said) => note(&said),
    }
    true
}

/// Lines as they are typed, or as a pipe has them.
struct Lines {
    editor: Editor<(), FileHistory>,
    /// Where lines are remembered, if a person types them.
    history: Option<PathBuf>,
}

impl Lines {
    fn open() -> Result<Self, CliError> {
        let config = Config::builder().auto_add_history(true).build();
        let remembered = FileHistory::with_config(&config);
        let mut editor = Editor::with_history(config, remembered).map_err(cannot_read)?;
        let folder = dirs::state_dir().or_else(dirs::data_local_dir);
        let folder = folder.filter(|_| io::stdin().is_terminal());
        let history = folder.map(|folder| folder.join("mohawk/repl-history"));
        if let Some(path) = &history {
            // There may be none yet, and nothing is lost without it.
            let _ = editor.load_history(path);
        }
        Ok(Self { editor, history })
    }

    /// `None` at the end.
    fn next(&mut self) -> Result<Option<String>, CliError> {
        loop {
            match self.editor.readline("> ") {
                Ok(line) => {
                    self.remember();
                    return Ok(Some(line));
                }
                Err(ReadlineError::Eof) => return Ok(None),
                Err(ReadlineError::Interrupted) => note("Ctrl-D or /quit ends this program"),
                Err(error) => return Err(cannot_read(error)),
            }
        }
    }

    /// At once, since Ctrl-C may end the program anywhere.
    fn remember(&mut self) {
        let Some(path) = &self.history else {
            return;
        };
        let folder = path.parent().map_or(Ok(()), fs::create_dir_all);
        // Nobody is kept from their work by a history that cannot be kept.
        if folder.is_ok() {
            let _ = self.editor.save_history(path);
        }
    }
}

fn cannot_read(error: ReadlineError) -> CliError {
    match error {
        ReadlineError::Io(error) => CliError::Stdin(error),
        other => CliError::Stdin(io::Error::other(other)),
    }
}
