//! Controls: models with a part of their attention or state switched off.

use std::fmt;
use std::str::FromStr;

use kernels::{KernelBackend, Window};
use model::CausalLm;

/// What is switched off in a model. [`Display`](fmt::Display) and [`FromStr`] use the form of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Each attention sees only the last tokens and the first ones. An attention whose own window has as many last
    /// tokens or fewer stays as it is.
    Window(Window),
    /// The output of every attention is zero.
    NoAttention,
    /// The output of every state-space mixer is zero.
    NoSsm,
    /// The state of every state-space mixer is emptied each time after this many tokens.
    Reset(usize),
}

/// Why a text is not a control. Each message is complete.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Two controls at once.
    #[error("a control is a window, no-attention, no-ssm or a reset, and not two of them")]
    Both,
    /// A part that is neither `no-attention` nor has a known key.
    #[error(
        "{part:?} is no part of a control; one is window=N, window=N,sinks=M, no-attention, no-ssm or reset=N"
    )]
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
    /// A value that is not a number of tokens.
    #[error("{key} is {value:?}, and not a number of tokens")]
    Number {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
    },
    /// A window without even the token itself.
    #[error("window is 0; it must be at least 1, which is the token itself")]
    EmptyWindow,
    /// A state that would be emptied before every token.
    #[error("reset is 0; it must be at least 1, the tokens after which a state begins anew")]
    EmptyReset,
    /// A number of first tokens without a window.
    #[error("sinks are the first tokens beside a window, which is missing: window=N,sinks=M")]
    NoWindow,
}

impl Control {
    /// The model under this control; `None` if it has none of the parts that the control [changes](Self::of).
    pub fn apply<B: KernelBackend>(self, model: CausalLm<B>) -> Option<CausalLm<B>> {
        match self {
            Self::Window(window) => model.with_attention_within(window),
            Self::NoAttention => model.without_attention(),
            Self::NoSsm => model.without_ssm(),
            Self::Reset(tokens) => model.with_state_reset_every(tokens),
        }
    }

    /// The name of the part of a model that the control changes.
    pub fn of(self) -> &'static str {
        match self {
            Self::Window(_) | Self::NoAttention => "attention",
            Self::NoSsm | Self::Reset(_) => "a state-space mixer",
        }
    }
}

impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Window(Window { window, sinks: 0 }) => write!(f, "window={window}"),
            Self::Window(Window { window, sinks }) => write!(f, "window={window},sinks={sinks}"),
            Self::NoAttention => f.write_str("no-attention"),
            Self::NoSsm => f.write_str("no-ssm"),
            Self::Reset(tokens) => write!(f, "reset={tokens}"),
        }
    }
}

impl FromStr for Control {
    type Err = ControlError;

    fn from_str(text: &str) -> Result<Self, ControlError> {
        let (mut window, mut sinks, mut reset, mut whole) = (None, None, None, None);
        for part in text.split(',') {
            let (key, place, value) = match part.split_once('=') {
                None if part == "no-attention" => {
                    whole = Some(Self::NoAttention);
                    continue;
                }
                None if part == "no-ssm" => {
                    whole = Some(Self::NoSsm);
                    continue;
                }
                Some(("window", value)) => ("window", &mut window, value),
                Some(("sinks", value)) => ("sinks", &mut sinks, value),
                Some(("reset", value)) => ("reset", &mut reset, value),
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
        match (whole, reset, window, sinks) {
            (Some(whole), None, None, None) if !text.contains(',') => Ok(whole),
            (None, Some(0), None, None) => Err(ControlError::EmptyReset),
            (None, Some(tokens), None, None) => Ok(Self::Reset(tokens)),
            (Some(_), ..) | (_, Some(_), ..) => Err(ControlError::Both),
            (None, None, None, _) => Err(ControlError::NoWindow),
            (None, None, Some(0), _) => Err(ControlError::EmptyWindow),
            (None, None, Some(window), sinks) => Ok(Self::Window(Window {
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
            ("no-ssm", Control::NoSsm, "no-ssm"),
            ("reset=7", Control::Reset(7), "reset=7"),
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
        assert_eq!(refused("reset=0"), ControlError::EmptyReset);
        for two in [
            "window=3,no-attention",
            "no-ssm,no-attention",
            "reset=3,window=3",
            "no-ssm,reset=3",
        ] {
            assert_eq!(refused(two), ControlError::Both, "{two}");
        }
        let twice = ControlError::Twice { key: "window" };
        assert_eq!(refused("window=3,window=3"), twice);
    }
}
