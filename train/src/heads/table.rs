//! The findings as text.

use indicatif::BinaryBytes;

use super::ranking::{By, Ranked};
use super::{Findings, Kept, Recall, Set};
use crate::table::markdown;

/// Heads of the ranking that are shown, at least; the file has all.
const SHOWN: usize = 20;

impl Findings {
    /// Both tables with a line before each.
    pub(super) fn table(&self) -> String {
        let settings = &self.settings;
        let ranked = match settings.by {
            By::Removal => {
                "What recall loses when a head's output is zero, each by itself but for those of earlier rounds, which \
                 stay zero"
                    .to_owned()
            }
            By::Restoration => format!(
                "What recall gains when a head sees all, where the others see {} tokens and the first {}, but for those of \
                 earlier rounds, which keep seeing all",
                settings.window, settings.sinks
            ),
        };
        let mut parts = vec![format!(
            "{ranked}: in nats of an answer's token, and in percent of answers; for each probe what is then right, \
             before any change {}.",
            self.before()
        )];
        parts.push(self.ranking());
        if !self.curve.is_empty() {
            parts.push(format!(
                "Recall of the teacher where the first heads see all and the others {} tokens and the first {}: percent of \
                 answers that are right, \u{b1} two standard errors; the share of the teacher's keys and values that these \
                 heads read; the state of a hybrid of them after {} tokens, in f32, and its share of the teacher's.",
                settings.window,
                settings.sinks,
                self.longest()
            ));
            parts.push(self.curve());
        }
        parts.push(match &self.no_hybrid {
            Some(why) => format!("no configuration of a hybrid: {why}"),
            None => format!("kept by the hybrid: {}", self.kept.join(", ")),
        });
        parts.join("\n\n")
    }

    fn before(&self) -> String {
        let sets = self.sets.iter().zip(&self.before);
        let sets = sets.map(|(set, recall)| format!("{} {}", name(set), percent(recall)));
        sets.collect::<Vec<_>>().join(", ")
    }

    fn ranking(&self) -> String {
        let mut header = ["heads", "round", "nats", "right"]
            .map(str::to_owned)
            .to_vec();
        header.extend(self.sets.iter().map(name));
        let shown = SHOWN.max(2 * self.settings.keep);
        let row = |ranked: &Ranked| {
            let mut row = vec![
                ranked.unit.to_string(),
                ranked.round.to_string(),
                format!("{:.3}", ranked.effect),
                format!("{:.1}", 100.0 * ranked.accuracy),
            ];
            row.extend(ranked.recalls.iter().map(percent));
            row
        };
        markdown(header, self.ranked.iter().take(shown).map(row).collect())
    }

    fn curve(&self) -> String {
        let mut header = vec!["heads that see all".to_owned()];
        header.extend(self.curve_sets.iter().map(name));
        header.extend(["cache", "state", "of the teacher's"].map(str::to_owned));
        let teacher = self.curve.first().and_then(|kept| kept.state_bytes);
        let row = |kept: &Kept| {
            let mut row = vec![match &kept.heads {
                None => "all".to_owned(),
                Some(heads) => heads.len().to_string(),
            }];
            let recalls = kept.recalls.iter();
            row.extend(recalls.map(|recall| {
                let errors = 100.0 * recall.two_errors();
                format!("{} \u{b1} {errors:.1}", percent(recall))
            }));
            row.push(format!("{:.1}%", 100.0 * kept.cache_share));
            let state = kept.state_bytes;
            row.push(state.map_or("-".into(), |bytes| BinaryBytes(bytes as u64).to_string()));
            let share = state
                .zip(teacher)
                .map(|(own, all)| own as f64 / all.max(1) as f64);
            row.push(share.map_or("-".into(), |share| format!("{:.1}%", 100.0 * share)));
            row
        };
        markdown(header, self.curve.iter().map(row).collect())
    }

    fn longest(&self) -> usize {
        let lengths = self.curve_sets.iter().map(|set| set.length);
        lengths.max().unwrap_or(0)
    }
}

fn name(set: &Set) -> String {
    format!("{} {}", set.probe, set.length)
}

fn percent(recall: &Recall) -> String {
    format!("{:.1}", 100.0 * recall.accuracy)
}
