//! Text to token ids and back.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rayon::prelude::*;
use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};
use tokenizers::{AddedToken, ModelWrapper, PreTokenizerWrapper};

use crate::error::{DataError, Result, cannot};
use crate::panics::caught;

mod beginning;
#[cfg(test)]
pub(crate) mod fixtures;
mod longest;
mod pieces;
mod spelling;
mod stream;

use beginning::before_a_text;
use pieces::{PIECE_BYTES, first_cut, pieces};
use spelling::Spelling;
pub use stream::TokenStream;

/// The token that ends every document, and at which generation stops: of Phi, SmolLM2 and Qwen.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Its names in the vocabularies of Phi, SmolLM2 and Qwen, of Llama 3, and of Llama 2 and Mistral. The first that a
/// vocabulary has counts.
const ENDS_OF_TEXT: [&str; 3] = [END_OF_TEXT, "<|end_of_text|>", "</s>"];

/// The bytes of text before a piece that are encoded with it, where the tokens of a text depend on what
/// stands before them.
const CONTEXT_BYTES: usize = 1024;

/// A tokenizer from a `tokenizer.json` in the format of Hugging Face's `tokenizers`.
///
/// The names of special tokens have no meaning in a text: `<|endoftext|>` in a document or a prompt
/// is encoded letter by letter, so that the id [`end_of_text`](Self::end_of_text) is always the end
/// of a document. Only [`encode_chat`](Self::encode_chat) makes tokens of such names, and only
/// [`encode_prompt`](Self::encode_prompt) adds a begin-of-text. Nothing is truncated or padded, even if the
/// file says so, and nothing is left to chance (the "dropout" of some files).
///
/// # Long texts
///
/// A text of more than 64 KiB is encoded in pieces, on all cores, so that the memory for it is a few
/// megabytes for each core and not a hundred times its length. The pieces end before a blank or, where
/// there is none in 64 KiB, where a word or a number ends, and not inside an added token; so the ids are
/// those of the text as a whole. Two cases are left in which one token can be another one, at such a cut:
/// a run of more than 64 KiB without any of these places, and a tokenizer whose tokens reach across all of
/// them.
///
/// # Damaged files
///
/// If the crate `tokenizers` panics on a file, this is an error here, both at loading and later; see
/// [`silence_caught_panics`](crate::silence_caught_panics).
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
    /// The same, but with a token for each name of a special token; made when a chat first needs it.
    for_chats: OnceLock<tokenizers::Tokenizer>,
    path: PathBuf,
    hash: String,
    vocab_size: usize,
    end_of_text: Option<u32>,
    /// The ids before a prompt.
    begin: Vec<u32>,
    /// The id before a text that is scored, if a file beside this one names it.
    prefix: Option<u32>,
    spelling: Spelling,
    /// The added tokens, which are looked for before anything else.
    added: Vec<AddedToken>,
    /// Whether the ids of a piece never depend on the text before it.
    independent_pieces: bool,
    words: OnceLock<Vec<u32>>,
    repeated: OnceLock<HashSet<u32>>,
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
        let bytes = fs::read(path).map_err(cannot("read", path))?;
        Self::from_json(&bytes, path)
    }

    /// Reads a tokenizer from `bytes`, the content of a `tokenizer.json`. `path` is used in messages: it is the path of
    /// that file, or of another file that contains it.
    ///
    /// # Errors
    ///
    /// [`DataError::Tokenizer`], as [`from_file`](Self::from_file).
    pub fn from_json(bytes: &[u8], path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let failed = |reason: String| DataError::Tokenizer {
            path: path.into(),
            reason,
        };
        let not_one = |reason: String| failed(format!("not a tokenizer.json: {reason}"));
        // Some parts of the file are parsed by code that panics on what is no JSON.
        serde_json::from_slice::<IgnoredAny>(bytes).map_err(|error| not_one(error.to_string()))?;
        let inner = caught(|| load(bytes));
        let inner = inner.map_err(|panic| not_one(format!("impossible values ({panic})")))?;
        let inner = inner.map_err(|error| not_one(error.to_string()))?;

        let largest_id = inner.get_vocab(true).into_values().max();
        let vocab_size = largest_id.map_or(0, |id| id as usize + 1);
        // Windows and batches hold ids as i32.
        if vocab_size == 0 || vocab_size > i32::MAX as usize {
            return Err(failed(format!("a vocabulary of {vocab_size} entries")));
        }
        let begin = before_a_text(&inner);
        let begin = begin.map_err(|reason| not_one(format!("`post_processor`: {reason}")))?;
        if let Some(id) = begin.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(failed(format!(
                "its `post_processor` begins a text with {id}, and its vocabulary ends at {vocab_size}"
            )));
        }
        Ok(Self {
            path: path.into(),
            hash: format!("{:x}", Sha256::digest(bytes)),
            vocab_size,
            // From the vocabulary: CodeGen's file does not register it as a special token.
            end_of_text: ENDS_OF_TEXT.iter().find_map(|name| inner.token_to_id(name)),
            begin,
            prefix: None,
            spelling: Spelling::of(inner.get_decoder()),
            added: inner.get_added_tokens_decoder().into_values().collect(),
            independent_pieces: independent_pieces(&inner),
            words: OnceLock::new(),
            repeated: OnceLock::new(),
            for_chats: OnceLock::new(),
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
    /// happen with a sound byte-level one.
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
        let texts: Vec<(&str, &str)> = texts.iter().map(|text| ("", text.as_ref())).collect();
        self.encode_parts(&texts, stopped)
    }

    /// The ids of a chat, as a chat template writes it: the name of a special token is this token.
    ///
    /// Hugging Face's `apply_chat_template` does the same. It applies to every occurrence of a name, so if a user types
    /// such a name in a message, it becomes the token too.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub fn encode_chat(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_chat_until(text, &|| false)
    }

    /// The ids of a chat, as [`encode_chat`](Self::encode_chat), unless `stopped` says so first, which is
    /// asked as by [`encode_batch_until`](Self::encode_batch_until).
    ///
    /// # Errors
    ///
    /// [`DataError::Stopped`] if `stopped` returned `true`; otherwise as [`encode`](Self::encode).
    pub fn encode_chat_until(
        &self,
        text: &str,
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<Vec<u32>> {
        let inner = self.for_chats.get_or_init(|| {
            let mut inner = self.inner.clone();
            inner.set_encode_special_tokens(false);
            inner
        });
        Ok(self.encode_all(inner, &[("", text)], stopped)?.concat())
    }

    /// The ids of several parts of texts. Each item is the text before the part (its last [`CONTEXT_BYTES`] are enough)
    /// and the part itself.
    pub(crate) fn encode_parts(
        &self,
        parts: &[(&str, &str)],
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<Vec<Vec<u32>>> {
        self.encode_all(&self.inner, parts, stopped)
    }

    /// [`encode_parts`](Self::encode_parts) by `inner`.
    fn encode_all(
        &self,
        inner: &tokenizers::Tokenizer,
        parts: &[(&str, &str)],
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<Vec<Vec<u32>>> {
        let all = parts.iter().enumerate().flat_map(|(i, (_, part))| {
            let inside_token = |text: &str, place| self.is_inside_added_token(text, place);
            pieces(part, PIECE_BYTES, inside_token).map(move |piece| (i, piece))
        });
        let all: Vec<_> = all.collect();
        let encoded: Vec<Vec<u32>> = all
            .par_iter()
            .map(|(i, piece)| {
                if stopped() {
                    return Err(DataError::Stopped);
                }
                let (before, part) = parts[*i];
                let before = if piece.start == 0 {
                    before
                } else {
                    &part[..piece.start]
                };
                self.encode_piece(inner, before, &part[piece.clone()])
            })
            .collect::<Result<_>>()?;
        let mut ids = vec![Vec::new(); parts.len()];
        for ((i, _), piece) in all.into_iter().zip(encoded) {
            ids[i].extend(piece);
        }
        Ok(ids)
    }

    /// The first byte index, at least `from`, at which `text` may be cut into parts, or its length.
    pub(crate) fn first_cut(&self, text: &str, from: usize) -> usize {
        first_cut(text, from, |text, place| {
            self.is_inside_added_token(text, place)
        })
    }

    /// The end of `text` that [`encode_parts`](Self::encode_parts) needs of the text before a part.
    pub(crate) fn context(text: &str) -> &str {
        let start = text.ceil_char_boundary(text.len().saturating_sub(CONTEXT_BYTES));
        let context = &text[start..];
        // From a blank on, if there is one, since a token begins there.
        context
            .find(char::is_whitespace)
            .map_or(context, |blank| &context[blank..])
    }

    /// The ids by `inner` of `piece`, which follows `before`.
    fn encode_piece(
        &self,
        inner: &tokenizers::Tokenizer,
        before: &str,
        piece: &str,
    ) -> Result<Vec<u32>> {
        if !self.independent_pieces && !before.is_empty() {
            // Some tokenizers put a blank before each text that they are given. Encoded after other text,
            // even after a line end in its place, the piece has none.
            for context in [Self::context(before), "\n"] {
                let text = format!("{context}{piece}");
                let encoding = self.encoding(|| inner.encode(&*text, false))?;
                let spans = encoding.get_offsets();
                let cut = context.len();
                let first = spans.iter().position(|&(_, end)| end > cut);
                let first = first.unwrap_or(spans.len());
                if spans.get(first).is_none_or(|&(start, _)| start >= cut) {
                    return Ok(encoding.get_ids()[first..].to_vec());
                }
            }
        }
        let encoding = self.encoding(|| inner.encode_fast(piece, false))?;
        Ok(encoding.get_ids().to_vec())
    }

    fn encoding(
        &self,
        encode: impl FnOnce() -> tokenizers::Result<tokenizers::Encoding>,
    ) -> Result<tokenizers::Encoding> {
        let failed = |reason| DataError::Tokenizer {
            path: self.path.clone(),
            reason,
        };
        match caught(encode) {
            Ok(Ok(encoding)) => Ok(encoding),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(panic) => Err(failed(format!(
                "it cannot encode the text, since its parts contradict each other ({panic}); use the \
                 tokenizer that belongs to the model"
            ))),
        }
    }

    /// Whether an added token stands in `text` across the byte index `place`; or beside it, if the token
    /// looks at its neighbours.
    fn is_inside_added_token(&self, text: &str, place: usize) -> bool {
        self.added.iter().any(|token| {
            let content = token.content.as_bytes();
            let beside = token.lstrip || token.rstrip || token.single_word;
            let reach = (content.len() + usize::from(beside)).saturating_sub(1);
            let around = place.saturating_sub(reach)..(place + reach).min(text.len());
            let mut places = text.as_bytes()[around].windows(content.len().max(1));
            places.any(|bytes| bytes == content)
        })
    }

    /// The text of some ids, with end-of-text spelt out like any other token.
    ///
    /// Bytes that are not UTF-8 (an id can be a part of a character) become U+FFFD. Ids outside the
    /// vocabulary are ignored.
    ///
    /// # Errors
    ///
    /// None today: whatever the tokenizer's decoder cannot make text of becomes U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let mut stream = self.stream();
        let mut text = String::new();
        for &id in ids {
            text.extend(stream.push(id)?);
        }
        Ok(text + &stream.finish()?)
    }

    /// A decoder for ids that arrive one by one.
    pub fn stream(&self) -> TokenStream<'_> {
        self.stream_after(&[])
    }

    /// A decoder for ids that follow the ids `before`.
    ///
    /// It begins with the bytes of the incomplete character, if any, at the end of `before`. So a
    /// stream of `before` that is not [finished](TokenStream::finish) and this stream give the whole
    /// text together.
    pub fn stream_after(&self, before: &[u32]) -> TokenStream<'_> {
        TokenStream::after(self, before)
    }

    /// The id of [`END_OF_TEXT`], or of what Llama and Mistral have in its place; `None` if the vocabulary has none.
    /// No text is encoded to this id.
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
}

fn load(bytes: &[u8]) -> tokenizers::Result<tokenizers::Tokenizer> {
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes)?;
    tokenizer.with_padding(None).with_truncation(None)?;
    tokenizer.set_encode_special_tokens(true);
    if let ModelWrapper::BPE(model) = tokenizer.get_model()
        && model.dropout.is_some()
    {
        let mut model = model.clone();
        model.dropout = None;
        tokenizer.with_model(model);
    }
    Ok(tokenizer)
}

/// Whether the ids of a piece of text never depend on the text before it.
///
/// This holds for GPT-2's pre-tokenizer without a normalizer, which may change any character.
fn independent_pieces(tokenizer: &tokenizers::Tokenizer) -> bool {
    let pre_tokenizer = tokenizer.get_pre_tokenizer();
    let gpt2 = matches!(pre_tokenizer, Some(PreTokenizerWrapper::ByteLevel(level))
        if level.use_regex && !level.add_prefix_space);
    gpt2 && tokenizer.get_normalizer().is_none()
}

#[cfg(test)]
mod tests;
