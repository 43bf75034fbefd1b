//! How much text a token can stand for.

use tokenizers::{DecoderWrapper, ModelWrapper, PreTokenizerWrapper};

use super::Tokenizer;

impl Tokenizer {
    /// The most bytes of a text that one token stands for, so that a text of more bytes than `n` times this
    /// has more than `n` tokens.
    ///
    /// `None` if there is no such bound: a normalizer may shorten a text, a token may take the blanks around
    /// it, and what a vocabulary does not know can disappear. With a byte-level vocabulary that has a token
    /// for each byte, such as GPT-2's, there is a bound. It takes a moment, since it goes through the
    /// vocabulary.
    pub fn longest_token(&self) -> Option<usize> {
        let byte_level = matches!(
            (self.inner.get_pre_tokenizer(), self.inner.get_decoder()),
            (
                Some(PreTokenizerWrapper::ByteLevel(_)),
                Some(DecoderWrapper::ByteLevel(_))
            )
        );
        let keeps_all = byte_level
            && self.inner.get_normalizer().is_none()
            && matches!(self.inner.get_model(), ModelWrapper::BPE(_));
        let added = self.inner.get_added_tokens_decoder();
        if !keeps_all || added.values().any(|token| token.lstrip || token.rstrip) {
            return None;
        }
        let mut single = [false; 256];
        let mut longest = 0;
        for (_, id) in self.inner.get_vocab(true) {
            let bytes = self.token_bytes(id)?;
            if let [byte] = bytes[..] {
                single[usize::from(byte)] = true;
            }
            longest = longest.max(bytes.len());
        }
        single.iter().all(|known| *known).then_some(longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_vocabulary_has_a_longest_token() {
        let tokenizer = Tokenizer::from_folder("../assets/phi-tiny").unwrap();
        let longest = tokenizer.longest_token().unwrap();
        let lengths = (0..tokenizer.vocab_size() as u32)
            .filter_map(|id| tokenizer.token_bytes(id))
            .map(|bytes| bytes.len());
        assert_eq!(lengths.max(), Some(longest));
        let text = "It was the best of times, it was the worst of times 🦀.".repeat(50);
        assert!(tokenizer.encode(&text).unwrap().len() * longest >= text.len());
    }
}
