//! `infer generate`.

use std::io;
use std::path::PathBuf;

use clap::Args;
use datasets::without_byte_order_mark;
use kernels::KernelBackend;
use kernels::runtime::Work;
use model::ModelHash;

use super::CommandError;
use crate::generate::{Generation, Reading};
use crate::model_args::{FoundModel, ModelArgs, SamplingArgs};
use crate::output::{note, print, read_stdin, why};
use crate::precision::kept_in;
use crate::sampling::SamplingSettings;
use crate::state_file::{self, StateFile};

/// Examples of this command, which the help of the whole program shows too.
pub(crate) const EXAMPLES: &str = "\
Examples (`infer` is target/debug/infer, or `cargo run -p infer --`):
  The likeliest continuation of a prompt, by a student that `train` has exported:
      infer generate --model runs/tiny/student \"It was the best of times\"

  Another one every time the seed changes:
      infer generate --model runs/tiny/student --temperature 0.8 --top-p 0.95 --seed 7 \"Once\"

  A prompt from a file, the text into another, nothing on the screen:
      infer generate --model assets/phi-tiny - < prompt.txt > text.txt 2> /dev/null

  A long text that is read once, and two ways to continue it:
      infer generate --model runs/tiny/student --max-tokens 0 --save-state book.state - < book.txt
      infer generate --model runs/tiny/student --load-state book.state
      infer generate --model runs/tiny/student --load-state book.state \" And so\"

  A server for any program that speaks OpenAI's interface, with a page at http://127.0.0.1:8000:
      infer serve --model runs/tiny/student";

/// Continues a text.
///
/// Reads the prompt in one pass, then makes one token after another, and prints each as soon as its
/// characters are whole. The prompt itself is not printed. The text ends where the model ends it,
/// after --max-tokens, or where a teacher has no position left. Phi-Mamba and the hybrid have no such
/// end; the memory of a Phi-Mamba does not grow with the text.
///
/// A model ends a text with one of the tokens that eos_token_id names, in generation_config.json or else
/// in config.json; if neither does, with the tokenizer's <|endoftext|>, <|end_of_text|> or </s>.
///
/// Standard output has the text and one line break; standard error has, at the end, how fast the
/// prompt was read (prefill) and the text made (decode), and why it ended. The exit code is 0 if there
/// was a text, even if its reader has left early, 1 if something failed, and 2 if the command line
/// cannot be understood.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct GenerateArgs {
    /// What the text begins with, or - to read it from standard input
    ///
    /// It is UTF-8; a byte-order mark at its beginning is no part of it. From standard input, a line break
    /// at the very end is dropped. A begin-of-text token goes before it if the tokenizer's files say so, as Llama's
    /// and Mistral's do. Otherwise, with an empty prompt the text begins after an end-of-text token, as documents
    /// did in training. After --load-state it may be left out.
    #[arg(required_unless_present = "load_state")]
    prompt: Option<String>,

    #[command(flatten)]
    model: ModelArgs,

    /// The most tokens to make
    #[arg(long, default_value_t = 256, allow_negative_numbers = true)]
    max_tokens: usize,

    /// Where to keep what the model has read, before it makes the first token
    ///
    /// The file is replaced whole or stays as it was, and has a checksum. A Phi-Mamba's has the same size
    /// whatever the length of the text, but for four bytes a token.
    #[arg(long, value_name = "FILE")]
    save_state: Option<PathBuf>,

    /// Continues from a file of --save-state; the prompt is read after its text
    ///
    /// Only the very model that has saved it can load it: the file has a hash of the model's
    /// config.json and weights. Another --dtype than it was saved in is noted, since a text that is
    /// read in it may continue differently. The prompt is encoded separately, so it should begin
    /// where a word does, with the blank before it.
    #[arg(long, value_name = "FILE")]
    load_state: Option<PathBuf>,

    #[command(flatten)]
    sampling: SamplingArgs,
}

impl GenerateArgs {
    /// Runs the command. Everything that needs no device comes first, so that errors are found at once.
    pub fn run(self) -> Result<(), CommandError> {
        let backend = self.model.compute.backend()?;
        let sampling = SamplingSettings::from(self.sampling);
        sampling.validate()?;
        if let Some(path) = &self.save_state {
            state_file::check(path)?;
        }
        let model = self.model.find()?;
        let needs_hash = self.load_state.is_some() || self.save_state.is_some();
        let hash = needs_hash
            .then(|| ModelHash::of(&model.folder))
            .transpose()?;
        let open = |(path, hash): (&PathBuf, _)| StateFile::open(path, hash);
        let earlier = self.load_state.as_ref().zip(hash.as_ref()).map(open);
        let earlier = earlier.transpose()?;
        if let Some((path, false)) = self
            .load_state
            .as_ref()
            .zip(earlier.as_ref().map(StateFile::has_checksum))
        {
            note(format!(
                "{}: a state file of version 1, which has no checksum: damage to it would not be noticed",
                path.display()
            ));
        }
        let prompt = match self.prompt.as_deref() {
            Some("-") => read_stdin()?,
            prompt => without_byte_order_mark(prompt.unwrap_or_default()).to_owned(),
        };
        let prompt = if earlier.is_some() {
            model.tokenizer.encode(&prompt)?
        } else {
            model.tokenizer.encode_prompt(&prompt)?
        };
        backend.dispatch(GenerateWork {
            model,
            earlier,
            prompt,
            save: self.save_state.zip(hash),
            sampling,
            max_tokens: self.max_tokens,
        })?
    }
}

struct GenerateWork {
    model: FoundModel,
    earlier: Option<StateFile>,
    prompt: Vec<u32>,
    save: Option<(PathBuf, ModelHash)>,
    sampling: SamplingSettings,
    max_tokens: usize,
}

impl Work for GenerateWork {
    type Output = Result<(), CommandError>;

    fn run<B: KernelBackend>(self, device: B::Device) -> Self::Output {
        let loaded = self
            .model
            .load_to_generate::<B>(self.sampling, self.max_tokens, &device);
        let (model, options) = loaded?;
        let mut kept_in = kept_in(&model);
        let reading = match self.earlier {
            Some(file) => {
                let reading = file.restore(&model, &device)?;
                if let Some(saved) = file.kept_in().filter(|saved| *saved != kept_in) {
                    note(format!(
                        "{}: the text was read in {saved}, and is continued in {kept_in}; it may go on differently than \
                         after a prompt that is read in {kept_in}",
                        file.path().display()
                    ));
                    kept_in = format!("{saved}, then {kept_in}");
                }
                reading
            }
            None => Reading::begin(&model, &device),
        };
        let mut generation = Generation::resume(&model, &device, reading, &self.prompt, options)?;
        if let Some((path, hash)) = &self.save {
            state_file::save(path, hash, &kept_in, &generation.reading())?;
        }

        let mut out = io::stdout().lock();
        // Some tokenizers drop the blank before the first word of a text.
        let mut text = self.model.tokenizer.stream_after(generation.ids());
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

fn report<B: KernelBackend>(generation: &Generation<'_, B>) {
    let (prefill, decode) = (generation.prefill(), generation.decode());
    let reason = why(generation.stop());
    note(format!(
        "prefill {} tokens, {:.1} tokens/s; decode {} tokens, {:.1} tokens/s; {reason}",
        prefill.tokens,
        prefill.tokens_per_second(),
        decode.tokens,
        decode.tokens_per_second(),
    ));
}
