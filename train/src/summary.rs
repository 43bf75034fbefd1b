//! How a run ended: `summary.json`, and the table it closes with.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use comfy_table::presets;
use indicatif::{FormattedDuration, HumanBytes, HumanCount};
use serde::{Deserialize, Deserializer, Serialize};

use crate::metrics::Note;
use crate::stages::Kind;
use crate::table::table;

/// The result of a run; its JSON is `summary.json`, its `Display` the closing table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Perplexity of the teacher on the held-out text.
    #[serde(deserialize_with = "null_is_nan")]
    pub teacher_perplexity: f64,
    /// Perplexity of the student after its last stage.
    #[serde(deserialize_with = "null_is_nan")]
    pub student_perplexity: f64,
    /// The student's over the teacher's.
    #[serde(deserialize_with = "null_is_nan")]
    pub ratio: f64,
    /// Training tokens, over all stages.
    pub tokens: u64,
    /// Wall-clock seconds of the run, evaluation included.
    pub seconds: f64,
    /// Training tokens per second of training.
    pub tokens_per_second: f64,
    /// The stages, in order.
    pub stages: Vec<StageSummary>,
    /// Steps that were skipped, since their loss or gradient was not finite or, with `guard.action = "skip"`, a spike.
    pub skipped_steps: usize,
    /// Lines of the text that were left out since they hold no document (`data.skip_bad_lines`).
    #[serde(default)]
    pub skipped_lines: u64,
    /// Notes: changes that were accepted, and damage that was worked around.
    #[serde(default)]
    pub notes: Vec<Note>,
    /// The backend, as `--backend` names it.
    pub backend: String,
    /// The largest amount of memory that the process has used, in bytes; null if the system does not say.
    pub peak_memory_bytes: Option<u64>,
}

/// The result of one stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageSummary {
    /// Its name.
    pub stage: String,
    /// Its kind, as the configuration names it.
    pub kind: String,
    /// Its training tokens.
    pub tokens: u64,
    /// Its optimizer steps.
    pub steps: usize,
    /// Seconds it trained, without evaluation.
    pub seconds: f64,
    /// Its loss at the end.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// The student's perplexity after it.
    #[serde(deserialize_with = "null_is_nan")]
    pub perplexity: f64,
}

/// JSON has no NaN and no infinity; serde_json writes both as null.
pub(crate) fn null_is_nan<'de, D: Deserializer<'de>>(value: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or(f64::NAN))
}

/// The same for each value of a map.
pub(crate) fn nulls_are_nan<'de, K, D>(values: D) -> Result<BTreeMap<K, f64>, D::Error>
where
    K: Deserialize<'de> + Ord,
    D: Deserializer<'de>,
{
    let values = BTreeMap::<K, Option<f64>>::deserialize(values)?.into_iter();
    Ok(values
        .map(|(key, value)| (key, value.unwrap_or(f64::NAN)))
        .collect())
}

/// Seconds as `00:03:40`.
pub(crate) fn time(seconds: f64) -> FormattedDuration {
    FormattedDuration(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

impl Summary {
    /// Writes `summary.json` to `path`, whole or not at all.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        model::atomic_file::write(path, text.as_bytes())
    }

    /// Reads what [`Summary::write`] wrote; `None` if there is no such file.
    ///
    /// # Errors
    /// What the file system reports, or that it is not a summary.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(path) {
            Ok(json) => Ok(Some(serde_json::from_slice(&json)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl StageSummary {
    /// The name and what a stage of its kind is called in the paper.
    pub fn title(&self) -> String {
        match Kind::named(&self.kind) {
            Some(kind) => format!("{}: {}", self.stage, kind.description().title),
            None => self.stage.clone(),
        }
    }

    /// Training tokens per second.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = [
            "stage",
            "steps",
            "tokens",
            "time",
            "tokens/s",
            "loss",
            "perplexity",
            "ratio",
        ];
        let rows = self.stages.iter().map(|stage| {
            [
                stage.title(),
                HumanCount(stage.steps as u64).to_string(),
                HumanCount(stage.tokens).to_string(),
                time(stage.seconds).to_string(),
                HumanCount(stage.tokens_per_second() as u64).to_string(),
                format!("{:.4}", stage.loss),
                format!("{:.2}", stage.perplexity),
                format!("{:.3}", stage.perplexity / self.teacher_perplexity),
            ]
        });
        let table = table(presets::NOTHING, header, rows);
        for line in table.lines() {
            // Without the padding of the first column.
            writeln!(f, "{}", line.strip_prefix(' ').unwrap_or(line))?;
        }
        writeln!(f)?;
        if self.skipped_steps > 0 {
            writeln!(f, "steps skipped: {}", self.skipped_steps)?;
        }
        if self.skipped_lines > 0 {
            writeln!(f, "lines of text skipped: {}", self.skipped_lines)?;
        }
        for Note { stage, step, text } in &self.notes {
            writeln!(f, "note, {stage} step {step}: {text}")?;
        }
        writeln!(
            f,
            "perplexity: student {:.2}, teacher {:.2}, ratio {:.4}",
            self.student_perplexity, self.teacher_perplexity, self.ratio
        )?;
        write!(
            f,
            "{} tokens at {} a second; {} in all, on {}",
            HumanCount(self.tokens),
            HumanCount(self.tokens_per_second as u64),
            time(self.seconds),
            self.backend
        )?;
        match self.peak_memory_bytes {
            Some(bytes) => write!(f, ", at most {} of memory", HumanBytes(bytes)),
            None => Ok(()),
        }
    }
}

/// The most memory this process has held so far, in bytes, if the system says (Linux does).
pub fn peak_memory_bytes() -> Option<u64> {
    // The resident set's high-water mark.
    memory_in(
        &std::fs::read_to_string("/proc/self/status").ok()?,
        "VmHWM:",
    )
}

/// The memory that this process holds, in bytes, if the system says (Linux does).
pub(crate) fn memory_bytes() -> Option<u64> {
    memory_in(
        &std::fs::read_to_string("/proc/self/status").ok()?,
        "VmRSS:",
    )
}

/// The value of `key` in the text of `/proc/PID/status`.
fn memory_in(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_summary() -> Summary {
        Summary {
            teacher_perplexity: 29.5,
            student_perplexity: 32.45,
            ratio: 1.1,
            tokens: 1_331_200,
            seconds: 220.0,
            tokens_per_second: 6500.5,
            stages: vec![StageSummary {
                stage: "stage2".to_owned(),
                kind: "hidden_states".to_owned(),
                tokens: 512_000,
                steps: 500,
                seconds: 64.0,
                loss: 1.25,
                perplexity: 44.25,
            }],
            skipped_steps: 0,
            skipped_lines: 3,
            notes: vec![],
            backend: "flex".to_owned(),
            peak_memory_bytes: Some(3 << 29),
        }
    }

    #[test]
    fn the_json_has_the_documented_form() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("summary.json");
        a_summary().write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let expected = r#"{
  "teacher_perplexity": 29.5,
  "student_perplexity": 32.45,
  "ratio": 1.1,
  "tokens": 1331200,
  "seconds": 220.0,
  "tokens_per_second": 6500.5,
  "stages": [
    {
      "stage": "stage2",
      "kind": "hidden_states",
      "tokens": 512000,
      "steps": 500,
      "seconds": 64.0,
      "loss": 1.25,
      "perplexity": 44.25
    }
  ],
  "skipped_steps": 0,
  "skipped_lines": 3,
  "notes": [],
  "backend": "flex",
  "peak_memory_bytes": 1610612736
}
"#;
        assert_eq!(text, expected);
        assert_eq!(Summary::read(&path).unwrap(), Some(a_summary()));
        assert_eq!(
            Summary::read(&folder.path().join("none.json")).unwrap(),
            None
        );
    }

    #[test]
    fn the_table_closes_a_run() {
        let expected = "\
stage                           steps   tokens      time  tokens/s    loss  perplexity  ratio
stage2: hidden-state alignment    500  512,000  00:01:04     8,000  1.2500       44.25  1.500

lines of text skipped: 3
perplexity: student 32.45, teacher 29.50, ratio 1.1000
1,331,200 tokens at 6,500 a second; 00:03:40 in all, on flex, at most 1.50 GiB of memory";
        assert_eq!(a_summary().to_string(), expected);
    }

    #[test]
    fn peak_memory_is_read_where_it_is_told() {
        assert_eq!(
            memory_in("Name:\tx\nVmHWM:\t   2048 kB\n", "VmHWM:"),
            Some(2 << 20)
        );
        assert_eq!(memory_in("Name:\tx\n", "VmHWM:"), None);
        assert_eq!(memory_in("VmHWM:\tmuch\n", "VmHWM:"), None);
        if cfg!(target_os = "linux") {
            let now = memory_bytes().unwrap();
            assert!(now > 1 << 20 && peak_memory_bytes().unwrap() >= now);
        }
    }
}
