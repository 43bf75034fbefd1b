//! How far a run has come: the file of a checkpoint that says it, and which values it may have.

use std::fs;
use std::path::Path;

use model::atomic_file;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::{TrainError, io_error};
use crate::guard::Guard;
use crate::limits::{OutOfRange, require};
use crate::metrics::{LogMark, Note, Position};
use crate::stages::Kind;
use crate::summary::StageSummary;

/// The last line of the file. It shows that the file is complete: truncated TOML may still be valid TOML.
const END: &str = "# end\n";

/// How far a run has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The stage that it is in.
    pub stage: String,
    /// Steps of that stage done; also the position in its data.
    pub step: usize,
    /// Training tokens so far, over all stages.
    pub tokens: u64,
    /// Seconds this stage has trained.
    pub stage_seconds: f64,
    /// Seconds of the run so far, over all resumptions.
    pub seconds: f64,
    /// Non-finite steps of the run.
    pub skipped: usize,
    /// How many of them are consecutive and the last ones so far.
    pub skipped_in_a_row: usize,
    /// Non-finite steps of the stage.
    #[serde(default)]
    pub stage_skipped: usize,
    /// Sequences of text that were skipped by rolling back, over all stages.
    #[serde(default)]
    pub passed_over: u64,
    /// How often the run was rolled back since the last scheduled checkpoint.
    #[serde(default)]
    pub roll_backs: usize,
    /// The last step of the stage after which the student was measured within it; 0 if none was.
    #[serde(default)]
    pub measured_step: usize,
    /// The last finite loss of the stage, smoothed as the closing table shows it; none if no step of the stage
    /// was finite.
    pub loss: Option<f64>,
    /// Perplexity of the teacher.
    pub teacher_perplexity: f64,
    /// What the guard remembers of the stage's losses.
    #[serde(default)]
    pub guard: Guard,
    /// Length and checksum of the log at this point. Earlier versions did not save them.
    #[serde(default)]
    pub log: Option<LogMark>,
    /// Stages done.
    pub finished: Vec<StageSummary>,
    /// Notes about the run so far.
    #[serde(default)]
    pub notes: Vec<Note>,
}

impl Progress {
    /// The position as the metrics have it.
    pub fn position(&self) -> Position {
        Position {
            stage: self.stage.clone(),
            step: self.step,
        }
    }

    /// The last stage that is done, its evaluation included; `None` if none is.
    pub fn evaluated(&self) -> Option<&str> {
        self.finished.last().map(|done| done.stage.as_str())
    }

    /// The tokens of stage [`stage`](Self::stage) so far; 0 if it is done.
    pub fn stage_tokens(&self) -> u64 {
        let finished = self.finished.iter().map(|done| done.tokens);
        self.tokens
            .saturating_sub(finished.fold(0, u64::saturating_add))
    }

    /// Checks that a run of `config` can have this progress. Whether its stages have changed since is checked
    /// elsewhere.
    ///
    /// # Errors
    /// [`OutOfRange`] names the first value that no run writes.
    pub(super) fn check(&self, config: &Config) -> Result<(), OutOfRange> {
        let stage = config.stage(&self.stage);
        let names = || {
            let names = config.stages.iter().map(|stage| stage.name.as_str());
            names.collect::<Vec<_>>().join(", ")
        };
        require(
            stage.is_some(),
            "stage",
            format!("{:?}", self.stage),
            &names(),
        )?;
        let most = u64::from(u32::MAX);
        require(
            self.step as u64 <= most,
            "step",
            self.step,
            &format!("up to {most}"),
        )?;
        require(
            self.measured_step <= self.step,
            "measured_step",
            self.measured_step,
            &format!("no later than the step, {}", self.step),
        )?;
        let seconds = |value: f64| (0.0..1e12).contains(&value);
        require(
            seconds(self.stage_seconds),
            "stage_seconds",
            self.stage_seconds,
            "0 or more, and finite",
        )?;
        require(
            seconds(self.seconds),
            "seconds",
            self.seconds,
            "0 or more, and finite",
        )?;
        let steps = self.finished.iter().map(|done| done.steps);
        let steps = steps.fold(self.step, usize::saturating_add);
        require(
            self.skipped <= steps,
            "skipped",
            self.skipped,
            &format!("no more than the steps, {steps}"),
        )?;
        require(
            self.skipped_in_a_row <= self.skipped,
            "skipped_in_a_row",
            self.skipped_in_a_row,
            &format!("no more than all that were skipped, {}", self.skipped),
        )?;
        require(
            self.stage_skipped <= self.skipped,
            "stage_skipped",
            self.stage_skipped,
            &format!("no more than all that were skipped, {}", self.skipped),
        )?;
        require(
            self.passed_over <= most,
            "passed_over",
            self.passed_over,
            &format!("up to {most}"),
        )?;
        require(
            self.loss.is_none_or(f64::is_finite),
            "loss",
            self.loss.unwrap_or_default(),
            "a finite number",
        )?;
        require(
            self.teacher_perplexity.is_finite() && self.teacher_perplexity > 0.0,
            "teacher_perplexity",
            self.teacher_perplexity,
            "above 0 and finite",
        )?;
        for done in &self.finished {
            require(
                Kind::named(&done.kind).is_some(),
                "finished.kind",
                format!("{:?}", done.kind),
                &Kind::NAMES.join(", "),
            )?;
            require(
                seconds(done.seconds),
                "finished.seconds",
                done.seconds,
                "0 or more, and finite",
            )?;
        }
        let finished = self.finished.iter().map(|done| done.tokens);
        let finished = finished.fold(0, u64::saturating_add);
        require(
            self.tokens >= finished,
            "tokens",
            self.tokens,
            &format!("at least those of the stages that are finished, {finished}"),
        )
    }

    /// Writes it to `path`, whole or not at all.
    pub(super) fn write(&self, path: &Path) -> Result<(), TrainError> {
        toml::to_string(self)
            .map_err(std::io::Error::other)
            .and_then(|text| atomic_file::write(path, (text + END).as_bytes()))
            .map_err(io_error(path))
    }

    /// Reads what [`write`](Self::write) wrote.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
        if !text.ends_with(END) {
            return Err("it is cut short".to_owned());
        }
        toml::from_str(&text).map_err(|error| error.message().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

    /// A run in its second stage.
    fn some() -> Progress {
        Progress {
            stage: "stage2".into(),
            step: 7,
            tokens: 48_128,
            stage_seconds: 1.5,
            seconds: 20.25,
            skipped: 2,
            skipped_in_a_row: 1,
            stage_skipped: 1,
            loss: Some(0.1),
            teacher_perplexity: 29.5,
            log: Some(LogMark {
                bytes: 10,
                sha256: "ab".into(),
            }),
            finished: vec![StageSummary {
                stage: "stage1".into(),
                kind: "matrices".into(),
                tokens: 40_960,
                steps: 40,
                seconds: 9.0,
                loss: 1.0,
                perplexity: f64::INFINITY,
            }],
            passed_over: 8,
            roll_backs: 1,
            measured_step: 5,
            guard: Guard::default(),
            notes: vec![Note {
                stage: "stage1".into(),
                step: 3,
                text: "a \"quoted\" word".into(),
            }],
        }
    }

    #[test]
    fn what_no_run_writes_is_refused_by_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("progress.toml");
        let config = Config::load(Source::Preset("tiny"), &[]).unwrap();
        some().write(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let read = Progress::read(&path).unwrap();
        assert_eq!(read, some());
        read.check(&config).unwrap();

        // The type or the value is wrong.
        for (from, to, key) in [
            ("stage = \"stage2\"", "stage = 7", "string"),
            ("stage = \"stage2\"", "stage = \"stage7\"", "stage"),
            ("step = 7", "step = -7", "invalid value"),
            ("step = 7", "step = 9223372036854775807", "step"),
            ("tokens = 48128", "tokens = 9", "tokens"),
            ("tokens = 40960", "tokens = 9223372036854775807", "tokens"),
            (
                "stage_seconds = 1.5",
                "stage_seconds = nan",
                "stage_seconds",
            ),
            ("seconds = 20.25", "seconds = -1.0", "seconds"),
            ("seconds = 9.0", "seconds = inf", "finished.seconds"),
            ("skipped = 2", "skipped = 48", "skipped"),
            (
                "skipped_in_a_row = 1",
                "skipped_in_a_row = 3",
                "skipped_in_a_row",
            ),
            ("stage_skipped = 1", "stage_skipped = 3", "stage_skipped"),
            (
                "passed_over = 8",
                "passed_over = 9223372036854775807",
                "passed_over",
            ),
            ("measured_step = 5", "measured_step = 8", "measured_step"),
            ("loss = 0.1", "loss = inf", "loss"),
            (
                "teacher_perplexity = 29.5",
                "teacher_perplexity = nan",
                "teacher_perplexity",
            ),
            ("kind = \"matrices\"", "kind = \"others\"", "finished.kind"),
        ] {
            assert!(text.contains(from), "{from} in {text}");
            fs::write(&path, text.replacen(from, to, 1)).unwrap();
            let refused = match Progress::read(&path) {
                Err(reason) => reason,
                Ok(read) => read.check(&config).expect_err(to).to_string(),
            };
            assert!(refused.contains(key), "{to}: {refused}");
        }
    }
}
