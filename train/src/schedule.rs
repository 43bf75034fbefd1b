//! Learning-rate schedules: a warm-up, then the shape that gives the schedule its name.
//!
//! A schedule is a pure function of the step. A resumed run asks for the same step and gets the same rate, so
//! checkpoints need not save it.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::limits::{OutOfRange, require, within};

/// A learning-rate schedule. Its phases are shares of a stage's steps, each rounded to whole steps.
///
/// All begin with a linear warm-up: with 0-based step `s`, `peak * (s + 1) / warmup_steps`. The first step
/// is not at rate 0 (as it is in the published trainer), and the last of the warm-up is at the peak.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "schedule", rename_all = "lowercase")]
pub enum Schedule {
    /// Warm-up, a constant peak, linear decay: `final_lr + (peak - final_lr) * (steps - s) / decay_steps` in
    /// the last `decay_steps` steps, as in the published trainer. The first of them is still at the peak, and
    /// the step after the last would be at `final_lr`.
    Wsd {
        /// Share of the steps that warm up.
        warmup: f64,
        /// Share of the steps that decay.
        decay: f64,
        /// The rate at the decay's end.
        final_lr: f64,
    },
    /// Warm-up, then half a cosine over all other steps, from the peak to `final_lr`, which the step after the
    /// last would have.
    Cosine {
        /// Share of the steps that warm up.
        warmup: f64,
        /// The rate at the end.
        final_lr: f64,
    },
    /// Warm-up, then the peak.
    Constant {
        /// Share of the steps that warm up.
        warmup: f64,
    },
}

impl Schedule {
    /// Every schedule, with its defaults.
    pub const ALL: [Self; 3] = [
        Self::Wsd {
            warmup: 0.1,
            decay: 0.1,
            final_lr: 0.0,
        },
        Self::Cosine {
            warmup: 0.1,
            final_lr: 0.0,
        },
        Self::Constant { warmup: 0.1 },
    ];

    /// As a configuration names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wsd { .. } => "wsd",
            Self::Cosine { .. } => "cosine",
            Self::Constant { .. } => "constant",
        }
    }

    /// The learning rate of 0-based `step` of `steps`, where the peak is `peak`.
    pub fn lr(self, peak: f64, step: usize, steps: usize) -> f64 {
        let in_steps = |share: f64| (share * steps as f64).round() as usize;
        let warmup_steps = in_steps(self.warmup()).min(steps);
        let left = steps.saturating_sub(step);
        if step < warmup_steps {
            return peak * (step + 1) as f64 / warmup_steps as f64;
        }
        match self {
            Self::Wsd { final_lr, .. } | Self::Cosine { final_lr, .. } if left == 0 => final_lr,
            Self::Wsd {
                decay, final_lr, ..
            } => {
                // Two halves of an odd number both round up: the warm-up goes first.
                let decay_steps = in_steps(decay).min(steps - warmup_steps);
                if left < decay_steps {
                    final_lr + (peak - final_lr) * left as f64 / decay_steps as f64
                } else {
                    peak
                }
            }
            Self::Cosine { final_lr, .. } => {
                let along = (step - warmup_steps) as f64 / (steps - warmup_steps) as f64;
                final_lr + (peak - final_lr) * 0.5 * (1.0 + (PI * along).cos())
            }
            Self::Constant { .. } => peak,
        }
    }

    /// Checks the shares, and that no rate of the decay is above `lowest_peak`.
    ///
    /// # Errors
    /// [`OutOfRange`] names the first key that makes no sense.
    pub fn validate(self, lowest_peak: f64) -> Result<(), OutOfRange> {
        within(0.0..=1.0, "warmup", self.warmup())?;
        if let Self::Wsd { final_lr, .. } | Self::Cosine { final_lr, .. } = self {
            within(0.0..=lowest_peak, "final_lr", final_lr)?;
        }
        if let Self::Wsd { warmup, decay, .. } = self {
            within(0.0..=1.0, "decay", decay)?;
            require(
                // The shares are decimal: 0.9 + 0.1 may come out above 1 by a rounding.
                warmup + decay <= 1.0 + 1e-9,
                "decay",
                decay,
                &format!("with warmup, {warmup}, at most 1 in all"),
            )?;
        }
        Ok(())
    }

    fn warmup(self) -> f64 {
        match self {
            Self::Wsd { warmup, .. } | Self::Cosine { warmup, .. } | Self::Constant { warmup } => {
                warmup
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: usize = 12;

    /// Four steps of warm-up, four at the peak, four of decay.
    fn wsd(final_lr: f64) -> Schedule {
        Schedule::Wsd {
            warmup: 1.0 / 3.0,
            decay: 1.0 / 3.0,
            final_lr,
        }
    }

    fn rates(schedule: Schedule, steps: usize) -> Vec<f64> {
        (0..steps)
            .map(|step| schedule.lr(1.0, step, steps))
            .collect()
    }

    // Powers of two make every expected rate exact, so these comparisons are for equality.
    #[test]
    fn every_step_of_wsd() {
        let expected = [
            0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25,
        ];
        assert_eq!(rates(wsd(0.0), STEPS), expected);
        let twice: Vec<_> = (0..STEPS)
            .map(|step| wsd(0.0).lr(2.0, step, STEPS))
            .collect();
        assert_eq!(twice, expected.map(|rate| 2.0 * rate));
    }

    #[test]
    fn wsd_decays_towards_the_final_rate_and_stays_there() {
        let rate = |step| wsd(0.5).lr(1.0, step, STEPS);
        assert_eq!(rate(8), 1.0);
        assert_eq!(rate(9), 0.875);
        assert_eq!(rate(11), 0.625);
        assert_eq!(rate(12), 0.5);
        assert_eq!(rate(usize::MAX), 0.5);
    }

    #[test]
    fn every_step_of_a_cosine() {
        let cosine = Schedule::Cosine {
            warmup: 0.2,
            final_lr: 0.2,
        };
        // Two of ten steps warm up; the others are eighths of the half-turn.
        let found = rates(cosine, 10);
        let turn = |eighths: f64| 0.2 + 0.8 * 0.5 * (1.0 + (PI * eighths / 8.0).cos());
        let expected = [
            0.5,
            1.0,
            1.0,
            turn(1.0),
            turn(2.0),
            turn(3.0),
            0.6,
            turn(5.0),
        ];
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-15, "{found} and {expected}");
        }
        assert!(found[2..].is_sorted_by(|a, b| a > b), "{found:?}");
        assert!(found[9] > 0.2);
        assert_eq!(cosine.lr(1.0, 10, 10), 0.2);
        assert_eq!(cosine.lr(1.0, usize::MAX, 10), 0.2);
    }

    #[test]
    fn a_constant_stays_at_its_peak() {
        let constant = Schedule::Constant { warmup: 0.5 };
        assert_eq!(rates(constant, 4), [0.5, 1.0, 1.0, 1.0]);
        assert_eq!(constant.lr(1.0, 100, 4), 1.0);
    }

    #[test]
    fn phases_may_be_empty() {
        let flat = Schedule::Wsd {
            warmup: 0.0,
            decay: 0.0,
            final_lr: 0.0,
        };
        assert_eq!(rates(flat, STEPS), [1.0; STEPS]);
        assert_eq!(flat.lr(1.0, 0, 0), 0.0);
        // All warm-up, and no step left for the rest.
        for schedule in Schedule::ALL {
            assert!(schedule.lr(1.0, 0, 0).is_finite(), "{schedule:?}");
        }
        let warm = Schedule::Cosine {
            warmup: 1.0,
            final_lr: 0.0,
        };
        assert_eq!(rates(warm, 2), [0.5, 1.0]);
        assert_eq!(warm.lr(1.0, 2, 2), 0.0);
    }

    #[test]
    fn a_single_step_is_at_the_peak() {
        for (warmup, decay) in [(0.1, 0.2), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)] {
            let wsd = Schedule::Wsd {
                warmup,
                decay,
                final_lr: 0.0,
            };
            assert_eq!(wsd.lr(1.0, 0, 1), 1.0);
        }
    }

    #[test]
    fn phases_round_to_steps_and_never_overlap() {
        let halves = Schedule::Wsd {
            warmup: 0.5,
            decay: 0.5,
            final_lr: 0.0,
        };
        // Two steps of warm-up, one of decay, which is still at the peak.
        assert_eq!(rates(halves, 3), [0.5, 1.0, 1.0]);
        for schedule in [&[halves][..], &Schedule::ALL].concat() {
            for steps in 1..50 {
                let rates = rates(schedule, steps);
                assert!(
                    rates.iter().all(|&lr| lr > 0.0 && lr <= 1.0),
                    "{schedule:?}: {steps} steps"
                );
            }
        }
    }
}
