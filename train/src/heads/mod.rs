//! Which attention heads of a teacher recall, and how much recall is left if only the best of them see all tokens.
//!
//! ```text
//! probes -> Readings -> changed heads -> ranking -> curve, configuration of a hybrid
//!           questions   changes, recall  ranking    curve  hybrid
//! ```
//!
//! Heads are ranked on documents of one seed, and the curve is measured on documents of another seed, which `infer
//! eval` reads too. So the curve is not measured on the documents that chose the heads.

mod changes;
mod curve;
mod hybrid;
mod questions;
mod ranking;
mod recall;
mod table;
#[cfg(test)]
mod tests;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use datasets::probes::{Probe, ProbeSizes, SEED};
use kernels::{KernelBackend, Window};
use model::{CausalLm, Family};
use serde::Serialize;

pub use changes::Unit;
pub use curve::Kept;
pub use questions::Set;
pub use ranking::{By, Ranked, UnitKind};
pub use recall::Recall;

use self::ranking::{Ranking, Ranks};
use crate::config::Config;
use crate::error::{TrainError, io_error};
use crate::logging::say;
use crate::run::{StopRequest, teacher_and_tokenizer, teacher_of_stages};

/// The file of the folder with the configuration of the hybrid.
pub const HYBRID: &str = "hybrid.toml";

/// What to measure.
#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    /// The probes that heads are ranked and measured by.
    #[serde(serialize_with = "names")]
    pub probes: Vec<Probe>,
    /// Lengths of the documents that rank.
    pub lengths: Vec<usize>,
    /// Number of documents of each probe and length.
    pub documents: usize,
    /// The seed of the documents' random draws.
    pub seed: u32,
    /// By what heads are ranked.
    pub by: By,
    /// What is ranked.
    pub unit: UnitKind,
    /// Rounds of the ranking.
    pub rounds: usize,
    /// Heads that the hybrid keeps.
    pub keep: usize,
    /// The last tokens that a head sees if it is not kept.
    pub window: usize,
    /// The first tokens that such a head sees too.
    pub sinks: usize,
    /// Numbers of heads that the curve is measured with.
    pub curve: Vec<usize>,
    /// Lengths of its documents.
    pub curve_lengths: Vec<usize>,
    /// Number of documents of each probe and length; with 0, no curve is measured.
    pub curve_documents: usize,
}

impl Settings {
    /// Checks that a teacher with these `units` has the heads to keep, in whole units.
    ///
    /// # Errors
    /// [`TrainError::Mismatch`] names the option.
    fn check_keep(&self, units: &[Unit]) -> Result<(), TrainError> {
        let Self { keep, rounds, .. } = *self;
        let together = units[0].heads.len();
        let heads: usize = units.iter().map(|unit| unit.heads.len()).sum();
        let wrong = if keep > heads {
            format!("--keep is {keep}, and the teacher has {heads} heads; keep fewer")
        } else if !keep.is_multiple_of(together) {
            format!(
                "--keep is {keep}, and {together} query heads share keys and values, which --unit group keeps together; \
                 choose a multiple of {together}"
            )
        } else if rounds > keep / together {
            format!(
                "--rounds is {rounds}, and each round chooses something to keep, of which --keep {keep} allows {}; \
                 choose fewer rounds",
                keep / together
            )
        } else {
            return Ok(());
        };
        Err(TrainError::Mismatch(wrong))
    }
}

/// The study to make.
#[derive(Debug, Clone)]
pub struct HeadStudy {
    /// What is measured.
    pub settings: Settings,
    /// The teacher, the precision, and what the hybrid has beside the kept heads.
    pub config: Config,
    /// Holds the results.
    pub folder: PathBuf,
    /// The backend's name, for the record.
    pub backend: String,
    /// Asked before each change of heads whether to stop.
    pub stop: StopRequest,
}

/// All that was found.
#[derive(Debug, Clone, Serialize)]
pub struct Findings {
    /// What was asked.
    pub settings: Settings,
    /// The teacher.
    pub teacher: String,
    /// The backend.
    pub backend: String,
    /// The sets of documents, in the order of the recalls in the ranking.
    pub sets: Vec<Set>,
    /// The recall before the first change: of the teacher, or of the teacher within the window.
    pub before: Vec<Recall>,
    /// The heads, the most important first.
    pub ranked: Vec<Ranked>,
    /// The sets of documents, in the order of the recalls in the curve.
    pub curve_sets: Vec<Set>,
    /// The curve: the teacher with so many heads that see all.
    pub curve: Vec<Kept>,
    /// The heads that the hybrid keeps, as its configuration names them.
    pub kept: Vec<String>,
    /// Why no configuration of a hybrid was written; `None` if one was.
    pub no_hybrid: Option<String>,
}

impl HeadStudy {
    /// Ranks the heads, measures the curve, writes `heads.json`, `table.md` and `hybrid.toml`, and returns the table;
    /// `None` if asked to stop on the way.
    ///
    /// # Errors
    /// [`TrainError`] if the teacher cannot be read, the probes cannot be made, the device fails, or the folder cannot be
    /// written.
    pub fn execute<B: KernelBackend>(
        &self,
        device: &B::Device,
    ) -> Result<Option<String>, TrainError> {
        let (settings, config) = (&self.settings, &self.config);
        if !B::holds(device, config.precision.dtype()) {
            return Err(TrainError::Precision {
                precision: config.precision,
                backend: self.backend.clone(),
                resumed: None,
            });
        }
        // Now and not when there is something to write, which may be hours of measuring later.
        let path = self.folder.join(HYBRID);
        model::atomic_file::check(&path).map_err(io_error(&path))?;
        let (of_teacher, teacher, tokenizer) = teacher_and_tokenizer::<B>(config, device)?;
        let teacher: CausalLm<B> = teacher_of_stages(teacher, &of_teacher, config.precision);
        let vocab_size = teacher.vocab_size();
        let units = ranking::units(&teacher, settings.unit);
        if units.is_empty() {
            return Err(TrainError::Mismatch(format!(
                "{}: no layer of this model has attention, so there are no heads to rank",
                config.teacher.model
            )));
        }
        settings.check_keep(&units)?;
        let sizes = |lengths: &[usize], documents, seed| ProbeSizes {
            lengths: lengths.to_vec(),
            documents,
            seed,
        };
        let positions = of_teacher.max_positions().unwrap_or(usize::MAX);
        if let Some(length) = settings.lengths.iter().find(|length| **length > positions) {
            return Err(TrainError::Mismatch(format!(
                "documents of {length} tokens are asked for, and the teacher has {positions} positions; choose shorter \
                 ones by --lengths"
            )));
        }
        let longest = settings.lengths.iter().copied().max().unwrap_or(0);
        if settings.by == By::Restoration && longest <= settings.window {
            return Err(TrainError::Mismatch(format!(
                "a head that sees all gains nothing in documents of {longest} tokens beside a window of {}; choose a \
                 smaller --window or longer --lengths",
                settings.window
            )));
        }
        let stop = || self.stop.is_asked();
        let of_ranking = sizes(&settings.lengths, settings.documents, settings.seed);
        let probes = &settings.probes;
        let (sets, readings) =
            questions::readings::<B>(probes, &of_ranking, &tokenizer, vocab_size, device)?;
        let window = Window {
            window: settings.window,
            sinks: settings.sinks,
        };
        let ranking = Ranking {
            by: settings.by,
            rounds: settings.rounds,
            wanted: settings.keep / units[0].heads.len(),
            window,
        };
        let ranks = ranking.rank(&teacher, units, &readings, sets.len(), &stop)?;
        let Some(Ranks { before, ranked }) = ranks else {
            return Ok(None);
        };
        drop(readings);
        let (mut curve_sets, mut curve) = (vec![], vec![]);
        let lengths = settings.curve_lengths.iter().copied();
        let (fitting, too_long): (Vec<usize>, Vec<usize>) =
            lengths.partition(|length| *length <= positions);
        if !too_long.is_empty() {
            say(format_args!(
                "the curve has no documents of {too_long:?} tokens: the teacher has {positions} positions"
            ));
        }
        if settings.curve_documents > 0 && !settings.curve.is_empty() && !fitting.is_empty() {
            say("recall with the first heads alone");
            let of_curve = sizes(&fitting, settings.curve_documents, SEED);
            let (sets, readings) =
                questions::readings::<B>(probes, &of_curve, &tokenizer, vocab_size, device)?;
            let asked = curve::Asked {
                ranked: &ranked,
                heads: &settings.curve,
                window,
                length: fitting.iter().copied().max().unwrap_or(0),
            };
            let measured = asked.measure(
                &teacher,
                (&of_teacher, config),
                (&readings[..], sets.len()),
                &stop,
            )?;
            let Some(measured) = measured else {
                return Ok(None);
            };
            (curve_sets, curve) = (sets, measured);
        }
        let best = ranking::best(&ranked, settings.keep);
        let kept = hybrid::sorted(&best);
        let hybrid = hybrid::config(config, &of_teacher, &kept);
        let (hybrid, no_hybrid) = match hybrid {
            Ok(hybrid) => (Some(hybrid), None),
            Err(why) => (None, Some(why.to_string())),
        };
        let findings = Findings {
            settings: settings.clone(),
            teacher: config.teacher.model.clone(),
            backend: self.backend.clone(),
            sets,
            before,
            ranked,
            curve_sets,
            curve,
            kept,
            no_hybrid,
        };
        let table = findings.table();
        self.write("table.md", table.as_bytes())?;
        let json = serde_json::to_vec_pretty(&findings).unwrap_or_default();
        self.write("heads.json", &json)?;
        match hybrid {
            Some(hybrid) => self.write(HYBRID, hybrid.to_toml()?.as_bytes())?,
            // The folder may have the configuration for another teacher.
            None => remove(&self.folder.join(HYBRID))?,
        }
        Ok(Some(table))
    }

    /// Writes a file whole, in the folder, which is made for it.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), TrainError> {
        let (folder, path) = (&self.folder, self.folder.join(name));
        std::fs::create_dir_all(folder).map_err(io_error(folder))?;
        model::atomic_file::write(&path, bytes).map_err(io_error(&path))
    }
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> Result<(), TrainError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io_error(path)(error)),
        _ => Ok(()),
    }
}

/// The probes by their names.
fn names<S: serde::Serializer>(probes: &[Probe], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(probes.iter().map(Probe::to_string))
}
