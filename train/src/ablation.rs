//! What each stage is worth: the same budget spent on 3, on 2 and 3, and on all of them.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kernels::TrainBackend;
use model::atomic_file;
use serde::Serialize;

use crate::config::{Config, Source};
use crate::error::{TrainError, io_error};
use crate::logging::say;
use crate::run::{CONFIG, Outcome, Run, RunOptions};

/// A budget, and how the published modules' runs at that budget were set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// 262,144 tokens, 4 sequences of 256 a step.
    Small,
    /// 4,194,304 tokens, 16 sequences of 512 a step.
    Large,
}

/// One combination of stages.
#[derive(Debug, Clone, Copy)]
struct Arm {
    name: &'static str,
    /// Stage, its share of the budget, its learning rate.
    stages: &'static [(u8, f64, f64)],
    /// The student's perplexity over the teacher's that the published modules reach.
    published: f64,
}

const SMALL: [Arm; 3] = [
    Arm {
        name: "3",
        stages: &[(3, 1.0, 1e-3)],
        published: 1.877,
    },
    Arm {
        name: "2-3",
        stages: &[(2, 0.6, 5e-3), (3, 0.4, 1e-3)],
        published: 1.494,
    },
    Arm {
        name: "1-2-3",
        stages: &[(1, 0.1, 1e-3), (2, 0.5, 5e-3), (3, 0.4, 1e-3)],
        published: 1.523,
    },
];

const LARGE: [Arm; 3] = [
    Arm {
        name: "3",
        stages: &[(3, 1.0, 2e-3)],
        published: 1.089,
    },
    Arm {
        name: "2-3",
        stages: &[(2, 0.4, 5e-3), (3, 0.6, 1e-3)],
        published: 1.050,
    },
    Arm {
        name: "1-2-3",
        stages: &[(1, 0.05, 3e-3), (2, 0.35, 5e-3), (3, 0.6, 1e-3)],
        published: 1.044,
    },
];

impl Plan {
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
        let stages: Vec<u8> = arm.stages.iter().map(|(stage, ..)| *stage).collect();
        let mut set = vec![
            format!("name={}", run_name(arm, seed)),
            format!("seed={seed}"),
            format!("stages={stages:?}"),
            format!("data.context={context}"),
        ];
        for (stage, share, lr) in arm.stages {
            let steps = (share * tokens as f64 / (batch * context) as f64).round() as u64;
            let tokens = steps * (batch * context) as u64;
            set.extend([
                format!("stage{stage}.tokens={tokens}"),
                format!("stage{stage}.batch={batch}"),
                format!("stage{stage}.lr={lr:?}"),
                format!("stage{stage}.warmup=0.1"),
                format!("stage{stage}.decay=0.2"),
            ]);
        }
        Ok(Config::load(Source::Preset("tiny"), &set)?)
    }
}

/// The name of a run, and of its folder.
fn run_name(arm: Arm, seed: u64) -> String {
    format!("stages-{}-seed-{seed}", arm.name)
}

impl FromStr for Plan {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "small" => Ok(Self::Small),
            "large" => Ok(Self::Large),
            _ => Err("there are two plans, small and large".into()),
        }
    }
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Row {
    stages: &'static str,
    /// The student's perplexity over the teacher's, one a seed.
    ratios: Vec<f64>,
    mean: f64,
    published: f64,
    seconds: f64,
}

/// The comparison to run.
#[derive(Debug, Clone)]
pub struct Ablation {
    /// Its budget.
    pub plan: Plan,
    /// Each combination runs once with each.
    pub seeds: Vec<u64>,
    /// Holds the table and a run folder for each run.
    pub folder: PathBuf,
    /// The backend's name, for the record.
    pub backend: String,
    /// Set by another thread to stop.
    pub stop: Arc<AtomicBool>,
}

impl Ablation {
    /// Runs everything, writes the table, and returns it; `None` if asked to stop on the way.
    ///
    /// Runs that are in the folder already are gone on with, and those of them that are finished are
    /// taken as they are: the same call goes on with a comparison that was stopped.
    ///
    /// # Errors
    /// [`TrainError`] of the first run that fails; [`TrainError::Exists`] if one in the folder is not
    /// the one that would be made here.
    pub fn execute<B: TrainBackend>(
        &self,
        device: &B::Device,
    ) -> Result<Option<String>, TrainError> {
        let mut rows = vec![];
        for arm in self.plan.arms() {
            let (mut ratios, mut seconds) = (vec![], 0.0);
            for &seed in &self.seeds {
                let config = self.plan.config(arm, seed)?;
                let folder = self.folder.join(&config.name);
                let options = RunOptions {
                    resume: self.is_begun(&config, &folder)?,
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
                stages: arm.name,
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
        match Config::load(Source::File(&file), &[])? == *config {
            true => Ok(true),
            false => Err(TrainError::Exists(folder.to_owned())),
        }
    }

    fn table(&self, rows: &[Row]) -> String {
        let (tokens, batch, context) = self.plan.sizes();
        let mut table = format!(
            "Student over teacher perplexity, {tokens} tokens, {batch} x {context}, on {}\n\n",
            self.backend
        );
        table.push_str("| stages |");
        for seed in &self.seeds {
            let _ = write!(table, " seed {seed} |");
        }
        table.push_str(" mean | published modules | seconds a run |\n|---|");
        table.push_str(&"---|".repeat(self.seeds.len() + 3));
        for row in rows {
            let _ = write!(table, "\n| {} |", row.stages);
            for ratio in &row.ratios {
                let _ = write!(table, " {ratio:.3} |");
            }
            let Row {
                mean,
                published,
                seconds,
                ..
            } = row;
            let _ = write!(table, " {mean:.3} | {published:.3} | {seconds:.0} |");
        }
        table
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
        for plan in [Plan::Small, Plan::Large] {
            let (budget, batch, context) = plan.sizes();
            for arm in plan.arms() {
                let config = plan.config(arm, 7).unwrap();
                assert_eq!((config.seed, config.data.context), (7, context));
                let steps: usize = config.stages.iter().map(|&stage| config.steps(stage)).sum();
                let tokens = (steps * batch * context) as u64;
                // Shares are rounded to whole steps.
                assert!(
                    tokens.abs_diff(budget) <= (batch * context) as u64,
                    "{tokens}"
                );
            }
        }
    }
}
