//! The task `needle`: one fact of a long text.
//!
//! Sentences that mean nothing, among them facts of one form, `The code of the lantern is 4817.`: the one that is asked
//! for, and [`OTHERS`] of other things. Each stands at a uniformly random depth. The question stands at the end, and
//! the answer is right if each of its tokens is the likeliest, given those before it.

use datasets::Tokenizer;

use super::error::EvalError;
use super::probe::{documents, filled};
use super::task::{Document, Prompt, Question, Task};
use super::words::Draw;

/// Facts of other things: a model that only knows the form of an answer is right once in many documents.
const OTHERS: usize = 3;

/// The words of a sentence, at least: each is a token or more.
const WORDS: usize = 8;

/// The documents of the task; see [`documents`].
pub fn make(
    tokenizer: &Tokenizer,
    max_length: usize,
    limit: Option<usize>,
) -> Result<Vec<Document>, EvalError> {
    documents(Task::Needle, max_length, limit, |length, draw| {
        let most = length / WORDS;
        let haystack = Haystack::new(draw, most);
        let (_, prompt) = filled(Task::Needle, tokenizer, length, most, |sentences| {
            haystack.prompt(sentences)
        })?;
        Ok(Document {
            prompts: vec![prompt],
            question: Question::Fact { length },
        })
    })
}

/// A fact, and where it stands.
struct Fact {
    thing: &'static str,
    code: usize,
    /// The share of the sentences that stand before it.
    depth: f64,
}

/// What a document is made of.
struct Haystack {
    sentences: Vec<String>,
    /// The first is asked for.
    facts: Vec<Fact>,
}

impl Haystack {
    fn new(mut draw: Draw, sentences: usize) -> Self {
        let mut facts: Vec<Fact> = Vec::new();
        while facts.len() <= OTHERS {
            let (thing, code) = (draw.thing(), 1000 + draw.below(9000));
            let is_like = |fact: &Fact| fact.thing == thing || fact.code == code;
            let depth = draw.share();
            if !facts.iter().any(is_like) {
                facts.push(Fact { thing, code, depth });
            }
        }
        let sentences = (0..sentences).map(|_| draw.sentence()).collect();
        Self { sentences, facts }
    }

    /// The first `n` sentences with the facts between them, and the question.
    fn prompt(&self, n: usize) -> Prompt {
        let mut text: Vec<String> = Vec::new();
        for i in 0..=n {
            // A depth is below 1, so that each fact is at one of these places.
            let here = |fact: &&Fact| (fact.depth * (n + 1) as f64) as usize == i;
            let facts = self.facts.iter().filter(here);
            text.extend(
                facts.map(|Fact { thing, code, .. }| format!("The code of the {thing} is {code}.")),
            );
            text.extend(self.sentences[..n].get(i).cloned());
        }
        let Fact { thing, code, .. } = self.facts[0];
        let text = text.join(" ");
        Prompt {
            context: format!(
                "{text}\nQuestion: What is the code of the {thing}?\nAnswer: The code of the {thing} is"
            ),
            continuation: format!(" {code}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::probe::LENGTHS;
    use super::*;

    fn tokenizer() -> Tokenizer {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/phi-tiny");
        Tokenizer::from_folder(folder).unwrap()
    }

    fn length(document: &Document) -> usize {
        match document.question {
            Question::Fact { length } => length,
            _ => panic!("{:?}", document.question),
        }
    }

    #[test]
    fn documents_have_their_lengths() {
        // The begin-of-text counts.
        for tokenizer in [tokenizer(), tokenizer().with_beginning(vec![7, 7, 7], None)] {
            let documents = make(&tokenizer, 4096, Some(5)).unwrap();
            let lengths: Vec<usize> = documents.iter().map(length).collect();
            assert_eq!(lengths, LENGTHS.map(|length| [length; 5]).concat());
            for document in &documents {
                let [prompt] = &document.prompts[..] else {
                    panic!("one question")
                };
                let text = format!("{}{}", prompt.context, prompt.continuation);
                let tokens = tokenizer.encode_prompt(&text).unwrap().len();
                let most = length(document);
                // A sentence of the bundled vocabulary has less than 40 tokens.
                assert!(tokens <= most && tokens > most - 40, "{tokens} of {most}");
            }
        }
    }

    #[test]
    fn documents_follow_from_their_number() {
        let tokenizer = tokenizer();
        let all = make(&tokenizer, 600, None).unwrap();
        assert_eq!(all.len(), 200);
        let few = make(&tokenizer, 600, Some(3)).unwrap();
        assert_eq!(few, [&all[..3], &all[100..103]].concat());
        let texts: HashSet<&str> = all.iter().map(|d| &*d.prompts[0].context).collect();
        assert_eq!(texts.len(), 200);
        assert_eq!(make(&tokenizer, 600, Some(1000)).unwrap(), all);
    }

    /// The answer stands once in the text, in the fact that is asked for, at any depth.
    #[test]
    fn the_answer_is_in_the_text() {
        let documents = make(&tokenizer(), 1024, None).unwrap();
        let mut tenths = [0; 10];
        for document in &documents {
            let Prompt {
                context,
                continuation,
            } = &document.prompts[0];
            let (text, question) = context.split_once("\nQuestion: ").unwrap();
            assert_eq!(text.matches(&**continuation).count(), 1);
            assert_eq!(text.matches("The code of the ").count(), 1 + OTHERS);
            let (_, fact) = question.split_once("\nAnswer: ").unwrap();
            let fact = format!("{fact}{continuation}.");
            assert_eq!(text.matches(&fact).count(), 1, "{fact}");
            assert!(!question.contains(&**continuation));
            let depth = text.find(&fact).unwrap() as f64 / text.len() as f64;
            tenths[(10.0 * depth) as usize] += 1;
        }
        // 30 are expected in each tenth, with a deviation of 5.
        assert!(tenths.iter().all(|n| (10..=50).contains(n)), "{tenths:?}");
    }

    #[test]
    fn a_model_for_shorter_texts_has_no_documents() {
        let refused = make(&tokenizer(), 255, None).unwrap_err().to_string();
        assert!(
            refused.contains("256") && refused.contains("255"),
            "{refused}"
        );
    }
}
