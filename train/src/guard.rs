//! A watch over the loss: spikes, and a student that is losing what it had.
//!
//! A loss is a **spike** when it is above `guard.spike` times the median of the last `guard.window` losses of the stage.
//! What is then done is said by `guard.action`: nothing, or the step changes nothing, or the run goes back to the last
//! checkpoint and on with other text (`run/roll_back.rs`).
//!
//! A stage **collapses** when its loss rises above where the stage began and stays there. That is what too high a rate
//! does to a student that starts near its teacher; the loss may fall again for long after that, and never comes back to
//! what it was. It is only said.
//!
//! Where the loss of a stage becomes one of another kind (`sequential`), all of it begins anew.
//!
//! All that is remembered is in the checkpoint, and decisions are made of losses alone: a resumed run makes the same.

use serde::{Deserialize, Serialize};

use crate::config::{self, GuardAction};

/// Losses of a stage of which a median says enough, or the window if that is shorter.
const ENOUGH: usize = 10;
/// Losses in a row above the first ones which are a collapse.
const STAYS: usize = 20;

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
    /// The first losses of the stage.
    first: Vec<f64>,
    /// The last losses of steps that changed something, oldest first.
    recent: Vec<f64>,
    /// How many of the last losses in a row were above the median of the first.
    above: usize,
    /// Whether the last loss was a spike.
    in_spike: bool,
}

/// What was noticed about a loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// It is a spike, and the one before was none.
    Spike {
        /// The median of those before.
        median: f64,
    },
    /// It and those before were above where the stage began.
    Collapse {
        /// How many of them.
        steps: usize,
        /// The median of the stage's first losses.
        start: f64,
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
            Self::Collapse { steps, start } => format!(
                "warning: the loss has been above {start:.4}, where the stage began, for {steps} steps up to step \
                 {step}, and is {loss:.4}: {COLLAPSE}; a lower lr of the stage or a longer \
                 warmup may help"
            ),
        }
    }
}

impl Guard {
    /// The highest loss that is no spike, a number in f32; `None` as long as too few are known.
    pub fn limit(&self, config: &config::Guard) -> Option<f64> {
        let enough = ENOUGH.min(config.window);
        if config.spike == 0.0 || self.recent.len() < enough {
            return None;
        }
        // The device compares in f32.
        let limit = f64::from((config.spike * median(&self.recent)) as f32);
        limit.is_finite().then_some(limit)
    }

    /// Takes note of the finite loss of the next step. `is_skipped`: the step changes nothing, and its loss does not
    /// count for the median.
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
            // The window of a run that is resumed may be shorter than it was.
            let before = self.recent.len().saturating_sub(config.window);
            self.recent.drain(..before);
        }
        if self.first.len() < ENOUGH {
            self.first.push(loss);
            return events;
        }
        let start = median(&self.first);
        self.above = if loss > start { self.above + 1 } else { 0 };
        if self.above == STAYS {
            events.push(Event::Collapse {
                steps: STAYS,
                start,
            });
        }
        events
    }
}

/// That of at least one number: the mean of the two in the middle of an even count.
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

    /// Losses of a stage that begins at 4, with noise, and where it is destroyed after 40 steps.
    #[test]
    fn a_collapse_is_noticed_within_fifty_steps() {
        let noise = |step: usize| 0.3 * ((step * 7919 % 11) as f64 / 10.0 - 0.5);
        let healthy: Vec<_> = (0..40).map(|step| 4.0 + noise(step)).collect();
        let mut guard = Guard::default();
        assert!(events(&mut guard, &healthy).is_empty());
        let destroyed: Vec<_> = (0..50).map(|step| 6.0 + noise(step)).collect();
        let found = events(&mut guard.clone(), &destroyed);
        assert_eq!(found.len(), 1, "{found:?}");
        let (place, Event::Collapse { steps, start }) = found[0] else {
            panic!("{found:?}")
        };
        assert!(place < 50 && steps == STAYS, "{found:?}");
        assert!((start - 4.0).abs() < 0.15, "{start}");
        assert!(is_collapse(&found[0].1.text(70, 6.0, &CONFIG)));
        let spike = Event::Spike { median: 2.0 };
        assert!(!is_collapse(&spike.text(70, 6.5, &CONFIG)));

        // It is said again only after the loss was where it had been.
        let back: Vec<_> = [&destroyed[..], &[3.0], &destroyed].concat();
        assert_eq!(events(&mut guard, &back).len(), 2);
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
