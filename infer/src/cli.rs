//! The command line of `infer`.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use datasets::Tokenizer;
use kernels::KernelBackend;
use kernels::backends::{Backend, BackendError, Work};
use model::ModelConfig;

use crate::{GenerateError, GenerateOptions, Generation, SamplingError, SamplingSettings, Stop};

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
        "{}: no tokenizer.json here, as in the published Phi-Mambas, which use that of \
         microsoft/phi-1_5; name such a file, or a folder with one, by --tokenizer",
        folder.display()
    )]
    NoTokenizer {
        /// The model's folder.
        folder: PathBuf,
    },
    /// A sampling option has no meaning.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// No text can be made.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// The prompt cannot be read.
    #[error("the prompt cannot be read from standard input: {0}")]
    Stdin(io::Error),
    /// The text cannot be written.
    #[error("the text cannot be written to standard output: {0}")]
    Stdout(io::Error),
}

const EXAMPLES: &str = "\
Examples (`infer` is target/release/infer, or `cargo run --release -p infer --`):
  The likeliest continuation of a prompt, by a student that `train` has exported:
      infer generate --model runs/tiny/student \"It was the best of times\"

  Another one every time the seed changes:
      infer generate --model runs/tiny/student --temperature 0.8 --top-p 0.95 --seed 7 \"Once\"

  A prompt from a file, the text into another, nothing on the screen:
      infer generate --model assets/phi-tiny - < prompt.txt > text.txt 2> /dev/null";

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
    /// begins after an end-of-text token, as documents did in training.
    prompt: String,

    /// The folder of the model, or its name on the Hugging Face hub
    ///
    /// A name is OWNER/NAME, as in microsoft/phi-1_5. Its files are fetched once, into the cache that
    /// Hugging Face's tools share (HF_HOME, HF_HUB_OFFLINE and HF_ENDPOINT mean what they mean there).
    #[arg(long, value_name = "FOLDER|OWNER/NAME")]
    model: PathBuf,

    /// A tokenizer.json, or a folder with one, in place of the model's own
    #[arg(long, value_name = "FILE|FOLDER")]
    tokenizer: Option<PathBuf>,

    /// The most tokens to make
    #[arg(long, default_value_t = 256, allow_negative_numbers = true)]
    max_tokens: usize,

    /// What computes: cuda, wgpu, flex or ndarray, of those built in
    ///
    /// cuda: NVIDIA GPUs. wgpu: GPUs through Vulkan, Metal or DirectX 12. flex: the CPU. ndarray: the
    /// CPU, slower, the reference for the others. Which of them this program holds is decided when it
    /// is built, by `--features`. The default is the first of that list that it holds.
    #[arg(long, value_name = "NAME")]
    backend: Option<Backend>,

    #[command(flatten)]
    sampling: SamplingArgs,
}

/// These apply in this order, and mean what they mean in Hugging Face's transformers.
#[derive(Debug, Args)]
#[command(next_help_heading = "How tokens are chosen (applied in this order)")]
struct SamplingArgs {
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
        // Before a model is fetched, which may take long.
        let own = self.tokenizer.as_deref().map(tokenizer_at).transpose()?;
        let model = model::locate(&self.model)?;
        let tokenizer = match own {
            Some(tokenizer) => tokenizer,
            None if !model.join("tokenizer.json").exists() => {
                return Err(CliError::NoTokenizer { folder: model });
            }
            None => Tokenizer::from_folder(&model)?,
        };
        let prompt = match self.prompt.as_str() {
            "-" => read_prompt().map_err(CliError::Stdin)?,
            prompt => prompt.into(),
        };
        let prompt = tokenizer.encode(&prompt)?;
        backend.dispatch(Generate {
            model,
            tokenizer,
            prompt,
            sampling,
            max_tokens: self.max_tokens,
        })?
    }
}

struct Generate {
    model: PathBuf,
    tokenizer: Tokenizer,
    prompt: Vec<u32>,
    sampling: SamplingSettings,
    max_tokens: usize,
}

impl Work for Generate {
    type Output = Result<(), CliError>;

    fn run<B: KernelBackend>(self, device: B::Device) -> Self::Output {
        let (config, model) = model::load_any::<B>(&self.model, &device)?;
        let options = GenerateOptions {
            sampling: self.sampling,
            max_tokens: self.max_tokens,
            vocab_size: self.tokenizer.vocab_size(),
            end_of_text: self.tokenizer.end_of_text(),
            max_positions: match config {
                ModelConfig::Phi(config) => Some(config.max_position_embeddings),
                ModelConfig::PhiMamba(_) => None,
            },
        };
        let mut generation = Generation::new(&model, &device, &self.prompt, options)?;

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

fn tokenizer_at(path: &Path) -> Result<Tokenizer, CliError> {
    Ok(match path.is_dir() {
        true => Tokenizer::from_folder(path)?,
        false => Tokenizer::from_file(path)?,
    })
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

fn report<B: KernelBackend>(generation: &Generation<'_, B>) {
    let (prefill, decode) = (generation.prefill(), generation.decode());
    let reason = match generation.stop() {
        Some(Stop::EndOfText) => "the model ended the text",
        Some(Stop::MaxTokens) => "--max-tokens were made",
        Some(Stop::ContextFull) => "the model has no position left",
        None => "interrupted",
    };
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
