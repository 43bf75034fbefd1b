//! Watches the loss for spikes, and for a student that loses what it has learnt.
//!
//! A loss is a **spike** if it is above `guard.spike` times the median of the last `guard.window` losses of the stage.
//! `guard.action` says what is done then: nothing; or the step changes nothing; or the run goes back to the last
//! scheduled checkpoint and continues with other text (`run/roll_back.rs`).
//!
//! A stage **collapses** if its loss rises above the level that it had reached and stays there. The level is the lowest
//! value that the highest of 15 losses in a row has had; a collapse is 20 losses in a row that are all more than a
//! fiftieth above it. This is what too high a rate does to a student that starts near its teacher: the loss may fall
//! again for a long time, but never reaches the old level. A collapse is only reported. In 400 simulated stages of 2000
//! steps, with independent losses of one level and a deviation of a tenth, no collapse was found; if neighbouring
//! losses are similar, as in text that is read in its order, false alarms happen. A stage that is destroyed in its
//! first steps has no 15 losses before that. Then the losses before the last 20 are used, if they are at least four. In
//! addition, 20 losses in a row above one and a half times the first loss, which no step had influenced yet, are a
//! collapse too.
//!
//! When the loss of a stage becomes one of another kind (`sequential`), everything is forgotten and starts again.
//!
//! All that is remembered is in the checkpoint, and decisions depend on losses alone: a resumed run makes the same
//! decisions.

use serde::{Deserialize, Serialize};

use crate::config::{self, GuardAction};

/// The number of losses that is enough for a median, or the window if that is shorter.
const ENOUGH: usize = 10;
/// The number of last losses that must all be too high in a collapse.
const RAISED: usize = 20;
/// The number of losses in a row before them whose highest gives the level that the stage has reached.
const HELD: usize = 15;
/// The fewest losses at the beginning of a stage that can replace these. By chance, four losses are all below the next
/// 20 once in 10,626 stages.
const FEW: usize = 4;
/// A loss is too high if it is above this factor times the level.
const RISE: f64 = 1.02;
/// Or above this factor times the first loss of the stage, whose batch may have been an easy one.
const RISE_ABOVE_FIRST: f64 = 1.5;

/// The words by which the note of a collapse is known.
const COLLAPSE: &str = "the student is losing what it had";

/// Whether the text of a note says that a stage has collapsed.
pub(crate) fn is_collapse(note: &str) -> bool {
    note.contains(COLLAPSE)
}

/// What is remembered of the losses of a stage.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Guard {
    /// The last losses of steps that changed something, oldest first.
    recent: Vec<f64>,
    /// The first loss of the stage.
    first_loss: Option<f64>,
    /// The last losses of all steps, oldest first, as many as the detection of a collapse needs.
    last: Vec<f64>,
    /// The lowest value so far of the highest of [`HELD`] losses in a row; `None` until there are enough losses.
    lowest: Option<f64>,
    /// Whether a collapse was reported and the loss has not fallen back since.
    has_collapsed: bool,
    /// Whether the last loss was a spike.
    in_spike: bool,
}

/// What was noticed about a loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// The loss is a spike, and the loss before was none.
    Spike {
        /// The median of the losses before.
        median: f64,
    },
    /// The last losses are all above the level that the stage had reached.
    Collapse {
        /// The number of these losses.
        steps: usize,
        /// That level.
        level: f64,
    },
}

impl Event {
    /// The event at `step` of a stage, whose loss is `loss`, in words.
    pub fn text(&self, step: usize, loss: f64, config: &config::Guard) -> String {
        match self {
            Self::Spike { median } => {
                let done = match config.action {
                    GuardAction::Log => "nothing was done about it (guard.action)",
                    GuardAction::Skip => "the step was skipped",
                    GuardAction::RollBack => "the run goes back",
                };
                format!(
                    "warning: a spike of the loss at step {step}: {loss:.4} is {:.1} times the median of those before, \
                     {median:.4}; {done}",
                    loss / median
                )
            }
            Self::Collapse { steps, level } => format!(
                "warning: the loss had come down to {level:.4}, has been above that for {steps} steps up to step {step}, \
                 and is {loss:.4}: {COLLAPSE}; a lower lr of the stage or a longer warmup may help"
            ),
        }
    }
}

impl Guard {
    /// The highest loss that is no spike, rounded to f32; `None` until there are enough losses.
    pub fn limit(&self, config: &config::Guard) -> Option<f64> {
        let enough = ENOUGH.min(config.window);
        if config.spike == 0.0 || self.recent.len() < enough {
            return None;
        }
        // The device compares in f32.
        let limit = f64::from((config.spike * median(&self.recent)) as f32);
        limit.is_finite().then_some(limit)
    }

    /// Takes the finite loss of the next step into account, and returns what is noticed. If `is_skipped`, the step
    /// changes nothing, and its loss is not used for the median.
    pub fn observe(&mut self, config: &config::Guard, loss: f64, is_skipped: bool) -> Vec<Event> {
        let mut events = vec![];
        let is_spike = self.limit(config).is_some_and(|limit| loss > limit);
        if is_spike && !self.in_spike {
            let median = median(&self.recent);
            events.push(Event::Spike { median });
        }
        self.in_spike = is_spike;
        if !is_skipped {
            self.recent.push(loss);
            // A resumed run may have a shorter window than before.
            let before = self.recent.len().saturating_sub(config.window);
            self.recent.drain(..before);
        }
        events.extend(self.collapse(loss));
        events
    }

    /// The collapse that the loss of the next step completes, if any.
    fn collapse(&mut self, loss: f64) -> Option<Event> {
        let first = *self.first_loss.get_or_insert(loss);
        self.last.push(loss);
        let before = self.last.len().saturating_sub(HELD + RAISED);
        self.last.drain(..before);
        let held = self.last.len().saturating_sub(RAISED);
        let (held, raised) = self.last.split_at(held);
        let highest = held.iter().copied().reduce(f64::max)?;
        let (mut level, mut limit) = (first, RISE_ABOVE_FIRST * first);
        if held.len() >= FEW {
            let mut own = highest;
            if held.len() == HELD {
                own = self.lowest.map_or(own, |lowest| lowest.min(own));
                self.lowest = Some(own);
            }
            if RISE * own < limit {
                (level, limit) = (own, RISE * own);
            }
        }
        let is_raised = raised.iter().all(|loss| *loss > limit);
        if is_raised && !self.has_collapsed {
            self.has_collapsed = true;
            let steps = RAISED;
            return Some(Event::Collapse { steps, level });
        }
        if median(&raised[raised.len() - ENOUGH..]) <= limit {
            self.has_collapsed = false;
        }
        None
    }
}

/// The median of at least one number; for an even count, the mean of the two in the middle.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        0.5 * (sorted[middle - 1] + sorted[middle])
    } else {
        sorted[middle]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: config::Guard = config::Guard {
        spike: 3.0,
        window: 4,
        action: GuardAction::Log,
    };

    /// The events of `losses`, by their places.
    fn events(guard: &mut Guard, losses: &[f64]) -> Vec<(usize, Event)> {
        let events = losses.iter().enumerate().flat_map(|(place, loss)| {
            let events = guard.observe(&CONFIG, *loss, false).into_iter();
            events.map(|event| (place, event)).collect::<Vec<_>>()
        });
        events.collect()
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[3.0, 1.0]), 2.0);
        assert_eq!(median(&[5.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[5.0, 1.0, 2.0, 4.0]), 3.0);
    }

    #[test]
    fn a_spike_is_noticed_once() {
        let mut guard = Guard::default();
        // Too few to say anything.
        assert!(events(&mut guard, &[1.0, 9.0, 1.0]).is_empty());
        assert_eq!(guard.limit(&CONFIG), None);
        assert!(events(&mut guard, &[1.0]).is_empty());
        // The median of 1, 9, 1, 1 is 1; a loss at the limit is no spike.
        assert_eq!(guard.limit(&CONFIG), Some(3.0));
        assert!(events(&mut guard, &[3.0]).is_empty());
        // Of 9, 1, 1, 3 it is 2.
        let spike = Event::Spike { median: 2.0 };
        assert_eq!(events(&mut guard, &[6.5]), [(0, spike)]);
        // Of 1, 1, 3, 6.5 it is 2 again: the same spike still.
        assert!(events(&mut guard, &[6.5]).is_empty());
        let off = config::Guard {
            spike: 0.0,
            ..CONFIG
        };
        assert_eq!(guard.limit(&off), None);
    }

    #[test]
    fn a_skipped_loss_leaves_the_median() {
        let mut guard = Guard::default();
        events(&mut guard, &[1.0; 4]);
        assert_eq!(guard.observe(&CONFIG, 8.0, true).len(), 1);
        assert_eq!(guard.limit(&CONFIG), Some(3.0));
    }

    #[test]
    fn a_shorter_window_forgets_the_rest() {
        let mut guard = Guard::default();
        events(&mut guard, &[9.0, 9.0, 1.0, 1.0]);
        let shorter = config::Guard {
            window: 2,
            ..CONFIG
        };
        assert!(guard.observe(&shorter, 1.0, false).is_empty());
        // The median of 1, 1.
        assert_eq!(guard.limit(&shorter), Some(3.0));
    }

    /// A reproducible number between -1 and 1, another for each step.
    fn noise(step: usize) -> f64 {
        let mixed = (step as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((mixed ^ (mixed >> 32)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// Losses of `steps` about `level`, up to a tenth above and below.
    fn about(level: f64, steps: std::ops::Range<usize>) -> Vec<f64> {
        steps
            .map(|step| level * (1.0 + 0.1 * noise(step)))
            .collect()
    }

    /// Where a collapse is seen in the losses of parts, counted from the first loss of the last part.
    fn collapse_in(parts: &[Vec<f64>]) -> usize {
        let (raised, before) = parts.split_last().unwrap();
        let mut guard = Guard::default();
        assert!(events(&mut guard, &before.concat()).is_empty());
        let found = events(&mut guard, raised);
        let mut collapses = found
            .iter()
            .filter(|(_, event)| matches!(event, Event::Collapse { .. }));
        let (place, _) = collapses.next().unwrap_or_else(|| panic!("{parts:?}"));
        assert_eq!(collapses.next(), None, "{found:?}");
        *place
    }

    /// A stage that begins at 4 is destroyed after `held` steps. After less than four it goes to where real ones have
    /// gone, else by as much as its losses are spread.
    #[test]
    fn a_collapse_is_noticed_within_fifty_steps() {
        for (held, to) in [
            (1, 8.0),
            (2, 8.0),
            (4, 5.2),
            (10, 5.2),
            (40, 5.0),
            (400, 5.0),
        ] {
            let place = collapse_in(&[about(4.0, 0..held), about(to, held..held + 50)]);
            assert_eq!(place, RAISED - 1, "{held}");
        }
        // Over its peak before twenty steps are done, as where a warm-up ends: it never comes back.
        let mut losses = vec![3.1, 3.8, 4.5, 5.6, 6.6, 6.2];
        losses.extend((0..60).map(|step| 4.8 + 1.4 * (-0.1 * f64::from(step)).exp()));
        assert!(collapse_in(&[vec![], losses]) < 30);
        // Within ten steps, and not at once.
        let rises: Vec<f64> = (0..10).map(|step| 4.0 + 0.3 * f64::from(step)).collect();
        let place = collapse_in(&[about(4.0, 0..6), [rises, about(7.0, 6..46)].concat()]);
        assert!(place < 30, "{place}");
    }

    /// From 12 to 4 and back to 7, which is below where the stage began.
    #[test]
    fn a_rise_after_a_fall_is_a_collapse() {
        let fall: Vec<f64> = (0..60)
            .map(|step| 4.0 + 8.0 * (-0.1 * f64::from(step)).exp())
            .collect();
        assert_eq!(collapse_in(&[fall, about(7.0, 0..50)]), RAISED - 1);
    }

    #[test]
    fn a_collapse_is_said_again_after_the_loss_was_back() {
        let mut guard = Guard::default();
        let lost = about(6.0, 40..90);
        assert!(events(&mut guard, &about(4.0, 0..40)).is_empty());
        let found = events(&mut guard, &lost);
        assert_eq!(found.len(), 1, "{found:?}");
        let text = found[0].1.text(70, 6.0, &CONFIG);
        assert!(
            is_collapse(&text) && text.contains("had come down to 4."),
            "{text}"
        );
        let spike = Event::Spike { median: 2.0 };
        assert!(!is_collapse(&spike.text(70, 6.5, &CONFIG)));
        // A single loss that is low is not a student that is back.
        assert!(events(&mut guard, &[&[3.0][..], &lost].concat()).is_empty());
        assert_eq!(
            events(&mut guard, &[about(4.0, 0..20), lost].concat()).len(),
            1
        );
    }

    /// Stages that fall, stay where they are, or go up for a while in their warm-up, with losses spread evenly, with rare
    /// high or low ones, or of two kinds.
    #[test]
    fn a_healthy_stage_trips_nothing() {
        let spreads: [fn(usize) -> f64; 4] = [
            |step| 0.1 * noise(step),
            |step| 0.1 * noise(step).powi(9),
            |step| if noise(step) > 0.0 { 0.5 } else { 0.0 } + 0.01 * noise(7 * step + 3),
            |step| {
                if noise(step) > 0.8 {
                    -0.3
                } else {
                    0.01 * noise(7 * step + 3)
                }
            },
        ];
        let levels: [fn(f64) -> f64; 4] = [
            |_| 3.0,
            |step| 3.0 + 6.0 * (-step / 200.0).exp(),
            |step| 1e-4 + 50.0 * (1.0 + step).powf(-1.5),
            |step| {
                3.0 + if (10.0..26.0).contains(&step) {
                    1.0
                } else {
                    0.0
                }
            },
        ];
        for (i, spread) in spreads.iter().enumerate() {
            for (j, level) in levels.iter().enumerate() {
                for seed in 0..8 {
                    let losses = (0..4000)
                        .map(|step| level(step as f64) * (1.0 + spread(seed * 4000 + step)));
                    let found = events(&mut Guard::default(), &losses.collect::<Vec<_>>());
                    let collapsed = found
                        .iter()
                        .find(|(_, event)| matches!(event, Event::Collapse { .. }));
                    assert_eq!(collapsed, None, "spread {i}, level {j}, seed {seed}");
                }
            }
        }
    }

    /// As a checkpoint of an earlier version has it: what it held of a collapse is left aside.
    #[test]
    fn an_earlier_one_is_read() {
        let text = "first = [4.0, 4.1]\nrecent = [4.0, 4.1]\nabove = 1\nin_spike = true\n";
        let read: Guard = toml::from_str(text).unwrap();
        assert_eq!(read.recent, [4.0, 4.1]);
        assert!(read.in_spike && read.last.is_empty() && read.lowest.is_none());
    }

    #[test]
    fn it_reads_back_to_the_bit() {
        let mut guard = Guard::default();
        events(&mut guard, &[0.1, 1.0 / 3.0, 2e-9, 4.0, 1e9]);
        let text = toml::to_string(&guard).unwrap();
        assert_eq!(toml::from_str::<Guard>(&text).unwrap(), guard);
        assert_eq!(toml::from_str::<Guard>("").unwrap(), Guard::default());
    }
}
