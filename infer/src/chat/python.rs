//! The functions that transformers adds to Jinja, and the rules of Python that templates depend on.

use std::borrow::Cow;
use std::error::Error as _;
use std::fmt::Write;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// The deepest nesting of lists and maps that can be written as JSON.
const DEPTH: usize = 100;

/// The error for a template that has called `raise_exception`.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refusal(pub String);

impl Refusal {
    /// The refusal that caused `error`, if one did.
    pub(super) fn in_error(error: &Error) -> Option<&Self> {
        let mut cause = error.source();
        while let Some(error) = cause {
            if let Some(refusal) = error.downcast_ref() {
                return Some(refusal);
            }
            cause = error.source();
        }
        None
    }
}

/// `raise_exception(message)`: the template refuses the messages.
pub(super) fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Refusal(message)))
}

/// `strftime_now(format)`: the time here and now.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let mut text = String::new();
    let now = chrono::Local::now();
    match write!(text, "{}", now.format(format)) {
        Ok(()) => Ok(text),
        Err(_) => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("strftime_now does not know all of {format:?}"),
        )),
    }
}

/// `value is sequence` by Python's definition: a string is one too.
pub(super) fn is_sequence(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Seq | ValueKind::String | ValueKind::Map
    )
}

/// `value is iterable`, as Python sees it: `none` is not.
pub(super) fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// `value | tojson`: the value as Python's `json.dumps` writes it, with its options.
pub(super) fn to_json(state: &State, value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<&Value> = options.get("indent")?;
    let indent = indent
        .filter(|indent| !indent.is_none())
        .map(|indent| match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(indent.as_usize().unwrap_or(0).min(DEPTH)),
        });
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item, key) = match separators.as_deref() {
        None if indent.is_none() => (", ", ": "),
        None => (",", ": "),
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(_) => return Err(failed("tojson takes two separators")),
    };
    let mut json = Json {
        state,
        text: String::new(),
        paid: 0,
        indent,
        item: item.to_owned(),
        key: key.to_owned(),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
    };
    options.assert_all_used()?;
    json.value(value, 0)?;
    Ok(json.text)
}

/// JSON while it is written.
struct Json<'s, 't, 'e> {
    state: &'s State<'t, 'e>,
    text: String,
    /// The number of bytes for which fuel was already used.
    paid: usize,
    /// The beginning of each nested line, for each level; `None` writes everything on one line.
    indent: Option<String>,
    /// The separator between two items.
    item: String,
    /// The separator between a key and its value.
    key: String,
    sort_keys: bool,
    /// Whether only ASCII is written.
    ascii: bool,
}

impl Json<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        // The same value may be in others many times, so the result may be much longer than they are.
        let grown = self.text.len() - self.paid;
        self.state.consume_fuel(1 + grown as u64 / 64)?;
        self.paid = self.text.len();
        if depth > DEPTH {
            return Err(failed("tojson is given lists or maps that are too deep"));
        }
        match value.kind() {
            ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool if value.is_true() => self.text.push_str("true"),
            ValueKind::Bool => self.text.push_str("false"),
            ValueKind::Number => self.number(value),
            ValueKind::String => self.string(value.as_str().unwrap_or("")),
            ValueKind::Seq | ValueKind::Iterable => {
                self.text.push('[');
                let mut empty = true;
                for item in value.try_iter()?.checked() {
                    self.begin_item(empty, depth + 1);
                    empty = false;
                    self.value(&item?, depth + 1)?;
                }
                self.end(']', empty, depth);
            }
            ValueKind::Map => {
                self.text.push('{');
                let mut keys: Vec<Value> = value.try_iter()?.checked().collect::<Result<_, _>>()?;
                if self.sort_keys {
                    keys.sort();
                }
                for (i, key) in keys.iter().enumerate() {
                    self.begin_item(i == 0, depth + 1);
                    self.key(key)?;
                    self.value(&value.get_item(key)?, depth + 1)?;
                }
                self.end('}', keys.is_empty(), depth);
            }
            kind => {
                let message = format!("tojson is given a value of the kind {kind}");
                return Err(Error::new(ErrorKind::BadSerialization, message));
            }
        }
        Ok(())
    }

    fn key(&mut self, key: &Value) -> Result<(), Error> {
        match key.kind() {
            ValueKind::String => self.string(key.as_str().unwrap_or("")),
            ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                self.text.push('"');
                self.value(key, DEPTH)?;
                self.text.push('"');
            }
            _ => return Err(failed("tojson is given a map with a key that is no text")),
        }
        self.text.push_str(&self.key);
        Ok(())
    }

    fn number(&mut self, value: &Value) {
        let float = f64::try_from(value.clone()).ok();
        match float.filter(|_| !value.is_integer()) {
            Some(float) => self.text.push_str(&float_text(float)),
            None => self.text.push_str(&value.to_string()),
        }
    }

    fn string(&mut self, string: &str) {
        self.text.push('"');
        for character in string.chars() {
            match character {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                plain if plain >= ' ' && (plain < '\u{7f}' || !self.ascii) => self.text.push(plain),
                other => {
                    for unit in other.encode_utf16(&mut [0; 2]) {
                        // Writing to a string does not fail.
                        let _ = write!(self.text, "\\u{unit:04x}");
                    }
                }
            }
        }
        self.text.push('"');
    }

    fn begin_item(&mut self, first: bool, depth: usize) {
        if !first {
            self.text.push_str(&self.item);
        }
        self.begin_line(depth);
    }

    fn end(&mut self, bracket: char, empty: bool, depth: usize) {
        if !empty {
            self.begin_line(depth);
        }
        self.text.push(bracket);
    }

    fn begin_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.text.push('\n');
            self.text.push_str(&indent.repeat(depth));
        }
    }
}

/// A number as Python writes it.
fn float_text(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        let sign = if number < 0.0 { "-" } else { "" };
        return format!("{sign}Infinity");
    }
    let scientific = format!("{number:e}");
    let exponent = scientific
        .split_once('e')
        .and_then(|(digits, exponent)| Some((digits, exponent.parse::<i32>().ok()?)));
    match exponent {
        Some((digits, exponent)) if !(-4..16).contains(&exponent) => {
            format!("{digits}e{exponent:+03}")
        }
        _ => format!("{number:?}"),
    }
}

fn failed(message: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}
