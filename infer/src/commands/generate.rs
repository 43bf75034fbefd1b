//! `infer generate`.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use clap::Args;
use datasets::Tokenizer;
use kernels::KernelBackend;
use kernels::backends::{Backend, Work};

use super::{CliError, EXAMPLES, SamplingArgs, chosen, find, load, print, why};
use crate::precision::Precision;
use crate::snapshot::{self, Snapshot};
use crate::{Generation, ModelHash, Reading, SamplingSettings};

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
pub(super) struct GenerateArgs {
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

impl GenerateArgs {
    /// What needs no device comes first, so that a mistake in it is told at once.
    pub(super) fn run(self) -> Result<(), CliError> {
        let backend = chosen(self.backend)?;
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
