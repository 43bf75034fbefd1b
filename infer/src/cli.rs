//! The command line of `infer`.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use datasets::Tokenizer;
use kernels::KernelBackend;
use kernels::backends::{Backend, BackendError, Work};
use model::{CausalLm, Hub, ModelConfig};

use crate::bench::BenchArgs;
use crate::eval::{EvalArgs, EvalError, PerplexityArgs};
use crate::info::InfoArgs;
use crate::precision::{Precision, PrecisionError};
use crate::repl::ReplArgs;
use crate::serve::{ServeArgs, ServeError};
use crate::snapshot::{self, Snapshot, SnapshotError};
use crate::{
    GenerateError, GenerateOptions, Generation, ModelHash, Reading, SamplingError,
    SamplingSettings, Stop,
};

/// Why a command failed. Each message is whole in itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    /// The backend cannot be used.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] datasets::DataError),
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(#[from] model::WeightsError),
    /// Neither the model nor the command line has one.
    #[error(
        "{}: no tokenizer.json here; --tokenizer takes such a file, a folder with one, or a name on \
         the hub, such as {PHI_TOKENIZER}, whose tokenizer the published Phi-Mambas use",
        folder.display()
    )]
    NoTokenizer {
        /// The model's folder.
        folder: PathBuf,
    },
    /// The model has none, and the one that it uses cannot be had.
    #[error(
        "{} has no tokenizer.json on the hub, and that of {PHI_TOKENIZER} cannot be had: {reason}; \
         --tokenizer names another",
        model.display()
    )]
    PhiTokenizer {
        /// The model's name.
        model: PathBuf,
        /// What went wrong.
        reason: model::WeightsError,
    },
    /// The tokenizer has tokens that the model has not.
    #[error(
        "{}: the tokenizer has {tokens} tokens, and the model's vocabulary ends at {vocab_size}; it \
         does not belong to this model",
        tokenizer.display()
    )]
    Vocabulary {
        /// The tokenizer's file.
        tokenizer: PathBuf,
        /// The tokenizer's vocabulary.
        tokens: usize,
        /// The model's.
        vocab_size: usize,
    },
    /// A sampling option has no meaning.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// No text can be made.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// A state cannot be saved or loaded.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The server cannot begin, or has ended.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// An evaluation cannot be done.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// The model cannot be had in what was asked for.
    #[error(transparent)]
    Precision(#[from] PrecisionError),
    /// The prompt cannot be read.
    #[error("the prompt cannot be read from standard input: {0}")]
    Stdin(io::Error),
    /// The text cannot be written.
    #[error("the text cannot be written to standard output: {0}")]
    Stdout(io::Error),
}

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

/// Continues a text.
///
/// Reads the prompt in one pass, then makes one token after another, and prints each as soon as its
/// characters are whole. The prompt itself is not printed. The text ends where the model ends it
/// (with <|endoftext|>), after --max-tokens, or where a Phi model has no position left. Phi-Mamba and
/// the hybrid go on for as long as they are let; the memory of a Phi-Mamba does not grow meanwhile.
///
/// Standard output has the text and one line break; standard error has, at the end, how fast the
/// prompt was read (prefill) and the text made (decode), and why it ended. The exit code is 0 if there
/// was a text, also if its reader went away early, 1 if something failed, and 2 if the command line
/// cannot be understood.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
struct GenerateArgs {
    /// What the text begins with, or - to read it from standard input
    ///
    /// From standard input, a line break at the very end is dropped. With an empty prompt the text
    /// begins after an end-of-text token, as documents did in training. After --load-state it may be
    /// left out.
    #[arg(required_unless_present = "load_state")]
    prompt: Option<String>,

    /// The folder of the model, or its name on the Hugging Face hub
    ///
    /// A name is OWNER/NAME, as in microsoft/phi-1_5. Its files are fetched once, into the cache that
    /// Hugging Face's tools share (HF_HOME, HF_HUB_OFFLINE and HF_ENDPOINT mean what they mean there).
    #[arg(long, value_name = "FOLDER|OWNER/NAME")]
    model: PathBuf,

    /// A tokenizer.json, a folder with one, or a name on the hub, in place of the model's own
    ///
    /// A model on the hub that has none, as the published Phi-Mambas, gets that of microsoft/phi-1_5.
    #[arg(long, value_name = "FILE|FOLDER|OWNER/NAME")]
    tokenizer: Option<PathBuf>,

    /// The most tokens to make
    #[arg(long, default_value_t = 256, allow_negative_numbers = true)]
    max_tokens: usize,

    /// Where to keep what the model has read, before it makes the first token
    ///
    /// The file is replaced whole or stays as it was. A Phi-Mamba's has the same size whatever the
    /// length of the text, but for four bytes a token.
    #[arg(long, value_name = "FILE")]
    save_state: Option<PathBuf>,

    /// Goes on from what --save-state has kept; the prompt is read after it
    ///
    /// Only the very model that has saved it can: the file has a hash of its config.json and weights.
    /// The prompt becomes tokens of its own, so it had better begin where a word does, with the blank
    /// before it.
    #[arg(long, value_name = "FILE")]
    load_state: Option<PathBuf>,

    /// What computes: cuda, wgpu, flex or ndarray, of those built in
    ///
    /// cuda: NVIDIA GPUs. wgpu: GPUs through Vulkan, Metal or DirectX 12. flex: the CPU. ndarray: the
    /// CPU, slower, the reference for the others. Which of them this program holds is decided when it
    /// is built, by `--features`. The default is the first of that list that it holds.
    #[arg(long, value_name = "NAME")]
    backend: Option<Backend>,

    /// What parameters are kept in
    #[arg(long, value_enum, default_value_t)]
    dtype: Precision,

    #[command(flatten)]
    sampling: SamplingArgs,
}

/// These apply in this order, and mean what they mean in Hugging Face's transformers.
#[derive(Debug, Args)]
#[command(next_help_heading = "How tokens are chosen (applied in this order)")]
pub(crate) struct SamplingArgs {
    /// Makes tokens that have occurred less likely; 1 is off
    ///
    /// The logit of each token of the prompt and of the text so far is divided by this if positive,
    /// multiplied if negative. Above 1 discourages repetition (1.1 to 1.3 are usual).
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    repetition_penalty: f32,

    /// How bold choices are; 0 always takes the likeliest token
    ///
    /// The logits are divided by this: 1 draws from the model's own probabilities, less makes likely
    /// tokens likelier. At 0 there is no chance: --top-k, --top-p, --min-p and --seed change nothing.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f32,

    /// Draws only from this many of the likeliest tokens; 0 is off, 1 always takes the likeliest
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    top_k: usize,

    /// Draws only from the likeliest tokens that together have this probability; 1 is off
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f64,

    /// Draws only from tokens at least this many times as likely as the likeliest; 0 is off
    ///
    /// 0.05 to 0.1 are usual.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    min_p: f32,

    /// Where the random numbers start
    ///
    /// The same seed gives the same random numbers on every machine, and so the same text wherever
    /// the model's arithmetic rounds alike.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    seed: u64,
}

impl From<SamplingArgs> for SamplingSettings {
    fn from(args: SamplingArgs) -> Self {
        Self {
            repetition_penalty: args.repetition_penalty,
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            seed: args.seed,
        }
    }
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

impl GenerateArgs {
    /// What needs no device comes first, so that a mistake in it is told at once.
    fn run(self) -> Result<(), CliError> {
        let backend = self.backend.or_else(Backend::preferred);
        let backend = backend.ok_or(BackendError::NotBuiltIn)?;
        let sampling = SamplingSettings::from(self.sampling);
        sampling.validate()?;
        if let Some(path) = &self.save_state {
            snapshot::check(path)?;
        }
        let (model, tokenizer) = find(&self.model, self.tokenizer.as_deref())?;
        let hash = match self.load_state.is_some() || self.save_state.is_some() {
            true => Some(ModelHash::of(&model)?),
            false => None,
        };
        let open = |(path, hash): (&PathBuf, _)| Snapshot::open(path, hash);
        let earlier = self.load_state.as_ref().zip(hash.as_ref()).map(open);
        let earlier = earlier.transpose()?;
        let prompt = match self.prompt.as_deref() {
            Some("-") => read_prompt().map_err(CliError::Stdin)?,
            prompt => prompt.unwrap_or_default().into(),
        };
        let prompt = tokenizer.encode(&prompt)?;
        backend.dispatch(Generate {
            model,
            tokenizer,
            earlier,
            prompt,
            save: self.save_state.zip(hash),
            sampling,
            max_tokens: self.max_tokens,
            precision: self.dtype,
        })?
    }
}

struct Generate {
    model: PathBuf,
    tokenizer: Tokenizer,
    earlier: Option<Snapshot>,
    prompt: Vec<u32>,
    save: Option<(PathBuf, ModelHash)>,
    sampling: SamplingSettings,
    max_tokens: usize,
    precision: Precision,
}

impl Work for Generate {
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
        let reading = match self.earlier {
            Some(snapshot) => snapshot.restore(&model, &device)?,
            None => Reading::begin(&model, &device),
        };
        let mut generation = Generation::resume(&model, &device, reading, &self.prompt, options)?;
        if let Some((path, hash)) = &self.save {
            snapshot::save(path, hash, &generation.reading())?;
        }

        let mut out = io::stdout().lock();
        let mut text = self.tokenizer.stream();
        for token in &mut generation {
            if let Some(piece) = text.push(token?)?
                && !print(&mut out, &piece)?
            {
                return Ok(());
            }
        }
        if print(&mut out, &format!("{}\n", text.finish()?))? {
            report(&generation);
        }
        Ok(())
    }
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
        max_positions: match config {
            ModelConfig::Phi(config) => Some(config.max_position_embeddings),
            ModelConfig::PhiMamba(_) => None,
        },
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

fn read_prompt() -> io::Result<String> {
    let mut prompt = String::new();
    io::stdin().read_to_string(&mut prompt)?;
    if prompt.ends_with('\n') {
        prompt.pop();
        if prompt.ends_with('\r') {
            prompt.pop();
        }
    }
    Ok(prompt)
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

fn report<B: KernelBackend>(generation: &Generation<'_, B>) {
    let (prefill, decode) = (generation.prefill(), generation.decode());
    let reason = why(generation.stop());
    // Nobody to tell that there is nobody to tell.
    let _ = writeln!(
        io::stderr(),
        "prefill {} tokens, {:.1} tokens/s; decode {} tokens, {:.1} tokens/s; {reason}",
        prefill.tokens,
        prefill.tokens_per_second(),
        decode.tokens,
        decode.tokens_per_second(),
    );
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
