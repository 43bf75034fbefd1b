//! What can be wrong with a configuration. Every message says how to correct it.

use std::path::PathBuf;

/// An error of a configuration file, an override or a path in them.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A preset that does not exist.
    #[error("no preset `{name}`; did you mean `{nearest}`? (presets: {all})")]
    UnknownPreset {
        /// What was asked for.
        name: String,
        /// The most similar preset.
        nearest: String,
        /// All presets.
        all: String,
    },
    /// A file that cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Text that is not TOML, or a value that serde refuses.
    #[error("{origin}: {}", source.to_string().trim_end())]
    Toml {
        /// The file or override.
        origin: String,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A configuration that TOML cannot hold.
    #[error("cannot write the configuration as TOML: {0}")]
    Serialise(toml::ser::Error),
    /// An override without `=`.
    #[error("--set {0}: write key=value, for example stage3.lr=2e-4")]
    NotAnOverride(String),
    /// A key that no configuration has.
    #[error("{origin}: unknown key `{key}`; did you mean `{nearest}`?")]
    UnknownKey {
        /// The file or override.
        origin: String,
        /// The dotted key.
        key: String,
        /// The most similar valid key.
        nearest: String,
    },
    /// A value of the wrong type.
    #[error("{origin}: `{key}` must be {expected}, not {found}")]
    WrongType {
        /// The file or override.
        origin: String,
        /// The dotted key.
        key: String,
        /// The type it has to have.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A word that is none of the few allowed.
    #[error("`{key}`: no such choice `{value}`; did you mean `{nearest}`? (choices: {all})")]
    UnknownChoice {
        /// The dotted key.
        key: String,
        /// What was given.
        value: String,
        /// The most similar choice.
        nearest: String,
        /// All choices.
        all: String,
    },
    /// A value of the right type that makes no sense.
    #[error(transparent)]
    OutOfRange(#[from] crate::limits::OutOfRange),
    /// A stage that is not in the list.
    #[error("no stage `{name}` in this run; did you mean `{nearest}`? (stages: {all})")]
    UnknownStage {
        /// What was asked for.
        name: String,
        /// The most similar stage.
        nearest: String,
        /// All stages of the run.
        all: String,
    },
    /// An entry of `[[stages]]` without a name or a kind.
    #[error("{origin}: stage {number} of the list has no `{key}`, which {what}")]
    Nameless {
        /// The file.
        origin: String,
        /// The entry, from 1.
        number: usize,
        /// The key that it lacks.
        key: &'static str,
        /// What the key is.
        what: String,
    },
    /// A relative path found at neither of the places it may be.
    #[error("`{path}` exists neither as {} nor as {}", here.display(), bundled.display())]
    NoSuchPath {
        /// The path as configured.
        path: String,
        /// The place under the current folder.
        here: PathBuf,
        /// The place beside the bundled assets.
        bundled: PathBuf,
    },
}

/// The candidate most like `name`; of equals, the first.
///
/// Dotted names are compared whole and by their last part, whichever is more alike: `lr` is
/// nearest to `stage1.lr`, `stage3.lrr` to `stage3.lr`.
pub(super) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    fn last(name: &str) -> &str {
        name.rsplit('.').next().unwrap_or(name)
    }
    let alike = strsim::normalized_damerau_levenshtein;
    let mut best = ("", (-1.0, -1.0));
    for candidate in candidates {
        let whole = alike(name, candidate);
        let score = (whole.max(alike(last(name), last(candidate))), whole);
        if score > best.1 {
            best = (candidate, score);
        }
    }
    best.0.to_owned()
}
