//! The texts of one request while they are made.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use datasets::Tokenizer;

use super::Server;
use super::echo::Echo;
use super::error::ApiError;
use super::reply::{CompletionChoice, Logprobs, Usage, finish_reason};
use super::request::CompletionPlan;
use crate::engine::{Answer, Event, Finish, Request};

/// The texts of one request, in the order of their indices. Dropping them ends the work for them.
pub(super) struct TextStreams {
    server: Arc<Server>,
    texts: Vec<TextStream>,
    /// The number of texts of each prompt.
    n: usize,
    /// When the request came.
    started: Instant,
    /// Whether a first token was made.
    begun: bool,
    /// The texts whose time was up before they began, once all others have ended.
    never_begun: Option<Vec<usize>>,
}

/// One text as a stream of pieces.
struct TextStream {
    request: Request,
    /// `None` when the text has ended.
    answer: Option<Answer>,
    /// The piece that is sent before those of the answer.
    first: Option<CompletionChoice>,
    /// The prompt, if the text begins with it.
    echo: Option<Arc<Echo>>,
    /// The number of the prompt's tokens that were sent with their scores.
    echoed: usize,
    /// The number of tokens made.
    tokens: usize,
    /// Whether its time was up before anything of it was made.
    never_begun: bool,
}

impl TextStreams {
    /// Submits the requests to the engine.
    ///
    /// # Errors
    /// The engine refuses them, or has stopped.
    pub(super) fn begin(
        server: Arc<Server>,
        plan: CompletionPlan,
        started: Instant,
    ) -> Result<Self, ApiError> {
        let answers = server.engine.submit(plan.requests.clone())?;
        let both = plan.requests.into_iter().zip(answers).enumerate();
        let texts = both.map(|(i, (request, answer))| {
            let echo = plan.echoes.as_ref().map(|echoes| &echoes[i / plan.n]);
            TextStream::new(request, answer, echo.cloned())
        });
        Ok(Self {
            texts: texts.collect(),
            server,
            n: plan.n,
            started,
            begun: false,
            never_begun: None,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    /// The number of tokens of all texts together.
    pub(super) fn usage(&self) -> Usage {
        // A prompt counts once, however many texts it has.
        let prompts = self.texts.iter().step_by(self.n);
        let prompts = prompts.map(|text| text.request.prompt.len());
        Usage::new(
            prompts.sum(),
            self.texts.iter().map(|text| text.tokens).sum(),
        )
    }

    /// Whether a text lacks the scores of its prompt, or some of them, since its time was up.
    pub(super) fn lacks_scores(&self, index: usize) -> bool {
        let text = &self.texts[index];
        text.request.score_prompt && text.echoed < text.request.prompt.len()
    }

    /// The next piece of any text; `None` when all have ended. A text that has not begun within its time
    /// ends without text, unless no text has begun.
    pub(super) async fn next(&mut self) -> Option<Result<CompletionChoice, ApiError>> {
        let tokenizer = &self.server.tokenizer;
        let texts = &mut self.texts;
        let next = poll_fn(|context| {
            let mut ended = true;
            for (index, text) in texts.iter_mut().enumerate() {
                match text.poll_next(tokenizer, context) {
                    Poll::Ready(None) => {}
                    Poll::Ready(Some(piece)) => {
                        let piece = piece.map(|piece| CompletionChoice { index, ..piece });
                        return Poll::Ready(Some(piece));
                    }
                    Poll::Pending => ended = false,
                }
            }
            if ended {
                Poll::Ready(None)
            } else {
                Poll::Pending
            }
        });
        let next = next.await;
        if !self.begun && self.texts.iter().any(|text| text.tokens > 0) {
            self.begun = true;
            self.server.metrics.first_token(self.started.elapsed());
        }
        match next {
            Some(piece) => Some(piece),
            None => self.next_never_begun(),
        }
    }

    /// The end of a text that has not begun. If none has begun, the first is an error and there is no other.
    fn next_never_begun(&mut self) -> Option<Result<CompletionChoice, ApiError>> {
        if self.never_begun.is_none() {
            let texts = self.texts.iter().enumerate().rev();
            let never = texts.filter(|(_, text)| text.never_begun);
            let never: Vec<usize> = never.map(|(index, _)| index).collect();
            if never.len() == self.texts.len() {
                self.never_begun = Some(Vec::new());
                return Some(Err(ApiError::no_time()));
            }
            self.never_begun = Some(never);
        }
        let index = self.never_begun.as_mut()?.pop()?;
        Some(Ok(CompletionChoice {
            index,
            finish_reason: Some(finish_reason(Finish::TimeUp)),
            ..CompletionChoice::default()
        }))
    }
}

impl TextStream {
    fn new(request: Request, answer: Answer, echo: Option<Arc<Echo>>) -> Self {
        // With scores, the prompt is sent together with them.
        let at_once = echo.as_ref().filter(|_| !request.score_prompt);
        let first = at_once.map(|echo| CompletionChoice {
            text: echo.whole().into(),
            ..CompletionChoice::default()
        });
        Self {
            request,
            answer: Some(answer),
            first,
            echo,
            echoed: 0,
            tokens: 0,
            never_begun: false,
        }
    }

    fn poll_next(
        &mut self,
        tokenizer: &Tokenizer,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<CompletionChoice, ApiError>>> {
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

    /// An event as a piece of a reply, if it is one.
    fn piece(
        &mut self,
        tokenizer: &Tokenizer,
        event: Event,
    ) -> Result<Option<CompletionChoice>, ApiError> {
        Ok(match event {
            Event::Prompt(scores) => {
                let tokens = self.echoed..self.echoed + scores.len();
                self.echoed = tokens.end;
                // The last piece may have no scores: its only token was scored with the piece before.
                let echo = self.echo.as_deref().filter(|_| !tokens.is_empty());
                echo.map(|echo| {
                    let prompt = (&*self.request.prompt, echo);
                    let text = echo.text(tokens.clone()).into();
                    let logprobs = Logprobs::of_prompt(tokenizer, prompt, tokens, &scores);
                    CompletionChoice {
                        text,
                        logprobs: Some(logprobs),
                        ..CompletionChoice::default()
                    }
                })
            }
            Event::Text(piece) => {
                self.tokens += piece.tokens.len();
                let tokens = &piece.tokens;
                let scored = self.request.alternatives.is_some();
                let before = self.echo.as_ref().map_or(0, |echo| echo.characters());
                Some(CompletionChoice {
                    logprobs: scored.then(|| Logprobs::of_made(tokenizer, tokens, before)),
                    text: piece.text,
                    ..CompletionChoice::default()
                })
            }
            Event::End(end) => {
                let end = end?;
                self.answer = None;
                self.tokens = end.tokens;
                if end.finish == Finish::TimeUp && end.tokens == 0 && self.echoed == 0 {
                    self.never_begun = true;
                    return Ok(None);
                }
                Some(CompletionChoice {
                    finish_reason: Some(finish_reason(end.finish)),
                    ..CompletionChoice::default()
                })
            }
        })
    }
}
