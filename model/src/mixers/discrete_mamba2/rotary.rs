//! Rotary positions in the mixer.

use serde::{Deserialize, Serialize};

use crate::config_error::{ConfigError, check_positive};
use crate::mixers::RopeScaling;

/// Rotary positions of some of x, B and C.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MixerRotary {
    /// Base of the frequencies.
    pub theta: f64,
    /// How they are changed for longer sequences.
    pub scaling: Option<RopeScaling>,
    /// Dimensions of each head that are turned, the first ones; even.
    #[serde(rename = "head_dim")]
    pub dim: usize,
    /// What is turned.
    #[serde(rename = "applied_to")]
    pub turned: Turned,
}

/// What has rotary positions. In files, the list of both names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "[&'static str; 2]")]
pub enum Turned {
    /// B and C, which correspond to keys and queries. Attention does the same, so that projections copied from
    /// attention keep their meaning.
    BAndC,
    /// x and B, as in the published `DiscreteMamba2Rotary`. This exists only to read its checkpoints: its products
    /// depend on absolute positions, and so on where a sequence starts.
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
}

impl From<Turned> for [&'static str; 2] {
    fn from(turned: Turned) -> Self {
        turned.names()
    }
}

impl TryFrom<Vec<String>> for Turned {
    type Error = String;

    /// In any order.
    fn try_from(names: Vec<String>) -> Result<Self, String> {
        let is_in = |all: [&str; 2]| {
            names.len() == all.len() && all.iter().all(|one| names.iter().any(|name| name == one))
        };
        let mut all = [Self::BAndC, Self::XAndB].into_iter();
        let found = all.find(|turned| is_in(turned.names()));
        found.ok_or_else(|| {
            format!(
                "rotary positions of {}, which are not implemented (only of C and B, and of x and B)",
                names.join(" and ")
            )
        })
    }
}

impl MixerRotary {
    /// Checks that the rotation fits heads of B and C with `d_state` numbers, and heads of x with `head_dim`.
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
}
