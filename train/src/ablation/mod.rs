//! `train ablate`: compares recipes, each with the same seeds.
//!
//! Every recipe runs once with every seed, each run in its own folder, so that a comparison that was stopped can be
//! continued. Optionally, several runs of one seed go in lockstep, and the teacher is computed once for all of them
//! (`lockstep`). Runs of one seed see the same text in the same order and draw the same random numbers. So recipes are
//! compared by pairs of runs with one seed: the differences of such pairs vary less than the runs themselves.

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
    /// In words, what all variants have in common.
    pub title: String,
    /// What is compared; the first is the baseline for the others.
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
    /// Runs everything, writes the table after each run, and returns it in Markdown; `None` if asked to stop before the
    /// end.
    ///
    /// A run that is already in the folder is resumed, and a finished one is used as it is. So the same call continues
    /// a comparison that was stopped, and a call with more variants or seeds extends it. A run whose loss is no longer
    /// a number, or that was rolled back from spikes too often, is listed in the table as diverged, and the other runs
    /// continue.
    ///
    /// # Errors
    /// [`TrainError`] of the first run that fails for another reason; [`TrainError::OtherRun`] if a run in the folder
    /// is not the one that this call would make.
    pub fn execute<B: TrainBackend>(
        &self,
        device: &B::Device,
    ) -> Result<Option<String>, TrainError> {
        let configs = self.variants.iter().flat_map(|variant| &variant.configs);
        let configs: Vec<&Config> = configs.collect();
        // All configurations, before the first run starts.
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

    /// Writes the table of the results so far, and returns it in Markdown.
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

    /// Groups of the numbers of `configs` that go in lockstep, finished runs first. Logs which runs go together, and
    /// why others do not.
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

    /// Runs `configs`, in lockstep if there are several, and returns how each run ended. An `Err` in the list is a
    /// divergence.
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

    /// The table's entry for the run of `config`, which is finished.
    fn cell(&self, config: &Config, summary: &Summary) -> Result<Cell, TrainError> {
        let mut notes = summary.notes.iter();
        Ok(Cell::Finished {
            ratio: summary.ratio,
            seconds: summary.seconds,
            has_collapsed: notes.any(|note| guard::is_collapse(&note.text)),
            measured: self.measured(config)?,
        })
    }

    /// The measurements of the run of `config`: training tokens, and the student's perplexity over the teacher's.
    fn measured(&self, config: &Config) -> Result<Vec<(u64, f64)>, TrainError> {
        let records = metrics::read(&self.folder_of(config).join(METRICS))?;
        let mut measured = BTreeMap::new();
        for record in records {
            if let Record::Evaluation(found) = record {
                let ratio = found.student_perplexity / found.teacher_perplexity;
                // A run that was stopped may have measured twice after the same number of tokens: the last one counts.
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
