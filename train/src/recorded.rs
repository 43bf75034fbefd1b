//! The final losses of stages in recorded runs of this project.
//!
//! A loss depends on the teacher's sizes and on the context: the losses of stages 1 and 2 are sums over layers, and the
//! loss of stage 3 ends near the teacher's entropy on its text. So a stage is only compared with recorded stages of the
//! same sizes. When a run is added to docs/results.md or to the README, it gets a line here.

use std::ops::RangeInclusive;

use model::NetworkConfig;

use crate::stages::Kind;

/// Runs on record of one kind of stage, with the default options of that kind, and one kind of teacher.
struct Recorded {
    kind: &'static str,
    /// Layers, width and vocabulary of the teacher.
    teacher: [usize; 3],
    /// Tokens of a sequence.
    context: usize,
    /// Tokens of the stage.
    tokens: u64,
    /// The range of the losses at the stage's end, as the closing tables show them.
    losses: RangeInclusive<f64>,
    runs: usize,
    /// The document that has them.
    source: &'static str,
}

/// The bundled teacher.
const PHI_TINY: [usize; 3] = [4, 192, 4096];
const RESULTS: &str = "docs/results.md";

const RECORDED: [Recorded; 3] = [
    Recorded {
        kind: "matrices",
        teacher: PHI_TINY,
        context: 256,
        tokens: 40_960,
        losses: 38.9055..=39.3052,
        runs: 3,
        source: RESULTS,
    },
    Recorded {
        kind: "hidden_states",
        teacher: PHI_TINY,
        context: 256,
        tokens: 512_000,
        losses: 12.2701..=12.5161,
        runs: 3,
        source: RESULTS,
    },
    Recorded {
        kind: "predictions",
        teacher: PHI_TINY,
        context: 256,
        tokens: 778_240,
        losses: 3.0755..=3.1458,
        runs: 3,
        source: RESULTS,
    },
];

/// In words, the final losses of recorded stages of this `kind`, with this teacher and context.
pub(crate) fn recorded(kind: &Kind, teacher: &NetworkConfig, context: usize) -> String {
    let sizes = [teacher.mixers.len(), teacher.d_model, teacher.vocab_size];
    let found = RECORDED.iter().find(|recorded| {
        recorded.teacher == sizes
            && recorded.context == context
            // With other options the loss cannot be compared.
            && Kind::named(recorded.kind).as_ref() == Some(kind)
    });
    match found {
        Some(recorded) => recorded.to_string(),
        None => "no run of this size is on record".to_owned(),
    }
}

impl std::fmt::Display for Recorded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (least, largest) = (self.losses.start(), self.losses.end());
        match self.runs {
            1 => write!(
                f,
                "the one run on record with these sizes ended it at {least:.4}"
            )?,
            runs => write!(
                f,
                "{runs} runs on record with these sizes ended it at {least:.4} to {largest:.4}"
            )?,
        }
        write!(
            f,
            ", after {} tokens of it ({})",
            indicatif::HumanCount(self.tokens),
            self.source
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Source};

    /// The stages of the preset `tiny` are those that the README shows, to the token.
    #[test]
    fn the_default_run_is_on_record() {
        let teacher = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/phi-tiny");
        let teacher = NetworkConfig::from(&model::load_config(teacher).unwrap());
        let config = Config::load(Source::Preset("tiny"), &[]).unwrap();
        for (stage, run) in config.stages.iter().zip(&RECORDED) {
            let tokens = config.steps(stage) as u64 * config.tokens_per_step(stage);
            assert_eq!((stage.kind.name(), tokens), (run.kind, run.tokens));
            let words = recorded(&stage.kind, &teacher, config.context(stage));
            let expected = format!("{:.4}", run.losses.start());
            assert!(words.contains(&expected), "{words}");
            let none = recorded(&stage.kind, &teacher, 512);
            assert_eq!(none, "no run of this size is on record");
        }
        let other = ["stage3.loss=reverse_kl".to_owned()];
        let other = Config::load(Source::Preset("tiny"), &other).unwrap();
        let words = recorded(&other.stages[2].kind, &teacher, 256);
        assert_eq!(words, "no run of this size is on record");
    }
}
