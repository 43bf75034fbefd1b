//! The tasks, and the sources of their documents.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use datasets::Tokenizer;
use datasets::probes::{Probe, ProbeError, ProbeSizes};

use super::data;
use super::document::{Document, Question};
use super::error::EvalError;
use super::records::{Arc, HellaSwag, Lambada, Piqa, WinoGrande};

/// A task of the paper's table, whose `Display` gives its name in lm-evaluation-harness, or a probe, whose documents
/// [`datasets::probes`] makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Task {
    /// The last word of a passage, which needs the whole passage.
    LambadaOpenai,
    /// The continuation of a described scene.
    Hellaswag,
    /// Ways to do everyday physical tasks.
    Piqa,
    /// Science questions of primary and middle school.
    ArcEasy,
    /// Those of the questions that simple methods fail.
    ArcChallenge,
    /// The noun that a pronoun refers to.
    Winogrande,
    /// A probe: one fact of a long text.
    Needle,
    /// A probe: several facts of a long text.
    Needles,
    /// A probe: a passage of words given twice.
    Copy,
    /// A probe: pairs, and some of their keys again.
    Mqar,
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::LambadaOpenai => "lambada_openai",
            Self::Hellaswag => "hellaswag",
            Self::Piqa => "piqa",
            Self::ArcEasy => "arc_easy",
            Self::ArcChallenge => "arc_challenge",
            Self::Winogrande => "winogrande",
            Self::Needle => "needle",
            Self::Needles => "needles",
            Self::Copy => "copy",
            Self::Mqar => "mqar",
        })
    }
}

/// A task's documents on the Hugging Face hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The data set, as OWNER/NAME.
    pub dataset: &'static str,
    /// The configuration of the data set.
    pub config: &'static str,
    /// The split of the configuration.
    pub split: &'static str,
}

impl Task {
    /// The tasks of the paper's table, in its order.
    pub const OF_THE_PAPER: [Self; 6] = [
        Self::LambadaOpenai,
        Self::Hellaswag,
        Self::Piqa,
        Self::ArcEasy,
        Self::ArcChallenge,
        Self::Winogrande,
    ];

    /// The probes.
    pub const PROBES: [Self; 4] = [Self::Needle, Self::Needles, Self::Copy, Self::Mqar];

    /// The version number of the task's definition; of the paper's tasks, the harness's.
    pub fn version(self) -> u32 {
        1
    }

    /// The documents on the hub that the harness evaluates; `None` of a probe, which needs no data.
    pub fn source(self) -> Option<Source> {
        let (dataset, config, split) = match self {
            Self::LambadaOpenai => ("EleutherAI/lambada_openai", "default", "test"),
            Self::Hellaswag => ("Rowan/hellaswag", "default", "validation"),
            Self::Piqa => ("baber/piqa", "default", "validation"),
            Self::ArcEasy => ("allenai/ai2_arc", "ARC-Easy", "test"),
            Self::ArcChallenge => ("allenai/ai2_arc", "ARC-Challenge", "test"),
            Self::Winogrande => ("allenai/winogrande", "winogrande_xl", "validation"),
            Self::Needle | Self::Needles | Self::Copy | Self::Mqar => return None,
        };
        Some(Source {
            dataset,
            config,
            split,
        })
    }

    /// Makes the first `limit` documents of each length of a probe, for a model that reads at most `max_length` tokens
    /// of `tokenizer` at once. Empty for the paper's tasks.
    ///
    /// # Errors
    /// [`EvalError::TooShort`], [`EvalError::NoRoom`], and what the tokenizer fails with.
    pub fn make(
        self,
        tokenizer: &Tokenizer,
        max_length: usize,
        limit: Option<usize>,
    ) -> Result<Vec<Document>, EvalError> {
        let Some(probe) = self.probe_of_task() else {
            return Ok(Vec::new());
        };
        let sizes = ProbeSizes::up_to(probe, max_length, limit);
        self.probe(tokenizer, &sizes.map_err(|error| self.refused(error))?)
    }

    /// Makes the documents of a probe in these sizes. Empty for the paper's tasks.
    ///
    /// # Errors
    /// [`EvalError::NoRoom`], [`EvalError::TooMuchRoom`], and what the tokenizer fails with.
    pub fn probe(
        self,
        tokenizer: &Tokenizer,
        sizes: &ProbeSizes,
    ) -> Result<Vec<Document>, EvalError> {
        let Some(probe) = self.probe_of_task() else {
            return Ok(Vec::new());
        };
        let made = probe.documents(tokenizer, sizes);
        let made = made.map_err(|error| self.refused(error))?.into_iter();
        let documents = made.map(|document| {
            let length = document.length;
            Document {
                prompts: document.prompts,
                question: match probe {
                    Probe::Needle => Question::Fact { length },
                    Probe::Needles | Probe::Mqar => Question::Facts { length },
                    Probe::Copy => Question::Repetition { length },
                },
            }
        });
        Ok(documents.collect())
    }

    /// The probe, if this task is one.
    fn probe_of_task(self) -> Option<Probe> {
        match self {
            Self::Needle => Some(Probe::Needle),
            Self::Needles => Some(Probe::Needles),
            Self::Copy => Some(Probe::Copy),
            Self::Mqar => Some(Probe::Mqar),
            _ => None,
        }
    }

    /// The error for a probe whose documents cannot be made, in the words of the command line.
    fn refused(self, error: ProbeError) -> EvalError {
        match error {
            ProbeError::TooShort {
                least, max_length, ..
            } => EvalError::TooShort {
                task: self,
                least,
                max_length,
            },
            ProbeError::NoRoom { length, .. } => EvalError::NoRoom { task: self, length },
            ProbeError::TooMuchRoom { length, .. } => EvalError::TooMuchRoom { task: self, length },
            ProbeError::Data(error) => EvalError::Data(error),
            ProbeError::NothingToScore { continuation } => {
                EvalError::NothingToScore { continuation }
            }
            other => EvalError::Probe(other),
        }
    }

    /// Reads the first `limit` documents of `files`, which have the fields of the data set. Empty for a probe.
    ///
    /// # Errors
    /// [`EvalError::Io`], [`EvalError::Damaged`] and [`EvalError::Empty`].
    pub fn read(self, files: &[PathBuf], limit: Option<usize>) -> Result<Vec<Document>, EvalError> {
        let limit = limit.unwrap_or(usize::MAX);
        match self {
            Self::LambadaOpenai => data::read(files, limit, Lambada::document),
            Self::Hellaswag => data::read(files, limit, HellaSwag::document),
            Self::Piqa => data::read(files, limit, Piqa::document),
            Self::ArcEasy | Self::ArcChallenge => data::read(files, limit, Arc::document),
            Self::Winogrande => data::read(files, limit, WinoGrande::document),
            Self::Needle | Self::Needles | Self::Copy | Self::Mqar => Ok(Vec::new()),
        }
    }

    /// The task's file in a folder of data.
    ///
    /// # Errors
    /// [`EvalError::NoData`] if there is none.
    pub fn file_in(self, folder: &Path) -> Result<PathBuf, EvalError> {
        let mut files = data::ENDINGS.map(|ending| folder.join(format!("{self}{ending}")));
        files.sort_by_key(|file| !file.is_file());
        let [file, ..] = files;
        if file.is_file() {
            return Ok(file);
        }
        Err(EvalError::NoData {
            folder: folder.into(),
            task: self,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ::tests::mutations::each;

    use super::*;

    /// A record of each task's data.
    const RECORDS: [(Task, &str); 5] = [
        (Task::LambadaOpenai, r#"{"text": "the last word"}"#),
        (
            Task::Hellaswag,
            r#"{"activity_label": "a", "ctx_a": "[b] c [title] d", "ctx_b": "e", "endings": ["f", "g"], "label": "1"}"#,
        ),
        (
            Task::Piqa,
            r#"{"goal": "a", "sol1": "b", "sol2": "c", "label": 0}"#,
        ),
        (
            Task::ArcEasy,
            r#"{"question": "a", "choices": {"text": ["b", "c"], "label": ["A", "B"]}, "answerKey": "B"}"#,
        ),
        (
            Task::Winogrande,
            r#"{"sentence": "a _ b", "option1": "c", "option2": "d", "answer": "2"}"#,
        ),
    ];

    /// A run names tasks in its configuration, which is checked against that list.
    #[test]
    fn runs_know_the_names_of_all_tasks() {
        let names = Task::value_variants().iter().map(Task::to_string);
        assert_eq!(names.collect::<Vec<_>>(), datasets::TASK_NAMES);
        for name in datasets::TASK_NAMES {
            assert!(Task::from_str(name, false).is_ok(), "{name}");
        }
    }

    /// Each gives documents whose right choice exists, or an error that names the file.
    #[test]
    fn thousands_of_damaged_files() {
        let folder = tempfile::tempdir().unwrap();
        for (task, record) in RECORDS {
            let path = folder.path().join(format!("{task}.jsonl"));
            let (mut read, mut refused) = (0, 0);
            each(1500, |mutator| {
                let damaged = mutator.json(record);
                let lines = [record.as_bytes(), b"\n", &damaged, b"\n", record.as_bytes()];
                fs::write(&path, lines.concat()).unwrap();
                match task.read(std::slice::from_ref(&path), None) {
                    Ok(documents) => {
                        read += 1;
                        for document in documents {
                            let count = document.prompts.len();
                            match document.question {
                                Question::Word => assert_eq!(count, 1),
                                Question::Choice { gold, choices } => {
                                    assert!(gold < count && choices.len() == count);
                                }
                                Question::Context { gold } => assert!(gold < count),
                                other => panic!("{other:?} is a probe's"),
                            }
                        }
                    }
                    Err(error) => {
                        refused += 1;
                        let said = error.to_string();
                        assert!(said.contains(path.to_str().unwrap()), "{said}");
                    }
                }
            });
            assert!(read > 10 && refused > 200, "{task}: {read}, {refused}");
        }
    }
}
