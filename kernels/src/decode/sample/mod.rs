//! Sampling of the next token on the device that holds its logits.
//!
//! A token is one number, but its logits are as many numbers as the vocabulary has tokens. If the GPU chooses the
//! token, the host need not wait for all logits and read them. Backends in the memory of the host gain nothing from
//! this, and do not have this op.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

/// What is done to logits before a token is drawn, in this order; each as in Hugging Face's
/// `transformers`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Warp {
    /// Divides the positive logits of tokens that were seen and multiplies the negative ones; 1 is off.
    pub repetition_penalty: f32,
    /// Divides the logits; 0 takes the likeliest token, of equal ones the first.
    pub temperature: f32,
    /// Leaves this many of the likeliest, and those equal to the last of them; 0 is off.
    pub top_k: usize,
    /// Leaves the likeliest that together reach this probability; 1 is off.
    pub top_p: f64,
    /// Leaves those at least this fraction as likely as the likeliest; 0 is off.
    pub min_p: f32,
}

impl Warp {
    /// Whether no random number is needed.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }
}

/// How the token of one row is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// What is done to the logits first.
    pub warp: Warp,
    /// Which token is drawn: that at this point, in `[0, 1)`, of the cumulative distribution.
    pub point: f64,
}

/// Why there is no token to draw from a row's logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Each is negative infinity.
    NoScore,
    /// A logit is NaN or positive infinity.
    NotAScore {
        /// The first such token.
        token: usize,
        /// Its logit.
        logit: f32,
    },
}

impl Fault {
    /// The fault that a negative id from [`sample`] stands for; `None` if the id is a token.
    pub fn of(id: i64) -> Option<Self> {
        // 0, or 1 and 2 for the first token, 3 and 4 for the second one, and so on.
        let number = usize::try_from(-1 - id).ok()?;
        let Some(number) = number.checked_sub(1) else {
            return Some(Self::NoScore);
        };
        let logit = if number.is_multiple_of(2) {
            f32::NAN
        } else {
            f32::INFINITY
        };
        Some(Self::NotAScore {
            token: number / 2,
            logit,
        })
    }
}

/// The op, as backends compute it.
pub trait Sample: Backend {
    /// See [`sample`].
    fn sample(
        _logits: Tensor<Self, 2>,
        _seen: Option<&mut Tensor<Self, 2, Int>>,
        _vocab_size: usize,
        _choices: &[Choice],
    ) -> Option<Tensor<Self, 1, Int>> {
        None
    }
}

by_default!(Sample for ndarray, flex, autodiff);

/// Draws a token for each row of `logits [b, v]`, as the row's entry of `choices` says, among the ids below
/// `vocab_size`. Returns ids `[b]`; a negative id means that there is no token, and [`Fault::of`] gives the reason.
/// Returns `None` if the backend does not have this op.
///
/// `seen [b, v]` is not 0 for the tokens that the repetition penalty applies to. It is used only if a row has a
/// penalty; then the token of every row is added to it, in place, so no clone of it may be in use. Probabilities are
/// computed in f32, so rounding may select the neighbouring token if a point lies at the border of two tokens. If
/// several tokens at the edge of `top_p` have exactly the same probability, all of them stay.
///
/// # Panics
/// If `vocab_size` is 0 or more than there are logits, there is not a choice for each row, or a penalty is
/// not 1 and there is no `seen [b, v]`.
pub fn sample<B: Sample>(
    logits: Tensor<B, 2>,
    seen: Option<&mut Tensor<B, 2, Int>>,
    vocab_size: usize,
    choices: &[Choice],
) -> Option<Tensor<B, 1, Int>> {
    let [b, v] = logits.dims();
    assert!(
        (1..=v).contains(&vocab_size),
        "sample: a vocabulary of {vocab_size} among {v} logits"
    );
    assert_eq!(choices.len(), b, "sample: one choice a row");
    let penalised = |choice: &Choice| choice.warp.repetition_penalty != 1.0;
    let seen = if choices.iter().any(penalised) {
        Some(seen.expect("sample: a penalty is for tokens that were seen"))
    } else {
        None
    };
    if let Some(seen) = &seen {
        assert_eq!(seen.dims(), [b, v], "sample: seen must be [{b}, {v}]");
    }
    B::sample(logits, seen, vocab_size, choices)
}

#[cfg(test)]
mod tests {
    use super::Fault;

    #[test]
    fn ids_below_0_are_faults() {
        assert_eq!(Fault::of(0), None);
        assert_eq!(Fault::of(51199), None);
        assert_eq!(Fault::of(-1), Some(Fault::NoScore));
        let infinite = |token| {
            let logit = f32::INFINITY;
            Some(Fault::NotAScore { token, logit })
        };
        assert_eq!(Fault::of(-3), infinite(0));
        assert_eq!(Fault::of(-13), infinite(5));
        let Some(Fault::NotAScore { token: 5, logit }) = Fault::of(-12) else {
            panic!("{:?}", Fault::of(-12));
        };
        assert!(logit.is_nan());
    }
}
