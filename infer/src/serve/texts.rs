//! The texts of one request while they are made.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use datasets::{DataError, Tokenizer};

use super::Server;
use super::error::ApiError;
use super::reply::{Choice, Logprobs, Usage, finish_reason};
use super::request::Plan;
use crate::engine::{Answer, Event, Finish, Request, Score};

/// The texts, in the order of their indices. Dropping them ends the work for them.
pub(super) struct Texts {
    server: Arc<Server>,
    texts: Vec<Text>,
    /// Texts of each prompt.
    n: usize,
    started: Instant,
    begun: bool,
}

/// One of them.
struct Text {
    request: Request,
    /// `None` when it has ended.
    answer: Option<Answer>,
    /// What goes out before anything of the answer.
    first: Option<Choice>,
    echo: bool,
    /// Scores of the prompt's tokens so far.
    scores: Vec<Option<Score>>,
    /// Characters of the prompt that the text begins with.
    before: usize,
    tokens: usize,
}

impl Texts {
    /// Has the engine begin.
    pub(super) fn begin(
        server: Arc<Server>,
        plan: Plan,
        started: Instant,
    ) -> Result<Self, ApiError> {
        let answers = server.engine.submit(plan.requests.clone())?;
        let both = plan.requests.into_iter().zip(answers);
        let texts = both.map(|(request, answer)| {
            Text::new(request, answer, plan.echo, &server.tokenizer).map_err(undecodable)
        });
        Ok(Self {
            texts: texts.collect::<Result<_, _>>()?,
            server,
            n: plan.n,
            started,
            begun: false,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    /// How many tokens there are, all texts together.
    pub(super) fn usage(&self) -> Usage {
        // A prompt counts once, however many texts it has.
        let prompts = self.texts.iter().step_by(self.n);
        let prompts = prompts.map(|text| text.request.prompt.len());
        Usage::new(
            prompts.sum(),
            self.texts.iter().map(|text| text.tokens).sum(),
        )
    }

    /// A piece of whichever text is the first to have one; `None` when all have ended.
    pub(super) async fn next(&mut self) -> Option<Result<Choice, ApiError>> {
        let tokenizer = &self.server.tokenizer;
        let texts = &mut self.texts;
        let next = poll_fn(|context| {
            let mut ended = true;
            for (index, text) in texts.iter_mut().enumerate() {
                match text.poll_next(tokenizer, context) {
                    Poll::Ready(None) => {}
                    Poll::Ready(Some(piece)) => {
                        let piece = piece.map(|piece| Choice { index, ..piece });
                        return Poll::Ready(Some(piece));
                    }
                    Poll::Pending => ended = false,
                }
            }
            match ended {
                true => Poll::Ready(None),
                false => Poll::Pending,
            }
        });
        let next = next.await;
        if !self.begun && self.texts.iter().any(|text| text.tokens > 0) {
            self.begun = true;
            self.server.metrics.first_token(self.started.elapsed());
        }
        next
    }
}

impl Text {
    fn new(
        request: Request,
        answer: Answer,
        echo: bool,
        tokenizer: &Tokenizer,
    ) -> Result<Self, DataError> {
        let mut text = Self {
            request,
            answer: Some(answer),
            first: None,
            echo,
            scores: Vec::new(),
            before: 0,
            tokens: 0,
        };
        if echo && text.request.alternatives.is_none() {
            text.first = Some(text.prompt(tokenizer)?);
        }
        Ok(text)
    }

    /// The prompt as a part of the text.
    fn prompt(&mut self, tokenizer: &Tokenizer) -> Result<Choice, DataError> {
        let prompt = &self.request.prompt;
        let text = tokenizer.decode(prompt)?;
        self.before = text.chars().count();
        let scores = std::mem::take(&mut self.scores);
        let scored = !scores.is_empty();
        let logprobs = scored.then(|| Logprobs::of_prompt(tokenizer, prompt, &scores));
        Ok(Choice {
            text,
            logprobs: logprobs.transpose()?,
            ..Choice::default()
        })
    }

    fn poll_next(
        &mut self,
        tokenizer: &Tokenizer,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Choice, ApiError>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        while let Some(answer) = &mut self.answer {
            let Poll::Ready(event) = answer.poll_next(context) else {
                return Poll::Pending;
            };
            let piece = match event {
                Some(event) => self.piece(tokenizer, event),
                None => Err(ApiError::internal("the engine has stopped")),
            };
            if piece.is_err() {
                self.answer = None;
            }
            if let Some(piece) = piece.transpose() {
                return Poll::Ready(Some(piece));
            }
        }
        Poll::Ready(None)
    }

    /// What an event is in a reply, if anything.
    fn piece(&mut self, tokenizer: &Tokenizer, event: Event) -> Result<Option<Choice>, ApiError> {
        Ok(match event {
            Event::Prompt(scores) => {
                self.scores.extend(scores);
                let complete = self.scores.len() == self.request.prompt.len();
                let prompt = (complete && self.echo).then(|| self.prompt(tokenizer));
                prompt.transpose().map_err(undecodable)?
            }
            Event::Text(piece) => {
                self.tokens += piece.tokens.len();
                let tokens = &piece.tokens;
                let scored = self.request.alternatives.is_some();
                Some(Choice {
                    logprobs: scored.then(|| Logprobs::of_made(tokenizer, tokens, self.before)),
                    text: piece.text,
                    ..Choice::default()
                })
            }
            Event::End(end) => {
                let end = end?;
                self.answer = None;
                if end.finish == Finish::TimeUp && end.tokens == 0 {
                    return Err(ApiError::no_time());
                }
                self.tokens = end.tokens;
                Some(Choice {
                    finish_reason: Some(finish_reason(end.finish)),
                    ..Choice::default()
                })
            }
        })
    }
}

fn undecodable(error: DataError) -> ApiError {
    ApiError::internal(error.to_string())
}
