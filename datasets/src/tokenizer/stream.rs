//! Ids that arrive one by one, as text.

use super::Tokenizer;
use crate::error::Result;

/// The most bytes that an incomplete character of UTF-8 can have.
const BEGINNING: usize = 3;

/// Decodes ids one by one into whole characters.
///
/// A character can consist of several ids (an emoji of up to four); its text is returned with the last
/// of them. Bytes that cannot become a character are returned at once, as U+FFFD. The texts of all calls
/// of `push` and of `finish` together are equal to [`Tokenizer::decode`] of all ids. The work for an id
/// does not grow with the number of ids before it.
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
    /// The first bytes of an incomplete character.
    pending: Vec<u8>,
    /// The last id, since the text of the next may depend on it: some tokenizers write the blank between
    /// two words with neither.
    last: Option<u32>,
}

impl<'t> TokenStream<'t> {
    /// A stream after the ids `before`, which begins with the bytes of the incomplete character at their
    /// end.
    pub(super) fn after(tokenizer: &'t Tokenizer, before: &[u32]) -> Self {
        let mut newest = before.iter().rev().copied();
        let mut pending = Vec::new();
        let mut last = None;
        while pending.len() < BEGINNING
            && let Some(id) = newest.next()
        {
            if let Some(bytes) = tokenizer.token_bytes(id) {
                last = last.or(Some(id));
                pending.splice(0..0, bytes);
            }
        }
        take_whole(&mut pending);
        Self {
            tokenizer,
            pending,
            last,
        }
    }

    /// Takes one id. Returns the text that this id completes, if any. Ids outside the vocabulary have
    /// none.
    ///
    /// # Errors
    ///
    /// None today: whatever a tokenizer's decoder cannot make text of becomes U+FFFD.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        let Some(bytes) = self.tokenizer.bytes_after(self.last, id) else {
            return Ok(None);
        };
        self.last = Some(id);
        self.pending.extend(bytes);
        let whole = take_whole(&mut self.pending);
        Ok((!whole.is_empty()).then(|| String::from_utf8_lossy(&whole).into_owned()))
    }

    /// The rest of the text: empty unless the ids ended inside a character.
    ///
    /// # Errors
    ///
    /// None today, as for [`push`](Self::push).
    pub fn finish(self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.pending).into_owned())
    }
}

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
