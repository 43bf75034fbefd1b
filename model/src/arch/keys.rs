//! The members of a configuration's objects, with messages that say where each is.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::config_error::ConfigError;

/// An object of a file.
pub(super) struct Keys<'a> {
    /// What leads to it, such as `rope_scaling.`; empty for the file itself.
    pub path: Cow<'a, str>,
    pub members: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    /// The members of `value`, the object at `path`.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] if it is no object.
    pub fn of(path: impl Into<Cow<'a, str>>, value: &'a Value) -> Result<Self, ConfigError> {
        let path = path.into();
        match value {
            Value::Object(members) => Ok(Self { path, members }),
            _ => {
                let name = path.trim_end_matches('.');
                Err(ConfigError::Invalid(format!(
                    "`{name}` is {value}; it should be an object"
                )))
            }
        }
    }

    /// The object `key`.
    pub fn object(&self, key: &str) -> Result<Keys<'a>, ConfigError> {
        let path = format!("{}{key}", self.path);
        match self.members.get(key) {
            Some(value) => Keys::of(path + ".", value),
            None => Err(ConfigError::Missing { key: path }),
        }
    }

    /// The value of `key`; `None` where it is absent or `null`.
    pub fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, ConfigError> {
        let value = self.members.get(key).filter(|value| !value.is_null());
        let read = value.map(|value| {
            serde_json::from_value(value.clone()).map_err(|error| {
                let path = &self.path;
                ConfigError::Invalid(format!("`{path}{key}` is {value}: {error}"))
            })
        });
        read.transpose()
    }

    /// The value of `key`, which must have one.
    pub fn required<T: DeserializeOwned>(&self, key: &str) -> Result<T, ConfigError> {
        self.read(key)?.ok_or_else(|| ConfigError::Missing {
            key: format!("{}{key}", self.path),
        })
    }

    /// Checks that `key`, if it has a value, has the value `accepted`.
    pub fn only(&self, key: &str, accepted: &Value) -> Result<(), ConfigError> {
        match self.members.get(key) {
            Some(value) if !value.is_null() && !is_same(value, accepted) => {
                Err(self.unsupported(key, value, &accepted.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// The text of `key`, which must be one of `names`.
    pub fn one_of(&self, key: &str, names: &[&'static str]) -> Result<&'static str, ConfigError> {
        let value: Value = self.required(key)?;
        let name = names.iter().find(|name| value == **name);
        name.copied()
            .ok_or_else(|| self.unsupported(key, &value, &names.join(", ")))
    }

    /// The error of a value that is not implemented.
    pub fn unsupported(&self, key: &str, value: &Value, supported: &str) -> ConfigError {
        ConfigError::Unsupported {
            key: format!("{}{key}", self.path),
            value: value.to_string(),
            supported: supported.into(),
        }
    }
}

/// Whether two values are equal; `1` and `1.0` are.
fn is_same(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().is_some_and(|number| b.as_f64() == Some(number))
}
