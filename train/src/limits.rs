//! Errors for values that have the right type but are out of range, and the ranges that many keys share.

use std::fmt::Display;
use std::ops::RangeInclusive;

/// A value outside of its range. Its message names the key, the value and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` is {value}; allowed: {allowed}")]
pub struct OutOfRange {
    /// The key, dotted.
    pub key: String,
    /// The value that it has.
    pub value: String,
    /// What it may have instead.
    pub allowed: String,
}

impl OutOfRange {
    /// The same with the key below `section`: `section.key`.
    pub fn under(mut self, section: &str) -> Self {
        self.key = format!("{section}.{}", self.key);
        self
    }
}

/// Returns an error about `key` unless `holds` is true.
pub(crate) fn require(
    holds: bool,
    key: &str,
    value: impl Display,
    allowed: &str,
) -> Result<(), OutOfRange> {
    if holds {
        return Ok(());
    }
    Err(OutOfRange {
        key: key.to_owned(),
        value: value.to_string(),
        allowed: allowed.to_owned(),
    })
}

pub(crate) fn at_least(least: usize, key: &str, value: usize) -> Result<(), OutOfRange> {
    require(value >= least, key, value, &format!("{least} or more"))
}

pub(crate) fn positive(key: &str, value: f64) -> Result<(), OutOfRange> {
    let holds = value > 0.0 && value.is_finite();
    require(holds, key, value, "above 0 and finite")
}

pub(crate) fn not_negative(key: &str, value: f64) -> Result<(), OutOfRange> {
    let holds = value >= 0.0 && value.is_finite();
    require(holds, key, value, "0 or more, and finite")
}

pub(crate) fn within(range: RangeInclusive<f64>, key: &str, value: f64) -> Result<(), OutOfRange> {
    let allowed = format!("from {} to {}", range.start(), range.end());
    require(range.contains(&value), key, value, &allowed)
}
