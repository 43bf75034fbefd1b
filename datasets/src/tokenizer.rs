//! Text to token ids and back.

use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};
use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
};

use crate::error::{DataError, Result, cannot};

#[cfg(test)]
pub(crate) mod fixtures;

/// The token that ends every document, and at which generation stops.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// A longer text is encoded in parallel, in pieces of about this many bytes.
const PIECE_BYTES: usize = 64 * 1024;

/// A tokenizer from a `tokenizer.json` in the format of Hugging Face's `tokenizers`.
///
/// The names of special tokens have no meaning in a text: `<|endoftext|>` in a document or a prompt
/// is encoded letter by letter, so that the id [`end_of_text`](Self::end_of_text) is always the end
/// of a document. No begin-of-text is added, and nothing is truncated or padded, even if the file
/// says so.
///
/// ```
/// # fn main() -> datasets::Result<()> {
/// let tokenizer = datasets::Tokenizer::from_folder("../assets/phi-tiny")?;
/// let ids = tokenizer.encode("It was the best of times")?;
/// assert_eq!(ids, [1931, 355, 260, 1283, 269, 1754]);
/// assert_eq!(tokenizer.decode(&ids)?, "It was the best of times");
/// # Ok(())
/// # }
/// ```
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
    /// [`DataError::Io`] if the file cannot be read, [`DataError::Tokenizer`] if it is not a
    /// tokenizer or if its vocabulary is empty or too large for ids of type `i32`.
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
        // Windows and batches hold ids as i32.
        if vocab_size == 0 || vocab_size > i32::MAX as usize {
            return Err(failed(format!("a vocabulary of {vocab_size} entries")));
        }
        Ok(Self {
            path: path.into(),
            hash: format!("{:x}", Sha256::digest(&bytes)),
            vocab_size,
            // From the vocabulary: CodeGen's file does not register it as a special token.
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
    /// [`DataError::Tokenizer`] if the tokenizer has no id for a part of the text, which cannot
    /// happen with a byte-level one.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encode_batch(&[text])?.concat())
    }

    /// The ids of several texts, computed on all cores; for each text those of
    /// [`encode`](Self::encode).
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub fn encode_batch<T: AsRef<str> + Sync>(&self, texts: &[T]) -> Result<Vec<Vec<u32>>> {
        self.encode_batch_until(texts, &|| false)
    }

    /// The ids of several texts, as [`encode_batch`](Self::encode_batch), unless `stopped` says so first.
    ///
    /// `stopped` is asked before each piece of a text, on any thread; a piece takes a fraction of a
    /// second.
    ///
    /// # Errors
    ///
    /// [`DataError::Stopped`] if `stopped` returned `true`; otherwise as [`encode`](Self::encode).
    pub fn encode_batch_until<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<Vec<Vec<u32>>> {
        // A long document in one piece would keep a single core busy, and needs many times its size
        // in memory while it is encoded; so the cores share the pieces of all texts.
        let piece_bytes = if self.splits_at_blanks {
            PIECE_BYTES
        } else {
            usize::MAX
        };
        let pieces: Vec<(usize, &str)> = texts
            .iter()
            .enumerate()
            .flat_map(|(i, text)| pieces(text.as_ref(), piece_bytes).map(move |piece| (i, piece)))
            .collect();
        let encoded: Vec<Vec<u32>> = pieces
            .par_iter()
            .map(|(_, piece)| {
                if stopped() {
                    Err(DataError::Stopped)
                } else {
                    self.encode_piece(piece)
                }
            })
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

    /// The text of some ids, with end-of-text spelt out like any other token.
    ///
    /// Bytes that are not UTF-8 (an id can be a part of a character) become U+FFFD. Ids outside the
    /// vocabulary are ignored.
    ///
    /// # Errors
    ///
    /// [`DataError::Tokenizer`] if the tokenizer's decoder fails; a byte-level one never does.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, false).map_err(|e| self.failed(e))
    }

    /// The bytes of the token with this id, which need not be whole characters; `None` if no token
    /// has the id.
    ///
    /// For a tokenizer that is not byte-level, the bytes of the text of this single id.
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

    /// A decoder for ids that follow the ids `before`.
    ///
    /// It begins with the bytes of the incomplete character, if any, at the end of `before`. So a
    /// stream of `before` that is not [finished](TokenStream::finish) and this stream give the whole
    /// text together. If the tokenizer is not byte-level, the stream begins without them, like
    /// [`stream`](Self::stream).
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

    /// The id of [`END_OF_TEXT`]; `None` if the vocabulary lacks it. No text is encoded to this id.
    pub fn end_of_text(&self) -> Option<u32> {
        self.end_of_text
    }

    /// The largest id plus one.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The SHA-256 of the file, in hexadecimal digits.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The path of the file, as it was given.
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

/// The byte for which a character of a byte-level vocabulary stands (GPT-2's `bytes_to_unicode`).
/// Bytes that are visible characters in Latin-1 are written as these characters, the others, in their
/// order, as the characters from U+0100 on.
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

/// Whether a text may be cut between a visible character and the white space after it: no token
/// reaches across such a place, and the tokens on one side do not depend on the text on the other.
///
/// This holds for GPT-2's pre-tokenizer, which all Phi models use. No alternative of its pattern
/// continues from a visible character to a blank, and only `\s+(?!\S)` looks beyond its end, and
/// never back. It does not hold in general if there are added tokens with blanks inside, which are
/// matched before that pattern, or a normalizer, which may change any character.
fn splits_at_blanks(tokenizer: &tokenizers::Tokenizer) -> bool {
    let pre_tokenizer = tokenizer.get_pre_tokenizer();
    let gpt2 = matches!(pre_tokenizer, Some(PreTokenizerWrapper::ByteLevel(level))
        if level.use_regex && !level.add_prefix_space);
    gpt2 && tokenizer.get_normalizer().is_none()
        && tokenizer.get_added_tokens_decoder().values().all(|token| {
            let plain = !(token.lstrip || token.rstrip || token.single_word);
            plain && first_cut(&token.content, 1) == token.content.len()
        })
}

/// `text` in pieces of `piece_bytes` or a little more, each cut where white space begins.
fn pieces(text: &str, piece_bytes: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (piece, after) = rest.split_at(first_cut(rest, piece_bytes));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

/// The first byte index, at least `from`, at which white space follows a visible character, or the
/// length of `text`.
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

/// Decodes ids one by one into whole characters.
///
/// A character can consist of several ids (an emoji of up to four); its text is returned with the last
/// of them. The texts of all calls of `push` and of `finish` together are equal to
/// [`Tokenizer::decode`] of all ids.
///
/// ```
/// # fn main() -> datasets::Result<()> {
/// let tokenizer = datasets::Tokenizer::from_folder("../assets/phi-tiny")?;
/// let mut stream = tokenizer.stream();
/// let mut text = String::new();
/// for id in tokenizer.encode("a crab: 🦀")? {
///     text.extend(stream.push(id)?);
/// }
/// text += &stream.finish()?;
/// assert_eq!(text, "a crab: 🦀");
/// # Ok(())
/// # }
/// ```
pub struct TokenStream<'t> {
    tokenizer: &'t Tokenizer,
    decoding: Decoding<'t>,
}

/// The part of the input whose text was not returned yet.
enum Decoding<'t> {
    /// For a byte-level tokenizer: the first bytes of an incomplete character. The time for an id
    /// depends on the bytes of that id alone.
    Bytes(Vec<u8>),
    /// For other tokenizers, where the text of an id may depend on its neighbours: all ids since the
    /// last text.
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
    /// Takes one id. Returns the text that this id completes, if any.
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

    /// The rest of the text: empty unless the ids ended inside a character.
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

/// The most bytes that an incomplete character of UTF-8 can have.
const BEGINNING: usize = 3;

/// Takes all of `bytes`, except an incomplete character at their end. Bytes that cannot begin a
/// character of UTF-8 are taken too.
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
