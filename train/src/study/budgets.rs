//! How a budget of tokens is best split over the stages of a configuration (arXiv 2408.10189, the training laws). Each
//! split of a grid is one run, and all runs have the same number of tokens.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use kernels::TrainBackend;
use maud::{PreEscaped, html};
use model::atomic_file;
use serde::Serialize;

use crate::config::{Config, ConfigError, Source};
use crate::error::{TrainError, io_error};
use crate::logging::say;
use crate::report::{ReportError, chart, document};
use crate::run::{Outcome, Run, RunOptions, StopRequest, begun};
use crate::table::markdown;

/// Percent of the tokens for each stage, in the order of the list; together 100.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Split(pub Vec<u32>);

impl FromStr for Split {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split('/').map(|part| part.parse::<u32>());
        let parts: Vec<u32> = parts
            .collect::<Result<_, _>>()
            .map_err(|_| format!("{text:?} is no list of percent such as 5/35/60"))?;
        let sum = parts
            .iter()
            .try_fold(0u32, |sum, part| sum.checked_add(*part));
        match sum {
            Some(100) => Ok(Self(parts)),
            _ => Err(format!("the percent of {text} do not add up to 100")),
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.0.iter().map(u32::to_string).collect();
        f.write_str(&parts.join("/"))
    }
}

/// The study to make.
#[derive(Debug, Clone)]
pub struct BudgetStudy {
    /// Which preset the runs start from.
    pub preset: String,
    /// The changes of the preset that all runs share, each `key=value`.
    pub set: Vec<String>,
    /// Training tokens of each run.
    pub tokens: u64,
    /// The splits; each is one run.
    pub splits: Vec<Split>,
    /// Holds the results, and a run folder for each run.
    pub folder: PathBuf,
    /// The backend's name, for the record.
    pub backend: String,
    /// Asked whether to stop.
    pub stop: StopRequest,
}

/// One run.
#[derive(Debug, Clone, Serialize)]
struct Row {
    split: Split,
    /// The tokens of each stage of the list.
    tokens: Vec<u64>,
    perplexity: f64,
    /// The student's perplexity over the teacher's.
    ratio: f64,
    seconds: f64,
}

impl BudgetStudy {
    /// Runs every split, writes `table.md`, `budgets.json` and `budgets.html`, and returns the table with the
    /// recommended split; `None` if asked to stop before the end.
    ///
    /// A run that is already in the folder is resumed, and a finished one is used as it is: so the same call continues
    /// a study that was stopped.
    ///
    /// # Errors
    /// [`TrainError`] of the first run that fails; [`TrainError::OtherRun`] if a run in the folder is not the one that
    /// this call would make; [`TrainError::Mismatch`] if the number of parts of a split is not the number of stages.
    pub fn execute<B: TrainBackend>(
        &self,
        device: &B::Device,
    ) -> Result<Option<String>, TrainError> {
        // All configurations are checked before the first run.
        let configs = self.splits.iter().map(|split| self.config(split));
        let configs = configs.collect::<Result<Vec<_>, _>>()?;
        let mut rows = vec![];
        for (split, config) in self.splits.iter().zip(configs) {
            let folder = self.folder.join(&config.name);
            let names = self.stages()?.into_iter();
            let tokens = names.map(|name| {
                let stage = config.stage(&name);
                stage.map_or(0, |stage| {
                    config.steps(stage) as u64 * config.tokens_per_step(stage)
                })
            });
            let tokens = tokens.collect();
            let begun = begun(&config, &folder)?;
            let options = RunOptions {
                resume: begun.is_some(),
                accept_changes: false,
                config: begun.unwrap_or(config),
                folder,
                dashboard: false,
                backend: self.backend.clone(),
                read_every: None,
                stop: self.stop.clone(),
            };
            say(&options.config.name);
            match Run::<B>::execute(options, device)? {
                Outcome::Finished(summary) => rows.push(Row {
                    split: split.clone(),
                    tokens,
                    perplexity: summary.student_perplexity,
                    ratio: summary.ratio,
                    seconds: summary.seconds,
                }),
                Outcome::Stopped => return Ok(None),
            }
        }
        let table = self.table(&rows)?;
        self.write("table.md", table.as_bytes())?;
        let json = serde_json::to_vec_pretty(&rows).unwrap_or_default();
        self.write("budgets.json", &json)?;
        self.write("budgets.html", self.page(&rows)?.as_bytes())?;
        Ok(Some(table))
    }

    /// The names of the stages that share the budget.
    fn stages(&self) -> Result<Vec<String>, TrainError> {
        let config = Config::load(Source::Preset(&self.preset), &self.set)?;
        Ok(config.stages.into_iter().map(|stage| stage.name).collect())
    }

    /// The run of one split: stages without tokens are left out.
    fn config(&self, split: &Split) -> Result<Config, TrainError> {
        let mut config = Config::load(Source::Preset(&self.preset), &self.set)?;
        if split.0.len() != config.stages.len() {
            return Err(TrainError::Mismatch(format!(
                "the split {split} has {} parts, and preset {} has {} stages",
                split.0.len(),
                self.preset,
                config.stages.len()
            )));
        }
        for (stage, percent) in config.stages.iter_mut().zip(&split.0) {
            stage.tokens = (u128::from(self.tokens) * u128::from(*percent) / 100) as u64;
        }
        let stages = config.stages.iter().zip(&split.0);
        let used = stages.filter(|(_, percent)| **percent > 0);
        let used: Vec<String> = used.map(|(stage, _)| stage.name.clone()).collect();
        config.choose_stages(&used)?;
        config.name = format!("split-{split}").replace('/', "-");
        config.validate().map_err(|error| match error {
            ConfigError::OutOfRange(wrong) if wrong.key.ends_with(".tokens") => {
                TrainError::Mismatch(format!(
                    "the split {split} of {} tokens: `{}` is {}, which is not one batch; raise --tokens, or choose other \
                     --splits",
                    self.tokens, wrong.key, wrong.value
                ))
            }
            error => error.into(),
        })?;
        Ok(config)
    }

    fn table(&self, rows: &[Row]) -> Result<String, TrainError> {
        let mut header = vec!["split in percent".to_owned()];
        header.extend(self.stages()?);
        header.extend(["perplexity", "over teacher", "seconds"].map(str::to_owned));
        let cells = rows.iter().map(|row| {
            let mut cells = vec![row.split.to_string()];
            cells.extend(row.tokens.iter().map(u64::to_string));
            cells.push(format!("{:.3}", row.perplexity));
            cells.push(format!("{:.4}", row.ratio));
            cells.push(format!("{:.0}", row.seconds));
            cells
        });
        Ok(format!(
            "{}\n\n{}\n\n{}",
            self.lead(),
            markdown(header, cells.collect()),
            advice(rows)
        ))
    }

    fn lead(&self) -> String {
        format!(
            "Perplexity after {} training tokens of preset {}, by how they are split over the stages; on {}",
            self.tokens, self.preset, self.backend
        )
    }

    /// A chart of the ratio against the percentage of the last stage, with a line for each percentage of the first
    /// stage.
    fn page(&self, rows: &[Row]) -> Result<String, ReportError> {
        let first = |row: &Row| row.split.0.first().copied().unwrap_or_default();
        let mut firsts: Vec<u32> = rows.iter().map(first).collect();
        firsts.sort_unstable();
        firsts.dedup();
        let series: Vec<_> = firsts
            .into_iter()
            .map(|percent| {
                let of = rows.iter().filter(|row| first(row) == percent);
                let last = |row: &Row| f64::from(row.split.0.last().copied().unwrap_or_default());
                let mut points: Vec<_> = of.map(|row| (last(row), row.ratio)).collect();
                points.sort_by(|(a, _), (b, _)| a.total_cmp(b));
                (format!("{percent}% in the first stage"), points)
            })
            .collect();
        let labels = [
            "percent of the tokens in the last stage",
            "student over teacher perplexity",
        ];
        let svg = chart::curves(&series, labels)?.unwrap_or_default();
        let title = "How to split a budget of tokens";
        let body = html! {
            h1 { (title) }
            p.lead { (self.lead()) "." }
            figure { div.wide { (PreEscaped(svg)) } }
            div.wide {
                table {
                    tr { th { "split in percent" } th { "perplexity" } th { "over teacher" } th { "seconds" } }
                    @for row in rows {
                        tr {
                            td { (row.split) }
                            td { (format!("{:.3}", row.perplexity)) }
                            td { (format!("{:.4}", row.ratio)) }
                            td { (format!("{:.0}", row.seconds)) }
                        }
                    }
                }
            }
            p { (advice(rows)) }
        };
        Ok(document(title, &body))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), TrainError> {
        let path = self.folder.join(name);
        atomic_file::write(&path, bytes).map_err(io_error(&path))
    }
}

/// The split with the lowest perplexity, in a sentence.
fn advice(rows: &[Row]) -> String {
    let mut sorted: Vec<&Row> = rows.iter().filter(|row| row.ratio.is_finite()).collect();
    sorted.sort_by(|a, b| a.ratio.total_cmp(&b.ratio));
    match sorted[..] {
        [] => "No run has a finite perplexity.".into(),
        [best] => format!("The only split is {}.", best.split),
        [best, second, ..] => format!(
            "Advice: {}. The next best, {}, ends {:.2}% higher; one run a split, so that smaller differences than those \
             between seeds mean nothing.",
            best.split,
            second.split,
            100.0 * (second.ratio / best.ratio - 1.0)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn study(tokens: u64) -> BudgetStudy {
        BudgetStudy {
            preset: "tiny".into(),
            set: vec!["stage3.lr=2e-3".into()],
            tokens,
            splits: vec![],
            folder: PathBuf::new(),
            backend: "none".into(),
            stop: StopRequest::default(),
        }
    }

    #[test]
    fn a_split_shares_the_tokens() {
        let split = Split(vec![5, 35, 60]);
        assert_eq!("5/35/60".parse(), Ok(split.clone()));
        let config = study(1_024_000).config(&split).unwrap();
        let tokens: Vec<u64> = config.stages.iter().map(|stage| stage.tokens).collect();
        assert_eq!(tokens, [51_200, 358_400, 614_400]);
        assert_eq!(config.name, "split-5-35-60");
        assert_eq!(config.stages[2].lr.highest(), 2e-3);
        let alone = study(1_024_000).config(&Split(vec![0, 0, 100])).unwrap();
        assert_eq!(alone.stages.len(), 1);
        assert_eq!(alone.stages[0].tokens, 1_024_000);
    }

    #[test]
    fn what_is_no_split_is_refused() {
        for text in ["", "5/35", "50/51", "-5/105", "a/100", "4294967295/101"] {
            assert!(text.parse::<Split>().is_err(), "{text}");
        }
        let error = study(1000).config(&Split(vec![40, 60])).unwrap_err();
        assert!(error.to_string().contains("3 stages"), "{error}");
        let error = study(8192).config(&Split(vec![10, 40, 50])).unwrap_err();
        let named = "the split 10/40/50 of 8192 tokens: `stage1.tokens` is 819";
        assert!(error.to_string().starts_with(named), "{error}");
    }

    #[test]
    fn the_lowest_perplexity_is_advised() {
        let row = |split: &str, ratio: f64| Row {
            split: split.parse().unwrap(),
            tokens: vec![],
            perplexity: 20.0 * ratio,
            ratio,
            seconds: 1.0,
        };
        let rows = [
            row("0/0/100", 1.5),
            row("0/40/60", 1.2),
            row("5/35/60", f64::NAN),
        ];
        let advice = advice(&rows);
        assert!(
            advice.starts_with("Advice: 0/40/60. The next best, 0/0/100, ends 25.00%"),
            "{advice}"
        );
        let page = study(1000).page(&rows).unwrap();
        assert!(page.contains("0% in the first stage") && page.contains("<svg"));
    }
}
