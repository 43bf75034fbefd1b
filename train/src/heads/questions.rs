//! The probes' documents as tokens, and what is scored of each.

use std::cmp::Reverse;
use std::ops::Range;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use datasets::Tokenizer;
use datasets::probes::{Probe, ProbeDocument, ProbeError, ProbeSizes, encoded};
use serde::Serialize;

use crate::error::TrainError;

/// The most tokens that are read together, unless one document is longer.
const TOKENS: usize = 16_384;
/// The most answers of one document, spread evenly: a copied passage has hundreds of tokens.
const ANSWERS: usize = 32;

/// Documents of one probe and one length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Set {
    /// The probe's name.
    pub probe: String,
    /// The most tokens of a document.
    pub length: usize,
}

/// The part of a row that is one answer, right if each of its tokens is the likeliest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// The number of its set.
    pub(super) set: usize,
    /// The range of its tokens in the list of scored tokens of a reading.
    pub(super) tokens: Range<usize>,
}

/// Documents that are read together.
#[derive(Debug, Clone)]
pub(super) struct Reading<B: Backend> {
    /// `[b, l]`; shorter rows are padded at their ends.
    pub(super) ids_bl: Tensor<B, 2, Int>,
    /// For each scored token, the position before it, which predicts it, in the flat `[b * l]`.
    pub(super) places_n: Tensor<B, 1, Int>,
    /// The scored tokens.
    pub(super) targets: Vec<i32>,
    pub(super) answers: Vec<Answer>,
}

/// A document as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    set: usize,
    ids: Vec<u32>,
    answers: Vec<Range<usize>>,
}

/// The documents of `probes` in these sizes, and their sets.
///
/// # Errors
/// [`TrainError::Data`] if the tokenizer fails, [`TrainError::Mismatch`] if a probe does not fit into one of the
/// lengths, or if the tokenizer makes ids that the model, with `vocab_size` ids, does not have.
pub(super) fn readings<B: Backend>(
    probes: &[Probe],
    sizes: &ProbeSizes,
    tokenizer: &Tokenizer,
    vocab_size: usize,
    device: &B::Device,
) -> Result<(Vec<Set>, Vec<Reading<B>>), TrainError> {
    let (mut sets, mut rows) = (vec![], vec![]);
    for probe in probes {
        for &length in &sizes.lengths {
            let of_length = ProbeSizes {
                lengths: vec![length],
                ..sizes.clone()
            };
            let documents = probe.documents(tokenizer, &of_length).map_err(refused)?;
            for document in &documents {
                rows.extend(rows_of(*probe, document, sets.len(), tokenizer)?);
            }
            sets.push(Set {
                probe: probe.to_string(),
                length,
            });
        }
    }
    let mut ids = rows.iter().flat_map(|row| &row.ids);
    if let Some(id) = ids.find(|id| **id as usize >= vocab_size) {
        return Err(TrainError::Mismatch(format!(
            "the tokenizer has the id {id} and the teacher knows {vocab_size}; data.tokenizer must be the teacher's"
        )));
    }
    rows.sort_by_key(|row| Reverse(row.ids.len()));
    let mut readings = vec![];
    let mut rest = &rows[..];
    while let Some(longest) = rest.first() {
        let together = (TOKENS / longest.ids.len()).clamp(1, rest.len());
        let (some, others) = rest.split_at(together);
        readings.push(reading(some, device));
        rest = others;
    }
    Ok((sets, readings))
}

/// The rows of one document: a single row, if each prompt's tokens are the beginning of a longer one's.
fn rows_of(
    probe: Probe,
    document: &ProbeDocument,
    set: usize,
    tokenizer: &Tokenizer,
) -> Result<Vec<Row>, TrainError> {
    let asked = match probe {
        // The second prompt scores the words when they come for the first time, when there is nothing to recall.
        Probe::Copy => 1,
        Probe::Needle | Probe::Needles | Probe::Mqar => document.prompts.len(),
    };
    let mut rows: Vec<Row> = vec![];
    for prompt in document.prompts.iter().take(asked).rev() {
        let all = encoded(tokenizer, prompt).map_err(refused)?;
        let scored = all.ids.len() - all.scored..all.ids.len();
        let answers = match probe {
            Probe::Copy => spread(scored),
            Probe::Needle | Probe::Needles | Probe::Mqar => vec![scored],
        };
        match rows.iter_mut().find(|row| row.ids.starts_with(&all.ids)) {
            Some(row) => row.answers.extend(answers),
            None => rows.push(Row {
                set,
                ids: all.ids,
                answers,
            }),
        }
    }
    Ok(rows)
}

/// At most [`ANSWERS`] tokens of `scored`, spread evenly; each is an answer.
fn spread(scored: Range<usize>) -> Vec<Range<usize>> {
    let (n, start) = (scored.len(), scored.start);
    let some = ANSWERS.min(n);
    let tokens = (0..some).map(|i| start + i * n / some);
    tokens.map(|token| token..token + 1).collect()
}

fn reading<B: Backend>(rows: &[Row], device: &B::Device) -> Reading<B> {
    // The last id of a row is only a target and is not read.
    let longest = rows.iter().map(|row| row.ids.len() - 1).max();
    let (b, l) = (rows.len(), longest.unwrap_or_default().max(1));
    let mut ids = vec![0; b * l];
    let (mut places, mut targets, mut answers) = (vec![], vec![], vec![]);
    for (i, row) in rows.iter().enumerate() {
        let read = &row.ids[..row.ids.len() - 1];
        for (place, id) in ids[i * l..].iter_mut().zip(read) {
            *place = *id as i32;
        }
        for answer in &row.answers {
            let first = targets.len();
            for token in answer.clone() {
                places.push((i * l + token - 1) as i32);
                targets.push(row.ids[token] as i32);
            }
            answers.push(Answer {
                set: row.set,
                tokens: first..targets.len(),
            });
        }
    }
    Reading {
        ids_bl: Tensor::from_data(TensorData::new(ids, [b, l]), device),
        places_n: Tensor::from_data(TensorData::new(places.clone(), [places.len()]), device),
        targets,
        answers,
    }
}

fn refused(error: ProbeError) -> TrainError {
    match error {
        ProbeError::Data(error) => error.into(),
        other => TrainError::Mismatch(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use ::tests::networks::Fast;

    use super::*;

    fn tokenizer() -> Tokenizer {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/phi-tiny");
        Tokenizer::from_folder(folder).expect("the bundled tokenizer")
    }

    #[test]
    fn some_tokens_of_many_count() {
        assert_eq!(spread(5..7), [5..6, 6..7]);
        let some = spread(100..100 + 3 * ANSWERS);
        assert_eq!(some.len(), ANSWERS);
        assert_eq!((some[0].clone(), some[1].clone()), (100..101, 103..104));
    }

    /// Each scored token is the answer that the document's text has, and stands behind the place that predicts it.
    #[test]
    fn answers_are_the_continuations() {
        let tokenizer = tokenizer();
        let sizes = ProbeSizes {
            lengths: vec![256, 320],
            documents: 3,
            seed: 5,
        };
        let probes = [Probe::Needle, Probe::Mqar, Probe::Copy];
        let (sets, readings) =
            readings::<Fast>(&probes, &sizes, &tokenizer, 1 << 20, &Default::default())
                .expect("documents");
        assert_eq!(sets.len(), 6);
        let mut counts = [0; 6];
        for reading in &readings {
            let ids: Vec<i64> = reading.ids_bl.to_data().iter().collect();
            let places: Vec<i64> = reading.places_n.to_data().iter().collect();
            assert_eq!(places.len(), reading.targets.len());
            for answer in &reading.answers {
                counts[answer.set] += 1;
                let tokens = &reading.targets[answer.tokens.clone()];
                // After the first token of an answer, the next token that is read is the answer's next token.
                for (place, next) in places[answer.tokens.clone()].windows(2).zip(tokens) {
                    assert_eq!(place[1], place[0] + 1);
                    assert_eq!(ids[place[1] as usize], i64::from(*next));
                }
                if sets[answer.set].probe == "needle" {
                    let tokens: Vec<u32> = tokens.iter().map(|id| *id as u32).collect();
                    let text = tokenizer.decode(&tokens).expect("text");
                    let code: usize = text.trim().parse().expect("a code");
                    assert!((1000..10_000).contains(&code));
                }
            }
        }
        assert_eq!(counts, [3, 3, 24, 24, 3 * ANSWERS, 3 * ANSWERS]);
    }
}
