//! What the engine is asked for, and what it answers.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::mpsc::UnboundedReceiver;

use super::score::Score;
use crate::{GenerateError, SamplingSettings};

/// One text to make: a prompt and how it goes on.
#[derive(Clone, Debug)]
pub struct Request {
    /// The ids to begin with, at least one.
    pub prompt: Arc<[u32]>,
    /// How tokens are chosen.
    pub sampling: SamplingSettings,
    /// The most tokens to make; 0 only reads the prompt.
    pub max_tokens: usize,
    /// The text ends before the first of these that would come up in it. None of them is empty.
    pub stop: Vec<String>,
    /// With how many of the likeliest tokens each token that is made is scored; `None` for no scores.
    pub alternatives: Option<usize>,
    /// Whether the prompt's tokens are scored too.
    pub score_prompt: bool,
    /// When the text ends even if it is not complete.
    pub deadline: Option<Instant>,
}

/// A part of an answer.
#[derive(Debug)]
pub enum Event {
    /// The scores of the next tokens of the prompt, if they were asked for. The prompt's first token
    /// has none: nothing comes before it. Requests that share their prompt share its scores.
    Prompt(Arc<[Option<Score>]>),
    /// More text: what comes behind the prompt's whole characters, of which the last may have begun in
    /// the prompt.
    Text(Piece),
    /// There is no more.
    End(Result<End, GenerateError>),
}

/// Some text and the tokens that it came from.
#[derive(Debug, Default, PartialEq)]
pub struct Piece {
    /// Whole characters, possibly none.
    pub text: String,
    /// The tokens, with an end-of-text at the very end, which is no text.
    pub tokens: Vec<Token>,
}

/// A token that was made.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// How many characters of text precede it.
    pub start: usize,
    /// How likely it was, if that was asked for.
    pub score: Option<Score>,
}

/// How a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Why.
    pub finish: Finish,
    /// Tokens that were made, including those of a stop string and an end-of-text.
    pub tokens: usize,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    EndOfText,
    /// One of [`Request::stop`] came up.
    StopString,
    /// [`Request::max_tokens`] were made.
    MaxTokens,
    /// The model has no position left.
    ContextFull,
    /// [`Request::deadline`] passed.
    TimeUp,
}

/// The answer to a [`Request`], as it is made. Dropping it ends the work for it.
#[derive(Debug)]
pub struct Answer {
    pub(super) events: UnboundedReceiver<Event>,
}

impl Answer {
    /// The next part. The last is an [`Event::End`]; `None` before it says that the engine is no more.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// [`next`](Self::next) for those who wait for several answers at once.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.poll_recv(context)
    }

    /// [`next`](Self::next) for threads without an asynchronous runtime.
    pub fn blocking_next(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }
}
