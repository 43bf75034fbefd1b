//! Why a configuration cannot be used, and the bounds that hold for every one.

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or not of the expected structure.
    #[error("not a valid model configuration: {0}")]
    Json(#[from] serde_json::Error),
    /// A key is absent that has no default.
    #[error("the key `{key}` is missing")]
    Missing {
        /// The key's path, such as `MixerModel.input.d_model`.
        key: String,
    },
    /// A value that is valid in its family of models, but is not implemented here.
    #[error("`{key}` is {value}, which is not implemented (only {supported})")]
    Unsupported {
        /// The key's path.
        key: String,
        /// Its value.
        value: String,
        /// What would have been accepted.
        supported: String,
    },
    /// Values that do not fit together, or are out of range.
    #[error("{0}")]
    Invalid(String),
}

/// No size in a configuration may exceed this, so that no file makes a size computation overflow.
const LARGEST_SIZE: usize = 1 << 24;
/// Nor may the number of layers exceed this.
const MOST_LAYERS: usize = 1 << 12;

/// Checks that every named size is in `1..=LARGEST_SIZE`.
pub(crate) fn check_sizes(sizes: &[(&str, usize)]) -> Result<(), ConfigError> {
    match sizes.iter().find(|(_, n)| !(1..=LARGEST_SIZE).contains(n)) {
        Some((key, n)) => Err(ConfigError::Invalid(format!(
            "`{key}` is {n}; it must lie between 1 and {LARGEST_SIZE}"
        ))),
        None => Ok(()),
    }
}

/// Checks that a model has from 1 to [`MOST_LAYERS`] layers.
pub(crate) fn check_layers(key: &str, n: usize) -> Result<(), ConfigError> {
    if (1..=MOST_LAYERS).contains(&n) {
        return Ok(());
    }
    Err(ConfigError::Invalid(format!(
        "`{key}` is {n}; it must lie between 1 and {MOST_LAYERS}"
    )))
}

/// Checks that `value`, the value of `key`, is positive and finite.
pub(crate) fn check_positive(key: &str, value: f64) -> Result<(), ConfigError> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(ConfigError::Invalid(format!(
        "`{key}` is {value}; it must be positive"
    )))
}
