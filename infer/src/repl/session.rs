//! A session that is one text, and the model's state after it.

use std::path::Path;

use kernels::KernelBackend;

use super::command::ReplCommand;
use super::screen::note;
use super::speaker::Speaker;
use super::{ReplError, Session};
use crate::error::GenerateError;
use crate::generate::{Reading, check_prompt};
use model::atomic_file;

/// One text that a person and a model write in turns.
pub(super) struct TextSession<'a, B: KernelBackend> {
    speaker: Speaker<'a, B>,
    text: String,
    reading: Reading<B>,
}

impl<'a, B: KernelBackend> TextSession<'a, B> {
    pub(super) fn new(speaker: Speaker<'a, B>) -> Self {
        Self {
            reading: speaker.nothing_read(),
            text: String::new(),
            speaker,
        }
    }
}

impl<B: KernelBackend> Session for TextSession<'_, B> {
    fn obey(&mut self, command: ReplCommand) -> Result<String, String> {
        if let Some(said) = self.speaker.set(&command) {
            return said;
        }
        match command {
            ReplCommand::Reset => {
                self.text.clear();
                self.reading = self.speaker.nothing_read();
                self.speaker.turns = 0;
                Ok("a new text begins".into())
            }
            ReplCommand::Save(path) => save(&path, &self.text),
            ReplCommand::System(_) => Err("/system is for chats, which --chat begins".into()),
            other => Err(format!("{other:?} cannot be obeyed here")),
        }
    }

    fn take_turn(&mut self, line: &str) -> Result<bool, ReplError> {
        let line = match line {
            // The model continues right after the last word.
            "" => String::new(),
            line if self.text.is_empty() || self.text.ends_with('\n') => format!("{line}\n"),
            line => format!("\n{line}\n"),
        };
        let speaker = &mut self.speaker;
        let prompt = if self.reading.ids.is_empty() {
            speaker.tokenizer.encode_prompt(&line)
        } else {
            speaker.tokenizer.encode(&line)
        };
        let prompt = prompt.map_err(GenerateError::from)?;
        let whole = [&self.reading.ids[..], &prompt].concat();
        let limit = speaker.options.max_positions;
        if whole.is_empty() && speaker.options.end_of_text.is_none() {
            note("there is no text to continue; type how it begins");
            return Ok(true);
        }
        let fits = if whole.is_empty() {
            Ok(())
        } else {
            check_prompt(&whole, limit, speaker.model.vocab_size())
        };
        if let Err(GenerateError::PromptTooLong { tokens, limit }) = fits {
            note(&format!(
                "with this the text has {tokens} tokens, and the model has positions for {limit}; \
                 /reset begins a new one"
            ));
            return Ok(true);
        }

        self.text.push_str(&line);
        let reading = std::mem::replace(&mut self.reading, speaker.nothing_read());
        let begins_line = self.text.ends_with('\n');
        let Some(turn) = speaker.turn(reading, &prompt, begins_line, |_| ())? else {
            return Ok(false);
        };
        self.text.push_str(&turn.text);
        self.reading = turn.reading;
        note(&turn.report);
        Ok(true)
    }
}

/// Writes a text to a file, and returns what to tell the user.
pub(super) fn save(path: &Path, text: &str) -> Result<String, String> {
    let written = atomic_file::write(path, text.as_bytes());
    let path = path.display();
    written.map_err(|error| format!("cannot write {path}: {error}"))?;
    Ok(format!("{} bytes of text are in {path}", text.len()))
}
