//! The model's turns in any session: the text is shown while the model writes it.

use datasets::Tokenizer;
use kernels::KernelBackend;
use model::CausalLm;

use super::ReplError;
use super::command::ReplCommand;
use super::interrupt::Interrupt;
use super::screen::Screen;
use crate::error::GenerateError;
use crate::generate::{GenerateOptions, Generation, Pace, Reading, Stop};
use crate::output::why;

/// A model that takes turns, and how it chooses its tokens.
pub(super) struct Speaker<'a, B: KernelBackend> {
    pub model: &'a CausalLm<B>,
    pub device: &'a B::Device,
    pub tokenizer: &'a Tokenizer,
    pub options: GenerateOptions,
    pub interrupt: &'a Interrupt,
    /// How many turns the model has had. Each adds one to the seed, so that it draws other random numbers.
    pub turns: u64,
}

/// A turn of the model.
pub(super) struct Turn<B: KernelBackend> {
    /// What it has said.
    pub text: String,
    /// Everything so far, and the state after it.
    pub reading: Reading<B>,
    /// How long it was and why it ended, in words.
    pub report: String,
}

impl<B: KernelBackend> Speaker<'_, B> {
    /// An empty text and its state.
    pub(super) fn nothing_read(&self) -> Reading<B> {
        Reading::begin(self.model, self.device)
    }

    /// Executes a command about how tokens are chosen, and returns a message for the user. `None` for other commands.
    pub(super) fn set(&mut self, command: &ReplCommand) -> Option<Result<String, String>> {
        let mut sampling = self.options.sampling;
        let said = match *command {
            ReplCommand::Seed(seed) => {
                sampling.seed = seed;
                format!("seed {seed}")
            }
            ReplCommand::Temperature(temperature) => {
                sampling.temperature = temperature;
                format!("temperature {temperature}")
            }
            ReplCommand::TopP(top_p) => {
                sampling.top_p = top_p;
                format!("top-p {top_p}")
            }
            _ => return None,
        };
        Some(match sampling.validate() {
            Ok(()) => {
                self.options.sampling = sampling;
                if matches!(command, ReplCommand::Seed(_)) {
                    self.turns = 0;
                }
                Ok(said)
            }
            Err(error) => Err(error.to_string()),
        })
    }

    /// Reads `prompt` as a continuation of the earlier text, calls `after_prompt`, and shows what the model writes.
    /// `begins_line` says whether that is at the beginning of a line. `None` if standard output was closed.
    ///
    /// Ctrl-C stops the model while it writes; the prompt is always read completely.
    ///
    /// # Errors
    /// Every [`ReplError`] but that of standard input.
    pub(super) fn turn(
        &mut self,
        reading: Reading<B>,
        prompt: &[u32],
        begins_line: bool,
        after_prompt: impl FnOnce(&Generation<'_, B>),
    ) -> Result<Option<Turn<B>>, ReplError> {
        let mut options = self.options.clone();
        options.sampling.seed = options.sampling.seed.wrapping_add(self.turns);
        self.turns += 1;
        let (model, device) = (self.model, self.device);
        let turn = self.interrupt.during(|| -> Result<_, ReplError> {
            let mut generation = Generation::resume(model, device, reading, prompt, options)?;
            after_prompt(&generation);
            let made = self.write(&mut generation, begins_line)?;
            Ok((generation, made))
        });
        let (generation, made) = turn?;
        let Some((text, tokens)) = made else {
            return Ok(None);
        };
        let time = generation.decode().time;
        let speed = Pace { tokens, time }.tokens_per_second();
        let hint = match generation.stop() {
            Some(Stop::ContextFull) => "; /reset begins a new text",
            _ => "",
        };
        let why = why(generation.stop());
        Ok(Some(Turn {
            text,
            reading: generation.into_reading(),
            report: format!("{tokens} tokens, {speed:.1} tokens/s; {why}{hint}"),
        }))
    }

    /// Shows the tokens that the model makes, and returns their text and their number. `None` if standard output
    /// was closed.
    fn write(
        &self,
        generation: &mut Generation<'_, B>,
        begins_line: bool,
    ) -> Result<Option<(String, usize)>, ReplError> {
        let mut screen = Screen::new();
        let mut stream = self.tokenizer.stream_after(generation.ids());
        let mut text = String::new();
        let mut made = 0;
        let mut show = |screen: &mut Screen, piece: &str| {
            text.push_str(piece);
            screen.text(piece)
        };
        while !self.interrupt.asked()
            && let Some(token) = generation.next()
        {
            made += 1;
            if let Some(piece) = stream.push(token?).map_err(GenerateError::from)?
                && !show(&mut screen, &piece)?
            {
                return Ok(None);
            }
            let time = generation.decode().time;
            screen.speed(Pace { tokens: made, time }.tokens_per_second());
        }
        let is_whole = show(&mut screen, &stream.finish().map_err(GenerateError::from)?)?;
        // A line break only on the screen, so that the next prompt begins a line.
        let at_line_end = text.ends_with('\n') || (text.is_empty() && begins_line);
        let ended = at_line_end || screen.text("\n").unwrap_or(false);
        Ok((is_whole && ended).then_some((text, made)))
    }
}
