//! Bodies and their fields, which are read with limits before they are interpreted.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::error::ApiError;

/// The most stop strings. Each is searched for with every token.
const STOPS: usize = 16;
/// The most bytes of a stop string.
const STOP_BYTES: usize = 1024;

/// A group of fields that a body may have.
pub(super) trait Fields: Default {
    /// Their names.
    const NAMES: &'static [&'static str];

    /// If `name` is one of these fields, takes its value from `map`; otherwise returns `false`.
    fn take<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error>;
}

/// Declares a struct of optional fields, and reads them by their names. `null` means the same as a missing field.
macro_rules! fields {
    (
        $(#[$about:meta])*
        $visibility:vis struct $fields:ident { $($(#[$meaning:meta])* $name:ident: $kind:ty,)* }
    ) => {
        $(#[$about])*
        #[derive(Debug, Default)]
        $visibility struct $fields { $($(#[$meaning])* pub $name: Option<$kind>,)* }

        impl $crate::serve::fields::Fields for $fields {
            const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];

            fn take<'de, A: serde::de::MapAccess<'de>>(
                &mut self,
                name: &str,
                map: &mut A,
            ) -> Result<bool, A::Error> {
                match name {
                    $(stringify!($name) => match &self.$name {
                        Some(_) => return Err(serde::de::Error::duplicate_field(stringify!($name))),
                        None => {
                            let value = map.next_value();
                            self.$name = value.map_err(|error| {
                                let named = format!("`{}`: {error}", stringify!($name));
                                <A::Error as serde::de::Error>::custom(named)
                            })?;
                        }
                    },)*
                    _ => return Ok(false),
                }
                Ok(true)
            }
        }
    };
}
pub(super) use fields;

/// The fields of a body: the ones that all endpoints share, and the endpoint's own.
#[derive(Debug)]
pub(super) struct Body<Shared, Own> {
    pub shared: Shared,
    pub own: Own,
}

impl<Shared: Fields, Own: Fields> Body<Shared, Own> {
    /// Reads a body. Arbitrary bytes cause no panic, and no more memory is used than a few times their number.
    ///
    /// # Errors
    /// It is no JSON object, a field has an impossible value, or there is no such field.
    pub(super) fn read(body: &[u8]) -> Result<Self, ApiError> {
        let unreadable = |error| ApiError::invalid(format!("the body cannot be read: {error}"));
        if body.trim_ascii_start().first() == Some(&b'[') {
            return Err(unreadable("it is a list and no object".to_owned()));
        }
        serde_json::from_slice(body).map_err(|error| unreadable(error.to_string()))
    }
}

impl<'de, Shared: Fields, Own: Fields> Deserialize<'de> for Body<Shared, Own> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(BodyVisitor(PhantomData))
    }
}

struct BodyVisitor<Shared, Own>(PhantomData<(Shared, Own)>);

impl<'de, Shared: Fields, Own: Fields> Visitor<'de> for BodyVisitor<Shared, Own> {
    type Value = Body<Shared, Own>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut body = Body {
            shared: Shared::default(),
            own: Own::default(),
        };
        while let Some(name) = map.next_key::<String>()? {
            if !body.own.take(&name, &mut map)? && !body.shared.take(&name, &mut map)? {
                let known = [Own::NAMES, Shared::NAMES].concat().join("`, `");
                let message = format!("unknown field `{name}`, expected one of `{known}`");
                return Err(A::Error::custom(message));
            }
        }
        Ok(body)
    }
}

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

    /// Keeps one string more than is allowed, so that `check` finds the excess, and skips the others.
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

/// Any value. Only the information whether it asks for something is kept.
#[derive(Debug)]
pub(super) enum Anything {
    /// `false`, `[]`, `{}`.
    Nothing,
    /// A word.
    Word(String),
    /// Something else.
    Something,
}

impl<'de> Deserialize<'de> for Anything {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnythingVisitor)
    }
}

struct AnythingVisitor;

impl<'de> Visitor<'de> for AnythingVisitor {
    type Value = Anything;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("any value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Anything, E> {
        Ok(if value {
            Anything::Something
        } else {
            Anything::Nothing
        })
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Anything, E> {
        Ok(Anything::Something)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Anything, E> {
        Ok(Anything::Something)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Anything, E> {
        Ok(Anything::Something)
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<Anything, E> {
        Ok(Anything::Word(word.to_owned()))
    }

    fn visit_unit<E: Error>(self) -> Result<Anything, E> {
        Ok(Anything::Nothing)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Anything, A::Error> {
        let mut found = Anything::Nothing;
        while seq.next_element::<IgnoredAny>()?.is_some() {
            found = Anything::Something;
        }
        Ok(found)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Anything, A::Error> {
        let mut found = Anything::Nothing;
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            found = Anything::Something;
        }
        Ok(found)
    }
}
