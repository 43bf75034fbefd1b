//! The learning rate: warm-up, stable, decay.
//!
//! WSD needs no knowledge of the past, so it is a pure function of the step: a resumed run asks
//! for the same step and gets the same rate, and nothing about the schedule has to be saved.

/// Linear warm-up, a constant peak, linear decay.
///
/// With 0-based step `s`:
///
/// - in the first `warmup_steps`, `peak * (s + 1) / warmup_steps`: the first step is not wasted at
///   rate 0 (as it is in the published trainer), the last of the warm-up is at the peak;
/// - in the last `decay_steps`, `floor + (peak - floor) * (total_steps - s) / decay_steps`, as the
///   published trainer has it: the first step of the decay is still at the peak, and the step
///   after the last would be at the floor.
///
/// With equal lengths and a floor of 0 the decay is thus the warm-up's mirror image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wsd {
    /// The rate between warm-up and decay.
    pub peak: f64,
    /// The rate that the decay leads to, and of every step from `total_steps` on.
    pub floor: f64,
    /// Steps that warm up; may be 0.
    pub warmup_steps: usize,
    /// Steps that decay; may be 0. Where warm-up and decay overlap, the warm-up goes first.
    pub decay_steps: usize,
    /// All steps.
    pub total_steps: usize,
}

impl Wsd {
    /// A schedule whose phases are shares of `total_steps`, each rounded to whole steps.
    pub fn from_shares(peak: f64, floor: f64, warmup: f64, decay: f64, total_steps: usize) -> Self {
        let steps = |share: f64| (share * total_steps as f64).round() as usize;
        let warmup_steps = steps(warmup).min(total_steps);
        Self {
            peak,
            floor,
            warmup_steps,
            // Two halves of an odd number both round up.
            decay_steps: steps(decay).min(total_steps - warmup_steps),
            total_steps,
        }
    }

    /// The learning rate of 0-based `step`.
    pub fn lr(&self, step: usize) -> f64 {
        let left = self.total_steps.saturating_sub(step);
        if left == 0 {
            self.floor
        } else if step < self.warmup_steps {
            self.peak * (step + 1) as f64 / self.warmup_steps as f64
        } else if left < self.decay_steps {
            self.floor + (self.peak - self.floor) * left as f64 / self.decay_steps as f64
        } else {
            self.peak
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Powers of two make every expected rate exact, so all comparisons are for equality.
    const WSD: Wsd = Wsd {
        peak: 1.0,
        floor: 0.0,
        warmup_steps: 4,
        decay_steps: 4,
        total_steps: 12,
    };

    fn rates(wsd: Wsd) -> Vec<f64> {
        (0..wsd.total_steps).map(|step| wsd.lr(step)).collect()
    }

    #[test]
    fn every_step() {
        let expected = [
            0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25,
        ];
        assert_eq!(rates(WSD), expected);
        let mut mirrored = rates(WSD);
        mirrored.reverse();
        assert_eq!(mirrored, expected);
    }

    #[test]
    fn decays_towards_the_floor_and_stays_there() {
        let wsd = Wsd { floor: 0.5, ..WSD };
        assert_eq!(wsd.lr(8), 1.0);
        assert_eq!(wsd.lr(9), 0.875);
        assert_eq!(wsd.lr(11), 0.625);
        assert_eq!(wsd.lr(12), 0.5);
        assert_eq!(wsd.lr(usize::MAX), 0.5);
    }

    #[test]
    fn phases_may_be_empty() {
        let flat = Wsd {
            warmup_steps: 0,
            decay_steps: 0,
            ..WSD
        };
        assert_eq!(rates(flat), [1.0; 12]);
        let nothing = Wsd {
            total_steps: 0,
            ..flat
        };
        assert_eq!(nothing.lr(0), 0.0);
    }

    #[test]
    fn a_single_step_is_at_the_peak() {
        for (warmup, decay) in [(0.1, 0.2), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)] {
            assert_eq!(Wsd::from_shares(1.0, 0.0, warmup, decay, 1).lr(0), 1.0);
        }
    }

    #[test]
    fn shares_round_to_steps_and_never_overlap() {
        let wsd = Wsd::from_shares(1.0, 0.0, 0.1, 0.2, 760);
        assert_eq!((wsd.warmup_steps, wsd.decay_steps), (76, 152));
        let wsd = Wsd::from_shares(1.0, 0.0, 0.5, 0.5, 3);
        assert_eq!((wsd.warmup_steps, wsd.decay_steps), (2, 1));
        for total in 1..50 {
            let wsd = Wsd::from_shares(1.0, 0.0, 0.5, 0.5, total);
            assert!(
                rates(wsd).iter().all(|&lr| lr > 0.0 && lr <= 1.0),
                "{total} steps"
            );
        }
    }
}
