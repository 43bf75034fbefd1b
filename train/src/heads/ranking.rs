//! Ranks heads by how much recall is lost without them, or gained by them.

use kernels::{KernelBackend, Window};
use model::{CausalLm, HeadSight};
use serde::Serialize;

use super::changes::{Question, Sights, Unit};
use super::questions::Reading;
use super::recall::{Recall, means};
use crate::error::TrainError;
use crate::logging::say;

/// The measure that ranks heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// What is lost if a head's output is zero and all others are unchanged.
    Removal,
    /// What is gained if a head sees all tokens and all others see a window.
    Restoration,
}

impl By {
    /// All, by the names on the command line.
    pub const ALL: [(&'static str, Self); 2] = [
        ("removal", Self::Removal),
        ("restoration", Self::Restoration),
    ];

    /// What the heads see that are not changed, and what the changed heads see.
    fn sights(self) -> (HeadSight, HeadSight) {
        match self {
            Self::Removal => (HeadSight::Own, HeadSight::Nothing),
            Self::Restoration => (HeadSight::Window, HeadSight::Own),
        }
    }
}

/// The unit that is changed and ranked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UnitKind {
    /// Each query head by itself.
    Head,
    /// The query heads that share keys and values, since a cache stores these once for all of them.
    Group,
}

impl UnitKind {
    /// All, by the names on the command line.
    pub const ALL: [(&'static str, Self); 2] = [("head", Self::Head), ("group", Self::Group)];
}

/// A unit with its effect.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ranked {
    /// The heads.
    #[serde(flatten)]
    pub unit: Unit,
    /// The round in which it was chosen, from 1.
    pub round: usize,
    /// The loss or gain of the mean log-likelihood of an answer's token, in nats. Each set has the same weight.
    pub effect: f64,
    /// The same for the share of right answers.
    pub accuracy: f64,
    /// The recall with this change, for each set.
    pub recalls: Vec<Recall>,
}

/// The units of `model`, layer by layer.
pub(super) fn units<B: KernelBackend>(model: &CausalLm<B>, kind: UnitKind) -> Vec<Unit> {
    let mut units = vec![];
    for (layer, block) in model.backbone.layers.iter().enumerate() {
        let n = block.attention_heads();
        let size = match kind {
            UnitKind::Head => 1,
            UnitKind::Group => block.attention_group(),
        };
        let firsts = (0..n).step_by(size.max(1));
        units.extend(firsts.map(|first| Unit {
            layer,
            heads: (first..first + size).collect(),
        }));
    }
    units
}

/// A ranking.
#[derive(Debug, Clone)]
pub(super) struct Ranks {
    /// The recall before any change of the first round, for each set.
    pub(super) before: Vec<Recall>,
    /// The units, the most important first.
    pub(super) ranked: Vec<Ranked>,
}

/// How to rank.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ranking {
    pub(super) by: By,
    /// Number of rounds: after each but the last, the first units stay changed while the others are measured again.
    pub(super) rounds: usize,
    /// Number of heads that are wanted in all; each round chooses an equal part of them.
    pub(super) wanted: usize,
    pub(super) window: Window,
}

impl Ranking {
    /// Ranks `units`; `None` if asked to stop.
    ///
    /// # Errors
    /// [`TrainError::Device`]; [`TrainError::Mismatch`] if a score is not finite.
    pub(super) fn rank<B: KernelBackend>(
        &self,
        model: &CausalLm<B>,
        units: Vec<Unit>,
        readings: &[Reading<B>],
        sets: usize,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Ranks>, TrainError> {
        let (others, sight) = self.by.sights();
        let (mut chosen, mut left): (Vec<Ranked>, Vec<Unit>) = (vec![], units);
        let mut before = None;
        let part = self.wanted.div_ceil(self.rounds).max(1);
        for round in 1..=self.rounds {
            if left.is_empty() {
                break;
            }
            let heads = left.iter().map(|unit| unit.heads.len()).sum::<usize>();
            say(format_args!(
                "round {round} of {}: {heads} heads",
                self.rounds
            ));
            let base = Sights::all(model, others).with(chosen.iter().map(|r| &r.unit), sight);
            let question = Question {
                base: &base,
                units: &left,
                sight,
                window: self.window,
            };
            let Some(measured) = question.measure(model, readings, sets, stop)? else {
                return Ok(None);
            };
            let sign = match self.by {
                By::Removal => -1.0,
                By::Restoration => 1.0,
            };
            let (log, accuracy) = means(&measured.base);
            let ranked = left.drain(..).zip(measured.changed).map(|(unit, recalls)| {
                let (own_log, own_accuracy) = means(&recalls);
                Ranked {
                    unit,
                    round,
                    effect: sign * (own_log - log),
                    accuracy: sign * (own_accuracy - accuracy),
                    recalls,
                }
            });
            let mut ranked: Vec<Ranked> = ranked.collect();
            if let Some(bad) = ranked.iter().find(|ranked| !ranked.effect.is_finite()) {
                return Err(TrainError::Mismatch(format!(
                    "the scores with the heads {} changed are not finite: the teacher's weights or its numbers in this \
                     precision are not",
                    bad.unit
                )));
            }
            before.get_or_insert(measured.base);
            sort(&mut ranked);
            if round < self.rounds {
                let rest = ranked.split_off(part.min(ranked.len()));
                left = rest.into_iter().map(|ranked| ranked.unit).collect();
                // In the order of the network, which the branches follow.
                left.sort_by_key(|unit| (unit.layer, unit.heads.first().copied()));
            }
            chosen.extend(ranked);
        }
        Ok(Some(Ranks {
            before: before.unwrap_or_default(),
            ranked: chosen,
        }))
    }
}

/// The largest effects first; of equal ones, the largest effect on the accuracy, then the first of the network.
fn sort(ranked: &mut [Ranked]) {
    ranked.sort_by(|a, b| {
        let effects = b.effect.total_cmp(&a.effect);
        effects.then(b.accuracy.total_cmp(&a.accuracy))
    });
}

/// The first units of the ranking that have at most `heads` heads together.
pub(super) fn best(ranked: &[Ranked], heads: usize) -> Vec<&Unit> {
    let mut left = heads;
    let fitting = ranked.iter().take_while(|ranked| {
        let n = ranked.unit.heads.len();
        let fits = n <= left;
        left = left.saturating_sub(n);
        fits
    });
    fitting.map(|ranked| &ranked.unit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranked(layer: usize, heads: &[usize], effect: f64, accuracy: f64) -> Ranked {
        Ranked {
            unit: Unit {
                layer,
                heads: heads.to_vec(),
            },
            round: 1,
            effect,
            accuracy,
            recalls: vec![],
        }
    }

    #[test]
    fn the_largest_effects_come_first() {
        let mut all = [
            ranked(0, &[0], 0.5, 0.0),
            ranked(1, &[0], 2.0, 0.0),
            ranked(2, &[0], 0.5, 0.1),
            ranked(3, &[0], -1.0, 1.0),
            ranked(4, &[0], 0.5, 0.0),
        ];
        sort(&mut all);
        let layers: Vec<_> = all.iter().map(|ranked| ranked.unit.layer).collect();
        assert_eq!(layers, [1, 2, 0, 4, 3]);
    }

    #[test]
    fn units_are_taken_whole() {
        let all = [
            ranked(0, &[0, 1, 2], 2.0, 0.0),
            ranked(1, &[3, 4, 5], 1.0, 0.0),
        ];
        for (heads, expected) in [(0, 0), (2, 0), (3, 1), (5, 1), (6, 2), (99, 2)] {
            assert_eq!(best(&all, heads).len(), expected, "{heads}");
        }
        assert_eq!(all[1].unit.to_string(), "1/3 1/4 1/5");
    }
}
