//! Text to token ids and back.

use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};
use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
};

use crate::error::cannot;
use crate::{DataError, Result};

/// The token that ends every document, and generation.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// A text longer than this is encoded in pieces of about this many bytes, in parallel.
const PIECE_BYTES: usize = 64 * 1024;

/// A `tokenizer.json` in the format of Hugging Face's `tokenizers`.
///
/// Text is only text to it: special tokens written out in a document or a prompt are encoded letter
/// by letter like anything else, so that [`end_of_text`](Self::end_of_text) in a stream of ids always
/// is the end of a document. Nothing is added (no begin-of-text) and nothing truncated or padded,
/// whatever the file asks for.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    hash: String,
    vocab_size: usize,
    end_of_text: Option<u32>,
    splits_at_blanks: bool,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// The file cannot be read or is no tokenizer.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let failed = |reason: String| DataError::Tokenizer {
            path: path.into(),
            reason,
        };
        let bytes = fs::read(path).map_err(cannot("read", path))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|error| failed(format!("not a tokenizer.json: {error}")))?;
        inner
            .with_padding(None)
            .with_truncation(None)
            .map_err(|error| failed(error.to_string()))?;
        inner.set_encode_special_tokens(true);

        let largest_id = inner.get_vocab(true).into_values().max();
        let vocab_size = largest_id.map_or(0, |id| id as usize + 1);
        // Ids leave this crate as i32.
        if vocab_size == 0 || vocab_size > i32::MAX as usize {
            return Err(failed(format!("a vocabulary of {vocab_size} entries")));
        }
        Ok(Self {
            path: path.into(),
            hash: format!("{:x}", Sha256::digest(&bytes)),
            vocab_size,
            // Through the vocabulary: CodeGen's file does not register it as a special token.
            end_of_text: inner.token_to_id(END_OF_TEXT),
            splits_at_blanks: splits_at_blanks(&inner),
            inner,
        })
    }

    /// Reads the `tokenizer.json` of a model folder.
    ///
    /// # Errors
    ///
    /// As [`from_file`](Self::from_file).
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self> {
        Self::from_file(folder.as_ref().join("tokenizer.json"))
    }

    /// The ids of a text.
    ///
    /// # Errors
    ///
    /// The tokenizer has no id for a part of the text (byte-level ones always have).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encode_batch(&[text])?.concat())
    }

    /// The ids of some texts, on every core; each as [`encode`](Self::encode) gives them.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub fn encode_batch<T: AsRef<str>>(&self, texts: &[T]) -> Result<Vec<Vec<u32>>> {
        // One long document would keep one core busy, and takes many times its own size in memory
        // while it is encoded: the pieces of all texts are dealt to the cores together.
        let piece_bytes = match self.splits_at_blanks {
            true => PIECE_BYTES,
            false => usize::MAX,
        };
        let pieces: Vec<(usize, &str)> = texts
            .iter()
            .enumerate()
            .flat_map(|(i, text)| pieces(text.as_ref(), piece_bytes).map(move |piece| (i, piece)))
            .collect();
        let encoded: Vec<Vec<u32>> = pieces
            .par_iter()
            .map(|(_, piece)| self.encode_piece(piece))
            .collect::<Result<_>>()?;
        let mut ids = vec![Vec::new(); texts.len()];
        for ((i, _), piece) in pieces.into_iter().zip(encoded) {
            ids[i].extend(piece);
        }
        Ok(ids)
    }

    fn encode_piece(&self, piece: &str) -> Result<Vec<u32>> {
        match self.inner.encode_fast(piece, false) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// The text of some ids, end-of-text written out like any other token.
    ///
    /// Bytes that are not UTF-8 (an id can be a part of a character) become U+FFFD; ids outside the
    /// vocabulary are nothing.
    ///
    /// # Errors
    ///
    /// The tokenizer's decoder fails (a byte-level one never does).
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, false).map_err(|e| self.failed(e))
    }

    /// The bytes that an id stands for, which need not be whole characters; `None` if no token has
    /// this id.
    ///
    /// Of a tokenizer that is not byte-level, the text of the id on its own.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.inner.id_to_token(id)?;
        match self.inner.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => {
                let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
                // Added tokens may be written as they are.
                Some(bytes.unwrap_or_else(|| token.into_bytes()))
            }
            _ => Some(self.decode(&[id]).unwrap_or(token).into_bytes()),
        }
    }

    /// A decoder for ids that arrive one by one.
    pub fn stream(&self) -> TokenStream<'_> {
        let decoding = match self.inner.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => Decoding::Bytes(Vec::new()),
            _ => Decoding::Ids(Box::new(self.inner.decode_stream(false)), Vec::new()),
        };
        TokenStream {
            tokenizer: self,
            decoding,
        }
    }

    /// [`stream`](Self::stream) for ids that go on from `before`, of which it only knows what these have
    /// of a last character that is not complete: the two streams together give the whole text if the
    /// one of `before` is not [finished](TokenStream::finish).
    ///
    /// Of a tokenizer that is not byte-level, it knows nothing.
    pub fn stream_after(&self, before: &[u32]) -> TokenStream<'_> {
        let mut stream = self.stream();
        if let Decoding::Bytes(pending) = &mut stream.decoding {
            let mut newest = before.iter().rev();
            while pending.len() < BEGINNING
                && let Some(&id) = newest.next()
            {
                let bytes = self.token_bytes(id).unwrap_or_default();
                pending.splice(0..0, bytes);
            }
            take_whole(pending);
        }
        stream
    }

    /// The id of [`END_OF_TEXT`], which no text is encoded to; `None` if the vocabulary lacks it.
    pub fn end_of_text(&self) -> Option<u32> {
        self.end_of_text
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The SHA-256 of the file, in hexadecimal digits.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn failed(&self, error: tokenizers::Error) -> DataError {
        DataError::Tokenizer {
            path: self.path.clone(),
            reason: error.to_string(),
        }
    }
}

/// The byte that a character of a byte-level vocabulary stands for. Bytes that are visible characters
/// in Latin-1 are written as these, the others, in their order, as the characters from U+0100 on.
fn byte_of(character: char) -> Option<u8> {
    let visible = |byte: &u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    match u8::try_from(character) {
        Ok(byte) => Some(byte).filter(visible),
        Err(_) => {
            let index = (character as usize).checked_sub(0x100)?;
            (0..=u8::MAX).filter(|byte| !visible(byte)).nth(index)
        }
    }
}

/// Whether no token can reach across the place between a character that is not white space and one
/// that is, and no token's choice depends on what is beyond it.
///
/// That is so for GPT-2's pre-tokenizer, which all Phi models use: of its pattern's alternatives none
/// goes on from a visible character to a blank, and only `\s+(?!\S)` looks beyond its own end, never
/// back. Added tokens are matched before that pattern and could reach across; a normalizer could do
/// anything.
fn splits_at_blanks(tokenizer: &tokenizers::Tokenizer) -> bool {
    let pre_tokenizer = tokenizer.get_pre_tokenizer();
    let gpt2 = matches!(pre_tokenizer, Some(PreTokenizerWrapper::ByteLevel(it))
        if it.use_regex && !it.add_prefix_space);
    gpt2 && tokenizer.get_normalizer().is_none()
        && tokenizer.get_added_tokens_decoder().values().all(|token| {
            let plain = !(token.lstrip || token.rstrip || token.single_word);
            plain && first_cut(&token.content, 1) == token.content.len()
        })
}

/// `text` in pieces of `piece_bytes` or a little more, cut where blanks begin.
fn pieces(text: &str, piece_bytes: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (piece, after) = rest.split_at(first_cut(rest, piece_bytes));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

/// The first place at or behind `from` where a visible character ends and white space begins, or the
/// end of `text`.
fn first_cut(text: &str, from: usize) -> usize {
    let mut visible = false;
    let start = text.floor_char_boundary(from.saturating_sub(1));
    for (i, character) in text[start..].char_indices() {
        let blank = character.is_whitespace();
        if blank && visible && start + i >= from {
            return start + i;
        }
        visible = !blank;
    }
    text.len()
}

/// Turns ids into text as they arrive, whole characters at a time.
///
/// A character can be spread over several ids (an emoji is up to four); nothing is given out until
/// the last of them is there. All that `push` and `finish` give, put together, is what
/// [`Tokenizer::decode`] makes of all the ids.
pub struct TokenStream<'t> {
    tokenizer: &'t Tokenizer,
    decoding: Decoding<'t>,
}

/// What has been taken and not given out.
enum Decoding<'t> {
    /// Of a byte-level tokenizer: the beginning of a character. An id takes the time of its own bytes,
    /// whatever came before.
    Bytes(Vec<u8>),
    /// Of others, whose ids may read differently together: all since the last text.
    Ids(Box<IdStream<'t>>, Vec<u32>),
}

type IdStream<'t> = tokenizers::tokenizer::DecodeStream<
    't,
    ModelWrapper,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

impl TokenStream<'_> {
    /// Takes one id, and gives the text that is complete with it, if any.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        match &mut self.decoding {
            Decoding::Bytes(pending) => {
                pending.extend(self.tokenizer.token_bytes(id).unwrap_or_default());
                let whole = take_whole(pending);
                Ok((!whole.is_empty()).then(|| String::from_utf8_lossy(&whole).into_owned()))
            }
            Decoding::Ids(stream, pending) => {
                pending.push(id);
                let text = stream
                    .step(id)
                    .map_err(|error| self.tokenizer.failed(error))?;
                if text.is_some() {
                    pending.clear();
                }
                Ok(text)
            }
        }
    }

    /// What is left at the end: nothing, unless the ids broke off inside a character.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::decode`].
    pub fn finish(self) -> Result<String> {
        match self.decoding {
            Decoding::Bytes(pending) => Ok(String::from_utf8_lossy(&pending).into_owned()),
            Decoding::Ids(_, pending) => self.tokenizer.decode(&pending),
        }
    }
}

/// The bytes of a character without its last, at most.
const BEGINNING: usize = 3;

/// Takes all of `bytes` but the beginning of a character at their end. What is no UTF-8 is no beginning.
fn take_whole(bytes: &mut Vec<u8>) -> Vec<u8> {
    let broken = bytes.utf8_chunks().last();
    let broken = broken.map_or(&[][..], |chunk| chunk.invalid());
    let begun = match std::str::from_utf8(broken) {
        Err(error) if error.error_len().is_none() => broken.len(),
        _ => 0,
    };
    let rest = bytes.split_off(bytes.len() - begun);
    std::mem::replace(bytes, rest)
}

#[cfg(test)]
mod tests;
