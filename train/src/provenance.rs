//! The inputs of a run: the teacher, the tokenizer, the text and the settings that affect its result.
//!
//! A checkpoint contains these inputs, as checksums, of the process that wrote it. A process that resumes from it
//! compares them with its own. With another teacher or other text the run would continue to a result that no
//! uninterrupted run has, and its numbers before and after the resume would measure different things. Only the contents
//! of files are compared, not their places.
//!
//! Versions of this program with other settings can read it: the settings are stored as a table, not as a type, and a
//! setting that is missing there has its default.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use datasets::{Manifest, TokenShards};
use model::{atomic_file, manifest, model_files};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use toml::{Table, Value};

use crate::config::{Config, Source, StageConfig};
use crate::error::{TrainError, io_error};
use crate::metrics::Position;
use crate::schedule::Schedule;
use crate::stages::Kind;

/// Settings that do not change the result of a run: names; places, whose contents are compared instead; the amount of
/// work that is done at once; and what is kept, shown or given up.
const FREE: [&str; 16] = [
    "name",
    "teacher",
    "data",
    "checkpoint",
    "log",
    "safety",
    "student.from",
    "parallel",
    "evaluation.batch",
    "evaluation.every",
    "evaluation.tasks",
    "evaluation.task_data",
    "evaluation.task_limit",
    "evaluation.infer",
    "micro_batch",
    "recompute",
];

/// The key of the section `[data]` that is compared, besides the text.
const PACKING: &str = "packing";

/// What a run is made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The backend, as `--backend` names it.
    pub backend: String,
    /// The SHA-256 of the tokenizer's file.
    pub tokenizer: String,
    /// The folder from which the teacher was read.
    pub teacher_folder: String,
    /// The SHA-256 of each file of the teacher, by its name.
    pub teacher: BTreeMap<String, String>,
    /// The held-out text; `None` until it is tokenised.
    #[serde(default)]
    pub held_out: Option<Text>,
    /// The training text of each stage that is tokenised, by the stage's name.
    #[serde(default)]
    pub texts: BTreeMap<String, Text>,
    /// The identity of the cache of the teacher's predictions that a stage reads, by the stage's name.
    #[serde(default)]
    pub caches: BTreeMap<String, String>,
    /// The resolved configuration, as [`Config::to_table`] has it.
    pub config: Table,
}

/// A text, tokenised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Text {
    /// The key of the configuration that lists the text.
    pub key: String,
    /// The folder of its tokens, whose manifest lists the files that it came from.
    pub tokens: String,
    /// The SHA-256 of the SHA-256s of the tokens' files.
    pub sha256: String,
}

impl Text {
    /// The identity of the text in `shards`, which `key` lists.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn of(key: &str, shards: &TokenShards) -> Result<Self, TrainError> {
        let (folder, manifest) = (shards.folder(), shards.manifest());
        let files: Vec<Vec<PathBuf>> = shards.folders().map(files).collect::<Result<_, _>>()?;
        let files = files.concat();
        let hashes = if files.len() == manifest.sha256.len() {
            manifest.sha256.clone()
        } else {
            // Manifests of older versions have no checksums of some or all folders, so the file is hashed.
            let hash = |path: &PathBuf| manifest::hash(path).map_err(io_error(path));
            files.par_iter().map(hash).collect::<Result<_, _>>()?
        };
        let mut all = Sha256::new();
        // The files of tokens do not say whether an id has two bytes or four, and which id ends a document.
        all.update(format!(
            "{} {} ",
            manifest.token_bytes, manifest.end_of_text
        ));
        hashes.iter().for_each(|hash| all.update(hash));
        Ok(Self {
            key: key.to_owned(),
            tokens: folder.to_string_lossy().into_owned(),
            sha256: format!("{:x}", all.finalize()),
        })
    }

    /// The difference between this text and `now`, in words; `None` if there is none.
    fn change(&self, now: &Self) -> Option<String> {
        if self.sha256 == now.sha256 {
            return None;
        }
        let files = |text: &Self| -> Option<Manifest> {
            serde_json::from_slice(&fs::read(Path::new(&text.tokens).join("manifest.json")).ok()?)
                .ok()
        };
        // The folders of earlier states are kept, but may have been cleared away.
        let differs = files(self).zip(files(now)).and_then(|(then, now)| {
            let known = |file| then.sources.contains(file);
            let new = now.sources.iter().find(|file| !known(file));
            let gone = || then.sources.iter().find(|file| !now.sources.contains(file));
            new.or_else(gone).map(|file| file.path.clone())
        });
        Some(match differs {
            Some(file) => format!("the text of {} ({})", now.key, file.display()),
            None => format!("the text of {}", now.key),
        })
    }
}

impl Provenance {
    /// The checksums of the files in a teacher's folder that decide what it computes.
    ///
    /// # Errors
    /// [`TrainError::Teacher`] and [`TrainError::Io`].
    pub fn of_teacher(folder: &Path) -> Result<BTreeMap<String, String>, TrainError> {
        let files = model_files(folder).map_err(TrainError::Teacher)?;
        let hash = |path: PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let hash = manifest::hash(&path).map_err(io_error(&path))?;
            Ok((name.into_owned(), hash))
        };
        files.into_par_iter().map(hash).collect()
    }

    /// The teacher, as the configuration names it.
    pub fn teacher_model(&self) -> Option<&str> {
        self.config.get("teacher")?.get("model")?.as_str()
    }

    /// The changes from `self` to `now` of all inputs that the run has used up to `position`, with its stages
    /// `finished`. Each is a phrase, such as "the teacher's model.safetensors" or "stage1.lr.mixer, from 0.003 to
    /// 0.001". Texts that are not tokenised yet are not compared.
    pub fn changes<'a>(
        &self,
        now: &Self,
        position: &Position,
        finished: impl Iterator<Item = &'a str>,
    ) -> Vec<String> {
        let mut begun: Vec<&str> = finished.collect();
        if position.step > 0 && !begun.contains(&position.stage.as_str()) {
            begun.push(&position.stage);
        }
        let mut changes = vec![];
        let keys = union(&self.teacher, &now.teacher);
        let files = keys.filter(|name| self.teacher.get(*name) != now.teacher.get(*name));
        changes.extend(files.map(|name| format!("the teacher's {name}")));
        if self.tokenizer != now.tokenizer {
            changes.push("the tokenizer.json".to_owned());
        }
        if let (Some(then), Some(now)) = (&self.held_out, &now.held_out) {
            changes.extend(then.change(now));
        }
        changes.extend(self.of_stages(now, &begun));
        changes
    }

    /// Other changes, which affect only the rest of the run and are not in `changes`.
    pub fn plans(&self, now: &Self, changes: &[String]) -> Vec<String> {
        let names = |made: &Self| -> Vec<String> {
            stages(&made.config)
                .map(|(name, _)| name.to_owned())
                .collect()
        };
        let (then, later) = (names(self), names(now));
        let both = then.iter().filter(|name| later.contains(name));
        let both: Vec<_> = both.map(String::as_str).collect();
        let mut plans = self.of_stages(now, &both);
        plans.retain(|plan| !changes.contains(plan));
        let added = later.iter().filter(|name| !then.contains(name));
        plans.extend(added.map(|name| format!("the stage {name}, which is new")));
        let gone = then.iter().filter(|name| !later.contains(name));
        plans.extend(gone.map(|name| format!("the stage {name}, which is gone")));
        if self.backend != now.backend {
            plans.push(format!(
                "the backend, from {} to {}",
                self.backend, now.backend
            ));
        }
        plans
    }

    /// The changes of the text and of the settings that affect `stages`.
    fn of_stages(&self, now: &Self, stages: &[&str]) -> Vec<String> {
        let mut changes: Vec<_> = (stages.iter())
            .filter_map(|stage| self.texts.get(*stage)?.change(now.texts.get(*stage)?))
            .collect();
        changes.dedup();
        let other_cache = |stage: &&&str| {
            let both = self.caches.get(**stage).zip(now.caches.get(**stage));
            both.is_some_and(|(then, now)| then != now)
        };
        let caches = stages.iter().filter(other_cache);
        changes.extend(caches.map(|stage| format!("the teacher's cached predictions of {stage}")));
        let then = settings(&self.config, stages);
        let now = settings(&now.config, stages);
        changes.extend(different(&then, &now));
        changes
    }

    /// Writes it to `path`, whole or not at all.
    pub(crate) fn write(&self, path: &Path) -> Result<(), TrainError> {
        toml::to_string(self)
            .map_err(std::io::Error::other)
            .and_then(|text| atomic_file::write(path, text.as_bytes()))
            .map_err(io_error(path))
    }

    /// Reads what [`write`](Self::write) wrote.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
        toml::from_str(&text).map_err(|error| error.message().to_owned())
    }
}

/// The keys whose values differ between the configurations `then` and `now`, each with both values.
pub(crate) fn differences(then: &Table, now: &Table) -> Vec<String> {
    let [then, now] = [then, now].map(|config| {
        let mut sections = config.clone();
        sections.remove("stages");
        let mut settings = BTreeMap::new();
        let none = |_: &str, _: &str| false;
        flatten_but(&none, "", &sections, &mut settings);
        for (name, stage) in stages(config) {
            flatten_but(&none, &format!("{name}."), stage, &mut settings);
        }
        settings
    });
    different(&then, &now)
}

/// The keys whose values differ, each with both values.
fn different(then: &BTreeMap<String, Value>, now: &BTreeMap<String, Value>) -> Vec<String> {
    let words = |value: Option<&Value>| match value {
        Some(value) => value.to_string(),
        None => "none".to_owned(),
    };
    let differ = union(then, now).filter(|key| then.get(*key) != now.get(*key));
    let said = differ.map(|key| {
        let (then, now) = (then.get(key), now.get(key));
        format!("{key}, from {} to {}", words(then), words(now))
    });
    said.collect()
}

/// The keys of both, each once, in their order.
fn union<'a, V>(
    one: &'a BTreeMap<String, V>,
    other: &'a BTreeMap<String, V>,
) -> impl Iterator<Item = &'a String> {
    let keys: BTreeSet<_> = one.keys().chain(other.keys()).collect();
    keys.into_iter()
}

/// The files of tokens in `folder`, in their order.
fn files(folder: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let mut files = vec![];
    for entry in fs::read_dir(folder).map_err(io_error(folder))? {
        let path = entry.map_err(io_error(folder))?.path();
        if path.extension().is_some_and(|ending| ending == "bin") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The stages of `config` and their names.
fn stages(config: &Table) -> impl Iterator<Item = (&str, &Table)> {
    let all = config.get("stages").and_then(Value::as_array);
    let stage = |stage| {
        let stage = Value::as_table(stage)?;
        Some((stage.get("name")?.as_str()?, stage))
    };
    all.into_iter().flatten().filter_map(stage)
}

/// The settings of `config` that affect the result of the stages `begun`, by their dotted keys.
fn settings(config: &Table, begun: &[&str]) -> BTreeMap<String, Value> {
    let mut settings = BTreeMap::new();
    let mut sections = config.clone();
    sections.remove("stages");
    let known = Config::load(Source::Preset("tiny"), &[]).and_then(|config| config.to_table());
    for (key, default) in known.unwrap_or_default() {
        match (sections.get_mut(&key), default) {
            (Some(Value::Table(section)), Value::Table(default)) => complete(section, default),
            (None, default) if key != "stages" => {
                sections.insert(key, default);
            }
            _ => {}
        }
    }
    flatten("", &sections, &mut settings);
    // Of the section `[data]`, only packing is a setting; the other keys are places and texts.
    let packing = sections.get("data").and_then(|data| data.get(PACKING));
    if let Some(packing) = packing {
        settings.insert(format!("data.{PACKING}"), packing.clone());
    }
    let context = config.get("data").and_then(|data| data.get("context"));
    for (name, stage) in stages(config).filter(|(name, _)| begun.contains(name)) {
        let mut keys = stage.clone();
        complete(&mut keys, stage_defaults(stage));
        // The resolved context: a stage without its own has that of the run.
        if let (Some(Value::Integer(0)), Some(context)) = (keys.get("context"), context) {
            keys.insert("context".into(), context.clone());
        }
        // Only whether there is a cache: its content is compared separately, and its place does not matter.
        if let Some(Value::String(folder)) = keys.get_mut("teacher_cache")
            && !folder.is_empty()
        {
            *folder = "a folder".to_owned();
        }
        keys.remove("name");
        flatten(&format!("{name}."), &keys, &mut settings);
    }
    settings
}

/// The defaults of a stage of this kind and schedule.
fn stage_defaults(stage: &Table) -> Table {
    let named = |key: &str| stage.get(key).and_then(Value::as_str).unwrap_or_default();
    let kind = Kind::named(named("kind"));
    let schedule = Schedule::ALL
        .into_iter()
        .find(|schedule| schedule.name() == named("schedule"));
    let defaults = kind.zip(schedule).map(|(kind, schedule)| {
        Table::try_from(StageConfig::new(kind, schedule)).unwrap_or_default()
    });
    defaults.unwrap_or_default()
}

/// Adds to `table` those of the `defaults` that it lacks.
fn complete(table: &mut Table, defaults: Table) {
    for (key, default) in defaults {
        table.entry(key).or_insert(default);
    }
}

/// The settings of `table` that affect a result, by their dotted keys.
fn flatten(prefix: &str, table: &Table, into: &mut BTreeMap<String, Value>) {
    let is_free = |key: &str, full: &str| FREE.contains(&key) || FREE.contains(&full);
    flatten_but(&is_free, prefix, table, into);
}

/// The settings of `table` but those that `is_left_out` by their last and their whole dotted key.
fn flatten_but(
    is_left_out: &dyn Fn(&str, &str) -> bool,
    prefix: &str,
    table: &Table,
    into: &mut BTreeMap<String, Value>,
) {
    for (key, value) in table {
        let full = format!("{prefix}{key}");
        if is_left_out(key, &full) {
            continue;
        }
        match value {
            Value::Table(table) => flatten_but(is_left_out, &format!("{full}."), table, into),
            value => {
                into.insert(full, value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests;
