//! The teacher's recall if only the best heads see all tokens, and every other head sees a window.
//!
//! This is about the best recall that can be expected of a hybrid of these heads, if its state-space mixers are worth
//! as much as a window. It needs no training.

use std::collections::BTreeSet;

use kernels::{KernelBackend, Window};
use model::{CausalLm, Family, HeadSight, MixerConfig, ModelConfig};
use serde::Serialize;

use super::changes::{Question, Sights, Unit};
use super::hybrid;
use super::questions::Reading;
use super::ranking::{Ranked, best};
use super::recall::Recall;
use crate::config::Config;
use crate::error::TrainError;
use crate::run::student_config;

/// The teacher with some heads that see all tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Kept {
    /// These heads, as a configuration names them; `None` for the teacher as it is.
    pub heads: Option<Vec<String>>,
    /// The recall, for each set.
    pub recalls: Vec<Recall>,
    /// The share of the teacher's heads of keys and values that these heads read.
    pub cache_share: f64,
    /// Bytes of the state, in f32, after the longest documents: of a hybrid of these heads, or of the teacher. `None`
    /// if the teacher's family has no such hybrid.
    pub state_bytes: Option<usize>,
}

/// What is measured.
pub(super) struct Asked<'a> {
    pub(super) ranked: &'a [Ranked],
    /// Numbers of heads.
    pub(super) heads: &'a [usize],
    pub(super) window: Window,
    /// The tokens after which states are sized.
    pub(super) length: usize,
}

impl Asked<'_> {
    /// The teacher as it is, then with each number of heads; `None` if asked to stop.
    ///
    /// # Errors
    /// [`TrainError::Device`].
    pub(super) fn measure<B: KernelBackend>(
        &self,
        model: &CausalLm<B>,
        (of_teacher, config): (&ModelConfig, &Config),
        (readings, sets): (&[Reading<B>], usize),
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<Kept>>, TrainError> {
        let measure = |base: &Sights| {
            let question = Question {
                base,
                units: &[],
                sight: HeadSight::Own,
                window: self.window,
            };
            question.measure(model, readings, sets, stop)
        };
        let network = of_teacher.network();
        let all = Sights::all(model, HeadSight::Own);
        let Some(own) = measure(&all)? else {
            return Ok(None);
        };
        let mut rows = vec![Kept {
            heads: None,
            recalls: own.base,
            cache_share: 1.0,
            state_bytes: Some(network.state_size().bytes(self.length)),
        }];
        let mut seen = BTreeSet::new();
        for &heads in self.heads {
            let units = best(self.ranked, heads);
            // With fewer heads than one unit has, no unit is kept, which is the same as 0 heads.
            if !seen.insert(units.len()) {
                continue;
            }
            let narrow = Sights::all(model, HeadSight::Window);
            let base = narrow.with(units.iter().copied(), HeadSight::Own);
            let Some(measured) = measure(&base)? else {
                return Ok(None);
            };
            let names = hybrid::sorted(&units);
            let student = hybrid::config(config, of_teacher, &names)
                .and_then(|config| student_config(&config, of_teacher));
            let state = student.map(|student| student.network().state_size().bytes(self.length));
            rows.push(Kept {
                heads: Some(names),
                recalls: measured.base,
                cache_share: cache_share(&network.mixers, &units),
                state_bytes: state.ok(),
            });
        }
        Ok(Some(rows))
    }
}

/// The share of all heads of keys and values that the heads of `units` read.
fn cache_share(mixers: &[MixerConfig], units: &[&Unit]) -> f64 {
    let (mut read, mut all) = (0, 0);
    for (layer, mixer) in mixers.iter().enumerate() {
        let MixerConfig::Attention(attention) = mixer else {
            continue;
        };
        all += attention.n_kv_heads;
        let group = attention.n_heads / attention.n_kv_heads;
        let heads = units.iter().filter(|unit| unit.layer == layer);
        let heads = heads.flat_map(|unit| &unit.heads);
        let shared: BTreeSet<usize> = heads.map(|head| head / group).collect();
        read += shared.len();
    }
    read as f64 / all.max(1) as f64
}

#[cfg(test)]
mod tests {
    use model::AttentionConfig;

    use super::*;

    #[test]
    fn heads_of_a_group_share_a_cache() {
        let attention = AttentionConfig {
            n_kv_heads: 3,
            ..AttentionConfig::with_heads(9)
        };
        let mixers: Vec<MixerConfig> = vec![attention.clone().into(), attention.into()];
        let unit = |layer, heads: &[usize]| Unit {
            layer,
            heads: heads.to_vec(),
        };
        let (a, b, c) = (unit(0, &[0]), unit(0, &[2]), unit(1, &[8]));
        assert_eq!(cache_share(&mixers, &[]), 0.0);
        assert_eq!(cache_share(&mixers, &[&a, &b]), 1.0 / 6.0);
        assert_eq!(cache_share(&mixers, &[&a, &b, &c]), 2.0 / 6.0);
    }
}
