//! Where a long text is cut before it is encoded.
//!
//! The memory and the time of an encoder grow with the text that it is given at once (by about 140 bytes
//! for each byte of text), so a long text is encoded in pieces. The cuts are where tokens end in any case:
//! before a blank, or where a word or a number ends. GPT-2's pre-tokenizer, which all Phi models use, and
//! its successors never join characters across such a place, and the tokens on one side of it do not
//! depend on the text on the other: no alternative of their patterns continues from a letter or a digit to
//! a blank, nor to a character of another class, and only `\s+(?!\S)` looks beyond its end, and never back.

use std::ops::Range;

/// A longer text is encoded in pieces of about this many bytes.
pub(super) const PIECE_BYTES: usize = 64 * 1024;

/// After a piece, a blank is looked for in this many bytes, and the end of a word or a number is taken
/// instead if there is none. Only a run of more bytes without any of these is cut between two characters
/// where a token might not have ended.
pub(super) const RUN_BYTES: usize = 64 * 1024;

/// The pieces of `text`, each of `piece_bytes` or a little more and never more than [`RUN_BYTES`] longer,
/// unless `inside_token` holds, for a byte index, all along.
pub(super) fn pieces(
    text: &str,
    piece_bytes: usize,
    inside_token: impl Fn(&str, usize) -> bool,
) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let piece = start..first_cut(text, start + piece_bytes.max(1), &inside_token);
        start = piece.end;
        (!piece.is_empty()).then_some(piece)
    })
}

/// The first byte index, at least `from`, at which `text` is to be cut, or its length.
pub(super) fn first_cut(
    text: &str,
    from: usize,
    inside_token: impl Fn(&str, usize) -> bool,
) -> usize {
    let start = text.floor_char_boundary(from.saturating_sub(1));
    let mut before = None;
    let mut end_of_word = None;
    for (i, after) in text[start..].char_indices() {
        let place = start + i;
        if let Some(before) = before.replace(after).filter(|_| place >= from) {
            let blank = before_blank(before, after);
            let good = blank || (end_of_word.is_none() && ends_word(before, after));
            let late = place - from >= RUN_BYTES;
            if (good || late) && !inside_token(text, place) {
                if blank {
                    return place;
                }
                let cut = *end_of_word.get_or_insert(place);
                if late {
                    return cut;
                }
            }
        }
    }
    text.len()
}

/// Whether a blank follows a visible character in such a way that no token holds both. (A line end after
/// a punctuation mark is part of its token in the successors of GPT-2's pattern.)
fn before_blank(before: char, after: char) -> bool {
    !before.is_whitespace() && after.is_whitespace() && (after == ' ' || before.is_alphanumeric())
}

/// Whether a word or a number ends between two visible characters. Only characters of well-known classes
/// count, since Unicode's marks continue words in some tokenizers and end them in others.
fn ends_word(before: char, after: char) -> bool {
    let punctuation = |c: char| {
        c.is_ascii_punctuation()
            || matches!(
                c,
                '\u{3001}'
                    | '\u{3002}'
                    | '\u{ff01}'
                    | '\u{ff0c}'
                    | '\u{ff1a}'
                    | '\u{ff1b}'
                    | '\u{ff1f}'
            )
    };
    let letter = |c: char| {
        c.is_ascii_alphabetic()
            // Hiragana, Katakana, the unified ideographs, Hangul.
            || matches!(c, '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fa}' | '\u{4e00}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}')
    };
    let digit = |c: char| c.is_ascii_digit();
    if digit(before) {
        letter(after) || punctuation(after)
    } else {
        letter(before) && (digit(after) || punctuation(after))
    }
}
