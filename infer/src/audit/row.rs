//! The rows of the table: which items of a measure count, and their values.

use super::TEACHER;
use super::estimate::Estimate;
use super::measure::{Kind, Measure, Outcome, Reading};
use crate::eval::Question;

/// The bounds of positions in a window for which perplexity is shown.
const POSITIONS: [usize; 8] = [0, 32, 64, 128, 256, 512, 1024, 2048];

/// How values are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// `exp` of the mean negative log-likelihood of a token; two models are compared by their quotient.
    Perplexity,
    /// A share of items; two models are compared by their difference.
    Share,
}

/// The group of rows that a row belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Perplexity in whole windows.
    Text,
    /// Perplexity by position.
    Positions,
    /// Tasks by likelihoods.
    Tasks,
    /// Tasks by answers.
    Answers,
    /// Probes.
    Recall,
}

/// A line of the table, for every model.
#[derive(Debug)]
pub struct Row {
    /// Such as `needle at 512`.
    pub name: String,
    /// What it belongs to.
    pub group: Group,
    /// How its values are shown.
    pub unit: Unit,
    /// The length of a probe, or where the positions end.
    pub at: Option<usize>,
    /// The name of the probe, for charts.
    pub probe: Option<String>,
    /// The value is the mean of these strata.
    strata: Vec<Stratum>,
    /// The same with all items, not only those that the teacher gets right.
    raw: Vec<Stratum>,
    /// The same items where a model cannot know them; empty except for `copy`.
    floor: Vec<Stratum>,
}

/// Items of one measure, by document.
#[derive(Clone, Debug)]
struct Stratum {
    /// How many items of each document count.
    weights: Vec<f64>,
    /// The number of these items in each document that guesses get right on average.
    chances: Vec<f64>,
    /// For each model, the sum of these items in each document; `None` if the measure has failed.
    totals: Vec<Option<Vec<f64>>>,
}

impl Row {
    /// The value of a model: a mean log-likelihood, or a share.
    pub fn value(&self, model: usize) -> Option<Estimate> {
        mean(&self.strata, |stratum| stratum.value(model))
    }

    /// The value of `model` minus that of `other`, on the same documents.
    pub fn difference(&self, model: usize, other: usize) -> Option<Estimate> {
        mean(&self.strata, |stratum| stratum.difference(model, other))
    }

    /// The number of documents in which the two models differ.
    pub fn differing(&self, model: usize, other: usize) -> usize {
        let counts = self.strata.iter().filter_map(|stratum| {
            let [own, others] = [model, other].map(|i| stratum.totals.get(i)?.as_ref());
            let differing = own?.iter().zip(others?).filter(|(own, other)| own != other);
            Some(differing.count())
        });
        counts.sum()
    }

    /// The share of all items that a model gets right, not only of those that the teacher gets right.
    pub fn raw(&self, model: usize) -> Option<Estimate> {
        mean(&self.raw, |stratum| stratum.value(model))
    }

    /// The share of the same items that a model gets right where it cannot know them, if the measure has a floor.
    pub fn floor(&self, model: usize) -> Option<Estimate> {
        mean(&self.floor, |stratum| stratum.value(model))
    }

    /// The value of a model minus its floor.
    pub fn above_floor(&self, model: usize) -> Option<Estimate> {
        if self.floor.is_empty() {
            return None;
        }
        self.mean_of_totals(&self.above_guesses(model)?)
    }

    /// For each stratum, a model's totals minus its floor, or minus the expected totals of guesses if there is no
    /// floor.
    fn above_guesses(&self, model: usize) -> Option<Vec<Vec<f64>>> {
        let above = self.strata.iter().enumerate().map(|(i, stratum)| {
            let own = stratum.totals.get(model)?.as_ref()?;
            let guessed = match self.floor.get(i) {
                Some(floor) => floor.totals.get(model)?.as_ref()?,
                None => &stratum.chances,
            };
            Some(differences(own, guessed))
        });
        above.collect()
    }

    /// The estimate for other totals of the same items, one list for each stratum.
    fn mean_of_totals(&self, totals: &[Vec<f64>]) -> Option<Estimate> {
        let both = self.strata.iter().zip(totals);
        let values = both.map(|(stratum, totals)| Estimate::ratio(totals, &stratum.weights));
        Estimate::mean(&values.collect::<Option<Vec<_>>>()?)
    }

    /// The value that guesses reach on average; `None` for perplexity.
    pub fn chance(&self) -> Option<f64> {
        if self.unit == Unit::Perplexity {
            return None;
        }
        let chances = mean(&self.strata, |stratum| {
            Estimate::ratio(&stratum.chances, &stratum.weights)
        });
        chances.map(|chance| chance.value)
    }

    /// The share of the teacher's distance from chance, or from its floor, that a model has kept: 1 is all. `None` for
    /// perplexity, and if the teacher's distance is not more than two standard errors.
    pub fn kept(&self, model: usize) -> Option<Estimate> {
        if self.unit == Unit::Perplexity {
            return None;
        }
        let teachers = self.above_guesses(TEACHER)?;
        let Estimate {
            value: distance,
            stderr,
        } = self.mean_of_totals(&teachers)?;
        let is_sure = stderr.is_none_or(|stderr| distance > 2.0 * stderr);
        if distance <= 0.0 || !is_sure {
            return None;
        }
        let own = self.above_guesses(model)?;
        let kept = self.mean_of_totals(&own)?.value / distance;
        // The error of a quotient whose parts come from the same documents, by linearisation.
        let both = own.iter().zip(&teachers);
        let residuals = both.map(|(own, teachers)| {
            let both = own.iter().zip(teachers);
            both.map(|(own, theirs)| own - kept * theirs).collect()
        });
        let residuals: Vec<Vec<f64>> = residuals.collect();
        let residual = self.mean_of_totals(&residuals)?;
        Some(Estimate {
            value: kept,
            stderr: residual.stderr.map(|stderr| stderr / distance),
        })
    }

    /// The number of documents with an item that counts; for a mean of measures, the smallest of their numbers.
    pub fn documents(&self) -> usize {
        let counts = self.strata.iter().map(|stratum| {
            let counted = stratum.weights.iter().filter(|weight| **weight > 0.0);
            counted.count()
        });
        counts.min().unwrap_or_default()
    }

    /// The number of items that count, and the number of all items.
    pub fn items(&self) -> (usize, usize) {
        let sum = |strata: &[Stratum]| {
            let weights = strata.iter().flat_map(|stratum| &stratum.weights);
            weights.sum::<f64>() as usize
        };
        (sum(&self.strata), sum(&self.raw))
    }

    /// The mean of rows from different documents.
    fn mean_of(name: String, rows: &[&Self]) -> Self {
        let strata = |of: fn(&Self) -> &Vec<Stratum>| {
            let strata = rows.iter().flat_map(|row| of(row).clone());
            strata.collect::<Vec<Stratum>>()
        };
        Self {
            name,
            group: rows[0].group,
            unit: rows[0].unit,
            at: None,
            probe: None,
            strata: strata(|row| &row.strata),
            raw: strata(|row| &row.raw),
            floor: vec![],
        }
    }
}

impl Stratum {
    fn value(&self, model: usize) -> Option<Estimate> {
        Estimate::ratio(self.totals.get(model)?.as_ref()?, &self.weights)
    }

    fn difference(&self, model: usize, other: usize) -> Option<Estimate> {
        let [own, others] = [model, other].map(|i| self.totals.get(i)?.as_ref());
        Estimate::ratio(&differences(own?, others?), &self.weights)
    }
}

fn differences(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

fn mean(strata: &[Stratum], of: impl Fn(&Stratum) -> Option<Estimate>) -> Option<Estimate> {
    Estimate::mean(&strata.iter().map(of).collect::<Option<Vec<_>>>()?)
}

/// Outcomes of each model in each measure, or why there are none.
pub type Outcomes = [Vec<Result<Vec<Outcome>, String>>];

/// The rows of all measures. In a probe, only items count that the teacher gets right; none if the teacher has failed.
pub fn rows(measures: &[Measure], outcomes: &Outcomes) -> Vec<Row> {
    let contexts = measures.iter().filter_map(|measure| match measure.kind {
        Kind::Text { context } => Some(context),
        _ => None,
    });
    let longest = contexts.max();
    let mut rows: Vec<Row> = Vec::new();
    for (i, measure) in measures.iter().enumerate() {
        let of = Items {
            measure,
            outcomes: outcomes.iter().map(|of| of[i].as_deref().ok()).collect(),
        };
        match measure.kind {
            Kind::Text { context } => {
                rows.push(of.row(Group::Text, Unit::Perplexity, |_, _| true));
                if Some(context) == longest {
                    rows.extend(of.positions(context));
                }
            }
            Kind::Task(_) => rows.push(of.row(Group::Tasks, Unit::Share, |_, _| true)),
            Kind::Answers(_) => rows.push(of.row(Group::Answers, Unit::Share, |_, _| true)),
            Kind::Recall { task, length } => {
                let teachers = of.outcomes.first().copied().flatten();
                let passes = |document: usize, item: usize| {
                    teachers
                        .is_some_and(|teachers| teachers[document].items.get(item) == Some(&1.0))
                };
                let mut row = of.row(Group::Recall, Unit::Share, passes);
                (row.at, row.probe) = (Some(length), Some(task.to_string()));
                rows.push(row);
            }
        }
    }
    let last = rows.iter().rposition(|row| row.group == Group::Tasks);
    if let Some(last) = last {
        let tasks: Vec<&Row> = rows.iter().filter(|r| r.group == Group::Tasks).collect();
        if tasks.len() > 1 {
            let name = format!("mean of {} tasks", tasks.len());
            let mean = Row::mean_of(name, &tasks);
            rows.insert(last + 1, mean);
        }
    }
    rows
}

/// The results of all models in one measure.
struct Items<'a> {
    measure: &'a Measure,
    outcomes: Vec<Option<&'a [Outcome]>>,
}

impl Items<'_> {
    /// The row of the items for which `counts` is true; it gets the index of a document and the index of an item in it.
    fn row(&self, group: Group, unit: Unit, counts: impl Fn(usize, usize) -> bool) -> Row {
        let has_floor = self.has_floor();
        let items = |outcome: &Outcome| outcome.items.clone();
        Row {
            name: self.measure.name.clone(),
            group,
            unit,
            at: None,
            probe: None,
            strata: vec![self.stratum(&counts, items)],
            raw: vec![self.stratum(&|_, _| true, items)],
            floor: (has_floor)
                .then(|| self.stratum(&counts, |outcome| outcome.floor.clone()))
                .into_iter()
                .collect(),
        }
    }

    /// The rows of the positions in windows of `context` tokens.
    fn positions(&self, context: usize) -> Vec<Row> {
        let bounds = POSITIONS.into_iter().filter(|bound| *bound < context);
        let bounds: Vec<usize> = bounds.chain([context]).collect();
        let rows = bounds.windows(2).map(|bounds| {
            let counts = |_: usize, item: usize| (bounds[0]..bounds[1]).contains(&item);
            Row {
                name: format!("perplexity, positions {} to {}", bounds[0], bounds[1] - 1),
                at: Some(bounds[1]),
                ..self.row(Group::Positions, Unit::Perplexity, counts)
            }
        });
        rows.collect()
    }

    fn has_floor(&self) -> bool {
        let documents = self.outcomes.iter().flatten().copied().flatten();
        documents.clone().count() > 0 && documents.clone().all(|d| !d.floor.is_empty())
    }

    fn stratum(
        &self,
        counts: &impl Fn(usize, usize) -> bool,
        items: impl Fn(&Outcome) -> Vec<f64>,
    ) -> Stratum {
        let sum = |outcomes: &[Outcome], of: &dyn Fn(&Outcome) -> Vec<f64>| {
            let documents = outcomes.iter().enumerate().map(|(document, outcome)| {
                let items = of(outcome).into_iter().enumerate();
                let counted = items.filter(|(item, _)| counts(document, *item));
                counted.map(|(_, value)| value).sum::<f64>()
            });
            documents.collect::<Vec<f64>>()
        };
        let totals = self.outcomes.iter();
        let totals: Vec<Option<Vec<f64>>> = totals.map(|of| Some(sum((*of)?, &items))).collect();
        // Every model has the same items.
        let some = self.outcomes.iter().flatten().next();
        let ones = |outcome: &Outcome| vec![1.0; outcome.items.len()];
        let weights = some.map_or_else(Vec::new, |outcomes| sum(outcomes, &ones));
        let chances = self.measure.documents.iter().map(Reading::chance);
        let chances = chances
            .zip(&weights)
            .map(|(chance, weight)| chance * weight);
        Stratum {
            chances: chances.collect(),
            weights,
            totals,
        }
    }
}

impl Reading {
    /// The probability that a guess is right.
    fn chance(&self) -> f64 {
        match self {
            Self::Question {
                question: Question::Choice { .. } | Question::Context { .. },
                requests,
                ..
            } => 1.0 / requests.len() as f64,
            _ => 0.0,
        }
    }
}
