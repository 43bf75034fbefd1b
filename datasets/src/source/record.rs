//! The text of a JSON record.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

/// Why a record has no text.
pub(super) enum BadRecord {
    /// It is no JSON, or none that can hold a document.
    Json {
        /// The column of the fault, in bytes, from 1.
        column: usize,
        reason: String,
    },
    /// It is an object without the field.
    NoText {
        /// Its fields.
        fields: String,
    },
}

/// The text in the field `name` of a JSON object.
pub(super) fn text_of_object(json: &str, name: &str) -> Result<String, BadRecord> {
    let mut parser = serde_json::Deserializer::from_str(json);
    let found = Field { name }.deserialize(&mut parser);
    let found = found.and_then(|found| parser.end().map(|()| found));
    match found.map_err(|error| bad_json(&error))? {
        Found::Text(text) => Ok(text.into_owned()),
        Found::NoText(fields) => Err(BadRecord::NoText {
            fields: match &fields[..] {
                [] => "none".to_owned(),
                fields => fields.join(", "),
            },
        }),
    }
}

/// A JSON string, or the text in the field `name` of a JSON object.
pub(super) fn text_of(json: &str, name: &str) -> Result<String, BadRecord> {
    if json.starts_with('"') {
        serde_json::from_str(json).map_err(|error| bad_json(&error))
    } else {
        text_of_object(json, name)
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

/// Parses an object for the text of one of its fields, without keeping the others.
#[derive(Clone, Copy)]
struct Field<'a> {
    name: &'a str,
}

enum Found<'de> {
    Text(Cow<'de, str>),
    /// The names of the fields that there are, in quotes.
    NoText(Vec<String>),
}

impl<'de> DeserializeSeed<'de> for Field<'_> {
    type Value = Found<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found<'de>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Field<'_> {
    type Value = Found<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with a field {:?}", self.name)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found<'de>, A::Error> {
        let mut text = None;
        let mut fields = Vec::new();
        while let Some(key) = map.next_key_seed(Text)? {
            if key != self.name {
                map.next_value::<IgnoredAny>()?;
                if !matches!(text, Some(Some(_))) {
                    fields.push(format!("{key:?}"));
                }
            } else if text.is_none() {
                // `null` is no text.
                let found = map.next_value_seed(OptionalText)?;
                if found.is_none() {
                    fields.push(format!("{key:?} (null)"));
                }
                text = Some(found);
            } else {
                return Err(A::Error::custom(format!("the field `{key}` twice")));
            }
        }
        Ok(match text.flatten() {
            Some(text) => Found::Text(text),
            None => Found::NoText(fields),
        })
    }
}

/// Parses a string, which is borrowed from the input if it has no escapes.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// Parses a string or `null`.
struct OptionalText;

impl<'de> DeserializeSeed<'de> for OptionalText {
    type Value = Option<Cow<'de, str>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for OptionalText {
    type Value = Option<Cow<'de, str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        Text.deserialize(deserializer).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_in_the_field_of_that_name() {
        let json = r#" {"text": "a\n", "n": {"content": 1}, "content": "b"} "#;
        assert!(matches!(text_of_object(json, "text"), Ok(text) if text == "a\n"));
        assert!(matches!(text_of_object(json, "content"), Ok(text) if text == "b"));
        let Err(BadRecord::NoText { fields }) = text_of_object(json, "body") else {
            panic!("a field that is not there")
        };
        assert_eq!(fields, r#""text", "n", "content""#);
        for bad in [
            r#"["a"]"#,
            r#"{"text": 1}"#,
            r#"{"text": "a"} x"#,
            r#"{"text": "a", "text": "b"}"#,
            "7",
        ] {
            let found = text_of_object(bad, "text");
            assert!(matches!(found, Err(BadRecord::Json { .. })), "{bad}");
        }
        let null = text_of_object(r#"{"text": null, "body": "a"}"#, "text");
        let Err(BadRecord::NoText { fields }) = null else {
            panic!("null is no text")
        };
        assert_eq!(fields, r#""text" (null), "body""#);
    }
}
