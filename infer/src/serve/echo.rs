//! A prompt that is sent as the beginning of its text.

use std::ops::Range;

use datasets::{DataError, Tokenizer};

/// The whole characters of a prompt. If the last tokens only begin a character, it belongs to the text that is made
/// after them.
#[derive(Debug)]
pub(super) struct Echo {
    text: String,
    /// The offset of each token's text and, at the end, the offset of the text after the prompt.
    starts: Vec<TextOffset>,
}

/// An offset in a text.
#[derive(Clone, Copy, Debug)]
struct TextOffset {
    byte: usize,
    character: usize,
}

impl Echo {
    /// Decodes a prompt, which takes a while for a long one. Its first `begin` tokens have no text.
    ///
    /// # Errors
    /// The tokenizer's decoder fails (a byte-level one never does).
    pub(super) fn of(
        prompt: &[u32],
        begin: usize,
        tokenizer: &Tokenizer,
    ) -> Result<Self, DataError> {
        let mut stream = tokenizer.stream();
        let mut text = String::new();
        let mut starts = Vec::with_capacity(prompt.len() + 1);
        let mut place = TextOffset {
            byte: 0,
            character: 0,
        };
        let (begin, prompt) = prompt.split_at(begin.min(prompt.len()));
        starts.extend(begin.iter().map(|_| place));
        for &id in prompt {
            starts.push(place);
            if let Some(more) = stream.push(id)? {
                text.push_str(&more);
                place.byte = text.len();
                place.character += more.chars().count();
            }
        }
        starts.push(place);
        Ok(Self { text, starts })
    }

    /// The text of a range of the prompt's tokens.
    pub(super) fn text(&self, tokens: Range<usize>) -> &str {
        &self.text[self.starts[tokens.start].byte..self.starts[tokens.end].byte]
    }

    /// The whole text.
    pub(super) fn whole(&self) -> &str {
        &self.text
    }

    /// The number of characters before a token; for the index after the last token, before the text that is
    /// made.
    pub(super) fn characters_before(&self, token: usize) -> usize {
        self.starts[token].character
    }

    /// The number of characters.
    pub(super) fn characters(&self) -> usize {
        self.starts.last().map_or(0, |end| end.character)
    }
}
