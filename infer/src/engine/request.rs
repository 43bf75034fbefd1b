//! Requests to the engine, and its answers.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::mpsc::UnboundedReceiver;

use super::score::TokenScore;
use crate::error::GenerateError;
use crate::sampling::SamplingSettings;

/// One text to make: a prompt, and how the model continues it.
#[derive(Clone, Debug)]
pub struct Request {
    /// The token ids of the prompt, at least one.
    pub prompt: Arc<[u32]>,
    /// How tokens are chosen.
    pub sampling: SamplingSettings,
    /// The most tokens to make; 0 only reads the prompt.
    pub max_tokens: usize,
    /// Stop strings: the text ends before the first one that the model writes. No stop string may be empty.
    pub stop: Vec<String>,
    /// How many of the likeliest tokens are listed in the score of each token; `None` for no scores.
    pub alternatives: Option<usize>,
    /// Whether the prompt's tokens are scored too.
    pub score_prompt: bool,
    /// The moment at which the text ends even if it is not complete.
    pub deadline: Option<Instant>,
}

impl Request {
    /// The likeliest continuation of `prompt`, at most `max_tokens` long, without stop strings, scores and
    /// deadline.
    pub fn new(prompt: impl Into<Arc<[u32]>>, max_tokens: usize) -> Self {
        Self {
            prompt: prompt.into(),
            sampling: SamplingSettings::default(),
            max_tokens,
            stop: Vec::new(),
            alternatives: None,
            score_prompt: false,
            deadline: None,
        }
    }
}

/// A point in time, as seen by the engine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    now: Instant,
    /// Whether every text ends now, even before its deadline.
    is_last: bool,
}

impl Moment {
    /// The present moment; every text ends if `last` has passed.
    pub(super) fn now(last: Option<Instant>) -> Self {
        let now = Instant::now();
        let is_last = last.is_some_and(|last| last <= now);
        Self { now, is_last }
    }

    /// Whether the time of a request is up.
    pub(super) fn ends(&self, request: &Request) -> bool {
        let deadline = request.deadline;
        self.is_last || deadline.is_some_and(|deadline| deadline <= self.now)
    }
}

/// A part of an answer.
#[derive(Debug)]
pub enum Event {
    /// The scores of the next tokens of the prompt, if they were asked for. The prompt's first token
    /// has none: nothing comes before it. Requests that share their prompt share its scores.
    Prompt(Arc<[Option<TokenScore>]>),
    /// More text, after the whole characters of the prompt. If the prompt ends inside a character, that
    /// character belongs to this text.
    Text(Piece),
    /// The text has ended. No event follows.
    End(Result<End, GenerateError>),
}

/// Some text and the tokens that it came from.
#[derive(Debug, Default, PartialEq)]
pub struct Piece {
    /// Whole characters, possibly none.
    pub text: String,
    /// The tokens. An end-of-text may be the last; it has no text.
    pub tokens: Vec<Token>,
}

/// A token that was made.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// The token's id.
    pub id: u32,
    /// The number of characters of text before it.
    pub start: usize,
    /// How likely it was, if that was asked for.
    pub score: Option<TokenScore>,
    /// Whether it has ended the text. Such a token has no text itself.
    pub is_end: bool,
}

/// How a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Why.
    pub finish: Finish,
    /// The number of tokens made, including those of a stop string and an end-of-text.
    pub tokens: usize,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    EndOfText,
    /// The model made one of [`Request::stop`].
    StopString,
    /// [`Request::max_tokens`] were made.
    MaxTokens,
    /// The model has no positions left.
    ContextFull,
    /// [`Request::deadline`] passed, or the moment at which the engine [ends](super::Engine::end_at) all texts.
    TimeUp,
}

/// The answer to a [`Request`], event by event. When it is dropped, the work for it ends.
#[derive(Debug)]
pub struct Answer {
    pub(super) events: UnboundedReceiver<Event>,
}

impl Answer {
    /// The next event. The last is an [`Event::End`]; `None` before it means that the engine has stopped.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// [`next`](Self::next) for tasks that wait for several answers at once.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.poll_recv(context)
    }

    /// [`next`](Self::next) for threads without an asynchronous runtime.
    pub fn blocking_next(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }
}
