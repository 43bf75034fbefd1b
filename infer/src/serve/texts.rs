//! The texts of one request while they are made.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use datasets::Tokenizer;

use super::Server;
use super::echo::Echo;
use super::error::ApiError;
use super::reply::{Usage, finish_reason};
use super::request::TextPlan;
use crate::engine::{Answer, Event, Finish, Request, Token, TokenScore};

/// A text, or a piece of it.
#[derive(Debug, Default)]
pub(super) struct TextPiece {
    /// The index of the text within its request.
    pub index: usize,
    /// Whole characters, possibly none.
    pub text: String,
    /// Its tokens with their scores, if these were asked for.
    pub tokens: Option<Vec<ScoredToken>>,
    /// Why the text has ended, if it has.
    pub finish: Option<&'static str>,
}

/// A token of a text.
#[derive(Debug)]
pub(super) struct ScoredToken {
    /// Its id.
    pub id: u32,
    /// The number of characters before it.
    pub offset: usize,
    /// How likely it was; `None` for the first token of a prompt.
    pub score: Option<TokenScore>,
    /// Whether it has ended the text, and has no text itself.
    pub is_end: bool,
}

impl TextPiece {
    /// Appends `more`.
    pub(super) fn extend(&mut self, more: Self) {
        self.text.push_str(&more.text);
        self.finish = more.finish.or(self.finish);
        match (&mut self.tokens, more.tokens) {
            (Some(tokens), Some(more)) => tokens.extend(more),
            (tokens @ None, more) => *tokens = more,
            (Some(_), None) => {}
        }
    }
}

/// The texts of one request, in the order of their indices. Dropping them ends the work for them.
pub(super) struct TextStreams {
    server: Arc<Server>,
    texts: Vec<TextStream>,
    /// The number of texts of each prompt.
    n: usize,
    /// When the request came.
    started: Instant,
    /// Whether any first token was made.
    begun: bool,
    /// The texts whose time was up before they began; `None` until all other texts have ended.
    never_begun: Option<Vec<usize>>,
}

/// One text as a stream of pieces.
struct TextStream {
    request: Request,
    /// `None` when the text has ended.
    answer: Option<Answer>,
    /// A piece that is sent before those of the answer.
    first: Option<TextPiece>,
    /// The prompt, if the text begins with it.
    echo: Option<Arc<Echo>>,
    /// The number of the prompt's tokens that were sent with their scores.
    echoed: usize,
    /// The number of tokens made.
    tokens: usize,
    /// Whether its time was up before any token was made.
    never_begun: bool,
}

impl TextStreams {
    /// Submits the requests to the engine.
    ///
    /// # Errors
    /// The engine refuses them, or has stopped.
    pub(super) fn begin(
        server: Arc<Server>,
        plan: TextPlan,
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

    pub(super) fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.server.tokenizer
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

    /// Whether the scores of a text's tokens were asked for.
    pub(super) fn is_scored(&self, index: usize) -> bool {
        self.texts[index].request.alternatives.is_some()
    }

    /// Whether scores of a text's prompt are missing because its time was up.
    pub(super) fn lacks_scores(&self, index: usize) -> bool {
        let text = &self.texts[index];
        text.request.score_prompt && text.echoed < text.request.prompt.len()
    }

    /// The next piece of any text; `None` when all have ended. A text that has not begun within its time ends without
    /// text; if no text at all has begun, it is an error.
    pub(super) async fn next(&mut self) -> Option<Result<TextPiece, ApiError>> {
        let texts = &mut self.texts;
        let next = poll_fn(|context| {
            let mut ended = true;
            for (index, text) in texts.iter_mut().enumerate() {
                match text.poll_next(context) {
                    Poll::Ready(None) => {}
                    Poll::Ready(Some(piece)) => {
                        let piece = piece.map(|piece| TextPiece { index, ..piece });
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

    /// The end of a text that has not begun. If no text has begun, the first one gives an error, and nothing follows.
    fn next_never_begun(&mut self) -> Option<Result<TextPiece, ApiError>> {
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
        Some(Ok(TextPiece {
            index,
            finish: Some(finish_reason(Finish::TimeUp)),
            ..TextPiece::default()
        }))
    }
}

impl TextStream {
    fn new(request: Request, answer: Answer, echo: Option<Arc<Echo>>) -> Self {
        // If scores are asked for, the prompt is sent together with them.
        let at_once = echo.as_ref().filter(|_| !request.score_prompt);
        let first = at_once.map(|echo| TextPiece {
            text: echo.whole().into(),
            ..TextPiece::default()
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
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<TextPiece, ApiError>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        while let Some(answer) = &mut self.answer {
            let Poll::Ready(event) = answer.poll_next(context) else {
                return Poll::Pending;
            };
            let piece = match event {
                Some(event) => self.piece(event),
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
    fn piece(&mut self, event: Event) -> Result<Option<TextPiece>, ApiError> {
        Ok(match event {
            Event::Prompt(scores) => {
                let tokens = self.echoed..self.echoed + scores.len();
                self.echoed = tokens.end;
                // The last piece may have no tokens: its only token was sent with the piece before.
                let echo = self.echo.as_deref().filter(|_| !tokens.is_empty());
                echo.map(|echo| {
                    let scored = tokens.clone().zip(&*scores).map(|(i, score)| ScoredToken {
                        id: self.request.prompt[i],
                        offset: echo.characters_before(i),
                        score: score.clone(),
                        is_end: false,
                    });
                    TextPiece {
                        tokens: Some(scored.collect()),
                        text: echo.text(tokens).into(),
                        ..TextPiece::default()
                    }
                })
            }
            Event::Text(piece) => {
                self.tokens += piece.tokens.len();
                let before = self.echo.as_ref().map_or(0, |echo| echo.characters());
                let scored = |token: Token| ScoredToken {
                    id: token.id,
                    offset: before + token.start,
                    score: token.score,
                    is_end: token.is_end,
                };
                let is_scored = self.request.alternatives.is_some();
                Some(TextPiece {
                    tokens: is_scored.then(|| piece.tokens.into_iter().map(scored).collect()),
                    text: piece.text,
                    ..TextPiece::default()
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
                Some(TextPiece {
                    finish: Some(finish_reason(end.finish)),
                    ..TextPiece::default()
                })
            }
        })
    }
}
