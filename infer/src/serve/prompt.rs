//! The prompts of a request: they are read with limited memory, and turned into token ids.

use std::fmt;
use std::sync::Arc;

use datasets::{DataError, Tokenizer};
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Unexpected, Visitor};

use super::error::ApiError;

/// The most prompts of any server. A body with more is refused before the rest of it is read.
const MOST: usize = 1 << 16;

const FORMS: &str =
    "a string, a list of strings, a list of token ids, or a list of lists of token ids";

/// The prompts of a request, in any of OpenAI's forms.
#[derive(Debug, PartialEq)]
pub(super) enum Prompts {
    /// Texts.
    Texts(Vec<String>),
    /// Lists of token ids.
    Ids(Vec<Vec<u32>>),
    /// A conversation, as the chat template writes it.
    Chat(String),
}

impl Prompts {
    /// The number of prompts.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.len(),
            Self::Ids(lists) => lists.len(),
            Self::Chat(_) => 1,
        }
    }

    /// The number of bytes of text to encode.
    pub(super) fn text_bytes(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.iter().map(String::len).sum(),
            Self::Ids(_) => 0,
            Self::Chat(text) => text.len(),
        }
    }

    /// The bytes of the longest text.
    pub(super) fn longest_text(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.iter().map(String::len).max().unwrap_or(0),
            Self::Ids(_) => 0,
            Self::Chat(text) => text.len(),
        }
    }

    /// The number of ids before each prompt that are not part of its text.
    pub(super) fn begin(&self, tokenizer: &Tokenizer) -> usize {
        match self {
            Self::Texts(_) => tokenizer.begin().len(),
            // The client chooses ids itself, and a chat template writes its own begin-of-text.
            Self::Ids(_) | Self::Chat(_) => 0,
        }
    }

    /// The token ids of each prompt, or an error if `stopped` returns true first. A text begins with the tokens that
    /// the tokenizer puts before prompts.
    ///
    /// # Errors
    /// A text cannot be encoded, or `stopped` returned `true`.
    pub(super) fn encode(
        self,
        tokenizer: &Tokenizer,
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<Vec<Arc<[u32]>>, ApiError> {
        let encoded = match self {
            Self::Ids(lists) => Ok(lists),
            Self::Texts(texts) => tokenizer.encode_prompts_until(&texts, stopped),
            Self::Chat(text) => tokenizer
                .encode_chat_until(&text, stopped)
                .map(|ids| vec![ids]),
        };
        let mut prompts = encoded.map_err(|error| match error {
            DataError::Stopped => ApiError::no_time(),
            error => ApiError::invalid_field("prompt", error.to_string()),
        })?;
        // An empty prompt becomes an end-of-text, because in training it precedes documents.
        for prompt in prompts.iter_mut().filter(|prompt| prompt.is_empty()) {
            prompt.extend(tokenizer.end_of_text());
        }
        Ok(prompts.into_iter().map(Arc::from).collect())
    }
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PromptsVisitor)
    }
}

struct PromptsVisitor;

impl<'de> Visitor<'de> for PromptsVisitor {
    type Value = Prompts;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "prompt as {FORMS}")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Prompts, E> {
        self.visit_string(text.to_owned())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Prompts, E> {
        Ok(Prompts::Texts(vec![text]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompts, A::Error> {
        Ok(match seq.next_element()? {
            None => Prompts::Texts(Vec::new()),
            Some(Element::Text(first)) => Prompts::Texts(rest(first, seq, MOST)?),
            Some(Element::Ids(first)) => Prompts::Ids(rest(first, seq, MOST)?),
            // A single prompt cannot have more ids than its body has bytes, so it needs no other limit.
            Some(Element::Id(first)) => Prompts::Ids(vec![rest(first, seq, usize::MAX)?]),
        })
    }
}

/// The elements of a list after `first`, which must have its type; at most `most` together with it.
fn rest<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(
    first: T,
    mut seq: A,
    most: usize,
) -> Result<Vec<T>, A::Error> {
    let mut all = vec![first];
    loop {
        match seq.next_element() {
            Ok(None) => return Ok(all),
            Ok(Some(_)) if all.len() == most => {
                return Err(A::Error::custom(format!("more than {most} prompts")));
            }
            Ok(Some(next)) => all.push(next),
            Err(error) => return Err(no_prompt(&error)),
        }
    }
}

/// The error for an element that a list cannot contain.
fn no_prompt<E: Error>(error: &E) -> E {
    E::custom(format!("prompt must be {FORMS}: {error}"))
}

/// The first element of a list of prompts, or of a prompt's list of ids.
enum Element {
    Text(String),
    Id(u32),
    Ids(Vec<u32>),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ElementVisitor)
    }
}

struct ElementVisitor;

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Element;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "prompt as {FORMS}")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Element, E> {
        Ok(Element::Text(text.to_owned()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Element, E> {
        Ok(Element::Text(text))
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<Element, E> {
        let small = u32::try_from(id);
        small
            .map(Element::Id)
            .map_err(|_| E::invalid_value(Unexpected::Unsigned(id), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Element, A::Error> {
        let first = seq.next_element().map_err(|error| no_prompt(&error))?;
        Ok(Element::Ids(match first {
            None => Vec::new(),
            Some(first) => rest(first, seq, usize::MAX)?,
        }))
    }
}
