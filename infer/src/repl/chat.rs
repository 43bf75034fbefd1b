//! A session that is a conversation, written as one text by the model's chat template.
//!
//! After each turn the template writes the whole conversation again, and the tokens mostly begin with those of the turn
//! before. A model's state cannot go back to an earlier token, so copies of it are kept: after the question and after
//! the answer of the last turns. The model continues from the longest copy whose tokens the new text begins with. If a
//! template changes what it has written before, for example if it leaves out earlier thoughts, the changed part is read
//! again; the answer is never wrong.

use std::collections::VecDeque;

use kernels::KernelBackend;

use super::command::ReplCommand;
use super::screen::note;
use super::session::save;
use super::speaker::Speaker;
use super::{ReplError, Session};
use crate::chat::{ChatTemplate, Message, TemplateError};
use crate::error::GenerateError;
use crate::generate::{Reading, check_prompt};

/// How many copies of states are kept: those of two turns. A state with attention grows with the conversation.
const KEPT: usize = 4;

/// A conversation of a person and a model.
pub(super) struct ChatSession<'a, B: KernelBackend> {
    speaker: Speaker<'a, B>,
    template: &'a ChatTemplate,
    system: Option<Message>,
    turns: Vec<Message>,
    /// The states after the last questions and answers, the newest last.
    kept: VecDeque<Reading<B>>,
}

impl<'a, B: KernelBackend> ChatSession<'a, B> {
    pub(super) fn new(speaker: Speaker<'a, B>, template: &'a ChatTemplate) -> Self {
        Self {
            speaker,
            template,
            system: None,
            turns: Vec::new(),
            kept: VecDeque::new(),
        }
    }

    /// The conversation, as the template writes it.
    fn written(&self, add_generation_prompt: bool) -> Result<String, TemplateError> {
        let messages: Vec<Message> = self.system.iter().chain(&self.turns).cloned().collect();
        if messages.is_empty() {
            return Ok(String::new());
        }
        self.template.render(&messages, add_generation_prompt)
    }

    /// Keeps a copy, and drops the oldest one.
    fn keep(&mut self, reading: Reading<B>) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(reading);
    }

    /// The kept copy with the longest beginning of `ids`, or an empty one.
    fn recall(&self, ids: &[u32]) -> Reading<B> {
        let read = |reading: &Reading<B>| reading.state.position;
        let fits = |reading: &&Reading<B>| {
            let n = read(reading);
            let is_beginning = ids.get(..n) == Some(&reading.ids[..n]);
            is_beginning && (n < ids.len() || (n == reading.ids.len() && reading.logits.is_some()))
        };
        let longest = self.kept.iter().filter(fits).max_by_key(|kept| read(kept));
        match longest {
            Some(reading) if read(reading) < ids.len() => Reading {
                ids: ids[..read(reading)].to_vec(),
                state: reading.state.clone(),
                logits: None,
            },
            Some(reading) => reading.clone(),
            None => self.speaker.nothing_read(),
        }
    }
}

impl<B: KernelBackend> Session for ChatSession<'_, B> {
    fn obey(&mut self, command: ReplCommand) -> Result<String, String> {
        if let Some(said) = self.speaker.set(&command) {
            return said;
        }
        match command {
            ReplCommand::Reset => {
                self.turns.clear();
                self.kept.clear();
                self.speaker.turns = 0;
                Ok("a new conversation begins".into())
            }
            ReplCommand::System(text) if text.is_empty() => {
                self.system = None;
                Ok("there is no system message".into())
            }
            ReplCommand::System(text) => {
                let said = format!("system {text}");
                self.system = Some(Message::new("system", text));
                Ok(said)
            }
            ReplCommand::Save(path) => {
                let text = self.written(false).map_err(|error| error.to_string())?;
                save(&path, &text)
            }
            other => Err(format!("{other:?} cannot be obeyed here")),
        }
    }

    fn take_turn(&mut self, line: &str) -> Result<bool, ReplError> {
        if line.is_empty() {
            note("type a message; /help lists the commands");
            return Ok(true);
        }
        self.turns.push(Message::new("user", line));
        let text = match self.written(true) {
            Ok(text) => text,
            Err(error) => {
                self.turns.pop();
                note(&error.to_string());
                return Ok(true);
            }
        };
        let ids = self.speaker.tokenizer.encode_chat(&text);
        let ids = ids.map_err(GenerateError::from)?;
        let limit = self.speaker.options.max_positions;
        let fits = check_prompt(&ids, limit, self.speaker.model.vocab_size());
        let refused = match fits {
            Ok(()) => None,
            Err(GenerateError::PromptTooLong { tokens, limit }) => Some(format!(
                "with this the conversation has {tokens} tokens, and the model has positions for {limit}; \
                 /reset begins a new one"
            )),
            Err(GenerateError::EmptyPrompt) => {
                Some("the model's chat template makes no text of this".to_owned())
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(refused) = refused {
            self.turns.pop();
            note(&refused);
            return Ok(true);
        }

        let reading = self.recall(&ids);
        let known = reading.ids.len();
        let mut asked = None;
        let turn = self
            .speaker
            .turn(reading, &ids[known..], false, |generation| {
                asked = Some(generation.reading());
            });
        let Some(turn) = turn? else {
            return Ok(false);
        };
        if let Some(asked) = asked {
            self.keep(asked);
        }
        self.keep(turn.reading);
        self.turns.push(Message::new("assistant", turn.text));
        let read = ids.len() - known;
        note(&format!(
            "{}; {read} of {} tokens of the conversation were new",
            turn.report,
            ids.len()
        ));
        Ok(true)
    }
}
