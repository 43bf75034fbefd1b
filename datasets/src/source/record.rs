//! The text of a JSON record.

use std::borrow::Cow;

use serde::Deserialize;

/// Why a record has no text.
pub(super) enum BadRecord {
    /// It is no JSON, or none that can hold a document.
    Json {
        /// The column of the fault, in bytes, from 1.
        column: usize,
        reason: String,
    },
    /// It is an object without the field.
    NoText,
}

/// The `text` of a JSON object.
pub(super) fn text_of_object(json: &str) -> Result<String, BadRecord> {
    #[derive(Deserialize)]
    struct Object<'a> {
        #[serde(borrow)]
        text: Option<Cow<'a, str>>,
    }
    // The derived parser takes an array for its fields in their order.
    let blanks = json.len() - json.trim_start().len();
    if json[blanks..].starts_with('[') {
        return Err(BadRecord::Json {
            column: blanks + 1,
            reason: "an array, not an object".into(),
        });
    }
    match serde_json::from_str::<Object>(json) {
        Ok(Object { text: Some(text) }) => Ok(text.into_owned()),
        Ok(Object { text: None }) => Err(BadRecord::NoText),
        Err(error) => Err(bad_json(&error)),
    }
}

/// A JSON string, or the `text` of a JSON object.
pub(super) fn text_of(json: &str) -> Result<String, BadRecord> {
    if json.starts_with('"') {
        serde_json::from_str(json).map_err(|error| bad_json(&error))
    } else {
        text_of_object(json)
    }
}

pub(super) fn bad_json(error: &serde_json::Error) -> BadRecord {
    // The parser saw a part of a file and counts its lines from 1; errors have the line of the file.
    let reason = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    BadRecord::Json {
        column: error.column(),
        reason: reason.strip_suffix(&place).unwrap_or(&reason).into(),
    }
}
