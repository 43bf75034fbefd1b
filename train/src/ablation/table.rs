//! The table of a comparison.

use std::collections::{BTreeMap, BTreeSet};

use indicatif::HumanCount;
use serde::Serialize;

use super::Recipe;
use crate::table::markdown;

/// How a run ended.
#[derive(Debug, Clone)]
pub(super) enum Cell {
    /// The run has ended with a student.
    Finished {
        /// Its perplexity over the teacher's.
        ratio: f64,
        /// Seconds of the run, evaluation included.
        seconds: f64,
        /// Whether the loss of a stage rose above what it had come down to, and stayed there.
        has_collapsed: bool,
        /// Training tokens and the ratio that was measured then: before the first stage, and after each.
        measured: Vec<(u64, f64)>,
    },
    /// Without a student; the reason.
    Diverged(String),
    /// The run has not ended yet.
    Left,
}

impl Cell {
    fn ratio(&self) -> Option<f64> {
        match self {
            Self::Finished { ratio, .. } => Some(*ratio),
            Self::Diverged(_) | Self::Left => None,
        }
    }
}

/// The results of all runs.
#[derive(Debug, Serialize)]
pub(super) struct Table {
    title: String,
    seeds: Vec<u64>,
    variants: Vec<Row>,
}

/// The results of one recipe.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    changes: Vec<String>,
    stages: Vec<String>,
    /// The student's perplexity over the teacher's, for each seed; `None` if the run has diverged or has not ended.
    ratios: Vec<Option<f64>>,
    /// The seeds whose runs have not ended yet.
    left: Vec<u64>,
    /// The seeds whose runs have ended, but whose loss collapsed in a stage.
    collapsed: Vec<u64>,
    /// The mean over the seeds that have a ratio.
    mean: Option<f64>,
    /// The mean difference from the first row, by pairs of one seed; `None` in the first row.
    difference: Option<Estimate>,
    /// The ratio of the published modules, if it is known.
    published: Option<f64>,
    /// Seconds of a run, on average.
    seconds: Option<f64>,
    /// Before the first stage and after each, over the seeds.
    measured: Vec<Measured>,
    /// Why runs have diverged.
    diverged: Vec<String>,
}

/// What the runs of a recipe have measured after so many tokens.
#[derive(Debug, Serialize)]
struct Measured {
    tokens: u64,
    /// The ratio; its standard error is that over the seeds.
    ratio: Estimate,
}

/// The ratios of all runs of a recipe, by tokens.
fn by_tokens(cells: &[Cell]) -> Vec<Measured> {
    let mut ratios: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for cell in cells {
        if let Cell::Finished { measured, .. } = cell {
            for (tokens, ratio) in measured {
                ratios.entry(*tokens).or_default().push(*ratio);
            }
        }
    }
    let ratios = ratios.into_iter();
    ratios
        .filter_map(|(tokens, ratios)| {
            let ratio = Estimate::of(&ratios)?;
            Some(Measured { tokens, ratio })
        })
        .collect()
}

/// A mean, and how far it may be off.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Estimate {
    mean: f64,
    /// The standard error of the mean; none of a single number.
    standard_error: Option<f64>,
    /// How many numbers it is the mean of.
    pairs: usize,
}

impl Estimate {
    /// The estimate from `values`; `None` if there are none.
    fn of(values: &[f64]) -> Option<Self> {
        let mean = mean(values.iter().copied())?;
        let n = values.len() as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Some(Self {
            mean,
            standard_error: (n > 1.0).then(|| (squares / (n - 1.0) / n).sqrt()),
            pairs: values.len(),
        })
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0), |(sum, n), value| (sum + value, n + 1));
    (n > 0).then(|| sum / f64::from(n))
}

impl Table {
    /// The table of the results of each recipe, one for each seed in the order of `seeds`.
    pub(super) fn new(title: String, seeds: &[u64], rows: Vec<(&Recipe, Vec<Cell>)>) -> Self {
        let mut variants: Vec<Row> = vec![];
        for (recipe, cells) in rows {
            let ratios: Vec<_> = cells.iter().map(Cell::ratio).collect();
            let pairs = variants.first().map(|first| {
                let pairs = first.ratios.iter().zip(&ratios);
                let pairs = pairs.filter_map(|(first, own)| Some((*own)? - (*first)?));
                pairs.collect::<Vec<_>>()
            });
            let seconds = cells.iter().filter_map(|cell| match cell {
                Cell::Finished { seconds, .. } => Some(*seconds),
                Cell::Diverged(_) | Cell::Left => None,
            });
            let diverged = cells.iter().filter_map(|cell| match cell {
                Cell::Finished { .. } | Cell::Left => None,
                Cell::Diverged(reason) => Some(reason.clone()),
            });
            let with_seeds = seeds.iter().zip(&cells);
            let left = with_seeds.clone();
            let left = left.filter(|(_, cell)| matches!(cell, Cell::Left));
            let collapsed = with_seeds.filter_map(|(seed, cell)| match cell {
                Cell::Finished {
                    has_collapsed: true,
                    ..
                } => Some(*seed),
                _ => None,
            });
            variants.push(Row {
                left: left.map(|(seed, _)| *seed).collect(),
                collapsed: collapsed.collect(),
                name: recipe.name.clone(),
                changes: recipe.changes.clone(),
                stages: recipe.stages.clone(),
                mean: mean(ratios.iter().copied().flatten()),
                difference: pairs.and_then(|pairs| Estimate::of(&pairs)),
                published: recipe.published,
                seconds: mean(seconds),
                diverged: diverged.collect(),
                measured: by_tokens(&cells),
                ratios,
            });
        }
        Self {
            title,
            seeds: seeds.to_vec(),
            variants,
        }
    }

    /// As Markdown, which is readable on a terminal too.
    pub(super) fn markdown(&self) -> String {
        const NONE: &str = "-";
        let first = self
            .variants
            .first()
            .map_or(NONE, |first| first.name.as_str());
        let published = self.variants.iter().any(|row| row.published.is_some());
        let mut header = vec!["variant".to_owned()];
        header.extend(self.seeds.iter().map(|seed| format!("seed {seed}")));
        header.extend(["mean".to_owned(), format!("minus {first}")]);
        header.extend(published.then(|| "published modules".to_owned()));
        header.push("seconds a run".to_owned());
        let number = |value: Option<f64>, digits: usize, none: &str| match value {
            Some(value) => format!("{value:.digits$}"),
            None => none.to_owned(),
        };
        let rows = self.variants.iter().map(|row| {
            let mut cells = vec![row.name.clone()];
            let with_seeds = row.ratios.iter().zip(&self.seeds);
            cells.extend(with_seeds.map(|(ratio, seed)| {
                let collapsed = if row.collapsed.contains(seed) {
                    ", collapsed"
                } else {
                    ""
                };
                let none = if row.left.contains(seed) {
                    "not yet"
                } else {
                    "diverged"
                };
                number(*ratio, 3, none) + collapsed
            }));
            cells.push(number(row.mean, 3, NONE));
            cells.push(match row.difference {
                None => NONE.to_owned(),
                Some(Estimate {
                    mean,
                    standard_error: Some(error),
                    ..
                }) => format!("{mean:+.4} ± {error:.4}"),
                Some(Estimate { mean, .. }) => format!("{mean:+.4}"),
            });
            if published {
                cells.push(number(row.published, 3, NONE));
            }
            cells.push(number(row.seconds, 0, NONE));
            cells
        });
        let table = markdown(header, rows.collect());
        let legend = "`minus`: the mean over seeds of the difference in ratio, by pairs of one seed, ± its standard \
                      error.";
        let collapsed = if self.variants.iter().all(|row| row.collapsed.is_empty()) {
            ""
        } else {
            "\n\n`collapsed`: in some stage the loss rose above what it had come down to and stayed there; the notes in \
             the run's summary.json say when."
        };
        let curves = self.curves();
        format!("{}\n\n{table}\n\n{legend}{collapsed}{curves}", self.title)
    }

    /// The ratios by tokens, as a second table; empty where nothing was measured.
    fn curves(&self) -> String {
        let all = self.variants.iter().flat_map(|row| &row.measured);
        let tokens: BTreeSet<u64> = all.map(|measured| measured.tokens).collect();
        if tokens.is_empty() {
            return String::new();
        }
        let mut header = vec!["after tokens".to_owned()];
        header.extend(tokens.iter().map(|tokens| HumanCount(*tokens).to_string()));
        let rows = self.variants.iter().map(|row| {
            let mut cells = vec![row.name.clone()];
            cells.extend(tokens.iter().map(|tokens| {
                let measured = row.measured.iter();
                let found = measured.filter(|measured| measured.tokens == *tokens);
                match found.map(|measured| measured.ratio).next() {
                    None => "-".to_owned(),
                    Some(Estimate {
                        mean,
                        standard_error: Some(error),
                        ..
                    }) => format!("{mean:.3} ± {error:.3}"),
                    Some(Estimate { mean, .. }) => format!("{mean:.3}"),
                }
            }));
            cells
        });
        let table = markdown(header, rows.collect());
        format!(
            "\n\nThe ratio before the first stage and after each, ± its standard error over seeds:\n\n{table}"
        )
    }

    /// As JSON.
    pub(super) fn json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(name: &str, published: Option<f64>) -> Recipe {
        Recipe {
            name: name.to_owned(),
            changes: vec![],
            stages: vec![],
            published,
        }
    }

    fn finished(ratios: &[f64]) -> Vec<Cell> {
        let cell = |ratio: &f64| Cell::Finished {
            ratio: *ratio,
            seconds: 10.0 * ratio,
            has_collapsed: *ratio > 5.0,
            measured: vec![(0, 4.0 * ratio), (3000, *ratio)],
        };
        ratios.iter().map(cell).collect()
    }

    /// Calculated by hand: the differences are -0.5, -0.25 and 0, whose variance is 1/16.
    #[test]
    fn differences_are_those_of_pairs() {
        let (base, other) = (recipe("base", None), recipe("other", None));
        let rows = vec![
            (&base, finished(&[2.0, 1.5, 1.0])),
            (&other, finished(&[1.5, 1.25, 1.0])),
        ];
        let table = Table::new("Ratios".into(), &[1, 2, 3], rows);
        let expected = Estimate {
            mean: -0.25,
            standard_error: Some((1f64 / 48.0).sqrt()),
            pairs: 3,
        };
        assert_eq!(table.variants[0].difference, None);
        assert_eq!(table.variants[1].difference, Some(expected));
        assert_eq!(table.variants[1].mean, Some(1.25));
        let text = table.markdown();
        let rows: Vec<_> = text.lines().filter(|line| line.starts_with('|')).collect();
        let cells = |row: &str| -> Vec<String> {
            let cells = row.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().to_owned()).collect()
        };
        assert_eq!(
            cells(rows[0]),
            [
                "variant",
                "seed 1",
                "seed 2",
                "seed 3",
                "mean",
                "minus base",
                "seconds a run"
            ]
        );
        assert_eq!(
            cells(rows[2]),
            ["base", "2.000", "1.500", "1.000", "1.500", "-", "15"]
        );
        assert_eq!(
            cells(rows[3]),
            [
                "other",
                "1.500",
                "1.250",
                "1.000",
                "1.250",
                "-0.2500 ± 0.1443",
                "12"
            ]
        );
        // The second table: 1.5 and its standard error, the root of 1/4 over 3.
        assert_eq!(cells(rows[4]), ["after tokens", "0", "3,000"]);
        assert_eq!(cells(rows[6]), ["base", "6.000 ± 1.155", "1.500 ± 0.289"]);
    }

    /// A difference needs both runs of a pair; one pair gives no error; a diverged run is not in the mean.
    #[test]
    fn runs_may_have_diverged() {
        let (base, other) = (recipe("base", Some(1.9)), recipe("other", None));
        let diverged = || Cell::Diverged("the loss is not finite".into());
        let rows = vec![
            (&base, vec![finished(&[2.0]).remove(0), diverged()]),
            (&other, finished(&[1.5, 1.25])),
        ];
        let table = Table::new("Ratios".into(), &[1, 2], rows);
        let difference = table.variants[1].difference.expect("one pair");
        assert_eq!((difference.mean, difference.pairs), (-0.5, 1));
        assert_eq!(difference.standard_error, None);
        assert_eq!(table.variants[0].mean, Some(2.0));
        let text = table.markdown();
        assert!(
            text.contains("diverged") && text.contains("published modules"),
            "{text}"
        );

        assert!(!text.contains("collapsed"), "{text}");

        // One that has collapsed has a ratio, which counts.
        let rows = vec![
            (&base, finished(&[2.0, 9.0])),
            (&other, finished(&[1.5, 1.25])),
        ];
        let table = Table::new("Ratios".into(), &[1, 2], rows);
        assert_eq!(table.variants[0].collapsed, [2]);
        assert_eq!(table.variants[0].mean, Some(5.5));
        let text = table.markdown();
        assert!(text.contains("9.000, collapsed"), "{text}");
        assert!(text.contains("`collapsed`: "), "{text}");

        // One that has not ended is neither.
        let rows = vec![
            (&base, finished(&[2.0, 1.5])),
            (&other, vec![finished(&[1.5]).remove(0), Cell::Left]),
        ];
        let table = Table::new("Ratios".into(), &[1, 2], rows);
        assert_eq!(table.variants[1].left, [2]);
        assert_eq!(table.variants[1].mean, Some(1.5));
        let text = table.markdown();
        assert!(
            text.contains("not yet") && !text.contains("diverged"),
            "{text}"
        );

        let none = Table::new("Ratios".into(), &[1], vec![(&base, vec![diverged()])]);
        assert_eq!(none.variants[0].mean, None);
        let json: serde_json::Value = serde_json::from_slice(&none.json()).expect("JSON");
        let row = &json["variants"][0];
        assert!(row["ratios"][0].is_null() && row["mean"].is_null(), "{row}");
        assert_eq!(row["diverged"][0], "the loss is not finite");
    }
}
