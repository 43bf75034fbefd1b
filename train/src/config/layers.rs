//! Preset, file, overrides: how the layers of a configuration come together.

use std::path::Path;

use toml::{Table, Value};

use super::error::nearest;
use super::overlay::Layers;
use super::values::wrong_type;
use super::{Config, ConfigError, validate};

/// The presets by name; the first is the default, and the schema of everything but stages.
pub const PRESETS: [(&str, &str); 9] = [
    ("tiny", include_str!("../../presets/tiny.toml")),
    ("phi-1.5", include_str!("../../presets/phi-1.5.toml")),
    (
        "hybrid-phi-1.5",
        include_str!("../../presets/hybrid-phi-1.5.toml"),
    ),
    (
        "smollm2-135m",
        include_str!("../../presets/smollm2-135m.toml"),
    ),
    (
        "smollm2-135m-hybrid",
        include_str!("../../presets/smollm2-135m-hybrid.toml"),
    ),
    (
        "qwen2.5-0.5b",
        include_str!("../../presets/qwen2.5-0.5b.toml"),
    ),
    (
        "qwen2.5-0.5b-hybrid",
        include_str!("../../presets/qwen2.5-0.5b-hybrid.toml"),
    ),
    (
        "llama-3.2-1b",
        include_str!("../../presets/llama-3.2-1b.toml"),
    ),
    (
        "llama-3.2-1b-hybrid",
        include_str!("../../presets/llama-3.2-1b-hybrid.toml"),
    ),
];

/// The lowest layers of a configuration.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// One of [`PRESETS`].
    Preset(&'a str),
    /// A TOML file. Its top-level `preset = "NAME"` names the preset that gives the keys it leaves
    /// out; without one that is `tiny`.
    File(&'a Path),
}

pub(super) fn resolve(source: Source<'_>, overrides: &[String]) -> Result<Config, ConfigError> {
    let (mut layers, origin) = match source {
        Source::Preset(name) => (preset(name)?, format!("preset {name}")),
        Source::File(path) => {
            let origin = path.display().to_string();
            let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
                path: path.to_owned(),
                source,
            })?;
            let mut file = parse(&text, &origin)?;
            let mut layers = match file.remove("preset") {
                None => preset(PRESETS[0].0)?,
                Some(Value::String(name)) => preset(&name)?,
                Some(other) => {
                    return Err(wrong_type(&origin, "preset", "a string", &other));
                }
            };
            layers.overlay(file, &origin)?;
            (layers, origin)
        }
    };
    for text in overrides {
        layers.set(text)?;
    }
    layers.check_choices()?;
    let config = layers
        .into_table()
        .try_into()
        .map_err(|source| ConfigError::Toml {
            origin: match overrides {
                [] => origin,
                _ => format!("{origin} with --set {}", overrides.join(" --set ")),
            },
            source: Box::new(source),
        })?;
    validate::validate(&config)?;
    Ok(config)
}

/// The lowest layer: the keys of a preset.
fn preset(name: &str) -> Result<Layers, ConfigError> {
    let origin = format!("preset {name}");
    match PRESETS.iter().find(|(preset, _)| *preset == name) {
        Some((_, text)) => Layers::new(parse(text, &origin)?, &origin),
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

/// The names of the sections and of the top-level keys. A stage may have none of these names.
pub(super) fn section_names() -> Vec<String> {
    let schema = parse(PRESETS[0].1, "").unwrap_or_default();
    schema.keys().cloned().chain(["preset".into()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_has_every_key() {
        let stageless = |name| {
            let names = preset(name).unwrap().names().into_iter();
            let stages = |name: &String| name.starts_with("stage");
            names.filter(|name| !stages(name)).collect::<Vec<_>>()
        };
        for (name, text) in PRESETS {
            assert_eq!(stageless(name), stageless("tiny"), "preset {name}");
            // A preset writes every key of its stages too: none is left to a default.
            let written: Table = parse(text, name).unwrap();
            let resolved = preset(name).unwrap().into_table();
            let keys = |table: &Table| -> Vec<Vec<String>> {
                let stages = table["stages"].as_array().unwrap().iter();
                let sorted = |stage: &Value| {
                    let mut keys: Vec<_> = stage.as_table().unwrap().keys().cloned().collect();
                    keys.sort();
                    keys
                };
                stages.map(sorted).collect()
            };
            assert_eq!(keys(&written), keys(&resolved), "preset {name}");
        }
    }
}
