//! A document of a task: its prompts, and how their scores are judged.

use datasets::probes::Prompt;

/// How a document's scores are judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// One continuation, which is right if each of its tokens is the likeliest.
    Word,
    /// Several continuations of one context. The right one should be the likeliest, by its likelihood or by its
    /// likelihood divided by its length.
    Choice {
        /// The index of the right choice.
        gold: usize,
        /// The choices as in the document. Their lengths are used for normalisation.
        choices: Vec<String>,
    },
    /// Several contexts with the same continuation, which should be likeliest after the right context.
    Context {
        /// The index of the right context.
        gold: usize,
    },
    /// One continuation, which also occurs in its context. It is right if each of its tokens is the likeliest.
    Fact {
        /// The most tokens of the document.
        length: usize,
    },
    /// Several continuations, each of which also occurs in its context, and is right if each of its tokens is the
    /// likeliest. The score is the share of right ones.
    Facts {
        /// The most tokens of the document.
        length: usize,
    },
    /// The same continuation twice: first after a context that contains it, then after one that does not. The score is
    /// the share of its tokens that are the likeliest.
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
