//! The perplexity of running text.

use std::sync::Arc;

use datasets::Tokenizer;

use super::encode::ScoreRequest;
use super::error::EvalError;
use super::metrics::perplexity;
use super::score::Score;

/// Texts as requests, with their sizes.
#[derive(Debug, Default)]
pub struct Texts {
    /// The windows of all texts, in order.
    pub requests: Vec<ScoreRequest>,
    /// The number of texts.
    pub documents: usize,
    /// The number of tokens, all of which are scored. It includes a begin-of-text that the tokenizer puts before a
    /// text.
    pub tokens: usize,
    /// The number of bytes, in UTF-8.
    pub bytes: usize,
}

/// How well a model predicts all texts together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TextMetrics {
    /// The natural logarithm of their probability.
    pub log_likelihood: f64,
    /// The perplexity per token, comparable between models with the same tokenizer.
    pub perplexity: f64,
    /// The perplexity per byte, comparable between all models.
    pub byte_perplexity: f64,
    /// The logarithm of `byte_perplexity` to base 2.
    pub bits_per_byte: f64,
}

impl Texts {
    /// Adds a text, as windows of up to `max_length` tokens that slide by `stride`.
    ///
    /// As in the harness, the text is encoded like a prompt, and the tokenizer's [`prefix`](Tokenizer::prefix) is put
    /// before it. So a begin-of-text that belongs to the encoded text is scored, too.
    ///
    /// # Errors
    /// [`EvalError::NoPrefix`], and what the tokenizer fails with.
    pub fn add(
        &mut self,
        text: &str,
        tokenizer: &Tokenizer,
        max_length: usize,
        stride: usize,
    ) -> Result<(), EvalError> {
        let prefix = tokenizer.prefix().ok_or(EvalError::NoPrefix)?;
        let mut ids = vec![prefix];
        ids.extend(tokenizer.encode_prompt(text)?);
        self.documents += 1;
        self.tokens += ids.len() - 1;
        self.bytes += text.len();
        self.requests
            .extend(windows(ids.into(), max_length, stride));
        Ok(())
    }

    /// The metrics, from the scores of [`requests`](Self::requests) in the same order.
    ///
    /// # Errors
    /// [`EvalError::NoTokens`].
    pub fn metrics(&self, scores: &[Score]) -> Result<TextMetrics, EvalError> {
        if self.tokens == 0 {
            return Err(EvalError::NoTokens);
        }
        let log_likelihood = scores.iter().map(|score| score.log_likelihood).sum();
        let byte_perplexity = perplexity(log_likelihood, self.bytes);
        Ok(TextMetrics {
            log_likelihood,
            perplexity: perplexity(log_likelihood, self.tokens),
            byte_perplexity,
            bits_per_byte: byte_perplexity.log2(),
        })
    }
}

/// Windows over `ids`, of which all but the first are scored, each once.
///
/// A window reads up to `max_length` ids. Each window begins `stride` ids after the one before and scores its last
/// `stride` ids. So all ids, except those of the first window, are predicted from at least `max_length - stride`
/// others.
fn windows(
    ids: Arc<[u32]>,
    max_length: usize,
    stride: usize,
) -> impl Iterator<Item = ScoreRequest> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let left = ids.len() - 1 - done;
        let scored = left.min(if done == 0 { max_length } else { stride });
        done += scored;
        let window = done.saturating_sub(max_length)..done + 1;
        (scored > 0).then(|| ScoreRequest::of_part(ids.clone(), window, scored))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(n: u32, max_length: usize, stride: usize) -> Vec<(Vec<u32>, usize)> {
        let ids: Vec<u32> = (0..=n).collect();
        let windows = windows(ids.into(), max_length, stride);
        windows
            .map(|window| (window.ids().to_vec(), window.scored))
            .collect()
    }

    /// As the harness's own windows over ten tokens, of four, with one and with three of context.
    #[test]
    fn windows_are_the_harness_s() {
        let range = |from, to| (from..=to).collect::<Vec<u32>>();
        let disjoint = [(range(0, 4), 4), (range(4, 8), 4), (range(6, 10), 2)];
        assert_eq!(parts(10, 4, 4), disjoint);
        let sliding = [
            (range(0, 4), 4),
            (range(2, 6), 2),
            (range(4, 8), 2),
            (range(6, 10), 2),
        ];
        assert_eq!(parts(10, 4, 2), sliding);
        assert_eq!(parts(3, 4, 2), [(range(0, 3), 3)]);
        assert_eq!(parts(0, 4, 2), []);
    }

    /// As in the harness, whose encoded text has the begin-of-text, and whose prefix stands before that.
    #[test]
    fn a_text_follows_the_prefix_and_its_own_begin() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/phi-tiny");
        let plain = Tokenizer::from_folder(folder).unwrap();
        let text = "It was the best of times";
        let ids = plain.encode(text).unwrap();
        let read = |tokenizer: &Tokenizer| {
            let mut texts = Texts::default();
            texts.add(text, tokenizer, 99, 99).unwrap();
            assert_eq!(texts.tokens, texts.requests[0].scored);
            texts.requests[0].ids().to_vec()
        };
        assert_eq!(read(&plain), [&[0][..], &ids[..]].concat());
        // A token for what is scored only, as SmolLM2-Instruct has.
        let prefix = plain.with_beginning(Vec::new(), Some(5));
        assert_eq!(read(&prefix), [&[5][..], &ids[..]].concat());
        let begin = prefix.with_beginning(vec![7], Some(7));
        assert_eq!(read(&begin), [&[7, 7][..], &ids[..]].concat());
    }

    /// The tokens of a text are stored once, however many windows it has.
    #[test]
    fn windows_lie_in_one_text() {
        let ids: Vec<u32> = (0..50).collect();
        let windows: Vec<ScoreRequest> = windows(ids.into(), 8, 1).collect();
        assert_eq!(windows.len(), 42);
        for (one, next) in windows.iter().zip(&windows[1..]).skip(1) {
            assert_eq!(one.ids()[1..].as_ptr(), next.ids().as_ptr());
        }
    }

    #[test]
    fn every_id_is_scored_once() {
        for n in 0..30 {
            for max_length in 1..8 {
                for stride in 1..=max_length {
                    let scored = parts(n, max_length, stride).into_iter();
                    let scored =
                        scored.flat_map(|(ids, scored)| ids[ids.len() - scored..].to_vec());
                    assert_eq!(scored.collect::<Vec<_>>(), (1..=n).collect::<Vec<_>>());
                }
            }
        }
    }
}
