//! The bytes that each token stands for.

use std::collections::HashSet;

use tokenizers::DecoderWrapper;

use super::Tokenizer;
use crate::panics::caught;

/// How a vocabulary writes the bytes of its tokens.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// One character for each byte, as in GPT-2.
    ByteLevel,
    /// As text, and single bytes as `<0x0A>`, as in Llama 2.
    ByteFallback,
    /// As text, which the tokenizer's decoder makes.
    Text,
}

impl Spelling {
    pub(super) fn of(decoder: Option<&DecoderWrapper>) -> Self {
        match decoder {
            Some(DecoderWrapper::ByteLevel(_)) => Self::ByteLevel,
            Some(DecoderWrapper::ByteFallback(_)) => Self::ByteFallback,
            Some(DecoderWrapper::Sequence(all)) => {
                let mut rest = all.get_decoders().iter();
                let plain = |decoder: &DecoderWrapper| {
                    matches!(
                        decoder,
                        DecoderWrapper::ByteLevel(_) | DecoderWrapper::Fuse(_)
                    )
                };
                let of = |decoder| Self::of(Some(decoder));
                if rest.clone().all(plain) && rest.clone().any(|one| of(one) == Self::ByteLevel) {
                    Self::ByteLevel
                } else if rest.any(|one| of(one) == Self::ByteFallback) {
                    Self::ByteFallback
                } else {
                    Self::Text
                }
            }
            _ => Self::Text,
        }
    }
}

impl Tokenizer {
    /// The bytes of the token with this id inside a text, which need not be whole characters; `None` if no
    /// token has the id.
    ///
    /// A blank at the beginning of the token is among them, which a decoder may drop at the beginning of a
    /// whole text.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let mut words = self.words().iter().copied();
        self.bytes_after(words.find(|&word| word != id), id)
    }

    /// Whether a token with a smaller id has the same [bytes](Self::token_bytes), so that they do not
    /// identify this one. The first call goes through the whole vocabulary.
    pub fn repeats_bytes(&self, id: u32) -> bool {
        let repeated = self.repeated.get_or_init(|| {
            let mut seen = HashSet::new();
            let repeated = self.ids().into_iter().filter(|&id| {
                self.token_bytes(id)
                    .is_some_and(|bytes| !seen.insert(bytes))
            });
            repeated.collect()
        });
        repeated.contains(&id)
    }

    /// The bytes that `id` adds to a text that ends with the token `last`, or is empty; `None` if no token
    /// has the id.
    pub(super) fn bytes_after(&self, last: Option<u32>, id: u32) -> Option<Vec<u8>> {
        let token = self.inner.id_to_token(id)?;
        if self.spelling == Spelling::ByteLevel {
            let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
            // Added tokens may be written as they are.
            return Some(bytes.unwrap_or_else(|| token.into_bytes()));
        }
        if self.spelling == Spelling::ByteFallback
            && let Some(byte) = fallback_byte(&token)
            // At the beginning of a text a decoder may drop a blank.
            && (last.is_some() || !byte.is_ascii())
        {
            return Some(vec![byte]);
        }
        // The decoder is given the last token too, since the first token of a text is not written like
        // the others.
        let text = match last {
            None => self.text_of(&[id]),
            Some(last) => {
                let before = self.text_of(&[last]).unwrap_or_default();
                let both = self.text_of(&[last, id]);
                let added = both.and_then(|both| both.strip_prefix(&*before).map(str::to_owned));
                added.or_else(|| self.text_of(&[id]))
            }
        };
        Some(text.unwrap_or_else(|| "\u{fffd}".into()).into_bytes())
    }

    /// The text that the decoder gives for `ids`, if it does not fail.
    fn text_of(&self, ids: &[u32]) -> Option<String> {
        caught(|| self.inner.decode(ids, false)).ok()?.ok()
    }

    /// Up to two tokens that are words, after which others are looked at.
    fn words(&self) -> &[u32] {
        self.words.get_or_init(|| {
            let word = |&id: &u32| {
                let text = self.text_of(&[id]).unwrap_or_default();
                !text.is_empty() && text.chars().all(char::is_alphabetic)
            };
            if self.spelling == Spelling::ByteLevel {
                return Vec::new();
            }
            self.ids().into_iter().filter(word).take(2).collect()
        })
    }

    /// All ids of the vocabulary, in order.
    fn ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.inner.get_vocab(true).into_values().collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// The byte that a token of the form `<0x0A>` stands for.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 || digits.starts_with('+') {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// The byte for which a character of a byte-level vocabulary stands (GPT-2's `bytes_to_unicode`).
/// Bytes that are visible characters in Latin-1 are written as these characters, the others, in their
/// order, as the characters from U+0100 on.
fn byte_of(character: char) -> Option<u8> {
    let visible = |byte: &u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    match u8::try_from(character) {
        Ok(byte) => Some(byte).filter(visible),
        Err(_) => {
            // The others are 0 to 32, 127 to 160 and 173.
            match u8::try_from((character as u32).checked_sub(0x100)?).ok()? {
                index @ 0..=32 => Some(index),
                index @ 33..=66 => Some(index - 33 + 127),
                67 => Some(173),
                _ => None,
            }
        }
    }
}
