//! The values of keys: their possible types, and the errors for values that fit none.

use toml::Value;

use super::error::{ConfigError, nearest};

/// Up to this number, 2^53, a float represents every whole number exactly.
const LARGEST: f64 = 9_007_199_254_740_992.0;

/// The error for an unknown `key` in `origin`, with the most similar of `names`.
pub(super) fn unknown_key(origin: &str, key: &str, names: &[String]) -> ConfigError {
    ConfigError::UnknownKey {
        origin: origin.to_owned(),
        key: key.to_owned(),
        nearest: nearest(key, names.iter().map(String::as_str)),
    }
}

/// The error for a `word` that is not one of the `choices` of `key`.
pub(super) fn unknown_choice(key: &str, word: &str, choices: &[&str]) -> ConfigError {
    ConfigError::UnknownChoice {
        key: key.to_owned(),
        value: word.to_owned(),
        nearest: nearest(word, choices.iter().copied()),
        all: choices.join(", "),
    }
}

/// Checks that `value`, if it is a string, is one of `choices`.
pub(super) fn check_choice(
    key: &str,
    value: Option<&Value>,
    choices: &[&str],
) -> Result<(), ConfigError> {
    match value.and_then(Value::as_str) {
        Some(word) if !choices.contains(&word) => Err(unknown_choice(key, word, choices)),
        _ => Ok(()),
    }
}

/// Converts `value` to the type of `like`, or returns an error.
///
/// Numbers may be written as integers or as floats if no digit is lost: `lr = 1`, `tokens = 1e6`.
pub(super) fn fit(
    value: Value,
    like: &Value,
    key: &str,
    origin: &str,
) -> Result<Value, ConfigError> {
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
        (_, value) => Err(wrong_type(origin, key, type_of(like), &value)),
    }
}

/// The error for a `key` of `origin` with the value `found`, whose type is not the `expected` one.
pub(super) fn wrong_type(origin: &str, key: &str, expected: &str, found: &Value) -> ConfigError {
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

/// In words, the type that a key must have whose value now is `value`.
pub(super) fn type_of(value: &Value) -> &'static str {
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

/// A command-line value as TOML. It is lenient where shells make quoting hard: a string needs no quotes and a list no
/// brackets (`stage2.data=a.txt,b.txt`). A table is written in braces, as in TOML, and is allowed only for `rates`.
pub(super) fn read_value(text: &str, like: &Value, rates: bool) -> Value {
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
        _ => match scalar(text) {
            Value::Table(_) if !rates => bare(text),
            value => value,
        },
    }
}
