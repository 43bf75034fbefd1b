//! Turns tokens into text that can be sent: only whole characters, and no part of a stop string.

use datasets::{DataError, TokenStream, Tokenizer};

use super::request::{Piece, Token};
use super::score::TokenScore;

/// The text of one sequence while it grows.
///
/// Text that could be the beginning of a stop string is held back until this is decided. Tokens are sent together with
/// the text that they belong to.
pub(super) struct TextBuffer<'t> {
    stream: TokenStream<'t>,
    stops: Vec<String>,
    /// The number of characters decoded so far.
    decoded: usize,
    /// The last of these characters, which were not sent yet.
    held: String,
    tokens: Vec<Token>,
}

impl<'t> TextBuffer<'t> {
    /// The text after the whole characters of `prompt`.
    pub(super) fn new(tokenizer: &'t Tokenizer, prompt: &[u32], stops: Vec<String>) -> Self {
        Self {
            stream: tokenizer.stream_after(prompt),
            stops,
            decoded: 0,
            held: String::new(),
            tokens: Vec::new(),
        }
    }

    /// Takes a token, and returns the text that can be sent now.
    pub(super) fn push(&mut self, id: u32, score: Option<TokenScore>) -> Result<Piece, DataError> {
        self.push_token(id, score, false);
        if let Some(text) = self.stream.push(id)? {
            self.decoded += text.chars().count();
            self.held.push_str(&text);
        }
        let free = self.held.len() - self.held_back();
        Ok(match free {
            0 => Piece::default(),
            free => self.release(free),
        })
    }

    /// Takes the token that ends the text; it has no text itself.
    pub(super) fn push_end(&mut self, id: u32, score: Option<TokenScore>) {
        self.push_token(id, score, true);
    }

    fn push_token(&mut self, id: u32, score: Option<TokenScore>, is_end: bool) {
        self.tokens.push(Token {
            id,
            start: self.decoded,
            score,
            is_end,
        });
    }

    /// Whether the text that is held back begins with a stop string, so that the text has ended.
    pub(super) fn stopped(&self) -> bool {
        self.stops.iter().any(|stop| self.held.starts_with(stop))
    }

    /// The rest of the text, if no stop string has ended it.
    pub(super) fn finish(mut self) -> Result<Piece, DataError> {
        self.held.push_str(&self.stream.finish()?);
        Ok(Piece {
            text: self.held,
            tokens: self.tokens,
        })
    }

    /// The number of last bytes that are held back: from the first stop string on, or the beginning of a stop string at
    /// the very end.
    fn held_back(&self) -> usize {
        let held = &self.held;
        let first = self.stops.iter().filter_map(|stop| held.find(stop)).min();
        if let Some(first) = first {
            return held.len() - first;
        }
        let beginnings = self.stops.iter().map(|stop| {
            let longest = held.len().min(stop.len() - 1);
            let ends = |n: &usize| held.as_bytes().ends_with(&stop.as_bytes()[..*n]);
            (1..=longest).rev().find(ends).unwrap_or(0)
        });
        beginnings.max().unwrap_or(0)
    }

    /// Takes out the first `n` bytes that are held, and the tokens that begin in them.
    fn release(&mut self, n: usize) -> Piece {
        let rest = self.held.split_off(n);
        let text = std::mem::replace(&mut self.held, rest);
        let end = self.decoded - self.held.chars().count();
        let later = self.tokens.iter().position(|token| token.start >= end);
        let later = self.tokens.split_off(later.unwrap_or(self.tokens.len()));
        let tokens = std::mem::replace(&mut self.tokens, later);
        Piece { text, tokens }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn tokenizer() -> Tokenizer {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/phi-tiny");
        Tokenizer::from_folder(folder).unwrap()
    }

    /// The pieces that `text`, token by token, comes out in, and whether a stop string ended it.
    fn pieces(text: &str, stops: &[&str]) -> (Vec<Piece>, bool) {
        let tokenizer = tokenizer();
        let stops = stops.iter().map(|stop| stop.to_string()).collect();
        let mut out = TextBuffer::new(&tokenizer, &[], stops);
        let mut pieces = Vec::new();
        for id in tokenizer.encode(text).unwrap() {
            pieces.push(out.push(id, None).unwrap());
            if out.stopped() {
                return (pieces, true);
            }
        }
        pieces.push(out.finish().unwrap());
        (pieces, false)
    }

    fn text(text: &str, stops: &[&str]) -> (String, bool) {
        let (pieces, stopped) = pieces(text, stops);
        (
            pieces.into_iter().map(|piece| piece.text).collect(),
            stopped,
        )
    }

    const TIMES: &str = "It was the best of times, it was the worst of times 🦀.";

    #[test]
    fn without_stop_strings_all_goes_out_at_once() {
        let (pieces, stopped) = pieces(TIMES, &[]);
        assert!(!stopped);
        let whole: String = pieces.iter().map(|piece| &*piece.text).collect();
        assert_eq!(whole, TIMES);
        assert_eq!(pieces[0].text, "It");
        let ids: Vec<u32> = pieces
            .iter()
            .flat_map(|piece| piece.tokens.iter().map(|token| token.id))
            .collect();
        assert_eq!(ids, tokenizer().encode(TIMES).unwrap());
    }

    #[test]
    fn a_text_ends_before_the_first_stop_string() {
        for (stops, expected) in [
            (&["worst"][..], "It was the best of times, it was the "),
            (
                &["of times 🦀", "worst of"],
                "It was the best of times, it was the ",
            ),
            (
                &["🦀"],
                "It was the best of times, it was the worst of times ",
            ),
            (&["of times.", " best of times"], "It was the"),
            (&["It"], ""),
            // Inside of a token, and over several.
            (&["as the w"], "It was the best of times, it w"),
        ] {
            assert_eq!(text(TIMES, stops), (expected.into(), true), "{stops:?}");
        }
        for stops in [
            &["best of time!"][..],
            &["times 🦀.."],
            &["🦐"],
            &["was the best of the"],
        ] {
            assert_eq!(text(TIMES, stops), (TIMES.into(), false), "{stops:?}");
        }
    }

    #[test]
    fn nothing_of_a_stop_string_goes_out_early() {
        let (pieces, _) = pieces(TIMES, &["of times 🦐"]);
        let mut so_far = String::new();
        for piece in &pieces[..pieces.len() - 1] {
            so_far.push_str(&piece.text);
            for beginning in ["of", "of times", "of times "] {
                assert!(!so_far.ends_with(beginning), "{so_far:?}");
            }
        }
    }

    #[test]
    fn a_character_that_begins_in_the_prompt_is_whole_in_the_text() {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode("a 🦀!").unwrap();
        let last = ids.len() - 2;
        let (prompt, made) = ids.split_at(last);
        let mut out = TextBuffer::new(&tokenizer, prompt, Vec::new());
        let mut text = String::new();
        for &id in made {
            text += &out.push(id, None).unwrap().text;
        }
        assert_eq!(text + &out.finish().unwrap().text, "🦀!");
        // Or as much of it as there is.
        let out = TextBuffer::new(&tokenizer, prompt, Vec::new());
        assert_eq!(out.finish().unwrap().text, "\u{fffd}");
    }

    #[test]
    fn tokens_go_out_with_their_text() {
        let (pieces, _) = pieces(TIMES, &["times 🦀"]);
        let mut so_far = 0;
        for piece in &pieces {
            let end = so_far + piece.text.chars().count();
            for token in &piece.tokens {
                assert!((so_far..end).contains(&token.start));
            }
            so_far = end;
        }
        assert!(so_far > 0);
    }
}
