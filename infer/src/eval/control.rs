//! Controls: what a model scores with less attention than it was trained with.

use std::fmt;
use std::str::FromStr;

use kernels::{KernelBackend, Window};
use model::CausalLm;

/// What is left of a model's attention. [`Display`](fmt::Display) and [`FromStr`] have the command line's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Each attention sees the last tokens and the first ones alone; one whose own window has as many last tokens or
    /// fewer stays as it is.
    Window(Window),
    /// No attention adds anything.
    NoAttention,
}

/// Why a text names no control. Each message is complete.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Two controls at once.
    #[error("a control is either a window or no-attention, and not both")]
    Both,
    /// A part that is neither `no-attention` nor has a known key.
    #[error("{part:?} is no part of a control; one is window=N, window=N,sinks=M or no-attention")]
    Unknown {
        /// The part.
        part: String,
    },
    /// A key that is given twice.
    #[error("{key} is given twice")]
    Twice {
        /// The key.
        key: &'static str,
    },
    /// A value that is no number of tokens.
    #[error("{key} is {value:?}, and not a number of tokens")]
    Number {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
    },
    /// A window that does not even have the token itself.
    #[error("window is 0; it must be at least 1, which is the token itself")]
    EmptyWindow,
    /// First tokens without a window.
    #[error("sinks are the first tokens beside a window, which is missing: window=N,sinks=M")]
    NoWindow,
}

impl Control {
    /// The model under this control; `None` if none of its layers has attention.
    pub fn apply<B: KernelBackend>(self, model: CausalLm<B>) -> Option<CausalLm<B>> {
        match self {
            Self::Window(window) => model.with_attention_within(window),
            Self::NoAttention => model.without_attention(),
        }
    }
}

impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Window(Window { window, sinks: 0 }) => write!(f, "window={window}"),
            Self::Window(Window { window, sinks }) => write!(f, "window={window},sinks={sinks}"),
            Self::NoAttention => f.write_str("no-attention"),
        }
    }
}

impl FromStr for Control {
    type Err = ControlError;

    fn from_str(text: &str) -> Result<Self, ControlError> {
        let (mut window, mut sinks, mut is_off) = (None, None, false);
        for part in text.split(',') {
            let (key, place, value) = match part.split_once('=') {
                None if part == "no-attention" => {
                    is_off = true;
                    continue;
                }
                Some(("window", value)) => ("window", &mut window, value),
                Some(("sinks", value)) => ("sinks", &mut sinks, value),
                _ => return Err(ControlError::Unknown { part: part.into() }),
            };
            let number: usize = value.parse().map_err(|_| ControlError::Number {
                key,
                value: value.into(),
            })?;
            if place.replace(number).is_some() {
                return Err(ControlError::Twice { key });
            }
        }
        match (is_off, window, sinks) {
            (true, None, None) => Ok(Self::NoAttention),
            (true, ..) => Err(ControlError::Both),
            (false, None, _) => Err(ControlError::NoWindow),
            (false, Some(0), _) => Err(ControlError::EmptyWindow),
            (false, Some(window), sinks) => Ok(Self::Window(Window {
                window,
                sinks: sinks.unwrap_or(0),
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_are_read_as_they_are_written() {
        let window = |window, sinks| Control::Window(Window { window, sinks });
        for (text, control, written) in [
            ("window=64,sinks=4", window(64, 4), "window=64,sinks=4"),
            ("sinks=4,window=64", window(64, 4), "window=64,sinks=4"),
            ("window=1", window(1, 0), "window=1"),
            ("window=2,sinks=0", window(2, 0), "window=2"),
            ("no-attention", Control::NoAttention, "no-attention"),
        ] {
            assert_eq!(text.parse(), Ok(control), "{text}");
            assert_eq!(control.to_string(), written);
        }
    }

    #[test]
    fn what_is_no_control_is_refused() {
        let refused = |text: &str| text.parse::<Control>().unwrap_err();
        for text in [
            "",
            "window",
            "width=3",
            "window=3,",
            "No-attention",
            "sinks",
        ] {
            let error = refused(text);
            assert!(matches!(error, ControlError::Unknown { .. }), "{text}");
        }
        for text in ["window=", "window=-1", "window=6.5", "sinks=x", "window= 3"] {
            let error = refused(text);
            assert!(matches!(error, ControlError::Number { .. }), "{text}");
        }
        assert_eq!(refused("window=0,sinks=4"), ControlError::EmptyWindow);
        assert_eq!(refused("sinks=4"), ControlError::NoWindow);
        assert_eq!(refused("window=3,no-attention"), ControlError::Both);
        let twice = ControlError::Twice { key: "window" };
        assert_eq!(refused("window=3,window=3"), twice);
    }
}
