//! One sequence, from its request to the end of its answer.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use datasets::Tokenizer;
use kernels::decode::sample::Choice;
use rayon::prelude::*;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedSender;

use super::gauges::Gauges;
use super::request::{End, Event, Finish, Moment, Piece, Request};
use super::score::TokenScore;
use super::text::TextBuffer;
use crate::error::GenerateError;
use crate::sampling::{Sampler, SamplingError};

const LOGITS: &str = "logits for what is chosen or scored here";

/// A checked request on its way to the engine.
#[derive(Debug)]
pub(super) struct Job {
    pub request: Request,
    pub answer: UnboundedSender<Event>,
    /// Its owner: the same number for all requests that were submitted together, and for no others.
    pub owner: u64,
    /// Its place in the queue, which becomes free when this value is dropped.
    pub _place: Option<OwnedSemaphorePermit>,
}

impl Job {
    /// Whether the job ends now: its answer was dropped, or its time is up, which is then sent as its answer.
    pub(super) fn ends(&self, now: Moment) -> bool {
        let time_is_up = now.ends(&self.request);
        if time_is_up {
            let (finish, tokens) = (Finish::TimeUp, 0);
            give(&self.answer, Event::End(Ok(End { finish, tokens })));
        }
        time_is_up || self.answer.is_closed()
    }
}

/// A sequence that is being computed, except for its state in the model.
pub(super) struct Sequence<'t> {
    pub request: Request,
    pub owner: u64,
    /// The newest token, which the model has not read yet.
    pub newest: u32,
    pub gauges: &'t Gauges,
    pub sampler: Sampler,
    answer: UnboundedSender<Event>,
    text: TextBuffer<'t>,
    end_tokens: &'t [u32],
    vocab_size: usize,
    /// The number of tokens that the model can still read after the prompt; `None` without a limit.
    positions_left: Option<usize>,
    made: usize,
}

impl<'t> Sequence<'t> {
    /// Begins the sequence of a job. If a setting of the request is out of range, this error is sent as the answer, and
    /// the result is `None`.
    pub(super) fn begin(
        Job {
            request,
            answer,
            owner,
            ..
        }: Job,
        tokenizer: &'t Tokenizer,
        end_tokens: &'t [u32],
        max_positions: Option<usize>,
        gauges: &'t Gauges,
    ) -> Option<Self> {
        let vocab_size = tokenizer.vocab_size();
        let sampler = match Sampler::new(request.sampling, vocab_size, &request.prompt) {
            Ok(sampler) => sampler,
            Err(error) => {
                give(&answer, Event::End(Err(error.into())));
                return None;
            }
        };
        let tokens = request.prompt.len();
        Some(Self {
            owner,
            newest: 0,
            gauges,
            answer,
            sampler,
            text: TextBuffer::new(tokenizer, &request.prompt, request.stop.clone()),
            end_tokens,
            vocab_size,
            positions_left: max_positions.map(|limit| limit.saturating_sub(tokens)),
            made: 0,
            request,
        })
    }

    /// Whether its time is up, or its answer was dropped.
    pub(super) fn over(&self, now: Moment) -> bool {
        self.answer.is_closed() || now.ends(&self.request)
    }

    /// The scores of the prompt's next tokens. `logits_lv` holds the logits `[l, v]` after each token from position
    /// `read` on, so they score the tokens from `read + 1` on. If `read` is 0, the first score is the `None` of the
    /// prompt's first token.
    ///
    /// # Errors
    /// The logits are not finite.
    pub(super) fn score_prompt(
        &self,
        read: usize,
        logits_lv: &[f32],
        v: usize,
    ) -> Result<Arc<[Option<TokenScore>]>, SamplingError> {
        let n = self.request.alternatives.unwrap_or(0);
        let next = &self.request.prompt[read + 1..];
        let scores = logits_lv.par_chunks(v).zip(next);
        let scores = scores
            .map(|(logits, &token)| TokenScore::new(logits, token, n, self.vocab_size).map(Some));
        let mut scores = scores.collect::<Result<Vec<_>, _>>()?;
        if read == 0 {
            scores.insert(0, None);
        }
        Ok(scores.into())
    }

    /// Sends the scores of the prompt's next tokens.
    pub(super) fn give_scores(&self, scores: Arc<[Option<TokenScore>]>) {
        give(&self.answer, Event::Prompt(scores));
    }

    /// Makes the first token from the logits `[v]` after the prompt. `None` if that was also the last token.
    pub(super) fn begin_writing(mut self, logits: &mut [f32]) -> Option<Self> {
        if self.request.max_tokens == 0 {
            self.finish(Finish::MaxTokens);
            return None;
        }
        let choice = self.sampler.next_choice();
        self.write(choice, None, Some(logits))
    }

    /// Whether it needs the logits even if the device chooses the tokens.
    pub(super) fn scores(&self) -> bool {
        self.request.alternatives.is_some()
    }

    /// Whether, before the next token is known, another token may be needed after it.
    pub(super) fn may_go_on(&self) -> bool {
        self.made + 1 < self.request.max_tokens && self.positions_left != Some(0)
    }

    /// Takes the token that the device has `chosen`, or chooses one by the logits `[v]`, and sends the text that is
    /// complete with it. `None` if it was the last token.
    ///
    /// # Panics
    /// If there are no logits and none was chosen, or the sequence [`scores`](Self::scores).
    pub(super) fn write(
        mut self,
        choice: Choice,
        chosen: Option<Result<u32, SamplingError>>,
        logits: Option<&mut [f32]>,
    ) -> Option<Self> {
        match self.take(choice, chosen, logits) {
            Ok(None) => return Some(self),
            Ok(Some(finish)) => self.finish(finish),
            Err(error) => self.fail(error),
        }
        None
    }

    /// Takes a token like [`write`](Self::write), and returns why the text ends with it, if it does.
    fn take(
        &mut self,
        choice: Choice,
        chosen: Option<Result<u32, SamplingError>>,
        logits: Option<&mut [f32]>,
    ) -> Result<Option<Finish>, GenerateError> {
        let alternatives = self.request.alternatives;
        let unwarped = alternatives.map(|n| (n, logits.as_deref().expect(LOGITS).to_vec()));
        let token = match chosen {
            Some(chosen) => {
                let token = chosen?;
                self.sampler.saw(token);
                token
            }
            None => self
                .sampler
                .choose_at(logits.expect(LOGITS), choice.point)?,
        };
        let score = unwarped
            .map(|(n, logits)| TokenScore::new(&logits, token, n, self.vocab_size))
            .transpose()?;
        self.made += 1;
        self.gauges.tokens.fetch_add(1, Relaxed);
        if self.end_tokens.contains(&token) {
            self.text.push_end(token, score);
            return Ok(Some(Finish::EndOfText));
        }
        give_piece(&self.answer, self.text.push(token, score)?);
        if self.text.stopped() {
            return Ok(Some(Finish::StopString));
        }
        if self.made == self.request.max_tokens {
            return Ok(Some(Finish::MaxTokens));
        }
        if self.positions_left == Some(0) {
            return Ok(Some(Finish::ContextFull));
        }
        self.positions_left = self.positions_left.map(|left| left - 1);
        self.newest = token;
        Ok(None)
    }

    /// Sends the rest of the text, and the end.
    pub(super) fn finish(self, finish: Finish) {
        let rest = match finish {
            // The text that is held back is the stop string, which is not sent.
            Finish::StopString => Ok(Piece::default()),
            _ => self.text.finish(),
        };
        let tokens = self.made;
        let end = rest.map(|rest| {
            give_piece(&self.answer, rest);
            End { finish, tokens }
        });
        give(&self.answer, Event::End(end.map_err(GenerateError::from)));
    }

    /// Ends the answer with an error.
    pub(super) fn fail(self, error: GenerateError) {
        give(&self.answer, Event::End(Err(error)));
    }

    /// Ends several sequences with one error.
    pub(super) fn fail_all(sequences: impl IntoIterator<Item = Self>, error: GenerateError) {
        let reason = match error {
            GenerateError::Device(reason) => reason,
            other => other.to_string(),
        };
        for sequence in sequences {
            sequence.fail(GenerateError::Device(reason.clone()));
        }
    }
}

fn give_piece(answer: &UnboundedSender<Event>, piece: Piece) {
    if piece != Piece::default() {
        give(answer, Event::Text(piece));
    }
}

/// Sends an event. A dropped answer is noticed before the next round.
fn give(answer: &UnboundedSender<Event>, event: Event) {
    let _ = answer.send(event);
}
