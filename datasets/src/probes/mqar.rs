//! The probe `mqar`, associative recall with several queries (arXiv 2312.04927) in words: pairs of a key and a value, and
//! some of the keys again, each of which should bring back its value.
//!
//! `Pairs: rusty lantern 48, quiet anchor 17, ...` and `Again: quiet anchor 17, ...`. A longer document has more pairs,
//! so that there is more to remember, and a model can be right where it cannot hold all of them.

use std::collections::HashSet;

use super::words::Draw;
use super::{Probe, ProbeDocument, ProbeError, Prompt, filled};
use crate::tokenizer::Tokenizer;

/// The most keys that come again.
const QUERIES: usize = 8;

/// The tokens of a pair, at least: two words of the key, the value, and the comma.
const LEAST: usize = 4;

/// A document, with a prompt for each key that comes again.
pub(super) fn make(
    tokenizer: &Tokenizer,
    length: usize,
    draw: Draw,
) -> Result<ProbeDocument, ProbeError> {
    let keys = Draw::things_with_a_quality();
    let most = (length / LEAST).min(keys);
    let pairs = Pairs::new(draw, most);
    let (n, _) = filled(Probe::Mqar, tokenizer, length, most, |n| {
        pairs.prompt(n, QUERIES.min(n) - 1)
    })?;
    if n == keys {
        let probe = Probe::Mqar;
        return Err(ProbeError::TooMuchRoom { probe, length });
    }
    let queries = QUERIES.min(n);
    Ok(ProbeDocument {
        prompts: (0..queries).map(|i| pairs.prompt(n, i)).collect(),
        length,
    })
}

/// The text of a document to train on, in which all keys come again.
pub(super) fn practice(
    tokenizer: &Tokenizer,
    length: usize,
    draw: Draw,
) -> Result<String, ProbeError> {
    let most = (length / 2 / LEAST).min(Draw::things_with_a_quality());
    let pairs = Pairs::new(draw, most);
    let (_, whole) = filled(Probe::Mqar, tokenizer, length, most, |n| {
        pairs.prompt(n, n - 1)
    })?;
    Ok(format!("{}{},", whole.context, whole.continuation))
}

struct Pairs {
    /// Different keys, and their values.
    pairs: Vec<(String, usize)>,
    /// A random number for each pair: those with the largest come again, in the order of these numbers.
    order: Vec<f64>,
}

impl Pairs {
    fn new(mut draw: Draw, n: usize) -> Self {
        let (mut pairs, mut keys) = (Vec::new(), HashSet::new());
        while pairs.len() < n {
            let key = format!("{} {}", draw.quality(), draw.thing());
            let value = 10 + draw.below(90);
            if keys.insert(key.clone()) {
                pairs.push((key, value));
            }
        }
        let order = (0..n).map(|_| draw.share()).collect();
        Self { pairs, order }
    }

    /// The first `n` pairs, and those that come again up to number `i`, whose value is the continuation.
    fn prompt(&self, n: usize, i: usize) -> Prompt {
        let listed = |pairs: &mut dyn Iterator<Item = usize>| {
            let pairs = pairs.map(|pair| {
                let (key, value) = &self.pairs[pair];
                format!(" {key} {value},")
            });
            pairs.collect::<String>()
        };
        let mut again: Vec<usize> = (0..n).collect();
        again.sort_by(|&a, &b| self.order[b].total_cmp(&self.order[a]));
        let all = listed(&mut (0..n));
        let before = listed(&mut again[..i].iter().copied());
        let (key, value) = &self.pairs[again[i]];
        Prompt {
            context: format!("Pairs:{all}\nAgain:{before} {key}"),
            continuation: format!(" {value}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ProbeSizes;
    use super::*;

    /// Each key stands once among the pairs, with its value, and comes again at most once.
    #[test]
    fn keys_bring_back_their_values() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/phi-tiny");
        let tokenizer = Tokenizer::from_folder(folder).unwrap();
        let sizes = ProbeSizes::up_to(Probe::Mqar, 1024, Some(5)).unwrap();
        let documents = Probe::Mqar.documents(&tokenizer, &sizes).unwrap();
        assert_eq!(documents.len(), 15);
        for document in &documents {
            assert_eq!(document.prompts.len(), QUERIES);
            let length = document.length;
            let Prompt {
                context,
                continuation,
            } = &document.prompts[QUERIES - 1];
            let whole = format!("{context}{continuation},");
            let tokens = tokenizer.encode_prompt(&whole).unwrap().len();
            // Another pair, and another key that comes again for it, have less than 20 tokens.
            assert!(
                tokens <= length + 1 && tokens > length - 20,
                "{tokens} of {length}"
            );
            let (pairs, again) = whole.split_once("\nAgain:").unwrap();
            let again: Vec<&str> = again.split_inclusive(',').collect();
            assert_eq!(again.len(), QUERIES);
            for (pair, prompt) in again.iter().zip(&document.prompts) {
                assert_eq!(pairs.matches(pair).count(), 1, "{pair}");
                let (key, value) = pair.rsplit_once(' ').unwrap();
                assert_eq!(pairs.matches(&format!("{key} ")).count(), 1, "{key}");
                assert!(prompt.context.ends_with(key));
                assert_eq!(format!("{},", prompt.continuation.trim()), value);
                assert_eq!(again.iter().filter(|other| *other == pair).count(), 1);
            }
        }
        let longest = |length| {
            let pairs = documents.iter().filter(|d| d.length == length);
            pairs
                .map(|d| d.prompts[0].context.matches(',').count())
                .min()
                .unwrap()
        };
        assert!(longest(1024) > 3 * longest(256));
    }

    /// A length that has room for more pairs than there are keys.
    #[test]
    fn a_length_without_an_end_is_refused() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/phi-tiny");
        let tokenizer = Tokenizer::from_folder(folder).unwrap();
        let sizes = ProbeSizes {
            lengths: vec![1 << 18],
            documents: 1,
            seed: 1,
        };
        let refused = Probe::Mqar
            .documents(&tokenizer, &sizes)
            .unwrap_err()
            .to_string();
        assert!(refused.contains("262144"), "{refused}");
    }

    #[test]
    fn a_seed_makes_other_pairs() {
        let prompt = |seed| {
            Pairs::new(Draw::new([seed, 256, 0]), 20)
                .prompt(20, 3)
                .context
        };
        assert_eq!(prompt(1), prompt(1));
        assert_ne!(prompt(1), prompt(2));
    }
}
