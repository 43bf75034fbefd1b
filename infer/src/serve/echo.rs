//! A prompt as the beginning of a text.

use std::ops::Range;

use datasets::{DataError, Tokenizer};

/// The whole characters of a prompt; one that its last tokens only begin belongs to what is made behind
/// them.
#[derive(Debug)]
pub(super) struct Echo {
    text: String,
    /// Where the text of each token begins, and that of what follows the last.
    starts: Vec<Place>,
}

/// A place in a text.
#[derive(Clone, Copy, Debug)]
struct Place {
    byte: usize,
    character: usize,
}

impl Echo {
    /// Takes time, for a long prompt.
    ///
    /// # Errors
    /// The tokenizer's decoder fails (a byte-level one never does).
    pub(super) fn of(prompt: &[u32], tokenizer: &Tokenizer) -> Result<Self, DataError> {
        let mut stream = tokenizer.stream();
        let mut text = String::new();
        let mut starts = Vec::with_capacity(prompt.len() + 1);
        let mut place = Place {
            byte: 0,
            character: 0,
        };
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

    /// The text of some of the prompt's tokens.
    pub(super) fn text(&self, tokens: Range<usize>) -> &str {
        &self.text[self.starts[tokens.start].byte..self.starts[tokens.end].byte]
    }

    /// All of it.
    pub(super) fn whole(&self) -> &str {
        &self.text
    }

    /// How many characters come before a token, or behind the last before what is made.
    pub(super) fn characters_before(&self, token: usize) -> usize {
        self.starts[token].character
    }

    /// How many there are.
    pub(super) fn characters(&self) -> usize {
        self.starts.last().map_or(0, |end| end.character)
    }
}
