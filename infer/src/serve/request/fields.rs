//! Fields of a body that are read with bounds, before anything else is known of it.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::ApiError;

/// The most stop strings. Each is searched for with every token.
const STOPS: usize = 16;
/// The most bytes of a stop string.
const STOP_BYTES: usize = 1024;

/// The stop strings of a body: one or a list of them.
#[derive(Debug, Default)]
pub(super) struct StopStrings(Vec<String>);

impl StopStrings {
    /// The stop strings.
    ///
    /// # Errors
    /// There are too many, or one of them is empty or too long.
    pub(super) fn check(self) -> Result<Vec<String>, ApiError> {
        let refused = |message| Err(ApiError::invalid_field("stop", message));
        if self.0.len() > STOPS {
            return refused(format!("more than {STOPS} stop strings"));
        }
        if self.0.iter().any(String::is_empty) {
            return refused("a stop string is empty".to_owned());
        }
        if self.0.iter().any(|stop| stop.len() > STOP_BYTES) {
            return refused(format!("a stop string is longer than {STOP_BYTES} bytes"));
        }
        Ok(self.0)
    }
}

impl<'de> Deserialize<'de> for StopStrings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StopVisitor)
    }
}

struct StopVisitor;

impl<'de> Visitor<'de> for StopVisitor {
    type Value = StopStrings;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("stop as a string or a list of strings")
    }

    fn visit_str<E: Error>(self, stop: &str) -> Result<StopStrings, E> {
        Ok(StopStrings(vec![stop.to_owned()]))
    }

    /// Keeps one string more than there may be, and only passes over the others.
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<StopStrings, A::Error> {
        let mut stops = Vec::new();
        while stops.len() <= STOPS {
            match seq.next_element()? {
                Some(stop) => stops.push(stop),
                None => return Ok(StopStrings(stops)),
            }
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(StopStrings(stops))
    }
}

/// An object of which only matters whether it has members.
#[derive(Debug)]
pub(super) struct Members {
    is_empty: bool,
}

impl Members {
    pub(super) fn is_empty(&self) -> bool {
        self.is_empty
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
        let mut is_empty = true;
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            is_empty = false;
        }
        Ok(Members { is_empty })
    }
}
