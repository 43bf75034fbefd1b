//! The kind of the student's mixer decides which keys `[student]` has.

use model::StudentMixer;
use toml::{Table, Value};

use super::error::ConfigError;
use super::values::{unknown_choice, wrong_type};

/// The section of the mixer.
const SECTION: &str = "student";
/// Its key that decides on the others.
const KIND: &str = "kind";
/// The keys of every kind.
const COMMON: [&str; 3] = ["attention_layers", "init", "from"];

/// Prepares `sections` for `layer`. If `layer` asks for another kind of mixer, the section gets the keys of that kind;
/// keys that both kinds have keep their values.
pub(super) fn choose(sections: &mut Table, layer: &Table, origin: &str) -> Result<(), ConfigError> {
    let asked = layer.get(SECTION).and_then(|section| section.get(KIND));
    let Some(Value::Table(section)) = sections.get_mut(SECTION) else {
        return Ok(());
    };
    let (Some(asked), key) = (asked, format!("{SECTION}.{KIND}")) else {
        return Ok(());
    };
    let Value::String(name) = asked else {
        return Err(wrong_type(origin, &key, "a string", asked));
    };
    if section.get(KIND) == Some(asked) {
        return Ok(());
    }
    let Some(mixer) = StudentMixer::named(name) else {
        return Err(unknown_choice(&key, name, StudentMixer::NAMES));
    };
    let new = Table::try_from(mixer).map_err(ConfigError::Serialise)?;
    section.retain(|key, _| new.contains_key(key) || COMMON.contains(&key));
    for (key, value) in new {
        section.entry(key).or_insert(value);
    }
    section.insert(KIND.into(), name.clone().into());
    Ok(())
}
