//! The task `copy`: a passage of words given twice.
//!
//! The words are drawn, so that nothing but the first time tells what comes the second time. The metric is the share
//! of tokens of the second time that are the likeliest, given those before; its floor is the same share the first
//! time, which has what a token tells of the rest of its word.

use datasets::Tokenizer;

use super::error::EvalError;
use super::probe::{ProbeSizes, documents, filled};
use super::task::{Document, Prompt, Question, Task};

/// Before the first time, and before the second.
const FIRST: &str = "Words:";
const SECOND: &str = "\nThe same words again:";

/// The documents of the task; see [`documents`]. The first prompt is the second time, the second the first.
pub fn make(tokenizer: &Tokenizer, sizes: &ProbeSizes) -> Result<Vec<Document>, EvalError> {
    documents(sizes, |length, mut draw| {
        let most = length / 2;
        let words: Vec<&str> = (0..most).map(|_| draw.word()).collect();
        let passage = |n: usize| format!(" {}", words[..n].join(" "));
        let (n, again) = filled(Task::Copy, tokenizer, length, most, |n| {
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
        Ok(Document {
            prompts: vec![again, first],
            question: Question::Repetition { length },
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::encode::requests;
    use super::super::probe::LENGTHS;
    use super::*;

    fn up_to(max_length: usize, limit: Option<usize>) -> ProbeSizes {
        ProbeSizes::up_to(Task::Copy, max_length, limit).unwrap()
    }

    fn tokenizer() -> Tokenizer {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/phi-tiny");
        Tokenizer::from_folder(folder).unwrap()
    }

    /// The same tokens are scored both times, and stand where the documentation says.
    #[test]
    fn a_passage_is_given_twice() {
        let tokenizer = tokenizer();
        let documents = make(&tokenizer, &up_to(4096, Some(4))).unwrap();
        assert_eq!(documents.len(), 4 * LENGTHS.len());
        for (i, document) in documents.iter().enumerate() {
            let length = LENGTHS[i / 4];
            assert_eq!(document.question, Question::Repetition { length });
            let requests = requests(&document.prompts, &tokenizer, 4096).unwrap();
            let [again, first] = &requests[..] else {
                panic!("two times")
            };
            let n = first.scored;
            assert_eq!(again.scored, n);
            let (before, passage) = first.ids().split_at(first.ids().len() - n);
            assert_eq!(&again.ids()[..first.ids().len()], first.ids());
            assert!(again.ids().ends_with(passage));
            let tokens = again.ids().len();
            // Another word, twice, has less than 20 tokens.
            assert!(tokens <= length && tokens > length - 20, "{tokens}");
            assert!(2 * (n + before.len()) + 20 > tokens);
        }
    }

    #[test]
    fn documents_follow_from_their_number() {
        let tokenizer = tokenizer();
        let all = make(&tokenizer, &up_to(300, None)).unwrap();
        assert_eq!(all.len(), 100);
        assert_eq!(make(&tokenizer, &up_to(300, Some(7))).unwrap(), all[..7]);
        assert_ne!(all[0], all[1]);
    }
}
