//! The text of a session, and the model's state after it.

use datasets::Tokenizer;
use kernels::KernelBackend;
use model::CausalLm;

use super::ReplError;
use super::command::ReplCommand;
use super::interrupt::Interrupt;
use super::screen::{Screen, note};
use crate::error::GenerateError;
use crate::generate::{GenerateOptions, Generation, Pace, Reading, Stop, check_prompt};
use crate::output::why;
use model::atomic_file;

/// One text that a person and a model write in turns.
pub(super) struct Session<'a, B: KernelBackend> {
    model: &'a CausalLm<B>,
    device: &'a B::Device,
    tokenizer: &'a Tokenizer,
    options: GenerateOptions,
    interrupt: &'a Interrupt,
    text: String,
    reading: Reading<B>,
    /// How many turns the model has had. Each adds one to the seed, so that it draws other random numbers.
    turns: u64,
}

impl<'a, B: KernelBackend> Session<'a, B> {
    pub(super) fn new(
        model: &'a CausalLm<B>,
        device: &'a B::Device,
        tokenizer: &'a Tokenizer,
        options: GenerateOptions,
        interrupt: &'a Interrupt,
    ) -> Self {
        Self {
            model,
            device,
            tokenizer,
            options,
            interrupt,
            text: String::new(),
            reading: Reading::begin(model, device),
            turns: 0,
        }
    }

    /// Obeys a command, and returns what to tell the user: what was done, or why it was not.
    pub(super) fn obey(&mut self, command: ReplCommand) -> Result<String, String> {
        let mut sampling = self.options.sampling;
        let said = match command {
            ReplCommand::Reset => {
                self.text.clear();
                self.reading = Reading::begin(self.model, self.device);
                self.turns = 0;
                "a new text begins".into()
            }
            ReplCommand::Seed(seed) => {
                sampling.seed = seed;
                self.turns = 0;
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
            ReplCommand::Save(path) => {
                let written = atomic_file::write(&path, self.text.as_bytes());
                let path = path.display();
                written.map_err(|error| format!("cannot write {path}: {error}"))?;
                format!("{} bytes of text are in {path}", self.text.len())
            }
            // The caller handles these.
            ReplCommand::Help | ReplCommand::Quit => String::new(),
        };
        sampling.validate().map_err(|error| error.to_string())?;
        self.options.sampling = sampling;
        Ok(said)
    }

    /// Appends a line, and has the model continue the text. `false` if standard output was closed.
    ///
    /// # Errors
    /// Every [`ReplError`] but that of standard input.
    pub(super) fn take_turn(&mut self, line: &str) -> Result<bool, ReplError> {
        let line = match line {
            // The model continues right after the last word.
            "" => String::new(),
            line if self.text.is_empty() || self.text.ends_with('\n') => format!("{line}\n"),
            line => format!("\n{line}\n"),
        };
        let prompt = self.tokenizer.encode(&line).map_err(GenerateError::from)?;
        let whole = [&self.reading.ids[..], &prompt].concat();
        let limit = self.options.max_positions;
        if whole.is_empty() && self.options.end_of_text.is_none() {
            note("there is no text to continue; type how it begins");
            return Ok(true);
        }
        let fits = if whole.is_empty() {
            Ok(())
        } else {
            check_prompt(&whole, limit, self.model.vocab_size())
        };
        if let Err(GenerateError::PromptTooLong { tokens, limit }) = fits {
            note(&format!(
                "with this the text has {tokens} tokens, and the model has positions for {limit}; \
                 /reset begins a new one"
            ));
            return Ok(true);
        }

        let mut options = self.options.clone();
        options.sampling.seed = options.sampling.seed.wrapping_add(self.turns);
        self.turns += 1;
        let reading = std::mem::replace(&mut self.reading, Reading::begin(self.model, self.device));
        let interrupt = self.interrupt;
        // Ctrl-C stops the model's writing; a line is always read to its end.
        let turn = interrupt.during(|| -> Result<_, ReplError> {
            let (model, device) = (self.model, self.device);
            let mut generation = Generation::resume(model, device, reading, &prompt, options)?;
            self.text.push_str(&line);
            let made = self.write(&mut generation)?;
            Ok((generation, made))
        });
        let (generation, made) = turn?;
        let Some(tokens) = made else {
            return Ok(false);
        };
        let pace = Pace {
            tokens,
            time: generation.decode().time,
        };
        let speed = pace.tokens_per_second();
        let hint = match generation.stop() {
            Some(Stop::ContextFull) => "; /reset begins a new text",
            _ => "",
        };
        let why = why(generation.stop());
        note(&format!(
            "{tokens} tokens, {speed:.1} tokens/s; {why}{hint}"
        ));
        self.reading = generation.into_reading();
        Ok(true)
    }

    /// Shows the tokens that the model makes, and counts them. `None` if standard output was closed.
    fn write(&mut self, generation: &mut Generation<'_, B>) -> Result<Option<usize>, ReplError> {
        let mut screen = Screen::new();
        let mut stream = self.tokenizer.stream();
        let mut made = 0;
        let mut show = |screen: &mut Screen, piece: &str| {
            self.text.push_str(piece);
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
        // On the screen only, so that the next prompt begins a line.
        let ended = self.text.ends_with('\n') || screen.text("\n").unwrap_or(false);
        Ok((is_whole && ended).then_some(made))
    }
}
