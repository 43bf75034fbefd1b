//! The texts of one request while they are made.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use datasets::Tokenizer;

use super::Server;
use super::echo::Echo;
use super::error::ApiError;
use super::reply::{Choice, Logprobs, Usage, finish_reason};
use super::request::Plan;
use crate::engine::{Answer, Event, Finish, Request};

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
    /// The prompt, if the text begins with it.
    echo: Option<Arc<Echo>>,
    /// Tokens of the prompt that have gone out with their scores.
    echoed: usize,
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
        let both = plan.requests.into_iter().zip(answers).enumerate();
        let texts = both.map(|(i, (request, answer))| {
            let echo = plan.echoes.as_ref().map(|echoes| &echoes[i / plan.n]);
            Text::new(request, answer, echo.cloned())
        });
        Ok(Self {
            texts: texts.collect(),
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
    fn new(request: Request, answer: Answer, echo: Option<Arc<Echo>>) -> Self {
        // With scores, the prompt goes out as they come.
        let at_once = echo.as_ref().filter(|_| !request.score_prompt);
        let first = at_once.map(|echo| Choice {
            text: echo.whole().into(),
            ..Choice::default()
        });
        Self {
            request,
            answer: Some(answer),
            first,
            echo,
            echoed: 0,
            tokens: 0,
        }
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
                let tokens = self.echoed..self.echoed + scores.len();
                self.echoed = tokens.end;
                // Of the last piece, the only token may have been scored with those before it.
                let echo = self.echo.as_deref().filter(|_| !tokens.is_empty());
                echo.map(|echo| {
                    let prompt = (&*self.request.prompt, echo);
                    let text = echo.text(tokens.clone()).into();
                    let logprobs = Logprobs::of_prompt(tokenizer, prompt, tokens, &scores);
                    Choice {
                        text,
                        logprobs: Some(logprobs),
                        ..Choice::default()
                    }
                })
            }
            Event::Text(piece) => {
                self.tokens += piece.tokens.len();
                let tokens = &piece.tokens;
                let scored = self.request.alternatives.is_some();
                let before = self.echo.as_ref().map_or(0, |echo| echo.characters());
                Some(Choice {
                    logprobs: scored.then(|| Logprobs::of_made(tokenizer, tokens, before)),
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
