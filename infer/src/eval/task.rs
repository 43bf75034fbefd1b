//! The tasks: where their documents are, and what is asked about each of them.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Deserialize;
use serde_json::Value;

use super::data;
use super::error::EvalError;
use super::python::{capitalize, strip, without_brackets};

/// A task of the paper's table, under its name in lm-evaluation-harness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Task {
    /// The last word of a passage that makes sense of it only as a whole.
    LambadaOpenai,
    /// How a described scene goes on.
    Hellaswag,
    /// How something is done.
    Piqa,
    /// Science questions of primary and middle school.
    ArcEasy,
    /// Those of them that simple methods fail.
    ArcChallenge,
    /// What a pronoun refers to.
    Winogrande,
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
        })
    }
}

/// Where the Hugging Face hub has a task's documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// OWNER/NAME.
    pub dataset: &'static str,
    /// The part of the data set.
    pub config: &'static str,
    /// The part of that.
    pub split: &'static str,
}

/// A continuation whose likelihood after a context is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// What is read; may be empty.
    pub context: String,
    /// What is scored.
    pub continuation: String,
}

/// How a document's scores are judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// One continuation, right if it is the likeliest token by token.
    Word,
    /// The prompt of the right choice should be the likeliest, as it is or for its length.
    Choice {
        /// The number of the right one.
        gold: usize,
        /// The choices as the document has them, whose length normalises.
        choices: Vec<String>,
    },
    /// Several contexts of one continuation, which should be likeliest after the right one.
    Context {
        /// The number of the right one.
        gold: usize,
    },
}

/// A document of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// What the model is asked.
    pub prompts: Vec<Prompt>,
    /// What is made of its answers.
    pub question: Question,
}

impl Task {
    /// The version of the definition, as the harness counts.
    pub fn version(self) -> u32 {
        1
    }

    /// Where the hub has the documents that the harness evaluates.
    pub fn source(self) -> Source {
        let (dataset, config, split) = match self {
            Self::LambadaOpenai => ("EleutherAI/lambada_openai", "default", "test"),
            Self::Hellaswag => ("Rowan/hellaswag", "default", "validation"),
            Self::Piqa => ("baber/piqa", "default", "validation"),
            Self::ArcEasy => ("allenai/ai2_arc", "ARC-Easy", "test"),
            Self::ArcChallenge => ("allenai/ai2_arc", "ARC-Challenge", "test"),
            Self::Winogrande => ("allenai/winogrande", "winogrande_xl", "validation"),
        };
        Source {
            dataset,
            config,
            split,
        }
    }

    /// The documents of `files`, in the data set's own schema: the first `limit` of them.
    ///
    /// # Errors
    /// [`EvalError`] names the file, the place in it and what is wrong there.
    pub fn read(self, files: &[PathBuf], limit: Option<usize>) -> Result<Vec<Document>, EvalError> {
        let limit = limit.unwrap_or(usize::MAX);
        match self {
            Self::LambadaOpenai => data::read(files, limit, Lambada::document),
            Self::Hellaswag => data::read(files, limit, HellaSwag::document),
            Self::Piqa => data::read(files, limit, Piqa::document),
            Self::ArcEasy | Self::ArcChallenge => data::read(files, limit, Arc::document),
            Self::Winogrande => data::read(files, limit, WinoGrande::document),
        }
    }

    /// The task's file in a folder of data.
    ///
    /// # Errors
    /// [`EvalError::NoData`].
    pub fn file_in(self, folder: &Path) -> Result<PathBuf, EvalError> {
        let mut files = data::ENDINGS.map(|ending| folder.join(format!("{self}{ending}")));
        files.sort_by_key(|file| !file.is_file());
        let [file, ..] = files;
        match file.is_file() {
            true => Ok(file),
            false => Err(EvalError::NoData {
                folder: folder.into(),
                task: self,
            }),
        }
    }
}

/// Several answers to one question.
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
    /// What is behind the last blank is asked for, together with that blank.
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

/// A number from 0 on. Some copies of the data have it as text.
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
        // What is left of a how-to site's marks.
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
    /// Partial scoring: what is behind the blank is scored, after each way to fill it.
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
