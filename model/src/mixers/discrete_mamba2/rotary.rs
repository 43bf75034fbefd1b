//! Rotary positions in the mixer.

use serde_json::{Value, json};

use crate::config_error::{ConfigError, check_positive};
use crate::mixers::RopeScaling;

/// Rotary positions of some of x, B and C.
#[derive(Debug, Clone, PartialEq)]
pub struct MixerRotary {
    /// Base of the frequencies.
    pub theta: f64,
    /// How they are changed for longer sequences.
    pub scaling: Option<RopeScaling>,
    /// Dimensions of each head that are turned, the first ones; even.
    pub dim: usize,
    /// What is turned.
    pub turned: Turned,
}

/// What has rotary positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turned {
    /// B and C, which stand where keys and queries do: what attention does, so that copied projections keep their
    /// meaning.
    BAndC,
    /// x and B, as in the published `DiscreteMamba2Rotary`. Only to read its checkpoints: its products depend on
    /// where a sequence starts.
    XAndB,
}

impl Turned {
    /// As configurations list them.
    pub fn names(self) -> [&'static str; 2] {
        match self {
            Self::BAndC => ["C", "B"],
            Self::XAndB => ["x", "B"],
        }
    }

    /// That of the `names`, in any order.
    pub fn named(names: &[impl AsRef<str>]) -> Option<Self> {
        let same = |turned: &Self| {
            let all = turned.names();
            names.len() == all.len()
                && all
                    .iter()
                    .all(|one| names.iter().any(|n| n.as_ref() == *one))
        };
        [Self::BAndC, Self::XAndB].into_iter().find(same)
    }
}

impl MixerRotary {
    /// That it can turn heads of B and C of `d_state` numbers, and of x of `head_dim`.
    pub(super) fn validate(&self, d_state: usize, head_dim: usize) -> Result<(), ConfigError> {
        check_positive("rotary.theta", self.theta)?;
        if let Some(scaling) = self.scaling {
            scaling.validate()?;
        }
        let room = match self.turned {
            Turned::BAndC => d_state,
            Turned::XAndB => d_state.min(head_dim),
        };
        if self.dim == 0 || !self.dim.is_multiple_of(2) || self.dim > room {
            return Err(ConfigError::Invalid(format!(
                "the rotary positions turn {} dimensions of heads of {room}; it must be an even, positive number of \
                 them",
                self.dim
            )));
        }
        Ok(())
    }

    /// Under the keys of the published configurations.
    pub fn to_json(&self) -> Value {
        json!({
            "theta": self.theta,
            "head_dim": self.dim,
            "scaling": self.scaling.map(RopeScaling::to_json),
            "applied_to": self.turned.names(),
        })
    }
}
