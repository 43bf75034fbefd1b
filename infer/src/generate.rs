//! From a prompt to more tokens: one pass over the prompt, then one step a token.

use std::time::{Duration, Instant};

use burn::tensor::{Int, Tensor, TensorData};
use kernels::KernelBackend;
use model::{CausalLm, State};

use crate::sampling::{Sampler, SamplingError, SamplingSettings};

/// How many tokens of a prompt go through the model at once. Longer prompts go piece by piece, so
/// that activations take bounded memory whatever the length.
const PREFILL_TOKENS: usize = 2048;

/// What a [`Generation`] needs to know beside the model and the prompt.
#[derive(Clone, Copy, Debug)]
pub struct GenerateOptions {
    /// How tokens are chosen.
    pub sampling: SamplingSettings,
    /// The most tokens to make.
    pub max_tokens: usize,
    /// The tokenizer's vocabulary: ids from here on, the padding of the model's, are never made.
    pub vocab_size: usize,
    /// The token that ends a text. It is not given out, and an empty prompt begins with it: in
    /// training, it is what stands before the first token of a document.
    pub end_of_text: Option<u32>,
    /// The positions that the model was trained on, of which attention cannot leave: the
    /// `max_position_embeddings` of a Phi. `None` for models without such an end.
    pub max_positions: Option<usize>,
}

/// Why tokens cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// There is nothing to predict from.
    #[error(
        "the prompt is empty and the tokenizer has no end-of-text token to begin with; give a prompt"
    )]
    EmptyPrompt,
    /// More tokens than a model with attention has positions for.
    #[error(
        "the prompt has {tokens} tokens, the model has positions for {limit} \
         (max_position_embeddings in its config.json); shorten the prompt"
    )]
    PromptTooLong {
        /// The prompt's length.
        tokens: usize,
        /// The model's limit.
        limit: usize,
    },
    /// A token that the model has no embedding for.
    #[error(
        "the prompt has token {token}, the model's vocabulary ends at {vocab_size}; the tokenizer \
         does not belong to this model"
    )]
    UnknownToken {
        /// The token.
        token: u32,
        /// The model's vocabulary, padding included.
        vocab_size: usize,
    },
    /// Settings without meaning, or logits that are no scores.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The backend failed to compute.
    #[error("the logits cannot be read from the device: {0}")]
    Device(String),
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model ended it.
    EndOfText,
    /// [`GenerateOptions::max_tokens`] were made.
    MaxTokens,
    /// The model has no position left.
    ContextFull,
}

/// Tokens through the model, and the time they took with everything that belongs to them: copies
/// to and from the device, sampling.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// How many.
    pub tokens: usize,
    /// In how long.
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

/// The continuation of a prompt, as an iterator over its tokens. A step is computed when its token is
/// asked for.
pub struct Generation<'m, B: KernelBackend> {
    model: &'m CausalLm<B>,
    device: B::Device,
    options: GenerateOptions,
    state: State<B>,
    sampler: Sampler,
    /// The logits that the next token comes from, if they are there already.
    logits: Option<Vec<f32>>,
    /// The newest token, which has yet to go through the model.
    newest: u32,
    made: usize,
    stop: Option<Stop>,
    prefill: Pace,
    decode: Pace,
}

impl<'m, B: KernelBackend> Generation<'m, B> {
    /// Reads the prompt.
    ///
    /// # Errors
    ///
    /// Every [`GenerateError`].
    pub fn new(
        model: &'m CausalLm<B>,
        device: &B::Device,
        prompt: &[u32],
        options: GenerateOptions,
    ) -> Result<Self, GenerateError> {
        let started = Instant::now();
        let begin = options.end_of_text.as_slice();
        let prompt = if prompt.is_empty() { begin } else { prompt };
        let &newest = prompt.last().ok_or(GenerateError::EmptyPrompt)?;
        let tokens = prompt.len();
        if let Some(limit) = options.max_positions.filter(|&limit| tokens > limit) {
            return Err(GenerateError::PromptTooLong { tokens, limit });
        }
        let vocab_size = model.vocab_size();
        if let Some(&token) = prompt.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(GenerateError::UnknownToken { token, vocab_size });
        }
        let sampler = Sampler::new(options.sampling, options.vocab_size, prompt)?;

        let mut state = model.new_state(1, device);
        let mut logits = None;
        for piece in prompt.chunks(PREFILL_TOKENS) {
            let ids: Vec<i32> = piece.iter().map(|&id| id as i32).collect();
            let ids_bl = TensorData::new(ids, [1, piece.len()]);
            let ids_bl = Tensor::<B, 2, Int>::from_data(ids_bl, device);
            logits = Some(model.prefill(ids_bl, &mut state));
        }
        Ok(Self {
            model,
            device: device.clone(),
            options,
            state,
            sampler,
            logits: logits.map(read).transpose()?,
            newest,
            made: 0,
            stop: None,
            prefill: Pace {
                tokens,
                time: started.elapsed(),
            },
            decode: Pace::default(),
        })
    }

    /// Why there are no more tokens; `None` while there are.
    pub fn stop(&self) -> Option<Stop> {
        self.stop
    }

    /// The pace of the prompt, up to the first token's logits.
    pub fn prefill(&self) -> Pace {
        self.prefill
    }

    /// The pace of the steps after it.
    pub fn decode(&self) -> Pace {
        self.decode
    }

    /// What the model carries from token to token, in bytes.
    pub fn state_bytes(&self) -> usize {
        self.state.bytes()
    }

    fn advance(&mut self) -> Result<Option<u32>, GenerateError> {
        if self.made == self.options.max_tokens {
            return Ok(self.end(Stop::MaxTokens));
        }
        let mut logits = match self.logits.take() {
            Some(logits) => logits,
            None if self.positions_left() == Some(0) => return Ok(self.end(Stop::ContextFull)),
            None => self.step()?,
        };
        let token = self.sampler.choose(&mut logits)?;
        if Some(token) == self.options.end_of_text {
            return Ok(self.end(Stop::EndOfText));
        }
        self.newest = token;
        self.made += 1;
        Ok(Some(token))
    }

    fn end(&mut self, stop: Stop) -> Option<u32> {
        self.stop = Some(stop);
        None
    }

    fn positions_left(&self) -> Option<usize> {
        let taken = self.prefill.tokens + self.decode.tokens;
        Some(self.options.max_positions?.saturating_sub(taken))
    }

    fn step(&mut self) -> Result<Vec<f32>, GenerateError> {
        let ids_b = Tensor::<B, 1, Int>::from_ints([self.newest as i32], &self.device);
        let logits = read(self.model.step(ids_b, &mut self.state))?;
        self.decode.tokens += 1;
        Ok(logits)
    }
}

impl<B: KernelBackend> Iterator for Generation<'_, B> {
    type Item = Result<u32, GenerateError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.stop.is_some() {
            return None;
        }
        let started = Instant::now();
        let token = self.advance();
        self.decode.time += started.elapsed();
        token.transpose()
    }
}

/// Waits for logits `[1, v]`.
fn read<B: KernelBackend>(logits: Tensor<B, 2>) -> Result<Vec<f32>, GenerateError> {
    let data = logits
        .try_into_data()
        .map_err(|error| GenerateError::Device(error.to_string()))?;
    data.convert::<f32>()
        .into_vec()
        .map_err(|error| GenerateError::Device(format!("{error:?}")))
}
