//! From scores to a task's metrics.

use rand_mt::Mt;
use rayon::prelude::*;

use super::score::Score;
use super::task::{Document, Question};

/// A metric of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Its name in lm-evaluation-harness.
    pub name: &'static str,
    /// The value over all documents.
    pub value: f64,
    /// The standard error of the value; `None` for a single document.
    pub stderr: Option<f64>,
    /// Whether a higher value is better.
    pub higher_is_better: bool,
}

/// The metrics of `documents`, in the order of their names. `scores` has, for each document, the scores of
/// its prompts.
///
/// - `acc`: the share of documents whose likeliest choice, or likeliest word, is the right one. Of equally
///   likely ones the first counts.
/// - `acc_norm`, `acc_bytes`: the same with the log-likelihood per character of the choice, and per byte.
///   The harness calls the first normalised, and publishes it under that name; they differ only where a
///   choice is not ASCII.
/// - `perplexity`: of the words, each counted as one token.
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
        Some(Metric {
            name,
            value: mean(right.as_ref()?),
            stderr: stderr_of_mean(right.as_ref()?),
            higher_is_better: true,
        })
    };
    metrics.extend(accuracy("acc", |question, scores| {
        Some(match question {
            Question::Word => scores[0].is_greedy,
            Question::Choice { gold, .. } | Question::Context { gold } => {
                likeliest(scores.iter().map(|score| score.log_likelihood)) == *gold
            }
        })
    }));
    metrics.extend(accuracy("acc_bytes", |question, scores| {
        by_length(question, scores, |choice| choice.len())
    }));
    metrics.extend(accuracy("acc_norm", |question, scores| {
        by_length(question, scores, |choice| choice.chars().count())
    }));
    if documents
        .iter()
        .all(|document| document.question == Question::Word)
    {
        let log_likelihoods: Vec<f64> = scores
            .iter()
            .map(|scores| scores[0].log_likelihood)
            .collect();
        metrics.push(Metric {
            name: "perplexity",
            value: perplexity(log_likelihoods.iter().sum::<f64>(), log_likelihoods.len()),
            stderr: stderr_of_perplexity(&log_likelihoods),
            higher_is_better: false,
        });
    }
    metrics
}

/// `exp` of the mean negative log-likelihood.
pub fn perplexity(log_likelihood: f64, count: usize) -> f64 {
    (-log_likelihood / count as f64).exp()
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
        let mut random = Mt::new_with_key([seed]);
        (0..SAMPLES).map(move |_| {
            let chosen = (0..n).map(|_| log_likelihoods[(unit(&mut random) * n as f64) as usize]);
            perplexity(chosen.sum(), n)
        })
    });
    match n {
        0 | 1 => None,
        _ => deviation(&perplexities.collect::<Vec<_>>()),
    }
}

/// Python's `random()`: 53 bits from two draws.
fn unit(random: &mut Mt) -> f64 {
    let (high, low) = (random.next_u32() >> 5, random.next_u32() >> 6);
    (f64::from(high) * f64::from(1 << 26) + f64::from(low)) / (1_u64 << 53) as f64
}
