//! The records of each task's data, and the prompts of the documents that are made from them.

use datasets::probes::Prompt;
use serde::Deserialize;
use serde_json::Value;

use super::document::{Document, Question};
use super::python::{capitalize, strip, without_brackets};

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
pub(super) struct Lambada {
    text: String,
}

impl Lambada {
    /// The continuation is the text after the last blank, together with that blank.
    pub(super) fn document(self) -> Result<Document, String> {
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
pub(super) struct HellaSwag {
    activity_label: String,
    ctx_a: String,
    ctx_b: String,
    endings: Vec<String>,
    label: Label,
}

impl HellaSwag {
    pub(super) fn document(self) -> Result<Document, String> {
        // The data set contains remains of markup from a how-to site.
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
pub(super) struct Piqa {
    goal: String,
    sol1: String,
    sol2: String,
    label: Label,
}

impl Piqa {
    pub(super) fn document(self) -> Result<Document, String> {
        let question = format!("Question: {}\nAnswer:", self.goal);
        choice(&question, self.label.number()?, vec![self.sol1, self.sol2])
    }
}

#[derive(Deserialize)]
pub(super) struct Arc {
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
    pub(super) fn document(self) -> Result<Document, String> {
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
pub(super) struct WinoGrande {
    sentence: String,
    option1: String,
    option2: String,
    answer: Label,
}

impl WinoGrande {
    /// Partial scoring: the text after the blank is scored, after each way to fill the blank.
    pub(super) fn document(self) -> Result<Document, String> {
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
