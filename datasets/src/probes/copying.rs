//! The probe `copy`: a passage of words given twice.
//!
//! The words are random, so that the second occurrence can be predicted only from the first one. The metric is the
//! share of tokens in the second occurrence that are the likeliest, given those before. Its floor is the same share in
//! the first occurrence, where a token can be predicted only from the earlier tokens of its word.

use super::words::Draw;
use super::{Probe, ProbeDocument, ProbeError, Prompt, filled};
use crate::tokenizer::Tokenizer;

/// The words before the first and before the second occurrence of the passage.
const FIRST: &str = "Words:";
const SECOND: &str = "\nThe same words again:";

/// A document. Its first prompt is the second occurrence of the passage, and its second prompt is the first occurrence.
pub(super) fn make(
    tokenizer: &Tokenizer,
    length: usize,
    mut draw: Draw,
) -> Result<ProbeDocument, ProbeError> {
    let most = length / 2;
    let words: Vec<&str> = (0..most).map(|_| draw.word()).collect();
    let passage = |n: usize| format!(" {}", words[..n].join(" "));
    let (n, again) = filled(Probe::Copy, tokenizer, length, most, |n| {
        let continuation = passage(n);
        Prompt {
            context: format!("{FIRST}{continuation}{SECOND}"),
            continuation,
        }
    })?;
    let first = Prompt {
        context: FIRST.into(),
        continuation: passage(n),
    };
    Ok(ProbeDocument {
        prompts: vec![again, first],
        length,
    })
}

/// The text of a document to train on: the passage twice.
pub(super) fn practice(
    tokenizer: &Tokenizer,
    length: usize,
    draw: Draw,
) -> Result<String, ProbeError> {
    let document = make(tokenizer, length, draw)?;
    let again = document.prompts.into_iter().next();
    Ok(again.map_or_else(String::new, |again| again.context + &again.continuation))
}

#[cfg(test)]
mod tests {
    use super::super::{LENGTHS, ProbeSizes, encoded};
    use super::*;

    fn up_to(max_length: usize, limit: Option<usize>) -> ProbeSizes {
        ProbeSizes::up_to(Probe::Copy, max_length, limit).unwrap()
    }

    fn tokenizer() -> Tokenizer {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/phi-tiny");
        Tokenizer::from_folder(folder).unwrap()
    }

    /// The same tokens are scored both times, and stand where the documentation says.
    #[test]
    fn a_passage_is_given_twice() {
        let tokenizer = tokenizer();
        let documents = Probe::Copy
            .documents(&tokenizer, &up_to(4096, Some(4)))
            .unwrap();
        assert_eq!(documents.len(), 4 * LENGTHS.len());
        for (i, document) in documents.iter().enumerate() {
            let length = LENGTHS[i / 4];
            assert_eq!(document.length, length);
            let prompts = document.prompts.iter();
            let prompts = prompts.map(|prompt| encoded(&tokenizer, prompt).unwrap());
            let prompts: Vec<_> = prompts.collect();
            let [again, first] = &prompts[..] else {
                panic!("two times")
            };
            let n = first.scored;
            assert_eq!(again.scored, n);
            let (before, passage) = first.ids.split_at(first.ids.len() - n);
            assert_eq!(&again.ids[..first.ids.len()], first.ids);
            assert!(again.ids.ends_with(passage));
            let tokens = again.ids.len();
            // Another word, twice, has less than 20 tokens.
            assert!(tokens <= length && tokens > length - 20, "{tokens}");
            assert!(2 * (n + before.len()) + 20 > tokens);
        }
    }

    #[test]
    fn documents_follow_from_their_number() {
        let tokenizer = tokenizer();
        let all = Probe::Copy
            .documents(&tokenizer, &up_to(300, None))
            .unwrap();
        assert_eq!(all.len(), 100);
        assert_eq!(
            Probe::Copy
                .documents(&tokenizer, &up_to(300, Some(7)))
                .unwrap(),
            all[..7]
        );
        assert_ne!(all[0], all[1]);
    }
}
