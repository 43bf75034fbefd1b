//! The probes `needle` and `needles`: facts of a long text.
//!
//! A document consists of random sentences and of facts of the form `The code of the lantern is 4817.`, each at a
//! uniformly random depth. `needle` asks for one of four facts, `needles` for four of eight, one after another. The
//! questions are at the end. An answer is right if each of its tokens is the likeliest, given those before it. A document
//! to train on has more facts and asks for all of them: a question gives a few tokens of training, and text without one
//! gives none.

use super::words::Draw;
use super::{Probe, ProbeDocument, ProbeError, Prompt, filled};
use crate::tokenizer::Tokenizer;

/// The words of a sentence, at least: each is a token or more.
const WORDS: usize = 8;

/// How many facts a document has. A model that only knows the form of an answer is right once in many documents.
pub(super) struct Facts {
    probe: Probe,
    asked: usize,
    /// Asked or not.
    all: usize,
}

pub(super) const ONE: Facts = Facts {
    probe: Probe::Needle,
    asked: 1,
    all: 4,
};

pub(super) const SEVERAL: Facts = Facts {
    probe: Probe::Needles,
    asked: 4,
    all: 8,
};

/// A document, with a prompt for each fact that is asked for: the answers before it are given.
pub(super) fn make(
    facts: &Facts,
    tokenizer: &Tokenizer,
    length: usize,
    draw: Draw,
) -> Result<ProbeDocument, ProbeError> {
    let last = facts.asked - 1;
    let most = length / WORDS;
    let haystack = Haystack::new(draw, facts.all, most);
    let (n, _) = filled(facts.probe, tokenizer, length, most, |sentences| {
        haystack.prompt(sentences, facts.asked, last)
    })?;
    let prompt = |i| haystack.prompt(n, facts.asked, i);
    Ok(ProbeDocument {
        prompts: (0..facts.asked).map(prompt).collect(),
        length,
    })
}

/// The tokens of a fact and its question in a document to train on, with the sentences around them: an estimate, since
/// tokenizers differ.
const ROOM: usize = 48;
/// The facts of a document to train on, at most: there are more things than that, and far more codes.
const MOST: usize = 100;

/// The text of a document to train on: the logarithm of the number of facts is drawn uniformly, up to as many as there
/// is room for, and all are asked for, as many by one question as in a document that is measured. If a tokenizer makes so
/// many tokens of them that no sentence fits beside them, there are half as many, or fewer.
pub(super) fn practice(
    measured: &Facts,
    tokenizer: &Tokenizer,
    length: usize,
    mut draw: Draw,
) -> Result<String, ProbeError> {
    let (room, most) = ((length / ROOM).clamp(1, MOST), length / WORDS);
    let facts = (room as f64).powf(draw.share()).round() as usize;
    let mut haystack = Haystack::new(draw, facts, most);
    loop {
        let made = filled(measured.probe, tokenizer, length, most, |sentences| {
            let questions = haystack.facts.chunks(measured.asked);
            let questions: String = questions.map(Haystack::answered).collect();
            Prompt {
                context: haystack.text(sentences),
                continuation: questions,
            }
        });
        match made {
            Err(ProbeError::NoRoom { .. }) if haystack.facts.len() > 1 => {
                haystack.facts.truncate(haystack.facts.len() / 2);
            }
            made => {
                let (_, whole) = made?;
                return Ok(whole.context + &whole.continuation);
            }
        }
    }
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
    /// The first ones are asked for.
    facts: Vec<Fact>,
}

impl Haystack {
    fn new(mut draw: Draw, all: usize, sentences: usize) -> Self {
        let mut facts: Vec<Fact> = Vec::new();
        while facts.len() < all {
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

    /// The first `n` sentences with the facts between them.
    fn text(&self, n: usize) -> String {
        let mut text: Vec<String> = Vec::new();
        for place in 0..=n {
            // A depth is below 1, so that each fact is at one of these places.
            let here = |fact: &&Fact| (fact.depth * (n + 1) as f64) as usize == place;
            let facts = self.facts.iter().filter(here);
            text.extend(facts.map(Fact::sentence));
            text.extend(self.sentences[..n].get(place).cloned());
        }
        text.join(" ")
    }

    /// The text, the question for the first `asked` facts, and the answer up to that of number `i`.
    fn prompt(&self, n: usize, asked: usize, i: usize) -> Prompt {
        let (text, question) = (self.text(n), Self::question(&self.facts[..asked]));
        let before: String = (self.facts[..i].iter())
            .map(|fact| fact.sentence() + " ")
            .collect();
        let Fact { thing, code, .. } = self.facts[i];
        Prompt {
            context: format!("{text}{question} {before}The code of the {thing} is"),
            continuation: format!(" {code}"),
        }
    }

    /// The question for some facts.
    fn question(facts: &[Fact]) -> String {
        let asked = facts.iter().map(|fact| format!("the {}", fact.thing));
        let question = match &asked.collect::<Vec<_>>()[..] {
            [one] => format!("What is the code of {one}?"),
            several => format!("What are the codes of {}?", several.join(", ")),
        };
        format!("\nQuestion: {question}\nAnswer:")
    }

    /// The question and its answer.
    fn answered(facts: &[Fact]) -> String {
        let answers = facts.iter().map(|fact| format!(" {}", fact.sentence()));
        Self::question(facts) + &answers.collect::<String>()
    }
}

impl Fact {
    fn sentence(&self) -> String {
        format!("The code of the {} is {}.", self.thing, self.code)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::{LENGTHS, ProbeSizes};
    use super::*;

    fn up_to(max_length: usize, limit: Option<usize>) -> ProbeSizes {
        ProbeSizes::up_to(Probe::Needle, max_length, limit).unwrap()
    }

    fn tokenizer() -> Tokenizer {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/phi-tiny");
        Tokenizer::from_folder(folder).unwrap()
    }

    #[test]
    fn documents_have_their_lengths() {
        // The begin-of-text counts.
        for tokenizer in [tokenizer(), tokenizer().with_beginning(vec![7, 7, 7], None)] {
            let documents = Probe::Needle
                .documents(&tokenizer, &up_to(4096, Some(5)))
                .unwrap();
            let lengths: Vec<usize> = documents.iter().map(|document| document.length).collect();
            assert_eq!(lengths, LENGTHS.map(|length| [length; 5]).concat());
            for document in &documents {
                let [prompt] = &document.prompts[..] else {
                    panic!("one question")
                };
                let text = format!("{}{}", prompt.context, prompt.continuation);
                let tokens = tokenizer.encode_prompt(&text).unwrap().len();
                let most = document.length;
                // A sentence of the bundled vocabulary has less than 40 tokens.
                assert!(tokens <= most && tokens > most - 40, "{tokens} of {most}");
            }
        }
    }

    #[test]
    fn documents_follow_from_their_number() {
        let tokenizer = tokenizer();
        let all = Probe::Needle
            .documents(&tokenizer, &up_to(600, None))
            .unwrap();
        assert_eq!(all.len(), 200);
        let few = Probe::Needle
            .documents(&tokenizer, &up_to(600, Some(3)))
            .unwrap();
        assert_eq!(few, [&all[..3], &all[100..103]].concat());
        let texts: HashSet<&str> = all.iter().map(|d| &*d.prompts[0].context).collect();
        assert_eq!(texts.len(), 200);
        assert_eq!(
            Probe::Needle
                .documents(&tokenizer, &up_to(600, Some(1000)))
                .unwrap(),
            all
        );
    }

    /// The answer stands once in the text, in the fact that is asked for, at any depth.
    #[test]
    fn the_answer_is_in_the_text() {
        let documents = Probe::Needle
            .documents(&tokenizer(), &up_to(1024, None))
            .unwrap();
        let mut tenths = [0; 10];
        for document in &documents {
            let Prompt {
                context,
                continuation,
            } = &document.prompts[0];
            let (text, question) = context.split_once("\nQuestion: ").unwrap();
            assert_eq!(text.matches(&**continuation).count(), 1);
            assert_eq!(text.matches("The code of the ").count(), ONE.all);
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
        let refused = ProbeSizes::up_to(Probe::Needle, 255, None);
        let refused = refused.unwrap_err().to_string();
        assert!(
            refused.contains("256") && refused.contains("255"),
            "{refused}"
        );
    }

    /// Each answer stands once in the text, and the prompts of one document continue each other.
    #[test]
    fn several_facts_are_asked_for_one_after_another() {
        let documents = Probe::Needles
            .documents(&tokenizer(), &up_to(512, Some(20)))
            .unwrap();
        assert_eq!(documents.len(), 40);
        for document in &documents {
            let length = document.length;
            assert_eq!(document.prompts.len(), SEVERAL.asked);
            let wholes = document.prompts.iter();
            let wholes = wholes.map(|prompt| format!("{}{}", prompt.context, prompt.continuation));
            let wholes: Vec<String> = wholes.collect();
            for pair in wholes.windows(2) {
                assert!(pair[1].starts_with(&format!("{}. The code of the ", pair[0])));
            }
            let (text, question) = wholes[3].split_once("\nQuestion: ").unwrap();
            assert_eq!(text.matches("The code of the ").count(), SEVERAL.all);
            let (asked, answers) = question.split_once("\nAnswer: ").unwrap();
            assert_eq!(asked.matches("the ").count(), 1 + SEVERAL.asked);
            for answer in format!("{answers}.").split_inclusive('.') {
                assert_eq!(text.matches(answer.trim()).count(), 1, "{answer}");
            }
            let tokens = tokenizer().encode_prompt(&wholes[3]).unwrap().len();
            assert!(
                tokens <= length && tokens > length - 40,
                "{tokens} of {length}"
            );
        }
    }
}
