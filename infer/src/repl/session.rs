//! The text of a session, and how far the model has come with it.

use std::io;

use datasets::Tokenizer;
use kernels::KernelBackend;
use model::CausalLm;

use super::command::Command;
use super::interrupt::Interrupt;
use super::screen::{Screen, note};
use crate::cli::{CliError, why};
use crate::generate::check_prompt;
use crate::{GenerateError, GenerateOptions, Generation, Pace, Reading, atomic_file};

/// One text, by two authors.
pub(super) struct Session<'a, B: KernelBackend> {
    model: &'a CausalLm<B>,
    device: &'a B::Device,
    tokenizer: &'a Tokenizer,
    options: GenerateOptions,
    interrupt: &'a Interrupt,
    text: String,
    reading: Reading<B>,
    /// How often the model has had its turn: each draws other random numbers.
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

    /// Does what a command says, and says so; or says why not.
    pub(super) fn obey(&mut self, command: Command) -> Result<String, String> {
        let mut sampling = self.options.sampling;
        let said = match command {
            Command::Reset => {
                self.text.clear();
                self.reading = Reading::begin(self.model, self.device);
                self.turns = 0;
                "a new text begins".into()
            }
            Command::Seed(seed) => {
                sampling.seed = seed;
                self.turns = 0;
                format!("seed {seed}")
            }
            Command::Temperature(temperature) => {
                sampling.temperature = temperature;
                format!("temperature {temperature}")
            }
            Command::TopP(top_p) => {
                sampling.top_p = top_p;
                format!("top-p {top_p}")
            }
            Command::Save(path) => {
                let written = atomic_file::write(&path, self.text.as_bytes());
                let path = path.display();
                written.map_err(|error| format!("cannot write {path}: {error}"))?;
                format!("{} bytes of text are in {path}", self.text.len())
            }
            // These are not the session's.
            Command::Help | Command::Quit => String::new(),
        };
        sampling.validate().map_err(|error| error.to_string())?;
        self.options.sampling = sampling;
        Ok(said)
    }

    /// Appends a line, and lets the model go on. Whether anybody is left to read more.
    pub(super) fn take_turn(&mut self, line: &str) -> Result<bool, CliError> {
        let line = match line {
            // To go on right behind the last word.
            "" => String::new(),
            line if self.text.is_empty() || self.text.ends_with('\n') => format!("{line}\n"),
            line => format!("\n{line}\n"),
        };
        let prompt = self.tokenizer.encode(&line)?;
        let whole = [&self.reading.ids[..], &prompt].concat();
        let limit = self.options.max_positions;
        if whole.is_empty() && self.options.end_of_text.is_none() {
            note("there is nothing to go on from; type how the text begins");
            return Ok(true);
        }
        let fits = match whole.is_empty() {
            true => Ok(()),
            false => check_prompt(&whole, limit, self.model.vocab_size()),
        };
        if let Err(GenerateError::PromptTooLong { tokens, limit }) = fits {
            note(&format!(
                "with this the text has {tokens} tokens, and the model has positions for {limit}; \
                 /reset begins a new one"
            ));
            return Ok(true);
        }

        let mut options = self.options;
        options.sampling.seed = options.sampling.seed.wrapping_add(self.turns);
        self.turns += 1;
        let reading = std::mem::replace(&mut self.reading, Reading::begin(self.model, self.device));
        let interrupt = self.interrupt;
        // A line is read to its end even if it is asked to stop meanwhile.
        let turn = interrupt.during(|| -> Result<_, CliError> {
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
            Some(crate::Stop::ContextFull) => "; /reset begins a new text",
            _ => "",
        };
        let why = why(generation.stop());
        note(&format!(
            "{tokens} tokens, {speed:.1} tokens/s; {why}{hint}"
        ));
        self.reading = generation.into_reading();
        Ok(true)
    }

    /// Shows what the model makes, and counts it; `None` if nobody is there to read it.
    fn write(&mut self, generation: &mut Generation<'_, B>) -> Result<Option<usize>, CliError> {
        let mut screen = Screen::new();
        let mut stream = self.tokenizer.stream();
        let mut made = 0;
        let mut show = |screen: &mut Screen, piece: &str| {
            self.text.push_str(piece);
            match screen.text(piece) {
                Ok(()) => Ok(true),
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
                Err(error) => Err(CliError::Stdout(error)),
            }
        };
        while !self.interrupt.asked()
            && let Some(token) = generation.next()
        {
            made += 1;
            if let Some(piece) = stream.push(token?)?
                && !show(&mut screen, &piece)?
            {
                return Ok(None);
            }
            let time = generation.decode().time;
            screen.speed(Pace { tokens: made, time }.tokens_per_second());
        }
        let is_whole = show(&mut screen, &stream.finish()?)?;
        // What is on the screen only, so that the prompt does not follow the last word.
        let ended = self.text.ends_with('\n') || screen.text("\n").is_ok();
        Ok((is_whole && ended).then_some(made))
    }
}
