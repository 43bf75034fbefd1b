//! The command line of `infer`.

mod error;
mod generate;
mod sampling;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use datasets::Tokenizer;
use kernels::KernelBackend;
use kernels::backends::{Backend, BackendError};
use model::{CausalLm, Hub};

pub use self::error::CliError;
use self::generate::GenerateArgs;
pub(crate) use self::sampling::SamplingArgs;

use crate::bench::BenchArgs;
use crate::eval::{EvalArgs, PerplexityArgs};
use crate::info::InfoArgs;
use crate::precision::Precision;
use crate::repl::ReplArgs;
use crate::serve::ServeArgs;
use crate::{GenerateOptions, SamplingSettings, Stop};

/// The model on the hub whose tokenizer those use that have none of their own.
const PHI_TOKENIZER: &str = "microsoft/phi-1_5";

const EXAMPLES: &str = "\
Examples (`infer` is target/release/infer, or `cargo run --release -p infer --`):
  The likeliest continuation of a prompt, by a student that `train` has exported:
      infer generate --model runs/tiny/student \"It was the best of times\"

  Another one every time the seed changes:
      infer generate --model runs/tiny/student --temperature 0.8 --top-p 0.95 --seed 7 \"Once\"

  A prompt from a file, the text into another, nothing on the screen:
      infer generate --model assets/phi-tiny - < prompt.txt > text.txt 2> /dev/null

  A long text that is read once, and two ways to go on from it:
      infer generate --model runs/tiny/student --max-tokens 0 --save-state book.state - < book.txt
      infer generate --model runs/tiny/student --load-state book.state
      infer generate --model runs/tiny/student --load-state book.state \" And so\"

  A server for whatever speaks OpenAI's interface, with a page at http://127.0.0.1:8000:
      infer serve --model runs/tiny/student";

/// Uses a Phi-Mamba, a hybrid or a Phi model, from a folder or from the Hugging Face hub.
///
/// The folder has the files of a Hugging Face model: config.json, which decides what the model is;
/// its weights as model.safetensors (or shards of it with their index) or pytorch_model.bin, in f32,
/// f16 or bf16; and tokenizer.json. The students that `train` exports are such folders, and so is any
/// Phi teacher; of a model on the hub they are fetched.
#[derive(Debug, Parser)]
#[command(name = "infer", version, after_long_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Generate(GenerateArgs),
    Repl(ReplArgs),
    Info(InfoArgs),
    Bench(BenchArgs),
    Serve(ServeArgs),
    Eval(EvalArgs),
    Perplexity(PerplexityArgs),
}

impl Cli {
    /// Does what the command line says.
    ///
    /// # Errors
    ///
    /// Every [`CliError`]. That the reader of standard output has gone is none: the command ends.
    pub fn run(self) -> Result<(), CliError> {
        match self.command {
            Command::Generate(args) => args.run(),
            Command::Repl(args) => args.run(),
            Command::Info(args) => args.run(),
            Command::Bench(args) => args.run(),
            Command::Serve(args) => args.run(),
            Command::Eval(args) => args.run(),
            Command::Perplexity(args) => args.run(),
        }
    }
}

/// The backend that was named, or the preferred one of this build.
pub(crate) fn chosen(named: Option<Backend>) -> Result<Backend, BackendError> {
    let backend = named.or_else(Backend::preferred);
    backend.ok_or(BackendError::NotBuiltIn)
}

/// The folder of a model, fetched if need be, and its tokenizer: `own`, or the folder's, or for a
/// model on the hub that has none, Phi's.
pub(crate) fn find(model: &Path, own: Option<&Path>) -> Result<(PathBuf, Tokenizer), CliError> {
    // Before a model is fetched, which may take long.
    let own = own.map(tokenizer_at).transpose()?;
    let folder = model::locate(model)?;
    let tokenizer = match own {
        Some(tokenizer) => tokenizer,
        None if folder.join("tokenizer.json").exists() => Tokenizer::from_folder(&folder)?,
        None if model.is_dir() => return Err(CliError::NoTokenizer { folder }),
        None => {
            let phi = Hub::from_env().and_then(|hub| hub.tokenizer(PHI_TOKENIZER));
            Tokenizer::from_file(phi.map_err(|reason| CliError::PhiTokenizer {
                model: model.into(),
                reason,
            })?)?
        }
    };
    Ok((folder, tokenizer))
}

fn tokenizer_at(path: &Path) -> Result<Tokenizer, CliError> {
    Ok(match (path.is_dir(), path.exists()) {
        (true, _) => Tokenizer::from_folder(path)?,
        (false, true) => Tokenizer::from_file(path)?,
        (false, false) => Tokenizer::from_file(Hub::from_env()?.tokenizer(path)?)?,
    })
}

/// A model, and the options to generate with it and its tokenizer.
pub(crate) fn load<B: KernelBackend>(
    folder: &Path,
    tokenizer: &Tokenizer,
    sampling: SamplingSettings,
    max_tokens: usize,
    precision: Precision,
    device: &B::Device,
) -> Result<(CausalLm<B>, GenerateOptions), CliError> {
    let (config, model) = precision.load::<B>(folder, device)?;
    check_vocabulary(tokenizer, model.vocab_size())?;
    let options = GenerateOptions {
        sampling,
        max_tokens,
        vocab_size: tokenizer.vocab_size(),
        end_of_text: tokenizer.end_of_text(),
        max_positions: config.max_positions(),
    };
    Ok((model, options))
}

/// That a model with `vocab_size` embeddings has one for every token of the tokenizer.
pub(crate) fn check_vocabulary(tokenizer: &Tokenizer, vocab_size: usize) -> Result<(), CliError> {
    let tokens = tokenizer.vocab_size();
    match tokens > vocab_size {
        false => Ok(()),
        true => Err(CliError::Vocabulary {
            tokenizer: tokenizer.path().into(),
            tokens,
            vocab_size,
        }),
    }
}

/// Shows text at once. Whether anybody is left to read more of it.
fn print(out: &mut impl Write, text: &str) -> Result<bool, CliError> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(CliError::Stdout(error)),
    }
}

/// Prints all of a result. That its reader has gone is no failure.
pub(crate) fn say(text: &str) -> Result<(), CliError> {
    print(&mut io::stdout().lock(), text).map(|_| ())
}

/// Why a text ended, in words.
pub(crate) fn why(stop: Option<Stop>) -> &'static str {
    match stop {
        Some(Stop::EndOfText) => "the model ended the text",
        Some(Stop::MaxTokens) => "--max-tokens were made",
        Some(Stop::ContextFull) => "the model has no position left",
        None => "interrupted",
    }
}
