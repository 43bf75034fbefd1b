//! An entry of a list of text: where it is, and how much of it to take.

use datasets::probes::Probe;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::error::ConfigError;
use super::values::{unknown_key, wrong_type};

/// The prefix of the name of a data set on the Hugging Face hub.
const HUB: &str = "hub:";
/// The prefix of the names of probes whose documents are generated.
const PROBES: &str = "probes:";
/// The name of standard input.
const STANDARD_INPUT: &str = "-";

/// The allowed forms of an entry, for messages.
const ENTRY: &str = "a string, or a table { path = \"...\", weight = 1.0, column = \"text\" }";

/// An entry of `data.train`, of `data.validation` or of a stage's `data`: a string, which is the path, or a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct TextSource {
    /// A file, a folder or a pattern of paths, which [`resolve_path`](super::resolve_path) finds;
    /// `hub:OWNER/NAME:FOLDER`, a data set on the Hugging Face hub; `probes:NAME,NAME`, documents of these probes, which
    /// are made; or `-`, standard input.
    pub path: String,
    /// The share of this entry in the training sequences, relative to the weights of the others. If no entry of a list
    /// has a weight, all of them are one text, whose sequences come equally often. If some have one, the others have
    /// the weight 1.
    pub weight: Option<f64>,
    /// The field or column of the text, if it is not `text`.
    pub column: Option<String>,
}

/// An entry in its TOML form.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Path(String),
    Table {
        path: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        weight: Option<f64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        column: Option<String>,
    },
}

impl From<Written> for TextSource {
    fn from(written: Written) -> Self {
        match written {
            Written::Path(path) => path.into(),
            Written::Table {
                path,
                weight,
                column,
            } => Self {
                path,
                weight,
                column,
            },
        }
    }
}

impl From<TextSource> for Written {
    fn from(source: TextSource) -> Self {
        let TextSource {
            path,
            weight,
            column,
        } = source;
        if weight.is_none() && column.is_none() {
            Self::Path(path)
        } else {
            Self::Table {
                path,
                weight,
                column,
            }
        }
    }
}

impl From<String> for TextSource {
    fn from(path: String) -> Self {
        Self {
            path,
            weight: None,
            column: None,
        }
    }
}

impl From<&str> for TextSource {
    fn from(path: &str) -> Self {
        path.to_owned().into()
    }
}

impl TextSource {
    /// The data set on the hub that this is, without `hub:`.
    pub fn on_hub(&self) -> Option<&str> {
        self.path.strip_prefix(HUB)
    }

    /// Makes this the data set `name` on the hub.
    pub fn set_on_hub(&mut self, name: &str) {
        self.path = format!("{HUB}{name}");
    }

    /// Whether this is standard input.
    pub fn is_standard_input(&self) -> bool {
        self.path == STANDARD_INPUT
    }

    /// The probes whose documents this entry asks for; `None` if the entry is other text. Unknown names are left out
    /// here; a configuration with such names is refused elsewhere.
    pub fn probes(&self) -> Option<Vec<Probe>> {
        let names = self.path.strip_prefix(PROBES)?;
        Some(names.split(',').filter_map(Probe::named).collect())
    }

    /// The first name in this entry that is not the name of a probe.
    pub(super) fn unknown_probe(&self) -> Option<&str> {
        let mut names = self.path.strip_prefix(PROBES)?.split(',');
        names.find(|name| Probe::named(name).is_none())
    }

    /// Whether this text is on this machine.
    pub fn is_local(&self) -> bool {
        self.on_hub().is_none() && !self.is_standard_input() && self.probes().is_none()
    }
}

/// `value` as a list of entries, or an error.
pub(super) fn fit(value: Value, key: &str, origin: &str) -> Result<Value, ConfigError> {
    let Value::Array(entries) = value else {
        return Err(wrong_type(origin, key, "a list", &value));
    };
    let entries = entries.into_iter().map(|entry| match entry {
        Value::String(_) => Ok(entry),
        Value::Table(table) => fit_table(table, key, origin),
        other => Err(wrong_type(origin, key, ENTRY, &other)),
    });
    Ok(Value::Array(entries.collect::<Result<_, _>>()?))
}

fn fit_table(mut table: Table, key: &str, origin: &str) -> Result<Value, ConfigError> {
    let named = |name: &str| format!("{key}.{name}");
    for (name, value) in &mut table {
        let expected = match (name.as_str(), &*value) {
            ("path" | "column", Value::String(_)) | ("weight", Value::Float(_)) => continue,
            ("weight", Value::Integer(weight)) => {
                *value = Value::Float(*weight as f64);
                continue;
            }
            ("path" | "column", _) => "a string",
            ("weight", _) => "a number",
            _ => {
                let names = ["path", "weight", "column"].map(named);
                return Err(unknown_key(origin, &named(name), &names));
            }
        };
        return Err(wrong_type(origin, &named(name), expected, value));
    }
    if table.contains_key("path") {
        Ok(Value::Table(table))
    } else {
        Err(wrong_type(origin, key, ENTRY, &Value::Table(table)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Source};

    fn load(set: &str) -> Result<Config, ConfigError> {
        Config::load(Source::Preset("tiny"), &[set.to_owned()])
    }

    #[test]
    fn entries_are_strings_or_tables() {
        let set = r#"data.train=["a.txt", {path = "b", weight = 2}, {path = "hub:o/n:en", column = "body"}]"#;
        let config = load(set).unwrap();
        let expected = [
            TextSource::from("a.txt"),
            TextSource {
                weight: Some(2.0),
                ..TextSource::from("b")
            },
            TextSource {
                column: Some("body".to_owned()),
                ..TextSource::from("hub:o/n:en")
            },
        ];
        assert_eq!(config.data.train, expected);
        assert_eq!(config.data.train[2].on_hub(), Some("o/n:en"));
        // The written list must be readable again: either all entries are tables, or none.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        for first in [0, 1] {
            let mut config = config.clone();
            config.data.train = expected[first..].to_vec();
            config.write(&path).unwrap();
            assert_eq!(Config::load(Source::File(&path), &[]).unwrap(), config);
        }

        let mut of_stage = load(r#"stage2.data=[{path = "a", weight = 0.5}]"#).unwrap();
        assert_eq!(of_stage.stages[1].data[0].weight, Some(0.5));
        of_stage.stages[1].data.clear();
        assert_eq!(of_stage, Config::load(Source::Preset("tiny"), &[]).unwrap());
    }

    #[test]
    fn a_file_may_list_them_as_tables() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("my.toml");
        let text = "[[data.train]]\npath = \"a\"\nweight = 3\n[[data.train]]\npath = \"b\"\n";
        std::fs::write(&path, text).unwrap();
        let config = Config::load(Source::File(&path), &[]).unwrap();
        let weights: Vec<_> = config
            .data
            .train
            .iter()
            .map(|source| source.weight)
            .collect();
        assert_eq!(weights, [Some(3.0), None]);
    }

    #[test]
    fn text_on_the_hub_needs_held_out_text() {
        let set = ["data.train=hub:o/n", "data.validation="].map(str::to_owned);
        let message = Config::load(Source::Preset("tiny"), &set)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("`stage1.data`") && message.contains("data.validation"),
            "{message}"
        );
        assert!(load("data.train=hub:o/n").is_ok());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (set, expected) in [
            (
                "data.train=[1]",
                "`data.train` must be a string, or a table",
            ),
            (
                r#"data.train=[{path = "a", wieght = 1}]"#,
                "did you mean `data.train.weight`?",
            ),
            (
                r#"data.train=[{path = "a", weight = "1"}]"#,
                "`data.train.weight` must be a number",
            ),
            (
                r#"data.validation=[{path = 1}]"#,
                "`data.validation.path` must be a string",
            ),
            (
                r#"data.train=[{weight = 1}]"#,
                "`data.train` must be a string, or a table",
            ),
            (
                r#"data.train=[{path = "a", weight = 0}]"#,
                "`data.train.weight` is 0",
            ),
            (
                r#"stage2.data=[{path = "probes:needle,haystack", weight = 1}]"#,
                "`stage2.data` is \"haystack\"",
            ),
            (
                r#"stage2.data=["a", "probes:needle"]"#,
                "`stage2.data.weight` is none",
            ),
            (
                r#"data.validation=["probes:needle"]"#,
                "`data.validation` is \"probes:needle\"",
            ),
            (
                r#"stage2.data=[{path = "a", weight = -1}]"#,
                "`stage2.data.weight` is -1",
            ),
        ] {
            let message = load(set).expect_err(set).to_string();
            assert!(message.contains(expected), "{set}: {message}");
        }
    }
}
