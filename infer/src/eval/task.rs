//! The tasks: where their documents come from, and the prompts of each document.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use datasets::Tokenizer;
use datasets::probes::{Probe, ProbeError, ProbeSizes, Prompt};
use serde::Deserialize;
use serde_json::Value;

use super::data;
use super::error::EvalError;
use super::python::{capitalize, strip, without_brackets};

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

/// How a document's scores are judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// One continuation, which is right if each of its tokens is the likeliest.
    Word,
    /// Several continuations of one context. The likeliest should be the right one, by its likelihood or by
    /// its likelihood per length.
    Choice {
        /// The index of the right choice.
        gold: usize,
        /// The choices as in the document. Their lengths normalise.
        choices: Vec<String>,
    },
    /// Several contexts of one continuation, which should be likeliest after the right context.
    Context {
        /// The index of the right context.
        gold: usize,
    },
    /// One continuation, which stands in the context, and is right if each of its tokens is the likeliest.
    Fact {
        /// The most tokens of the document.
        length: usize,
    },
    /// Several continuations, each of which stands in its context, and is right if each of its tokens is the likeliest.
    /// The share that is right counts.
    Facts {
        /// The most tokens of the document.
        length: usize,
    },
    /// A continuation twice: first where it repeats a part of its context, then where it does not. The share of its
    /// tokens that are the likeliest counts.
    Repetition {
        /// The most tokens of the document.
        length: usize,
    },
}

/// A document of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The prompts that are scored.
    pub prompts: Vec<Prompt>,
    /// How their scores are judged.
    pub question: Question,
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

    /// Makes the first `limit` documents of each length of a probe, for a model that reads at most `max_length`
    /// tokens of `tokenizer` at once. The paper's tasks have none of these.
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

    /// Makes the documents of a probe in these sizes. The paper's tasks have none of these.
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

    /// The probe that it is, if it is one.
    fn probe_of_task(self) -> Option<Probe> {
        match self {
            Self::Needle => Some(Probe::Needle),
            Self::Needles => Some(Probe::Needles),
            Self::Copy => Some(Probe::Copy),
            Self::Mqar => Some(Probe::Mqar),
            _ => None,
        }
    }

    /// Why there are no documents of this probe, in the words of the command line.
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

    /// Reads the first `limit` documents of `files`, which have the fields of the data set. A probe has none.
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

/// A document with several answers to one question.
fn choice(question: &str, gold: usize, choices: Vec<String>) -> Result<Document, String> {
    if gold >= choices.len() {
        return Err(format!(
            "the right choice is number {gold} (from 0), and there are {}",
            choices.len()
        ));
    }
    let prompt = |choice| Prompt {
        context: question.into(),
        continuation: format!(" {choice}"),
    };
    Ok(Document {
        prompts: choices.iter().map(prompt).collect(),
        question: Question::Choice { gold, choices },
    })
}

#[derive(Deserialize)]
struct Lambada {
    text: String,
}

impl Lambada {
    /// The continuation is the text after the last blank, together with that blank.
    fn document(self) -> Result<Document, String> {
        let (context, word) = self.text.rsplit_once(' ').unwrap_or(("", &self.text));
        Ok(Document {
            prompts: vec![Prompt {
                context: context.into(),
                continuation: format!(" {word}"),
            }],
            question: Question::Word,
        })
    }
}

/// A whole number. Some copies of the data have it as text.
#[derive(Deserialize)]
struct Label(Value);

impl Label {
    fn number(&self) -> Result<usize, String> {
        let number = match &self.0 {
            Value::String(text) => text.parse().ok(),
            value => value.as_u64().and_then(|number| number.try_into().ok()),
        };
        number.ok_or_else(|| format!("the label is {}, and not a number from 0 on", self.0))
    }
}

#[derive(Deserialize)]
struct HellaSwag {
    activity_label: String,
    ctx_a: String,
    ctx_b: String,
    endings: Vec<String>,
    label: Label,
}

impl HellaSwag {
    fn document(self) -> Result<Document, String> {
        // The data set has remains of a how-to site's markup.
        let clean = |text: &str| {
            let text = strip(text).replace(" [title]", ". ");
            without_brackets(&text).replace("  ", " ")
        };
        let (activity, a, b) = (self.activity_label, self.ctx_a, capitalize(&self.ctx_b));
        let choices = self.endings.iter().map(|ending| clean(ending)).collect();
        let scene = clean(&format!("{activity}: {a} {b}"));
        choice(&scene, self.label.number()?, choices)
    }
}

#[derive(Deserialize)]
struct Piqa {
    goal: String,
    sol1: String,
    sol2: String,
    label: Label,
}

impl Piqa {
    fn document(self) -> Result<Document, String> {
        let question = format!("Question: {}\nAnswer:", self.goal);
        choice(&question, self.label.number()?, vec![self.sol1, self.sol2])
    }
}

#[derive(Deserialize)]
struct Arc {
    question: String,
    choices: ArcChoices,
    #[serde(rename = "answerKey")]
    answer_key: String,
}

#[derive(Deserialize)]
struct ArcChoices {
    text: Vec<String>,
    label: Vec<String>,
}

impl Arc {
    fn document(self) -> Result<Document, String> {
        let question = format!("Question: {}\nAnswer:", self.question);
        let ArcChoices { text, label } = self.choices;
        let gold = label.iter().position(|label| *label == self.answer_key);
        let gold = gold.ok_or_else(|| {
            let key = &self.answer_key;
            format!("answerKey is {key:?}, which is none of the choices' labels {label:?}")
        })?;
        choice(&question, gold, text)
    }
}

#[derive(Deserialize)]
struct WinoGrande {
    sentence: String,
    option1: String,
    option2: String,
    answer: Label,
}

impl WinoGrande {
    /// Partial scoring: the text after the blank is scored, after each way to fill the blank.
    fn document(self) -> Result<Document, String> {
        let (before, after) = self
            .sentence
            .split_once('_')
            .ok_or("the sentence has no _ to fill in")?;
        let gold = match self.answer.number()? {
            answer @ 1..=2 => answer - 1,
            answer => return Err(format!("the answer is {answer}; it must be 1 or 2")),
        };
        let prompt = |option| Prompt {
            context: format!("{before}{option}"),
            continuation: format!(" {}", strip(after)),
        };
        Ok(Document {
            prompts: [&self.option1, &self.option2].map(prompt).into(),
            question: Question::Context { gold },
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
