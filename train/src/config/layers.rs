//! Preset, file, overrides: how the layers of a configuration come together.

use std::path::Path;

use toml::{Table, Value};

use super::{Config, ConfigError, error::nearest, validate};

/// The presets by name; the first is the default and the schema.
pub const PRESETS: [(&str, &str); 3] = [
    ("tiny", include_str!("../../presets/tiny.toml")),
    ("phi-1.5", include_str!("../../presets/phi-1.5.toml")),
    (
        "hybrid-phi-1.5",
        include_str!("../../presets/hybrid-phi-1.5.toml"),
    ),
];

/// Where a configuration starts from.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// One of [`PRESETS`].
    Preset(&'a str),
    /// A TOML file. Its top-level `preset = "NAME"` names the preset that gives the keys it leaves
    /// out; without one that is `tiny`.
    File(&'a Path),
}

/// The keys whose value is one of a few words.
const CHOICES: [(&str, &[&str]); 7] = [
    ("precision", &["f32", "bf16"]),
    ("student.activation", &["identity", "silu"]),
    ("optimizer.decay", &["matrices", "all"]),
    ("stage1.train", PARTS),
    ("stage2.train", PARTS),
    ("stage3.train", PARTS),
    ("stage2.target", &["mixer", "block"]),
];

/// The largest float below which every whole number is one, 2^53.
const LARGEST: f64 = 9_007_199_254_740_992.0;

const PARTS: &[&str] = &["mixer", "mlp", "norm", "embedding", "head", "all"];

pub(super) fn resolve(source: Source<'_>, overrides: &[String]) -> Result<Config, ConfigError> {
    let (mut table, origin) = match source {
        Source::Preset(name) => (preset(name)?, format!("preset {name}")),
        Source::File(path) => {
            let origin = path.display().to_string();
            let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
                path: path.to_owned(),
                source,
            })?;
            let mut file = parse(&text, &origin)?;
            let mut table = match file.remove("preset") {
                None => preset(PRESETS[0].0)?,
                Some(Value::String(name)) => preset(&name)?,
                Some(other) => {
                    return Err(wrong_type(&origin, "preset", "a string", &other));
                }
            };
            overlay(&mut table, file, &origin)?;
            (table, origin)
        }
    };
    for text in overrides {
        let origin = format!("--set {text}");
        let layer = read_override(text, &origin, &table)?;
        overlay(&mut table, layer, &origin)?;
    }
    check_choices(&table)?;
    let config = table.try_into().map_err(|source| ConfigError::Toml {
        origin: match overrides {
            [] => origin,
            _ => format!("{origin} with --set {}", overrides.join(" --set ")),
        },
        source: Box::new(source),
    })?;
    validate::validate(&config)?;
    Ok(config)
}

fn preset(name: &str) -> Result<Table, ConfigError> {
    match PRESETS.iter().find(|(preset, _)| *preset == name) {
        Some((_, text)) => parse(text, &format!("preset {name}")),
        None => {
            let names = PRESETS.map(|(name, _)| name);
            Err(ConfigError::UnknownPreset {
                name: name.to_owned(),
                nearest: nearest(name, names),
                all: names.join(", "),
            })
        }
    }
}

fn parse(text: &str, origin: &str) -> Result<Table, ConfigError> {
    text.parse().map_err(|source| ConfigError::Toml {
        origin: origin.to_owned(),
        source: Box::new(source),
    })
}

/// Puts the keys of `layer` over those of `table`, which holds every valid key.
fn overlay(table: &mut Table, layer: Table, origin: &str) -> Result<(), ConfigError> {
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
                (Some(slot), value) => *slot = fit(value, slot, &name, origin)?,
            }
        }
        Ok(())
    }
    let names = dotted_names(table);
    under(table, layer, "", origin, &names)
}

/// All dotted names under `table`, its sub-tables' own included.
fn dotted_names(table: &Table) -> Vec<String> {
    let mut names = Vec::new();
    for (key, value) in table {
        names.push(key.clone());
        if let Value::Table(table) = value {
            names.extend(
                dotted_names(table)
                    .iter()
                    .map(|name| format!("{key}.{name}")),
            );
        }
    }
    names
}

fn unknown_key(origin: &str, key: &str, names: &[String]) -> ConfigError {
    ConfigError::UnknownKey {
        origin: origin.to_owned(),
        key: key.to_owned(),
        nearest: nearest(key, names.iter().map(String::as_str)),
    }
}

/// `value` as the type of `like`, or an error.
///
/// Numbers may be written either way as long as nothing is lost: `lr = 1`, `tokens = 1e6`.
fn fit(value: Value, like: &Value, key: &str, origin: &str) -> Result<Value, ConfigError> {
    match (like, value) {
        // Every integer here is a count, a size or a seed.
        (Value::Integer(_), Value::Integer(i)) if i >= 0 => Ok(Value::Integer(i)),
        (Value::Integer(_), Value::Float(f))
            if f.fract() == 0.0 && (0.0..=LARGEST).contains(&f) =>
        {
            Ok(Value::Integer(f as i64))
        }
        (Value::Float(_), Value::Integer(i)) => Ok(Value::Float(i as f64)),
        (Value::Array(like), Value::Array(items)) => items
            .into_iter()
            .map(|item| match like.first() {
                Some(like) => fit(item, like, key, origin),
                None => Ok(item),
            })
            .collect::<Result<_, _>>()
            .map(Value::Array),
        (Value::String(_), value @ Value::String(_))
        | (Value::Float(_), value @ Value::Float(_))
        | (Value::Boolean(_), value @ Value::Boolean(_)) => Ok(value),
        (_, value) => Err(wrong_type(origin, key, kind(like), &value)),
    }
}

fn wrong_type(origin: &str, key: &str, expected: &str, found: &Value) -> ConfigError {
    ConfigError::WrongType {
        origin: origin.to_owned(),
        key: key.to_owned(),
        expected: expected.to_owned(),
        found: match found {
            Value::Table(_) => "a table".to_owned(),
            other => other.to_string(),
        },
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "a whole number, 0 or more",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table of keys",
        Value::Datetime(_) => "a date",
    }
}

/// The layer that `key=value` stands for.
fn read_override(text: &str, origin: &str, table: &Table) -> Result<Table, ConfigError> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| ConfigError::NotAnOverride(text.to_owned()))?;
    let key = key.trim();
    let mut keys = key.split('.');
    let first = keys.next().and_then(|first| table.get(first));
    let Some(like) = keys
        .try_fold(first, |value, key| Some(value?.get(key)))
        .flatten()
    else {
        return Err(unknown_key(origin, key, &dotted_names(table)));
    };
    let value = read_value(value.trim(), like);
    if like.is_table() {
        return Err(wrong_type(origin, key, kind(like), &value));
    }
    let mut keys = key.rsplit('.');
    let mut layer = Table::new();
    layer.insert(keys.next().unwrap_or(key).to_owned(), value);
    for outer in keys {
        layer = Table::from_iter([(outer.to_owned(), Value::Table(layer))]);
    }
    Ok(layer)
}

/// A command-line value as TOML, forgiving what a shell makes hard to quote: a string needs no
/// quotes and a list no brackets (`stage2.train=mixer,norm`).
fn read_value(text: &str, like: &Value) -> Value {
    let bare = |text: &str| Value::String(text.to_owned());
    let scalar = |text: &str| text.parse().unwrap_or_else(|_| bare(text));
    match like {
        Value::String(_) => match text.parse() {
            Ok(quoted @ Value::String(_)) => quoted,
            _ => bare(text),
        },
        Value::Array(_) => match text.parse() {
            Ok(list @ Value::Array(_)) => list,
            _ => {
                let inner = text
                    .strip_prefix('[')
                    .and_then(|text| text.strip_suffix(']'));
                inner
                    .unwrap_or(text)
                    .split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty())
                    .map(scalar)
                    .collect::<Vec<_>>()
                    .into()
            }
        },
        _ => scalar(text),
    }
}

fn check_choices(table: &Table) -> Result<(), ConfigError> {
    for (key, choices) in CHOICES {
        let (first, rest) = match key.split_once('.') {
            Some((section, name)) => (section, Some(name)),
            None => (key, None),
        };
        let value = table.get(first);
        let value = rest.map_or(value, |name| value.and_then(|section| section.get(name)));
        let words = match value {
            Some(Value::Array(items)) => items.as_slice(),
            Some(word) => std::slice::from_ref(word),
            None => &[],
        };
        for word in words.iter().filter_map(Value::as_str) {
            if !choices.contains(&word) {
                return Err(ConfigError::UnknownChoice {
                    key: key.to_owned(),
                    value: word.to_owned(),
                    nearest: nearest(word, choices.iter().copied()),
                    all: choices.join(", "),
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_exactly_what_the_types_take() {
        for (key, choices) in CHOICES {
            for choice in choices.iter().copied().chain(["nonsense"]) {
                let mut table = preset("tiny").unwrap();
                let layer = read_override(&format!("{key}={choice}"), "", &table).unwrap();
                overlay(&mut table, layer, "").unwrap();
                let taken = table.try_into::<Config>().is_ok();
                assert_eq!(taken, choice != "nonsense", "{key}={choice}");
            }
        }
    }

    #[test]
    fn every_preset_has_every_key() {
        let names = dotted_names(&preset("tiny").unwrap());
        for (name, _) in PRESETS {
            assert_eq!(dotted_names(&preset(name).unwrap()), names, "preset {name}");
        }
    }
}
