//! The files of a folder that are no text to train on.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::de::IgnoredAny;

use super::{Layout, layout_of, open_text};
use crate::error::Result;

/// Names of files that tell about others, up to the first `.`, `-` or `_`.
const INCIDENTAL: [&str; 5] = ["readme", "license", "licence", "copying", "changelog"];

/// The most bytes of a `.json` file that are read to see what it is.
const BEGINNING: u64 = 16 << 20;

/// Files of each kind that are named.
const EXAMPLES: usize = 3;

/// The files that are passed over, by the kind that is shown for them.
#[derive(Default)]
pub(super) struct PassedOver(BTreeMap<String, Vec<String>>);

impl PassedOver {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the file is none to be read as text, which is in the field `column` of a record.
    pub(super) fn takes(&self, path: &Path, column: &str) -> Result<bool> {
        Ok(match layout_of(path) {
            None => true,
            _ if is_incidental(path) => true,
            Some(Layout::Json) => is_one_object_without(path, column)?,
            Some(_) => false,
        })
    }

    /// Adds a file below `folder`.
    pub(super) fn add(&mut self, folder: &Path, path: &Path) {
        let kind = match path.extension() {
            _ if is_incidental(path) => "about the others",
            None => "without an extension",
            Some(extension) => &format!(".{}", extension.to_string_lossy().to_lowercase()),
        };
        self.add_as(kind, folder, path);
    }

    /// Adds a file or folder below `folder` that this project's programs have written.
    pub(super) fn add_own(&mut self, folder: &Path, path: &Path) {
        self.add_as("of runs, models and token caches", folder, path);
    }

    /// Adds a link below `folder` that leads nowhere, or to a folder around it.
    pub(super) fn add_link(&mut self, folder: &Path, path: &Path) {
        self.add_as("links without a target", folder, path);
    }

    fn add_as(&mut self, kind: &str, folder: &Path, path: &Path) {
        let name = path.strip_prefix(folder).unwrap_or(path);
        let files = self.0.entry(kind.into()).or_default();
        files.push(name.display().to_string());
    }
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (kind, files)) in self.0.iter().enumerate() {
            let (comma, count) = (if i > 0 { "; " } else { "" }, files.len());
            let examples = &files[..count.min(EXAMPLES)];
            let more = if count > EXAMPLES { ", ..." } else { "" };
            write!(f, "{comma}{count} {kind} ({}{more})", examples.join(", "))?;
        }
        Ok(())
    }
}

fn is_incidental(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.split(['.', '-', '_']).next().unwrap_or_default();
    INCIDENTAL.contains(&&*stem.to_lowercase())
}

/// Whether a file is one JSON object and nothing else, and no record of text. One that is too long to see is
/// taken for text.
fn is_one_object_without(path: &Path, column: &str) -> Result<bool> {
    let beginning = open_text(path)?.take(BEGINNING);
    let object = serde_json::from_reader::<_, HashMap<String, IgnoredAny>>(beginning);
    Ok(object.is_ok_and(|object| !object.contains_key(column)))
}
