//! Puts one layer of a configuration over another: which keys exist, the types of their values, and what a value
//! replaces.

use model::{Initialisation, Part, StudentMixer};
use toml::{Table, Value};

use super::error::ConfigError;
use super::mixer;
use super::source;
use super::stage::StageConfig;
use super::values::{
    check_choice, fit, read_value, type_of, unknown_choice, unknown_key, wrong_type,
};
use crate::limits::require;
use crate::schedule::Schedule;
use crate::stages::Kind;

/// The keys outside of stages whose value is one of a few words.
const CHOICES: [(&str, &[&str]); 8] = [
    ("precision", &["f32", "bf16"]),
    ("student.kind", StudentMixer::NAMES),
    ("student.init", Initialisation::NAMES),
    ("student.activation", &["identity", "silu"]),
    ("student.feature_map", &["identity", "exp", "softmax"]),
    ("optimizer.decay", &["matrices", "all"]),
    ("guard.action", &["log", "skip", "roll_back"]),
    ("data.packing", &["concatenate", "documents"]),
];

/// The keys outside of stages whose value is a list of sources of text.
const TEXTS: [&str; 2] = ["data.train", "data.validation"];

/// The key of the list of stages.
const STAGES: &str = "stages";
/// What it must be.
const LIST: &str = "a list of tables, [[stages]] in a file; --stages chooses among them";
/// What the rates of a stage must be.
const RATES: &str = "a number, or a table of numbers by part";

/// The merged layers so far, which have a value for every valid key.
pub(super) struct Layers {
    /// All but the stages.
    sections: Table,
    /// The list, each stage with every key.
    stages: Vec<Table>,
}

impl Layers {
    /// The lowest layer, a preset. Outside of stages, only its keys are valid.
    pub(super) fn new(mut preset: Table, origin: &str) -> Result<Self, ConfigError> {
        let stages = preset.remove(STAGES);
        let mut layers = Self {
            sections: preset,
            stages: vec![],
        };
        if let Some(stages) = stages {
            layers.stages = layers.list(stages, origin)?;
        }
        Ok(layers)
    }

    /// All of it as one table.
    pub(super) fn into_table(self) -> Table {
        let mut table = self.sections;
        let stages = self.stages.into_iter().map(Value::Table);
        table.insert(STAGES.into(), Value::Array(stages.collect()));
        table
    }

    /// Puts the keys of `layer` over those that are there.
    pub(super) fn overlay(&mut self, mut layer: Table, origin: &str) -> Result<(), ConfigError> {
        if let Some(stages) = layer.remove(STAGES) {
            self.stages = self.list(stages, origin)?;
        }
        mixer::choose(&mut self.sections, &layer, origin)?;
        let names = self.names();
        for (key, value) in layer {
            let Some(stage) = self.stage_mut(&key) else {
                let one = Table::from_iter([(key, value)]);
                under(&mut self.sections, one, "", origin, &names)?;
                continue;
            };
            match value {
                Value::Table(layer) => overlay_stage(stage, layer, origin, &names)?,
                other => return Err(wrong_type(origin, &key, "a table of keys", &other)),
            }
        }
        Ok(())
    }

    /// Puts the value of `key=value` over the one that is there.
    pub(super) fn set(&mut self, text: &str) -> Result<(), ConfigError> {
        let origin = format!("--set {text}");
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| ConfigError::NotAnOverride(text.to_owned()))?;
        let (key, value) = (key.trim(), value.trim());
        if key == STAGES {
            return Err(wrong_type(&origin, key, LIST, &value.into()));
        }
        let path: Vec<&str> = key.split('.').collect();
        let names = self.names();
        let Some(like) = self.value(&path).cloned() else {
            return Err(unknown_key(&origin, key, &names));
        };
        let value = read_value(value, &like, path.last() == Some(&"lr"));
        if let (Some(stage), [_, rest @ ..]) = (self.stage_mut(path[0]), &path[..]) {
            return match rest {
                [] => Err(wrong_type(&origin, key, "a table of keys", &value)),
                ["lr", part] => set_rate(rates_of(stage), part, value, key, &origin),
                [name, ..] => {
                    let layer = Table::from_iter([((*name).to_owned(), value)]);
                    overlay_stage(stage, layer, &origin, &names)
                }
            };
        }
        if like.is_table() {
            return Err(wrong_type(&origin, key, type_of(&like), &value));
        }
        let nested = path.iter().rev().fold(value, |value, key| {
            Value::Table(Table::from_iter([((*key).to_owned(), value)]))
        });
        let layer = match nested {
            Value::Table(layer) => layer,
            _ => Table::new(),
        };
        mixer::choose(&mut self.sections, &layer, &origin)?;
        under(&mut self.sections, layer, "", &origin, &names)
    }

    /// Checks the keys whose value is one of a few words.
    pub(super) fn check_choices(&self) -> Result<(), ConfigError> {
        for (key, choices) in CHOICES {
            let path: Vec<&str> = key.split('.').collect();
            check_choice(key, self.value(&path), choices)?;
        }
        for stage in &self.stages {
            let kind = kind_of(stage).map_or(&[][..], |kind| kind.choices());
            for (key, choices) in kind {
                let full = format!("{}.{key}", name_of(stage));
                check_choice(&full, stage.get(*key), choices)?;
            }
        }
        Ok(())
    }

    /// All dotted names, also those of tables, and for the rates of a stage the names of all parts that may have one.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names = dotted_names(&self.sections);
        for stage in &self.stages {
            let stage_name = name_of(stage);
            names.push(stage_name.to_owned());
            let keys = dotted_names(stage).into_iter();
            let keys = keys.filter(|key| !key.starts_with("lr."));
            names.extend(keys.map(|key| format!("{stage_name}.{key}")));
            names.extend(Part::ALL.map(|part| format!("{stage_name}.lr.{}", part.name())));
        }
        names.push(STAGES.to_owned());
        names
    }

    /// The value at `path`; for the rate of a part that does not train, a value of the same type.
    fn value(&self, path: &[&str]) -> Option<&Value> {
        const NO_RATE: &Value = &Value::Float(0.0);
        let (first, rest) = path.split_first()?;
        let stage = self.stages.iter().find(|stage| name_of(stage) == *first);
        let table = match (stage, rest) {
            (None, _) => return rest.iter().try_fold(self.sections.get(*first)?, get),
            (Some(_), ["lr", part]) if Part::ALL.iter().any(|known| known.name() == *part) => {
                return Some(NO_RATE);
            }
            (Some(stage), _) => stage,
        };
        match rest.split_first() {
            // Any value that is no scalar: the stage itself cannot be set.
            None => table.get("lr"),
            Some((key, rest)) => rest.iter().try_fold(table.get(*key)?, get),
        }
    }

    fn stage_mut(&mut self, name: &str) -> Option<&mut Table> {
        let mut stages = self.stages.iter_mut();
        stages.find(|stage| name_of(stage) == name)
    }

    /// The list that replaces the present one. An entry takes the keys that it leaves out from the present stage with
    /// its name and its kind, or else from the defaults of its kind.
    fn list(&self, list: Value, origin: &str) -> Result<Vec<Table>, ConfigError> {
        let Value::Array(entries) = list else {
            return Err(wrong_type(origin, STAGES, LIST, &list));
        };
        let mut stages = vec![];
        for (number, entry) in (1..).zip(entries) {
            let Value::Table(mut entry) = entry else {
                return Err(wrong_type(origin, STAGES, LIST, &entry));
            };
            let nameless = |key, what: String| ConfigError::Nameless {
                origin: origin.to_owned(),
                number,
                key,
                what,
            };
            let name = match entry.remove("name") {
                Some(Value::String(name)) => name,
                Some(other) => return Err(wrong_type(origin, "name", "a string", &other)),
                None => {
                    let what = "is what the stage is called in this run".to_owned();
                    return Err(nameless("name", what));
                }
            };
            let below = self.stages.iter().find(|stage| name_of(stage) == name);
            let kind = match entry.remove("kind") {
                Some(Value::String(kind)) => Some(kind),
                Some(other) => {
                    return Err(wrong_type(
                        origin,
                        &format!("{name}.kind"),
                        "a string",
                        &other,
                    ));
                }
                None => None,
            };
            let mut stage = match (below, kind) {
                (Some(below), None) => below.clone(),
                (Some(below), Some(kind)) if below["kind"].as_str() == Some(&kind) => below.clone(),
                (_, Some(kind)) => defaults(&name, &kind)?,
                (None, None) => {
                    let what = format!("is one of {}", Kind::NAMES.join(", "));
                    return Err(nameless("kind", what));
                }
            };
            stage.insert("name".into(), name.into());
            let mut alone = Self {
                sections: Table::new(),
                stages: vec![stage],
            };
            let names = alone.names();
            overlay_stage(&mut alone.stages[0], entry, origin, &names)?;
            stages.append(&mut alone.stages);
        }
        Ok(stages)
    }
}

/// Every key of a stage of `kind`, with its default.
fn defaults(name: &str, kind: &str) -> Result<Table, ConfigError> {
    let Some(kind) = Kind::named(kind) else {
        let key = format!("{name}.kind");
        return Err(unknown_choice(&key, kind, Kind::NAMES));
    };
    with_schedule(kind, Schedule::ALL[0])
}

fn with_schedule(kind: Kind, schedule: Schedule) -> Result<Table, ConfigError> {
    Table::try_from(StageConfig::new(kind, schedule)).map_err(ConfigError::Serialise)
}

fn name_of(stage: &Table) -> &str {
    stage
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn kind_of(stage: &Table) -> Option<Kind> {
    Kind::named(stage.get("kind")?.as_str()?)
}

fn rates_of(stage: &mut Table) -> &mut Table {
    let rates = stage
        .entry("lr")
        .or_insert_with(|| Value::Table(Table::new()));
    if !rates.is_table() {
        *rates = Value::Table(Table::new());
    }
    rates.as_table_mut().expect("it was just made a table")
}

/// Puts the keys of `layer` over those of `stage`, which has every key that is valid in it.
fn overlay_stage(
    stage: &mut Table,
    mut layer: Table,
    origin: &str,
    names: &[String],
) -> Result<(), ConfigError> {
    let stage_name = name_of(stage).to_owned();
    // First, since it decides on the other keys.
    if let Some(schedule) = layer.remove("schedule") {
        set_schedule(stage, schedule, &format!("{stage_name}.schedule"), origin)?;
    }
    for (key, value) in layer {
        let full = format!("{stage_name}.{key}");
        match (key.as_str(), stage.get_mut(&key)) {
            (_, None) => return Err(unknown_key(origin, &full, names)),
            ("lr", Some(_)) => set_rates(stage, value, &full, origin)?,
            ("data", Some(slot)) => *slot = source::fit(value, &full, origin)?,
            ("kind" | "name", Some(slot)) => require(
                *slot == value,
                &full,
                &value,
                &format!("{slot}; list another stage in a file"),
            )?,
            (_, Some(slot)) => *slot = fit(value, slot, &full, origin)?,
        }
    }
    Ok(())
}

/// Changes the schedule of `stage`, and so its keys; keys that both schedules have keep their values.
fn set_schedule(
    stage: &mut Table,
    name: Value,
    key: &str,
    origin: &str,
) -> Result<(), ConfigError> {
    let Value::String(name) = name else {
        return Err(wrong_type(origin, key, "a string", &name));
    };
    let all = Schedule::ALL;
    let Some(schedule) = all.into_iter().find(|schedule| schedule.name() == name) else {
        return Err(unknown_choice(key, &name, &all.map(Schedule::name)));
    };
    if let Some(kind) = kind_of(stage) {
        let new = with_schedule(kind, schedule)?;
        stage.retain(|key, _| new.contains_key(key));
        for (key, value) in new {
            stage.entry(key).or_insert(value);
        }
    }
    stage.insert("schedule".into(), name.into());
    Ok(())
}

/// A number is the rate of every part that trains; a table says which parts do, each with its rate.
fn set_rates(stage: &mut Table, value: Value, key: &str, origin: &str) -> Result<(), ConfigError> {
    let rates = rates_of(stage);
    if let Value::Table(parts) = value {
        rates.clear();
        for (part, value) in parts {
            set_rate(rates, &part, value, &format!("{key}.{part}"), origin)?;
        }
        return Ok(());
    }
    let lr = match value {
        Value::Float(_) | Value::Integer(_) => fit(value, &Value::Float(0.0), key, origin)?,
        other => return Err(wrong_type(origin, key, RATES, &other)),
    };
    for (_, rate) in rates.iter_mut() {
        *rate = lr.clone();
    }
    Ok(())
}

/// The rate of one part.
fn set_rate(
    rates: &mut Table,
    part: &str,
    value: Value,
    key: &str,
    origin: &str,
) -> Result<(), ConfigError> {
    let parts = Part::ALL.map(Part::name);
    if !parts.contains(&part) {
        let stage = key.strip_suffix(part).unwrap_or_default();
        let names = parts.map(|part| format!("{stage}{part}"));
        return Err(unknown_key(origin, key, &names));
    }
    let value = fit(value, &Value::Float(0.0), key, origin)?;
    rates.insert(part.to_owned(), value);
    Ok(())
}

/// Puts the keys of `layer` over those of `table`, which holds every valid key.
fn under(
    table: &mut Table,
    layer: Table,
    prefix: &str,
    origin: &str,
    names: &[String],
) -> Result<(), ConfigError> {
    for (key, value) in layer {
        let name = format!("{prefix}{key}");
        match (table.get_mut(&key), value) {
            (None, _) => return Err(unknown_key(origin, &name, names)),
            (Some(Value::Table(table)), Value::Table(layer)) => {
                under(table, layer, &format!("{name}."), origin, names)?;
            }
            (Some(slot), value) if TEXTS.contains(&name.as_str()) => {
                *slot = source::fit(value, &name, origin)?;
            }
            (Some(slot), value) => *slot = fit(value, slot, &name, origin)?,
        }
    }
    Ok(())
}

fn get<'a>(value: &'a Value, key: &&str) -> Option<&'a Value> {
    value.get(*key)
}

/// All dotted names under `table`, its sub-tables' own included.
fn dotted_names(table: &Table) -> Vec<String> {
    let mut names = Vec::new();
    for (key, value) in table {
        names.push(key.clone());
        if let Value::Table(table) = value {
            let below = dotted_names(table).into_iter();
            names.extend(below.map(|name| format!("{key}.{name}")));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Source};

    #[test]
    fn choices_are_exactly_what_the_types_take() {
        for (key, choices) in CHOICES {
            for choice in choices.iter().copied().chain(["nonsense"]) {
                let taken = Config::load(Source::Preset("tiny"), &[format!("{key}={choice}")]);
                assert_eq!(taken.is_ok(), choice != "nonsense", "{key}={choice}");
            }
        }
    }
}
