//! Generates tokens after a prompt: one pass over the prompt, then one step per token.
//!
//! If the device chooses the tokens, it is one step ahead of the host: the step after a token is queued before the host
//! has read that token, so that the device does not wait for the host. At the end of a text that step was one too many,
//! and the state has read the token that ended the text. A state cannot go back, so a continuation of such a text must
//! read the text again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::{Int, Tensor, TensorData};
use kernels::KernelBackend;
use kernels::decode::sample::Choice;
use model::{CausalLm, State};

use crate::device::{check_so_far, read, settle};
use crate::device_sampler::{Choosing, DeviceSampler};
use crate::error::GenerateError;
use crate::sampling::{Sampler, SamplingSettings};

/// How many tokens of a prompt go through the model at once. Longer prompts are read in pieces, so that
/// the memory of activations is bounded.
pub(crate) const PREFILL_TOKENS: usize = 2048;

/// How a [`Generation`] continues a prompt.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// How tokens are chosen.
    pub sampling: SamplingSettings,
    /// The most tokens to make.
    pub max_tokens: usize,
    /// The size of the tokenizer's vocabulary. Ids from here on are padding of the model's vocabulary, and
    /// are never made.
    pub vocab_size: usize,
    /// The tokens that end a text. The iterator does not return them.
    pub end_tokens: Arc<[u32]>,
    /// The token with which an empty prompt begins, because in training it precedes the first token of a document.
    pub end_of_text: Option<u32>,
    /// The number of positions that attention was trained on, after which a text ends: a teacher's
    /// `max_position_embeddings`. `None` for models without such a limit.
    pub max_positions: Option<usize>,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model ended it.
    EndOfText,
    /// [`GenerateOptions::max_tokens`] were made.
    MaxTokens,
    /// The model has no positions left.
    ContextFull,
}

/// A number of tokens that went through the model, and the time that this took, including copies to and from the device
/// and sampling.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// The number of tokens.
    pub tokens: usize,
    /// The time for all of them.
    pub time: Duration,
}

impl Pace {
    /// Tokens per second; 0 before the first.
    pub fn tokens_per_second(&self) -> f64 {
        match self.tokens {
            0 => 0.0,
            tokens => tokens as f64 / self.time.as_secs_f64().max(1e-9),
        }
    }
}

/// A text and the model's state after it, from which a [`Generation`] can continue.
#[derive(Clone, Debug)]
pub struct Reading<B: KernelBackend> {
    /// The tokens of the text.
    pub ids: Vec<u32>,
    /// The state after the first [`State::position`] tokens. These are all tokens; or all but the last, if the model
    /// has made that one and has not read it yet; or none, if the model ended the text when the device was a step
    /// ahead.
    pub state: State<B>,
    /// The logits `[1, v]` after the last token, in f32; `None` if that token has not been read.
    pub logits: Option<Tensor<B, 2>>,
}

impl<B: KernelBackend> Reading<B> {
    /// An empty text.
    pub fn begin(model: &CausalLm<B>, device: &B::Device) -> Self {
        Self {
            ids: Vec::new(),
            state: model.new_state(1, device),
            logits: None,
        }
    }
}

/// The token that is read next: the model has made it, or it ends the prompt.
struct Newest<B: KernelBackend> {
    id: u32,
    /// The token `[1]` on the device, if it was chosen there.
    on_device: Option<Tensor<B, 1, Int>>,
}

/// The next token, which is being chosen.
struct Next<B: KernelBackend> {
    /// The logits `[1, v]` that it is chosen by.
    logits: Tensor<B, 2>,
    choice: Choice,
    /// The choice on the device; `None` if the host has to choose.
    on_device: Option<Choosing<B>>,
}

/// The continuation of a prompt, as an iterator over its tokens. Each call of `next` computes one step of the model.
///
/// # Errors
/// The iterator returns [`GenerateError::Sampling`] if the logits are not finite, and [`GenerateError::Device`] if the
/// device has failed.
pub struct Generation<'m, B: KernelBackend> {
    model: &'m CausalLm<B>,
    device: B::Device,
    options: GenerateOptions,
    state: State<B>,
    sampler: Sampler,
    device_sampler: DeviceSampler<B>,
    /// The whole text: the prompt and the tokens made.
    ids: Vec<u32>,
    /// The logits `[1, v]` of the next token, if they are computed and no token is being chosen by them yet.
    logits: Option<Tensor<B, 2>>,
    /// The next token, if it is being chosen already: its step was queued right after the token before.
    next: Option<Next<B>>,
    /// The newest token. The model has not read it yet if there are neither logits nor a next token.
    newest: Option<Newest<B>>,
    made: usize,
    stop: Option<Stop>,
    failed: bool,
    prefill: Pace,
    decode: Pace,
}

impl<'m, B: KernelBackend> Generation<'m, B> {
    /// Reads the prompt, a list of token ids.
    ///
    /// # Errors
    /// Every [`GenerateError`] but [`Text`](GenerateError::Text).
    pub fn new(
        model: &'m CausalLm<B>,
        device: &B::Device,
        prompt: &[u32],
        options: GenerateOptions,
    ) -> Result<Self, GenerateError> {
        Self::resume(
            model,
            device,
            Reading::begin(model, device),
            prompt,
            options,
        )
    }

    /// Reads the prompt as a continuation of a text that was read before. The prompt may be empty.
    ///
    /// # Errors
    /// Every [`GenerateError`] but [`Text`](GenerateError::Text).
    pub fn resume(
        model: &'m CausalLm<B>,
        device: &B::Device,
        reading: Reading<B>,
        prompt: &[u32],
        options: GenerateOptions,
    ) -> Result<Self, GenerateError> {
        let started = Instant::now();
        let Reading {
            mut ids,
            mut state,
            logits,
        } = reading;
        let earlier = state.position;
        ids.extend(prompt);
        if ids.is_empty() {
            ids.extend(options.end_of_text);
        }
        check_prompt(&ids, options.max_positions, model.vocab_size())?;
        let logits_size = model.vocab_size();
        let sampler = Sampler::new(options.sampling, options.vocab_size, &ids)?;
        let mut device_sampler = DeviceSampler::new(1, options.vocab_size, logits_size, device);
        device_sampler.begin(0, &sampler);

        let unread = ids.get(earlier..).unwrap_or_default();
        let tokens = unread.len();
        let mut read_now = None;
        for piece in unread.chunks(PREFILL_TOKENS) {
            let ids: Vec<i32> = piece.iter().map(|&id| id as i32).collect();
            let ids_bl = TensorData::new(ids, [1, piece.len()]);
            let ids_bl = Tensor::<B, 2, Int>::from_data(ids_bl, device);
            read_now = Some(model.prefill(ids_bl, &mut state));
        }
        // The time of the prompt ends when the device is done.
        settle::<B>(device)?;
        let logits = read_now.or(logits);
        let newest = ids.last().map(|&id| Newest {
            id,
            on_device: None,
        });
        Ok(Self {
            model,
            device: device.clone(),
            options,
            state,
            sampler,
            device_sampler,
            newest,
            ids,
            logits,
            next: None,
            made: 0,
            stop: None,
            failed: false,
            prefill: Pace {
                tokens,
                time: started.elapsed(),
            },
            decode: Pace::default(),
        })
    }

    /// Why the text has ended; `None` until it has.
    pub fn stop(&self) -> Option<Stop> {
        self.stop
    }

    /// Tokens and time of reading the prompt, up to the logits of the first token.
    pub fn prefill(&self) -> Pace {
        self.prefill
    }

    /// Tokens and time of the steps after the prompt.
    pub fn decode(&self) -> Pace {
        self.decode
    }

    /// The whole text so far: the earlier text, the prompt, and the tokens made.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The size of the model's state, in bytes.
    pub fn state_bytes(&self) -> usize {
        self.state.bytes()
    }

    /// The text so far and the state after it. Right after the prompt, this is what [`state_file`](crate::state_file)
    /// saves; later, the next generation can continue from it.
    pub fn into_reading(self) -> Reading<B> {
        let logits = self.next.map(|next| next.logits).or(self.logits);
        Reading {
            ids: self.ids,
            state: self.state,
            logits,
        }
    }

    /// A copy of what [`into_reading`](Self::into_reading) returns.
    pub fn reading(&self) -> Reading<B> {
        Reading {
            ids: self.ids.clone(),
            state: self.state.clone(),
            logits: self
                .next
                .as_ref()
                .map(|next| &next.logits)
                .or(self.logits.as_ref())
                .cloned(),
        }
    }

    fn advance(&mut self) -> Result<Option<u32>, GenerateError> {
        if self.made == self.options.max_tokens {
            return Ok(self.end(Stop::MaxTokens));
        }
        let next = match (self.next.take(), self.logits.take()) {
            (Some(next), _) => next,
            (None, Some(logits)) => self.choose(logits),
            (None, None) if !self.has_positions() => return Ok(self.end(Stop::ContextFull)),
            (None, None) => self.step(),
        };
        let mut logits = Some(next.logits);
        let (token, on_device) = match next.on_device {
            Some(choosing) => {
                let id = choosing.ids_b.clone();
                if self.made + 1 < self.options.max_tokens && self.has_positions() {
                    // Frees their memory for the logits of the next step.
                    logits = None;
                    self.next = Some(self.step_over(id.clone()));
                }
                let token = choosing.wait()?.remove(0)?;
                // If a step has failed on the device, the old values are still there, so this must be checked before
                // they are used.
                check_so_far::<B>(&self.device)?;
                self.sampler.saw(token);
                (token, Some(id))
            }
            None => {
                let mut logits = logits.clone().map(read).expect("they are there")?;
                let token = self.sampler.choose_at(&mut logits, next.choice.point)?;
                (token, None)
            }
        };
        if self.options.end_tokens.contains(&token) {
            // The text ends before this token, so these logits still belong to its end.
            self.logits = logits;
            if self.next.take().is_some() {
                // The state has read the token that ended the text, so it is replaced by an empty one.
                self.state = self.model.new_state(1, &self.device);
                self.decode.tokens -= 1;
            }
            return Ok(self.end(Stop::EndOfText));
        }
        self.newest = Some(Newest {
            id: token,
            on_device,
        });
        self.ids.push(token);
        self.made += 1;
        Ok(Some(token))
    }

    /// Begins to choose the next token by its logits `[1, v]`.
    fn choose(&mut self, logits: Tensor<B, 2>) -> Next<B> {
        let choice = self.sampler.next_choice();
        Next {
            on_device: self.device_sampler.choose(logits.clone(), &[choice]),
            logits,
            choice,
        }
    }

    fn end(&mut self, stop: Stop) -> Option<u32> {
        self.stop = Some(stop);
        None
    }

    /// Whether the model has a position for another token.
    fn has_positions(&self) -> bool {
        let limit = self.options.max_positions;
        limit.is_none_or(|limit| self.state.position < limit)
    }

    /// Reads the newest token, and begins to choose the next one.
    fn step(&mut self) -> Next<B> {
        let newest = self
            .newest
            .take()
            .expect("logits come before the first token");
        let id = newest
            .on_device
            .unwrap_or_else(|| Tensor::<B, 1, Int>::from_ints([newest.id as i32], &self.device));
        self.step_over(id)
    }

    /// Reads the token `[1]`, and begins to choose the next one.
    fn step_over(&mut self, id: Tensor<B, 1, Int>) -> Next<B> {
        self.decode.tokens += 1;
        let logits = self.model.step(id, &mut self.state);
        self.choose(logits)
    }
}

impl<B: KernelBackend> Iterator for Generation<'_, B> {
    type Item = Result<u32, GenerateError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.stop.is_some() || self.failed {
            return None;
        }
        let started = Instant::now();
        let token = self.advance();
        self.decode.time += started.elapsed();
        if token.is_err() {
            // The state may be a step ahead, and the logits are lost, so a continuation of this text reads it again.
            self.next = None;
            self.state = self.model.new_state(1, &self.device);
            self.failed = true;
        }
        token.transpose()
    }
}

/// Checks that a model with `vocab_size` embeddings can read a prompt.
///
/// # Errors
/// [`GenerateError::EmptyPrompt`], [`GenerateError::PromptTooLong`] and [`GenerateError::UnknownToken`].
pub(crate) fn check_prompt(
    prompt: &[u32],
    max_positions: Option<usize>,
    vocab_size: usize,
) -> Result<(), GenerateError> {
    let tokens = prompt.len();
    if tokens == 0 {
        return Err(GenerateError::EmptyPrompt);
    }
    if let Some(limit) = max_positions.filter(|&limit| tokens > limit) {
        return Err(GenerateError::PromptTooLong { tokens, limit });
    }
    match prompt.iter().find(|&&id| id as usize >= vocab_size) {
        Some(&token) => Err(GenerateError::UnknownToken { token, vocab_size }),
        None => Ok(()),
    }
}
