//! Computes a task's metrics from scores.

use rand_mt::Mt;
use rayon::prelude::*;

use super::document::{Document, Question};
use super::python::random;
use super::score::Score;

/// A metric of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Its name in lm-evaluation-harness; of a probe, with the length of its documents.
    pub name: String,
    /// The value over all documents.
    pub value: f64,
    /// The standard error of the value; `None` for a single document.
    pub stderr: Option<f64>,
    /// Whether a higher value is better.
    pub higher_is_better: bool,
}

/// The metrics of `documents`, in the order of their names; for probes, by length. `scores` has, for each document, the
/// scores of its prompts.
///
/// - `acc`: the share of documents whose likeliest choice, or likeliest word, is the right one. Of equally
///   likely ones the first counts.
/// - `acc_norm`, `acc_bytes`: the same with the log-likelihood divided by the characters of the choice, or by its
///   bytes. The harness calls the first one normalised, and publishes it under that name; they differ only if a choice is
///   not ASCII.
/// - `perplexity`: of the words, each counted as one token.
///
/// A probe has one metric for each length of its documents:
/// - `acc_LENGTH`: the share of facts that are found, or the mean share of a document's facts that are found, or of its
///   tokens that are copied.
/// - `floor_LENGTH`: the mean share of tokens of the same passages where they are no copies.
pub fn metrics(documents: &[Document], scores: &[Vec<Score>]) -> Vec<Metric> {
    let mut metrics = Vec::new();
    let by_choice = documents.iter().zip(scores);
    let accuracy = |name, is_right: fn(&Question, &[Score]) -> Option<bool>| {
        let right = by_choice.clone();
        let right: Option<Vec<f64>> = right
            .map(|(document, scores)| {
                is_right(&document.question, scores).map(|right| f64::from(u8::from(right)))
            })
            .collect();
        Some(mean_of(name, right.as_ref()?))
    };
    metrics.extend(accuracy("acc", is_right));
    metrics.extend(accuracy("acc_bytes", |question, scores| {
        by_length(question, scores, |choice| choice.len())
    }));
    metrics.extend(accuracy("acc_norm", is_right_by_length));
    if documents
        .iter()
        .all(|document| document.question == Question::Word)
    {
        let log_likelihoods: Vec<f64> = scores
            .iter()
            .map(|scores| scores[0].log_likelihood)
            .collect();
        metrics.push(Metric {
            name: "perplexity".into(),
            value: perplexity(log_likelihoods.iter().sum::<f64>(), log_likelihoods.len()),
            stderr: stderr_of_perplexity(&log_likelihoods),
            higher_is_better: false,
        });
    }
    metrics.extend(by_context_length(documents, scores));
    metrics
}

/// The metrics of a probe, whose documents of one length must be consecutive; empty for other tasks.
fn by_context_length(documents: &[Document], scores: &[Vec<Score>]) -> Vec<Metric> {
    let mut values: Vec<(String, Vec<f64>)> = Vec::new();
    for (document, scores) in documents.iter().zip(scores) {
        let measured = match document.question {
            Question::Fact { length } => {
                vec![(
                    format!("acc_{length}"),
                    f64::from(u8::from(scores[0].is_greedy())),
                )]
            }
            Question::Facts { length } => {
                let found: Vec<f64> = scores
                    .iter()
                    .map(|score| f64::from(u8::from(score.is_greedy())))
                    .collect();
                vec![(format!("acc_{length}"), mean(&found))]
            }
            Question::Repetition { length } => vec![
                (format!("acc_{length}"), scores[0].greedy_share()),
                (format!("floor_{length}"), scores[1].greedy_share()),
            ],
            _ => vec![],
        };
        for (name, value) in measured {
            match values.iter_mut().find(|(known, _)| *known == name) {
                Some((_, values)) => values.push(value),
                None => values.push((name, vec![value])),
            }
        }
    }
    let metrics = values.iter().map(|(name, values)| mean_of(name, values));
    metrics.collect()
}

fn mean_of(name: &str, values: &[f64]) -> Metric {
    Metric {
        name: name.to_owned(),
        value: mean(values),
        stderr: stderr_of_mean(values),
        higher_is_better: true,
    }
}

/// `exp` of the mean negative log-likelihood.
pub fn perplexity(log_likelihood: f64, count: usize) -> f64 {
    (-log_likelihood / count as f64).exp()
}

/// Whether the right choice or word is the likeliest; `None` for probes.
pub fn is_right(question: &Question, scores: &[Score]) -> Option<bool> {
    match question {
        Question::Word => Some(scores[0].is_greedy()),
        Question::Choice { gold, .. } | Question::Context { gold } => {
            Some(likeliest(scores.iter().map(|score| score.log_likelihood)) == *gold)
        }
        Question::Fact { .. } | Question::Facts { .. } | Question::Repetition { .. } => None,
    }
}

/// Whether the right choice is the likeliest per character; `None` for questions without choices.
pub fn is_right_by_length(question: &Question, scores: &[Score]) -> Option<bool> {
    by_length(question, scores, |choice| choice.chars().count())
}

/// Whether the right choice is the likeliest for its length; `None` for questions without choices.
fn by_length(question: &Question, scores: &[Score], length: fn(&str) -> usize) -> Option<bool> {
    let Question::Choice { gold, choices } = question else {
        return None;
    };
    let both = scores.iter().zip(choices);
    let normalised = both.map(|(score, choice)| score.log_likelihood / length(choice) as f64);
    Some(likeliest(normalised) == *gold)
}

/// The index of the largest value, the first of equals.
fn likeliest(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (i, value) in values.enumerate() {
        if value > best.1 {
            best = (i, value);
        }
    }
    best.0
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The standard deviation of the population that `values` are a sample of (n - 1 in the denominator).
fn deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values);
    let squares = values.iter().map(|value| (value - mean).powi(2));
    (values.len() > 1).then(|| (squares.sum::<f64>() / (values.len() - 1) as f64).sqrt())
}

fn stderr_of_mean(values: &[f64]) -> Option<f64> {
    Some(deviation(values)? / (values.len() as f64).sqrt())
}

/// The standard error by bootstrap: the deviation of the perplexities of 100,000 samples of the documents,
/// with replacement.
///
/// The samples are those of the harness, which seeds Python's generator with the number of each thousand,
/// so the result equals the harness's.
fn stderr_of_perplexity(log_likelihoods: &[f64]) -> Option<f64> {
    const SEEDS: u32 = 100;
    const SAMPLES: usize = 1000;
    let n = log_likelihoods.len();
    let perplexities = (0..SEEDS).into_par_iter().flat_map_iter(|seed| {
        let mut generator = Mt::new_with_key([seed]);
        (0..SAMPLES).map(move |_| {
            let chosen =
                (0..n).map(|_| log_likelihoods[(random(&mut generator) * n as f64) as usize]);
            perplexity(chosen.sum(), n)
        })
    });
    match n {
        0 | 1 => None,
        _ => deviation(&perplexities.collect::<Vec<_>>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(asked: Vec<(Question, Vec<(u32, u32)>)>) -> Vec<(String, f64, Option<f64>)> {
        let (documents, scores): (Vec<_>, Vec<_>) = asked
            .into_iter()
            .map(|(question, scores)| {
                let prompts = Vec::new();
                let score = |(tokens, greedy)| Score {
                    log_likelihood: -1.0,
                    tokens,
                    greedy,
                };
                let scores: Vec<Score> = scores.into_iter().map(score).collect();
                (Document { prompts, question }, scores)
            })
            .unzip();
        let metrics = metrics(&documents, &scores).into_iter();
        let rounded = |x: f64| (x * 1e9).round() / 1e9;
        let numbers = metrics.map(|metric| {
            (
                metric.name,
                rounded(metric.value),
                metric.stderr.map(rounded),
            )
        });
        numbers.collect()
    }

    #[test]
    fn a_fact_is_found_whole_or_not() {
        let fact = |length, greedy| (Question::Fact { length }, vec![(4, greedy)]);
        let found = measured(vec![fact(256, 4), fact(256, 3), fact(512, 4)]);
        let named = |name: &str, value, stderr| (name.to_owned(), value, stderr);
        let expected = [
            named("acc_256", 0.5, Some(0.5)),
            named("acc_512", 1.0, None),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn several_facts_count_by_their_share() {
        let facts = |scores| (Question::Facts { length: 512 }, scores);
        let found = measured(vec![
            facts(vec![(4, 4), (4, 3), (2, 2), (1, 0)]),
            facts(vec![(4, 4), (4, 4), (2, 2), (1, 1)]),
        ]);
        assert_eq!(found, [("acc_512".to_owned(), 0.75, Some(0.25))]);
    }

    /// The mean over documents, each with the same weight, whatever its number of tokens.
    #[test]
    fn copies_count_by_their_share() {
        let copies = |again, first| (Question::Repetition { length: 256 }, vec![again, first]);
        let found = measured(vec![copies((4, 3), (4, 1)), copies((8, 2), (8, 2))]);
        let named = |name: &str, value, stderr| (name.to_owned(), value, stderr);
        let expected = [
            named("acc_256", 0.5, Some(0.25)),
            named("floor_256", 0.25, Some(0.0)),
        ];
        assert_eq!(found, expected);
    }
}
