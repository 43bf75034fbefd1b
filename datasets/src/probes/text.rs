//! Training text for recall: an endless sequence of windows that consist of documents of the probes.

use std::fmt;
use std::sync::Arc;

use super::words::Draw;
use super::{Probe, ProbeError};
use crate::error::{DataError, Result};
use crate::tokenizer::Tokenizer;

/// The version of the definition of the windows. Another version makes other windows from the same seed.
pub(crate) const VERSION: u32 = 2;

/// The least length of a document, and the least room in which one is begun, in tokens.
const LEAST: usize = 128;

/// Windows that consist of documents of the probes with the answers to their questions, and a separator after each
/// document. A document asks for all that it tells: for every fact, and every key. In the documents that are measured,
/// which ask for one fact of a long text, only a few tokens of a thousand depend on recall.
///
/// A window is a function of the seed and its place in the sequence: nothing is stored, and reading can begin at any
/// place. The logarithms of the documents' lengths are drawn uniformly, up to the window's length, so that the distance
/// between an answer and its fact can be small or large. The rest of a window after its last document is filled with
/// sentences. No document is equal to one of [`Probe::documents`], whatever the seeds.
#[derive(Clone)]
pub struct RecallText {
    tokenizer: Arc<Tokenizer>,
    probes: Vec<Probe>,
    context: usize,
}

impl fmt::Debug for RecallText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("RecallText");
        fields.field("tokenizer", &self.tokenizer.path());
        fields.field("probes", &self.probes);
        fields.field("context", &self.context).finish()
    }
}

impl RecallText {
    /// Windows of `context` inputs, whose documents are of each of the `probes` equally often.
    ///
    /// # Errors
    /// [`DataError::Zero`] if the context is 0 or there are no probes; [`DataError::Tokenizer`] if the tokenizer has no
    /// token that separates documents.
    pub fn new(tokenizer: Arc<Tokenizer>, probes: Vec<Probe>, context: usize) -> Result<Self> {
        if context == 0 {
            return Err(DataError::Zero { what: "context" });
        }
        if probes.is_empty() {
            let what = "number of probes";
            return Err(DataError::Zero { what });
        }
        if tokenizer.end_of_text().is_none() {
            return Err(DataError::Tokenizer {
                path: tokenizer.path().to_owned(),
                reason: "it has no end-of-text token, which separates documents".into(),
            });
        }
        Ok(Self {
            tokenizer,
            probes,
            context,
        })
    }

    /// Inputs of a window.
    pub fn context(&self) -> usize {
        self.context
    }

    /// A key that identifies these windows, apart from the tokenizer and the seed: it differs for other probes and
    /// another version of the definition.
    pub fn key(&self) -> String {
        let names: Vec<String> = self.probes.iter().map(Probe::to_string).collect();
        format!("probes {VERSION} {}", names.join(","))
    }

    /// The `context + 1` ids of the window at place `number` of the sequence of `seed`.
    ///
    /// # Errors
    /// What the tokenizer fails with.
    pub fn read(&self, number: u128, seed: u64, ids: &mut Vec<u32>) -> Result<()> {
        ids.clear();
        let words = |x: u128| [x as u32, (x >> 32) as u32];
        let ([a, b], [c, d]) = (words(seed.into()), words(number));
        let key = |part: u32| Draw::new([a, b, c, d, part]);
        let (mut plan, whole) = (key(0), self.context + 1);
        let separator = self.tokenizer.end_of_text().unwrap_or_default();
        let mut part = 0;
        while whole - ids.len() > LEAST {
            let room = whole - ids.len() - 1;
            let share = (room as f64 / LEAST as f64).powf(plan.share());
            let drawn = (LEAST as f64 * share) as usize;
            // A document of more than half of the room gets the whole room: otherwise much of the window could remain
            // without a question.
            let length = if 2 * drawn > room { room } else { drawn };
            let probe = self.probes[plan.below(self.probes.len())];
            part += 1;
            let mut made = self.document(probe, length, key(part))?;
            if made.is_none() && length < room {
                // Too short for its question.
                made = self.document(probe, room, key(part))?;
            }
            let Some(document) = made else {
                break;
            };
            ids.extend(document);
            ids.push(separator);
        }
        self.fill(ids, key(part + 1))?;
        ids.truncate(whole);
        Ok(())
    }

    /// The ids of a document with its answers; `None` if there is no room for it.
    fn document(&self, probe: Probe, length: usize, draw: Draw) -> Result<Option<Vec<u32>>> {
        // Room for what follows the last answer.
        let made = match probe.practice(&self.tokenizer, length.saturating_sub(2), draw) {
            Ok(made) => made,
            Err(ProbeError::Data(error)) => return Err(error),
            Err(_) => return Ok(None),
        };
        let ids = self.tokenizer.encode(&made)?;
        Ok((ids.len() <= length).then_some(ids))
    }

    /// Adds sentences until there are enough ids.
    fn fill(&self, ids: &mut Vec<u32>, mut draw: Draw) -> Result<()> {
        while ids.len() <= self.context {
            let sentences: Vec<String> = (0..8).map(|_| draw.sentence()).collect();
            let more = self.tokenizer.encode(&(sentences.join(" ") + " "))?;
            if more.is_empty() {
                return Err(DataError::Tokenizer {
                    path: self.tokenizer.path().to_owned(),
                    reason: "it makes no tokens of a sentence".into(),
                });
            }
            ids.extend(more);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::asset;

    fn text(probes: &[Probe], context: usize) -> RecallText {
        let tokenizer = Tokenizer::from_folder(asset("phi-tiny")).unwrap();
        RecallText::new(Arc::new(tokenizer), probes.to_vec(), context).unwrap()
    }

    fn window(text: &RecallText, number: u128, seed: u64) -> Vec<u32> {
        let mut ids = vec![7; 3];
        text.read(number, seed, &mut ids).unwrap();
        ids
    }

    #[test]
    fn a_window_follows_from_its_seed_and_its_place() {
        let recall = text(&[Probe::Needle, Probe::Mqar, Probe::Copy], 300);
        let here = window(&recall, 5, 42);
        assert_eq!(here.len(), 301);
        // Whatever was read before, and by whom.
        let other = text(&[Probe::Needle, Probe::Mqar, Probe::Copy], 300);
        window(&other, 9, 1);
        assert_eq!(window(&other, 5, 42), here);
        for (number, seed) in [(6, 42), (5, 43), (5 + (1 << 32), 42), (5, 42 + (1 << 32))] {
            assert_ne!(window(&recall, number, seed), here, "{number}, {seed}");
        }
    }

    /// Each answer stands in its window before it is asked for.
    #[test]
    fn documents_are_whole_and_answered() {
        let recall = text(&[Probe::Needle], 512);
        let separator = recall.tokenizer.end_of_text().unwrap();
        let (mut lengths, mut facts) = (vec![], vec![]);
        for number in 0..12 {
            let ids = window(&recall, number, 7);
            let mut documents: Vec<&[u32]> = ids.split(|id| *id == separator).collect();
            // What follows the last separator is sentences.
            let rest = recall.tokenizer.decode(documents.pop().unwrap()).unwrap();
            assert!(!rest.contains("Question"), "{rest}");
            assert!(!documents.is_empty());
            for ids in documents {
                lengths.push(ids.len());
                let document = recall.tokenizer.decode(ids).unwrap();
                let mut questions = document.split("\nQuestion: ");
                let text = questions.next().unwrap();
                let asked = questions.map(|question| {
                    let (_, answer) = question.split_once("\nAnswer: ").unwrap();
                    assert_eq!(text.matches(answer).count(), 1, "{answer}");
                });
                // All facts, and few or many.
                let asked = asked.count();
                assert_eq!(asked, text.matches("The code of the ").count());
                facts.push(asked);
            }
        }
        let (least, most) = (lengths.iter().min().unwrap(), lengths.iter().max().unwrap());
        assert!(2 * least < *most, "{lengths:?}");
        let (fewest, most) = (facts.iter().min().unwrap(), facts.iter().max().unwrap());
        assert!(*fewest <= 2 && *most >= 6, "{facts:?}");
    }

    /// Every key comes again with its value, and every group of facts.
    #[test]
    fn all_that_is_told_is_asked_for() {
        let tokenizer = Tokenizer::from_folder(asset("phi-tiny")).unwrap();
        let practice = |probe: Probe, i| {
            let text = probe.practice(&tokenizer, 700, Draw::new([i])).unwrap();
            assert!(tokenizer.encode(&text).unwrap().len() <= 701);
            text
        };
        for i in 0..4 {
            let text = practice(Probe::Mqar, i);
            let (pairs, again) = text.split_once("\nAgain:").unwrap();
            let sorted = |pairs: &str| {
                let mut pairs: Vec<String> =
                    pairs.split(',').map(|pair| pair.trim().into()).collect();
                pairs.sort();
                pairs
            };
            let pairs = pairs.trim_start_matches("Pairs:");
            assert!(pairs.matches(',').count() > 8, "{text}");
            assert_ne!(pairs, again);
            assert_eq!(sorted(pairs), sorted(again));
            let text = practice(Probe::Needles, i);
            let (told, _) = text.split_once("\nQuestion: ").unwrap();
            for fact in told
                .split_inclusive('.')
                .filter(|sentence| sentence.contains("code"))
            {
                assert_eq!(text.matches(fact.trim()).count(), 2, "{fact}");
            }
        }
    }

    /// A draw of more facts than there is room for makes a document with fewer.
    #[test]
    fn there_are_as_many_facts_as_there_is_room_for() {
        let tokenizer = Tokenizer::from_folder(asset("phi-tiny")).unwrap();
        for (length, i) in (0..24).map(|i| ([100, 150, 200][i % 3], i)) {
            let draw = Draw::new([i as u32]);
            let text = Probe::Needle.practice(&tokenizer, length, draw).unwrap();
            assert!(text.contains("Question: ") && text.contains(". "), "{text}");
            assert!(tokenizer.encode(&text).unwrap().len() <= length, "{text}");
        }
    }

    #[test]
    fn a_window_that_is_too_short_for_a_question_is_sentences() {
        let recall = text(&Probe::ALL, 16);
        assert_eq!(window(&recall, 0, 1).len(), 17);
        let refused = RecallText::new(recall.tokenizer.clone(), vec![], 16);
        assert!(refused.is_err());
    }
}
