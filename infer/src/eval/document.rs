//! A document of a task: its prompts, and how their scores are judged.

use datasets::probes::Prompt;

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
