//! What each stage is worth: one budget of tokens spent on the last stage of the `tiny` preset alone, on the
//! last two, and on all.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use kernels::TrainBackend;
use model::atomic_file;
use serde::Serialize;

use crate::config::{Config, Source};
use crate::error::{TrainError, io_error};
use crate::logging::say;
use crate::run::{CONFIG, Outcome, Run, RunOptions, StopRequest};
use crate::table::markdown;

/// A budget of tokens, and how the published modules' runs at that budget were set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// 262,144 tokens, 4 sequences of 256 a step.
    Small,
    /// 4,194,304 tokens, 16 sequences of 512 a step.
    Large,
}

/// One combination of stages.
#[derive(Debug, Clone, Copy)]
struct Arm {
    /// A stage of the preset, its share of the budget, its learning rate.
    stages: &'static [(&'static str, f64, f64)],
    /// The student's perplexity over the teacher's that the published modules reach.
    published: f64,
}

const SMALL: [Arm; 3] = [
    Arm {
        stages: &[("stage3", 1.0, 1e-3)],
        published: 1.877,
    },
    Arm {
        stages: &[("stage2", 0.6, 5e-3), ("stage3", 0.4, 1e-3)],
        published: 1.494,
    },
    Arm {
        stages: &[
            ("stage1", 0.1, 1e-3),
            ("stage2", 0.5, 5e-3),
            ("stage3", 0.4, 1e-3),
        ],
        published: 1.523,
    },
];

const LARGE: [Arm; 3] = [
    Arm {
        stages: &[("stage3", 1.0, 2e-3)],
        published: 1.089,
    },
    Arm {
        stages: &[("stage2", 0.4, 5e-3), ("stage3", 0.6, 1e-3)],
        published: 1.050,
    },
    Arm {
        stages: &[
            ("stage1", 0.05, 3e-3),
            ("stage2", 0.35, 5e-3),
            ("stage3", 0.6, 1e-3),
        ],
        published: 1.044,
    },
];

impl Budget {
    /// As the command line names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Large => "large",
        }
    }

    fn arms(self) -> [Arm; 3] {
        match self {
            Self::Small => SMALL,
            Self::Large => LARGE,
        }
    }

    /// Tokens, sequences a step, tokens a sequence.
    fn sizes(self) -> (u64, usize, usize) {
        match self {
            Self::Small => (262_144, 4, 256),
            Self::Large => (4_194_304, 16, 512),
        }
    }

    fn config(self, arm: Arm, seed: u64) -> Result<Config, TrainError> {
        let (tokens, batch, context) = self.sizes();
        let mut set = vec![
            format!("name={}-seed-{seed}", arm.names().join("-")),
            format!("seed={seed}"),
            format!("data.context={context}"),
        ];
        for (stage, share, lr) in arm.stages {
            let steps = (share * tokens as f64 / (batch * context) as f64).round() as u64;
            let tokens = steps * (batch * context) as u64;
            set.extend([
                format!("{stage}.tokens={tokens}"),
                format!("{stage}.batch={batch}"),
                format!("{stage}.lr={lr:?}"),
                format!("{stage}.warmup=0.1"),
                format!("{stage}.decay=0.2"),
            ]);
        }
        let mut config = Config::load(Source::Preset("tiny"), &set)?;
        config.choose_stages(&arm.names())?;
        Ok(config)
    }
}

impl Arm {
    fn names(&self) -> Vec<String> {
        let stages = self.stages.iter();
        stages.map(|(name, ..)| (*name).to_owned()).collect()
    }
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "small" => Ok(Self::Small),
            "large" => Ok(Self::Large),
            _ => Err("there are two budgets, small and large".into()),
        }
    }
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Row {
    stages: Vec<String>,
    /// The student's perplexity over the teacher's, one a seed.
    ratios: Vec<f64>,
    mean: f64,
    published: f64,
    seconds: f64,
}

/// The comparison to run.
#[derive(Debug, Clone)]
pub struct Ablation {
    /// What each run may spend.
    pub budget: Budget,
    /// Each combination runs once with each.
    pub seeds: Vec<u64>,
    /// Holds the table and a run folder for each run.
    pub folder: PathBuf,
    /// The backend's name, for the record.
    pub backend: String,
    /// Asked whether to stop.
    pub stop: StopRequest,
}

impl Ablation {
    /// Runs everything, writes the table, and returns it; `None` if asked to stop on the way.
    ///
    /// A run that is in the folder already is resumed, and one that is finished is taken as it is: the same
    /// call continues a comparison that was stopped.
    ///
    /// # Errors
    /// [`TrainError`] of the first run that fails; [`TrainError::Exists`] if one in the folder is not
    /// the one that would be made here.
    pub fn execute<B: TrainBackend>(
        &self,
        device: &B::Device,
    ) -> Result<Option<String>, TrainError> {
        let mut rows = vec![];
        for arm in self.budget.arms() {
            let (mut ratios, mut seconds) = (vec![], 0.0);
            for &seed in &self.seeds {
                let config = self.budget.config(arm, seed)?;
                let folder = self.folder.join(&config.name);
                let options = RunOptions {
                    resume: self.is_begun(&config, &folder)?,
                    accept_changes: false,
                    config,
                    folder,
                    dashboard: false,
                    backend: self.backend.clone(),
                    read_every: None,
                    stop: self.stop.clone(),
                };
                say(&options.config.name);
                match Run::<B>::execute(options, device)? {
                    Outcome::Finished(summary) => {
                        ratios.push(summary.ratio);
                        seconds += summary.seconds;
                    }
                    Outcome::Stopped => return Ok(None),
                }
            }
            rows.push(Row {
                stages: arm.names(),
                mean: ratios.iter().sum::<f64>() / ratios.len() as f64,
                published: arm.published,
                seconds: seconds / ratios.len() as f64,
                ratios,
            });
        }
        let table = self.table(&rows);
        self.write("table.md", table.as_bytes())?;
        let json = serde_json::to_vec_pretty(&rows).unwrap_or_default();
        self.write("table.json", &json)?;
        Ok(Some(table))
    }

    /// Whether the run of `config` is in `folder`.
    fn is_begun(&self, config: &Config, folder: &Path) -> Result<bool, TrainError> {
        let file = folder.join(CONFIG);
        if !file.exists() {
            return Ok(false);
        }
        // A run keeps it so.
        let made = config.clone().with_absolute_paths();
        if Config::load(Source::File(&file), &[])?.with_absolute_paths() == made {
            Ok(true)
        } else {
            Err(TrainError::Exists(folder.to_owned()))
        }
    }

    fn table(&self, rows: &[Row]) -> String {
        let (tokens, batch, context) = self.budget.sizes();
        let mut header = vec!["stages".to_owned()];
        header.extend(self.seeds.iter().map(|seed| format!("seed {seed}")));
        header.extend(["mean", "published modules", "seconds a run"].map(str::to_owned));
        let rows = rows.iter().map(|row| {
            let mut cells = vec![row.stages.join(", ")];
            let ratios = row.ratios.iter().chain([&row.mean, &row.published]);
            cells.extend(ratios.map(|ratio| format!("{ratio:.3}")));
            cells.push(format!("{:.0}", row.seconds));
            cells
        });
        format!(
            "Student over teacher perplexity, {tokens} tokens, {batch} x {context}, on {}\n\n{}",
            self.backend,
            markdown(header, rows.collect()),
        )
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), TrainError> {
        let path = self.folder.join(name);
        atomic_file::write(&path, bytes).map_err(io_error(&path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_spends_the_whole_budget() {
        for budget in [Budget::Small, Budget::Large] {
            let (all, batch, context) = budget.sizes();
            for arm in budget.arms() {
                let config = budget.config(arm, 7).unwrap();
                assert_eq!((config.seed, config.data.context), (7, context));
                assert_eq!(config.stages.len(), arm.stages.len());
                let steps: usize = config.stages.iter().map(|stage| config.steps(stage)).sum();
                let tokens = (steps * batch * context) as u64;
                // Shares are rounded to whole steps.
                assert!(tokens.abs_diff(all) <= (batch * context) as u64, "{tokens}");
            }
        }
    }
}
