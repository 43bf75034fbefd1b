//! `metrics.jsonl`: one JSON object a line, appended as the run goes.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{Position, Record};

/// An open `metrics.jsonl`.
///
/// Each record is one write to the file, so that a run that is killed leaves at worst a torn last
/// line, which [`read`] and [`MetricsLog::resume`] ignore.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

/// What can go wrong with `metrics.jsonl`.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The disk refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line that no run wrote.
    #[error("{} line {line}: {source}; remove the line to continue", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl MetricsLog {
    /// Starts an empty log at `path`.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub fn create(path: &Path) -> Result<Self, MetricsError> {
        let file = File::create(path).map_err(io_error(path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Continues the log at `path` from the checkpoint at `position`, when the evaluation of the stages up to
    /// `evaluated` was known, or of none but that before the first. `stages` are the names of the run's
    /// stages, in order.
    ///
    /// What the interrupted run wrote after that checkpoint will be written again, so everything
    /// from the first step beyond it is dropped first, whole or not at all. A log that does not
    /// exist is started.
    ///
    /// # Errors
    /// [`MetricsError`].
    pub fn resume(
        path: &Path,
        position: &Position,
        evaluated: Option<&str>,
        stages: &[String],
    ) -> Result<Self, MetricsError> {
        // Stages that are not of the run can only come after those that are done.
        let place = |name: &str| stages.iter().position(|stage| stage == name);
        let place = |name: &str| place(name).unwrap_or(stages.len());
        let here = (place(&position.stage), position.step);
        let text = text(path)?;
        let mut kept = String::new();
        for (record, line) in records(path, &text)? {
            let beyond = match record {
                Record::Step(step) => (place(&step.stage), step.step) > here,
                Record::Evaluation(evaluation) => {
                    evaluation.stage.as_deref().map(place) > evaluated.map(place)
                }
            };
            if beyond {
                break;
            }
            kept.push_str(line);
            kept.push('\n');
        }
        model::atomic_file::write(path, kept.as_bytes()).map_err(io_error(path))?;
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(io_error(path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Appends `record`.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub fn record(&mut self, record: &Record) -> Result<(), MetricsError> {
        let mut line =
            serde_json::to_string(record).map_err(|source| io_error(&self.path)(source.into()))?;
        line.push('\n');
        self.file
            .write_all(line.as_bytes())
            .map_err(io_error(&self.path))
    }

    /// Brings all that was recorded to the disk, where a loss of power does not take it.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub fn sync(&self) -> Result<(), MetricsError> {
        self.file.sync_data().map_err(io_error(&self.path))
    }
}

/// The records of the log at `path`; none if there is no such file.
///
/// # Errors
/// [`MetricsError`].
pub fn read(path: &Path) -> Result<Vec<Record>, MetricsError> {
    let text = text(path)?;
    let records = records(path, &text)?;
    Ok(records.into_iter().map(|(record, _)| record).collect())
}

fn text(path: &Path) -> Result<String, MetricsError> {
    match std::fs::read_to_string(path) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other.map_err(io_error(path)),
    }
}

/// The complete lines of `text`, parsed, each with its text.
fn records<'a>(path: &Path, text: &'a str) -> Result<Vec<(Record, &'a str)>, MetricsError> {
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    complete
        .lines()
        .enumerate()
        .map(|(index, line)| {
            let record = serde_json::from_str(line).map_err(|source| MetricsError::Line {
                path: path.to_owned(),
                line: index + 1,
                source,
            })?;
            Ok((record, line))
        })
        .collect()
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> MetricsError {
    let path = path.to_owned();
    move |source| MetricsError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::super::{Evaluation, StepMetrics};
    use super::*;

    fn step(stage: &str, step: usize) -> Record {
        Record::Step(StepMetrics {
            stage: stage.to_owned(),
            step,
            tokens: 1024 * step as u64,
            loss: 1.5,
            lr: 1e-3,
            grad_norm: 0.25,
            tokens_per_second: 5000.0,
            skipped: false,
            seconds: 2.0,
        })
    }

    fn evaluation(stage: Option<&str>) -> Record {
        Record::Evaluation(Evaluation {
            stage: stage.map(str::to_owned),
            tokens: 4096,
            teacher_perplexity: 29.5,
            student_perplexity: 33.25,
        })
    }

    /// An order that is not that of the letters.
    const STAGES: [&str; 3] = ["short", "long", "again"];

    /// The untrained student evaluated, four steps and an evaluation of the first stage, four steps of the
    /// second.
    fn a_run() -> Vec<Record> {
        let stage = |stage| (1..=4).map(move |n| step(stage, n));
        let mut records = vec![evaluation(None)];
        records.extend(stage("short"));
        records.push(evaluation(Some("short")));
        records.extend(stage("long"));
        records
    }

    fn resume(path: &Path, stage: &str, step: usize, evaluated: Option<&str>) -> MetricsLog {
        let position = Position {
            stage: stage.to_owned(),
            step,
        };
        MetricsLog::resume(path, &position, evaluated, &STAGES.map(str::to_owned)).unwrap()
    }

    fn write(path: &Path, records: &[Record]) {
        let mut log = MetricsLog::create(path).unwrap();
        records
            .iter()
            .for_each(|record| log.record(record).unwrap());
    }

    #[test]
    fn a_line_has_the_documented_form() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        write(
            &path,
            &[
                step("stage2", 1),
                evaluation(Some("stage2")),
                evaluation(None),
            ],
        );
        let expected = r#"{"kind":"step","stage":"stage2","step":1,"tokens":1024,"loss":1.5,"lr":0.001,"grad_norm":0.25,"tokens_per_second":5000.0,"skipped":false,"seconds":2.0}
{"kind":"evaluation","stage":"stage2","tokens":4096,"teacher_perplexity":29.5,"student_perplexity":33.25}
{"kind":"evaluation","stage":null,"tokens":4096,"teacher_perplexity":29.5,"student_perplexity":33.25}
"#;
        assert_eq!(std::fs::read_to_string(path).unwrap(), expected);
    }

    #[test]
    fn resuming_drops_what_comes_after_the_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        // (checkpoint, last stage evaluated, records kept): at a stage's end there is a checkpoint before it
        // is evaluated.
        for (stage, done, evaluated, kept) in [
            ("short", 0, None, 1),
            ("short", 2, None, 3),
            ("short", 4, None, 5),
            ("short", 4, Some("short"), 6),
            ("long", 0, Some("short"), 6),
            ("long", 3, Some("short"), 9),
            ("long", 4, Some("short"), 10),
            ("again", 0, Some("long"), 10),
        ] {
            write(&path, &a_run());
            let mut log = resume(&path, stage, done, evaluated);
            assert_eq!(read(&path).unwrap(), a_run()[..kept], "{stage} {done}");
            log.record(&step("again", 9)).unwrap();
            assert_eq!(read(&path).unwrap().len(), kept + 1);
            assert_eq!(read(&path).unwrap()[kept], step("again", 9));
        }
    }

    #[test]
    fn a_torn_last_line_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        write(&path, &[step("short", 1), step("short", 2)]);
        let whole = std::fs::read_to_string(&path).unwrap();
        for torn in 1..whole.len() / 2 {
            std::fs::write(&path, &whole[..whole.len() - torn]).unwrap();
            assert_eq!(read(&path).unwrap(), [step("short", 1)]);
        }
        let mut log = resume(&path, "short", 2, None);
        log.record(&step("short", 2)).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
    }

    #[test]
    fn a_foreign_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        write(&path, &a_run());
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replacen("\"stage\":\"short\"", "\"stag\":1", 1)).unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.contains("metrics.jsonl line 2"), "{message}");
    }

    #[test]
    fn not_a_number_survives() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let Record::Step(mut metrics) = step("short", 1) else {
            unreachable!()
        };
        metrics.loss = f64::INFINITY;
        metrics.grad_norm = f64::NAN;
        metrics.skipped = true;
        write(&path, &[Record::Step(metrics)]);
        match read(&path).unwrap().as_slice() {
            [Record::Step(read)] => {
                assert!(read.loss.is_nan() && read.grad_norm.is_nan() && read.skipped);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn no_log_is_an_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        assert!(read(&path).unwrap().is_empty());
        resume(&path, "short", 1, None);
        assert!(path.exists());
    }
}
