//! `train ablate`: recipes side by side, each with the same seeds.
//!
//! Every recipe runs once with every seed, each run in a folder of its own, so that a comparison that was stopped goes
//! on where it was. Where it is asked for, runs of one seed go in lockstep, several at a time, and the teacher is computed
//! once for all of them (`lockstep`). Runs of one seed see the same text in the same order and draw the same numbers, so recipes are
//! compared by seeds: the differences of such pairs vary less than the runs themselves.

mod lockstep;
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
use crate::guard;
use crate::logging::say;
use crate::metrics::{self, Record};
use crate::run::{METRICS, Need, Outcome, Room, Run, RunOptions, SUMMARY, StopRequest, begun};
use crate::summary::Summary;

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
    /// How many runs go in lockstep, at most.
    pub lockstep: usize,
    /// The backend's name, for the record.
    pub backend: String,
    /// Asked whether to stop.
    pub stop: StopRequest,
}

impl Ablation {
    /// Runs everything, writes the table after each run, and returns it in Markdown; `None` if asked to stop on the way.
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
        let configs = self.variants.iter().flat_map(|variant| &variant.configs);
        let configs: Vec<&Config> = configs.collect();
        // All of them before the first one runs.
        for config in &configs {
            self.begun(config)?;
        }
        let mut cells: Vec<Cell> = configs.iter().map(|_| Cell::Left).collect();
        let mut markdown = String::new();
        for group in self.groups::<B>(&configs, device)? {
            let together: Vec<_> = group.iter().map(|run| configs[*run]).collect();
            let ended = self.run::<B>(&together, device)?;
            let mut is_stopped = false;
            for (run, ended) in group.into_iter().zip(ended) {
                match ended {
                    Ok(Outcome::Finished(summary)) => {
                        cells[run] = self.cell(configs[run], &summary)?;
                    }
                    Ok(Outcome::Stopped) => is_stopped = true,
                    Err(error) => cells[run] = Cell::Diverged(error.to_string()),
                }
            }
            markdown = self.write_table(&cells)?;
            if is_stopped {
                return Ok(None);
            }
        }
        Ok(Some(markdown))
    }

    /// Writes the table of all runs, as far as they have ended, and returns it in Markdown.
    fn write_table(&self, cells: &[Cell]) -> Result<String, TrainError> {
        let mut cells = cells.iter().cloned();
        let rows = self.variants.iter().map(|variant| {
            let own = cells.by_ref().take(variant.configs.len());
            (&variant.recipe, own.collect::<Vec<_>>())
        });
        let in_lockstep = match self.lockstep {
            0 | 1 => String::new(),
            most => {
                format!(", up to {most} runs in lockstep, whose seconds are those of all of them")
            }
        };
        let title = format!(
            "Student over teacher perplexity, {}, on {}{in_lockstep}",
            self.title, self.backend
        );
        let table = Table::new(title, &self.seeds, rows.collect());
        let markdown = table.markdown();
        self.write("table.md", markdown.as_bytes())?;
        self.write("table.json", &table.json())?;
        Ok(markdown)
    }

    /// The runs of `configs` that go together, by their numbers, those first that are finished. Says which do, and why
    /// others do not.
    fn groups<B: TrainBackend>(
        &self,
        configs: &[&Config],
        device: &B::Device,
    ) -> Result<Vec<Vec<usize>>, TrainError> {
        let is_done = |config: &Config| self.folder_of(config).join(SUMMARY).exists();
        let left = (0..configs.len()).filter(|run| !is_done(configs[*run]));
        let left: Vec<usize> = left.collect();
        let room = Room::of::<B::InnerBackend>(device).filter(|_| self.lockstep > 1);
        let mut needs: BTreeMap<usize, Need> = BTreeMap::new();
        if room.is_some() {
            for run in &left {
                let need = Need::of::<B::InnerBackend>(configs[*run], device)?;
                needs.insert(*run, need);
            }
        }
        let needs_of = |group: &[usize]| -> Vec<Need> {
            let needs = group.iter().filter_map(|run| needs.get(run));
            needs.copied().collect()
        };
        let fits = |group: &[usize]| room.is_none_or(|room| room.holds(&needs_of(group)));
        let mut groups = lockstep::groups(configs, self.lockstep, is_done, fits);
        groups.sort_by_key(|group| left.contains(&group[0]));
        if self.lockstep > 1 {
            for group in &groups {
                if let [run] = group[..] {
                    if left.contains(&run) {
                        let why = lockstep::why_alone(configs, run, &left);
                        say(format_args!(
                            "not in lockstep: {}, since {why}",
                            configs[run].name
                        ));
                    }
                } else {
                    let names = group.iter().map(|run| configs[*run].name.as_str());
                    let names = names.collect::<Vec<_>>().join(", ");
                    let memory = room.map(|room| room.said(&needs_of(group)));
                    say(format_args!(
                        "in lockstep: {names}{}",
                        memory.unwrap_or_default()
                    ));
                }
            }
        }
        Ok(groups)
    }

    /// How the runs of `configs` end, which go together: an error is one by which a run diverges.
    fn run<B: TrainBackend>(
        &self,
        configs: &[&Config],
        device: &B::Device,
    ) -> Result<Vec<Result<Outcome, TrainError>>, TrainError> {
        let mut all = vec![];
        for config in configs {
            let begun = self.begun(config)?;
            all.push(RunOptions {
                resume: begun.is_some(),
                accept_changes: false,
                config: begun.unwrap_or_else(|| Config::clone(config)),
                folder: self.folder_of(config),
                dashboard: false,
                backend: self.backend.clone(),
                read_every: None,
                stop: self.stop.clone(),
            });
        }
        if all.len() > 1 {
            return Run::<B>::execute_in_lockstep(all, device);
        }
        let mut ended = vec![];
        for options in all {
            say(&options.config.name);
            let outcome = Run::<B>::execute(options, device);
            match &outcome {
                Err(error) if error.is_divergence() => say(error),
                Err(_) => return outcome.map(|_| vec![]),
                Ok(_) => {}
            }
            ended.push(outcome);
        }
        Ok(ended)
    }

    /// What the table has of the run of `config`, which is finished.
    fn cell(&self, config: &Config, summary: &Summary) -> Result<Cell, TrainError> {
        let mut notes = summary.notes.iter();
        Ok(Cell::Finished {
            ratio: summary.ratio,
            seconds: summary.seconds,
            has_collapsed: notes.any(|note| guard::is_collapse(&note.text)),
            measured: self.measured(config)?,
        })
    }

    /// What the run of `config` has measured: tokens, and the student's perplexity over the teacher's.
    fn measured(&self, config: &Config) -> Result<Vec<(u64, f64)>, TrainError> {
        let records = metrics::read(&self.folder_of(config).join(METRICS))?;
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
        begun(config, &self.folder_of(config))
    }

    /// The folder of the run of `config`.
    fn folder_of(&self, config: &Config) -> PathBuf {
        self.folder.join(&config.name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), TrainError> {
        let path: &Path = &self.folder.join(name);
        atomic_file::write(path, bytes).map_err(io_error(path))
    }
}
