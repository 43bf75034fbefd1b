//! From a prompt to more tokens: one pass over the prompt, then one step a token.

use std::time::{Duration, Instant};

use burn::tensor::{Int, Tensor, TensorData};
use kernels::KernelBackend;
use kernels::backends::synchronise;
use model::{CausalLm, State};

use crate::chooser::Chooser;
use crate::sampling::{Sampler, SamplingError, SamplingSettings};

/// How many tokens of a prompt go through the model at once. Longer prompts go piece by piece, so
/// that activations take bounded memory whatever the length.
pub(crate) const PREFILL_TOKENS: usize = 2048;

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
    /// The tokenizer cannot turn a token into text.
    #[error(transparent)]
    Text(#[from] datasets::DataError),
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

/// A text and how far a model has read it, for a [`Generation`] to go on from.
#[derive(Clone, Debug)]
pub struct Reading<B: KernelBackend> {
    /// The tokens of the text.
    pub ids: Vec<u32>,
    /// The state behind the first [`State::position`] of them: all, or all but the last, if that was
    /// made and has not been read yet.
    pub state: State<B>,
    /// The logits `[1, v]` behind the last token, if it has been read.
    pub logits: Option<Tensor<B, 2>>,
}

impl<B: KernelBackend> Reading<B> {
    /// Of an empty text.
    pub fn begin(model: &CausalLm<B>, device: &B::Device) -> Self {
        Self {
            ids: Vec::new(),
            state: model.new_state(1, device),
            logits: None,
        }
    }
}

/// A token, and its id `[1]` on the device if it was chosen there, so that it need not go back.
struct Newest<B: KernelBackend> {
    id: u32,
    on_device: Option<Tensor<B, 1, Int>>,
}

/// The continuation of a prompt, as an iterator over its tokens. A step is computed when its token is
/// asked for.
pub struct Generation<'m, B: KernelBackend> {
    model: &'m CausalLm<B>,
    device: B::Device,
    options: GenerateOptions,
    state: State<B>,
    sampler: Sampler,
    chooser: Chooser<B>,
    /// The whole text, with what has been made of it.
    ids: Vec<u32>,
    /// The logits `[1, v]` that the next token comes from, if they are there already.
    logits: Option<Tensor<B, 2>>,
    /// The newest token, which has yet to go through the model.
    newest: Option<Newest<B>>,
    /// Tokens that had been read before.
    earlier: usize,
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
        Self::resume(
            model,
            device,
            Reading::begin(model, device),
            prompt,
            options,
        )
    }

    /// Reads the prompt after a text that has been read before, which the model then continues as one
    /// text. Without a prompt it continues what there is.
    ///
    /// # Errors
    ///
    /// Every [`GenerateError`].
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
        let mut chooser = Chooser::new(1, options.vocab_size, logits_size, device);
        chooser.begin(0, &sampler);

        let unread = ids.get(earlier..).unwrap_or_default();
        let tokens = unread.len();
        let mut read_now = None;
        for piece in unread.chunks(PREFILL_TOKENS) {
            let ids: Vec<i32> = piece.iter().map(|&id| id as i32).collect();
            let ids_bl = TensorData::new(ids, [1, piece.len()]);
            let ids_bl = Tensor::<B, 2, Int>::from_data(ids_bl, device);
            read_now = Some(model.prefill(ids_bl, &mut state));
        }
        // So that the time of the prompt is what it took.
        synchronise::<B>(device).map_err(|error| GenerateError::Device(error.to_string()))?;
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
            chooser,
            newest,
            ids,
            logits,
            earlier,
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

    /// How far the text has come: behind the prompt, what [`snapshot`](crate::snapshot) keeps; later,
    /// where the next generation goes on.
    pub fn into_reading(self) -> Reading<B> {
        Reading {
            ids: self.ids,
            state: self.state,
            logits: self.logits,
        }
    }

    /// [`into_reading`](Self::into_reading), of a copy.
    pub fn reading(&self) -> Reading<B> {
        Reading {
            ids: self.ids.clone(),
            state: self.state.clone(),
            logits: self.logits.clone(),
        }
    }

    fn advance(&mut self) -> Result<Option<u32>, GenerateError> {
        if self.made == self.options.max_tokens {
            return Ok(self.end(Stop::MaxTokens));
        }
        let logits = match self.logits.take() {
            Some(logits) => logits,
            None if self.positions_left() == Some(0) => return Ok(self.end(Stop::ContextFull)),
            None => self.step(),
        };
        let newest = self.choose(logits.clone())?;
        let token = newest.id;
        if Some(token) == self.options.end_of_text {
            // Nothing has joined the text, so what is behind it is what was.
            self.logits = Some(logits);
            return Ok(self.end(Stop::EndOfText));
        }
        self.newest = Some(newest);
        self.ids.push(token);
        self.made += 1;
        Ok(Some(token))
    }

    /// The next token by its logits `[1, v]`.
    fn choose(&mut self, logits: Tensor<B, 2>) -> Result<Newest<B>, GenerateError> {
        let choice = self.sampler.next_choice();
        let chosen = self.chooser.choose(logits.clone(), &[choice])?;
        let id = match chosen.tokens[0] {
            Some(id) => {
                self.sampler.saw(id);
                id
            }
            None => self.sampler.choose_at(&mut read(logits)?, choice.point)?,
        };
        let on_device = chosen.on_device;
        Ok(Newest { id, on_device })
    }

    fn end(&mut self, stop: Stop) -> Option<u32> {
        self.stop = Some(stop);
        None
    }

    fn positions_left(&self) -> Option<usize> {
        let taken = self.earlier + self.prefill.tokens + self.decode.tokens;
        Some(self.options.max_positions?.saturating_sub(taken))
    }

    /// The logits after the newest token.
    fn step(&mut self) -> Tensor<B, 2> {
        let newest = self
            .newest
            .take()
            .expect("logits come before the first token");
        let ids_b = newest
            .on_device
            .unwrap_or_else(|| Tensor::<B, 1, Int>::from_ints([newest.id as i32], &self.device));
        self.decode.tokens += 1;
        self.model.step(ids_b, &mut self.state)
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

/// That a model with `vocab_size` embeddings can read a prompt.
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

/// Waits for logits.
pub(crate) fn read<B: KernelBackend, const D: usize>(
    logits: Tensor<B, D>,
) -> Result<Vec<f32>, GenerateError> {
    let data = logits
        .try_into_data()
        .map_err(|error| GenerateError::Device(error.to_string()))?;
    data.convert::<f32>()
        .into_vec()
        .map_err(|error| GenerateError::Device(format!("{error:?}")))
}
