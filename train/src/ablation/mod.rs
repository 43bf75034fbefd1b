//! `train ablate`: recipes side by side, each with the same seeds.
//!
//! Every recipe runs once with every seed, each run in a folder of its own, so that a comparison that was stopped goes
//! on where it was. Runs of one seed see the same text in the same order and draw the same numbers, so recipes are
//! compared by seeds: the differences of such pairs vary less than the runs themselves.

mod recipes;
mod stages;
mod table;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kernels::TrainBackend;
use model::atomic_file;

use self::table::{Cell, Table};
use crate::config::Config;
use crate::error::{TrainError, io_error};
use crate::logging::say;
use crate::metrics::{self, Record};
use crate::run::{METRICS, Outcome, Run, RunOptions, StopRequest, begun};

pub use recipes::{Recipe, RecipeError, Variant};
pub use stages::Budget;

/// The comparison to run.
#[derive(Debug, Clone)]
pub struct Ablation {
    /// What all variants have in common, in words.
    pub title: String,
    /// What is compared; the others are held against the first.
    pub variants: Vec<Variant>,
    /// The seeds of the variants' configurations.
    pub seeds: Vec<u64>,
    /// Holds the table and a run folder for each run.
    pub folder: PathBuf,
    /// The backend's name, for the record.
    pub backend: String,
    /// Asked whether to stop.
    pub stop: StopRequest,
}

impl Ablation {
    /// Runs everything, writes the table, and returns it in Markdown; `None` if asked to stop on the way.
    ///
    /// A run that is in the folder already is resumed, and one that is finished is taken as it is: the same
    /// call continues a comparison that was stopped, and one with more variants or seeds extends it. A run whose loss is
    /// no longer a number, or that has gone back from spikes too often, stands in the table as such, and the others go
    /// on.
    ///
    /// # Errors
    /// [`TrainError`] of the first run that fails otherwise; [`TrainError::Exists`] if one in the folder is not
    /// the one that would be made here.
    pub fn execute<B: TrainBackend>(
        &self,
        device: &B::Device,
    ) -> Result<Option<String>, TrainError> {
        // All of them before the first one runs.
        let configs = self.variants.iter().flat_map(|variant| &variant.configs);
        for config in configs {
            self.begun(config)?;
        }
        let mut rows = vec![];
        for variant in &self.variants {
            let mut cells = vec![];
            for config in &variant.configs {
                match self.run::<B>(config, device)? {
                    Some(cell) => cells.push(cell),
                    None => return Ok(None),
                }
            }
            rows.push((&variant.recipe, cells));
        }
        let title = format!(
            "Student over teacher perplexity, {}, on {}",
            self.title, self.backend
        );
        let table = Table::new(title, &self.seeds, rows);
        let markdown = table.markdown();
        self.write("table.md", markdown.as_bytes())?;
        self.write("table.json", &table.json())?;
        Ok(Some(markdown))
    }

    /// One run; `None` if asked to stop.
    fn run<B: TrainBackend>(
        &self,
        config: &Config,
        device: &B::Device,
    ) -> Result<Option<Cell>, TrainError> {
        let begun = self.begun(config)?;
        let options = RunOptions {
            resume: begun.is_some(),
            accept_changes: false,
            config: begun.unwrap_or_else(|| config.clone()),
            folder: self.folder.join(&config.name),
            dashboard: false,
            backend: self.backend.clone(),
            read_every: None,
            stop: self.stop.clone(),
        };
        say(&config.name);
        match Run::<B>::execute(options, device) {
            Ok(Outcome::Finished(summary)) => Ok(Some(Cell::Finished {
                ratio: summary.ratio,
                seconds: summary.seconds,
                measured: self.measured(config)?,
            })),
            Ok(Outcome::Stopped) => Ok(None),
            Err(error) if has_diverged(&error) => {
                say(&error);
                Ok(Some(Cell::Diverged(error.to_string())))
            }
            Err(error) => Err(error),
        }
    }

    /// What the run of `config` has measured: tokens, and the student's perplexity over the teacher's.
    fn measured(&self, config: &Config) -> Result<Vec<(u64, f64)>, TrainError> {
        let records = metrics::read(&self.folder.join(&config.name).join(METRICS))?;
        let mut measured = BTreeMap::new();
        for record in records {
            if let Record::Evaluation(found) = record {
                let ratio = found.student_perplexity / found.teacher_perplexity;
                // Once, also where a run that was stopped has measured twice.
                measured.insert(found.tokens, ratio);
            }
        }
        Ok(measured.into_iter().collect())
    }

    /// [`begun`] of the run of `config`.
    fn begun(&self, config: &Config) -> Result<Option<Config>, TrainError> {
        begun(config, &self.folder.join(&config.name))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), TrainError> {
        let path: &Path = &self.folder.join(name);
        atomic_file::write(path, bytes).map_err(io_error(path))
    }
}

/// Whether the recipe is to blame, and not what it runs on.
fn has_diverged(error: &TrainError) -> bool {
    use TrainError::{AllSkipped, NotFinite, Spikes, StudentNotFinite};
    matches!(
        error,
        AllSkipped { .. } | NotFinite { .. } | Spikes { .. } | StudentNotFinite { .. }
    )
}
