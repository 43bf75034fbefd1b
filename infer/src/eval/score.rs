//! Computes the log-likelihoods of requests.

use std::cmp::Reverse;

use burn::tensor::{DType, Int, Tensor, TensorData};
use kernels::KernelBackend;
use kernels::runtime::{BackendError, synchronise};
use model::CausalLm;
use rayon::prelude::*;

use super::encode::ScoreRequest;
use super::error::EvalError;

/// The most rows of logits that exist at the same time. A row has an entry for every token of the vocabulary, so the
/// rows of a whole batch may need more memory than the model.
const LOGIT_ROWS: usize = 1024;

/// The score of one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenScore {
    /// The natural logarithm of its probability.
    pub log_likelihood: f64,
    /// Whether it is the likeliest token at its position.
    pub is_greedy: bool,
}

/// The score of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// The natural logarithm of the probability of the scored tokens.
    pub log_likelihood: f64,
    /// How many tokens were scored.
    pub tokens: u32,
    /// How many of them are the likeliest tokens at their positions.
    pub greedy: u32,
}

impl Score {
    /// The score of all `tokens` together.
    pub fn of(tokens: &[TokenScore]) -> Self {
        Self {
            log_likelihood: tokens.iter().map(|token| token.log_likelihood).sum(),
            tokens: tokens.len() as u32,
            greedy: tokens.iter().filter(|token| token.is_greedy).count() as u32,
        }
    }

    /// Whether each token is the likeliest in its place.
    pub fn is_greedy(&self) -> bool {
        self.greedy == self.tokens
    }

    /// The share of tokens that are the likeliest at their positions.
    pub fn greedy_share(&self) -> f64 {
        f64::from(self.greedy) / f64::from(self.tokens)
    }
}

/// Scores `requests` in batches of `batch_size`, and calls `then` with each request and its score.
///
/// Long requests come first. So batches have similar lengths, the estimated remaining time is too long rather than too
/// short, and a lack of memory is noticed at once. Shorter rows of a batch are padded at the end, which does not change
/// the output of a causal network before the padding. The head is computed only where tokens are scored.
///
/// # Errors
/// [`EvalError::UnknownToken`], before anything is computed; [`EvalError::NotFinite`] and
/// [`EvalError::Device`].
pub fn score<B: KernelBackend>(
    model: &CausalLm<B>,
    requests: &[&ScoreRequest],
    batch_size: usize,
    device: &B::Device,
    mut then: impl FnMut(&ScoreRequest, Score),
) -> Result<(), EvalError> {
    score_tokens(model, requests, batch_size, device, |request, tokens| {
        then(request, Score::of(&tokens));
    })
}

/// [`score`](score()) with the score of each token that is scored.
///
/// # Errors
/// Those of [`score`](score()).
pub fn score_tokens<B: KernelBackend>(
    model: &CausalLm<B>,
    requests: &[&ScoreRequest],
    batch_size: usize,
    device: &B::Device,
    mut then: impl FnMut(&ScoreRequest, Vec<TokenScore>),
) -> Result<(), EvalError> {
    let vocab_size = model.vocab_size();
    let mut ids = requests.iter().flat_map(|request| request.ids());
    if let Some(&token) = ids.find(|&&id| id as usize >= vocab_size) {
        return Err(EvalError::UnknownToken { token, vocab_size });
    }
    let mut sorted = requests.to_vec();
    sorted.sort_by_key(|request| Reverse(request.ids().len()));
    let batches: Vec<_> = sorted.chunks(batch_size.max(1)).collect();
    for side_by_side in batches.chunks(B::lanes()) {
        let scored = |batch: &&[&ScoreRequest]| score_batch(model, batch, device);
        let scores: Vec<_> = match side_by_side {
            // On this thread, since the device's queue of this thread is waited for below.
            [one] => vec![scored(one)],
            several => several.par_iter().map(scored).collect(),
        };
        synchronise::<B>(device)?;
        for (batch, scores) in side_by_side.iter().zip(scores) {
            for (request, score) in batch.iter().zip(scores?) {
                then(request, score);
            }
        }
    }
    Ok(())
}

fn score_batch<B: KernelBackend>(
    model: &CausalLm<B>,
    batch: &[&ScoreRequest],
    device: &B::Device,
) -> Result<Vec<Vec<TokenScore>>, EvalError> {
    // The last id of a request is not read.
    let longest = batch.iter().map(|request| request.ids().len() - 1).max();
    let (b, l) = (batch.len(), longest.unwrap_or_default());
    let mut ids = vec![0; b * l];
    let (mut places, mut targets) = (Vec::new(), Vec::new());
    for (row, request) in batch.iter().enumerate() {
        let all = request.ids();
        let read = &all[..all.len() - 1];
        for (id, &read) in ids[row * l..].iter_mut().zip(read) {
            *id = read as i32;
        }
        let scored = all.len() - request.scored;
        for (place, &id) in all.iter().enumerate().skip(scored) {
            places.push((row * l + place - 1) as i32);
            targets.push(id as i32);
        }
    }

    let ids_bl = Tensor::<B, 2, Int>::from_data(TensorData::new(ids, [b, l]), device);
    let x_bld = model.features(ids_bl);
    let d = x_bld.dims()[2];
    let x_nd = x_bld.reshape([b * l, d]);
    let (mut log_likelihoods, mut is_greedy) = (Vec::new(), Vec::new());
    for (places, targets) in places.chunks(LOGIT_ROWS).zip(targets.chunks(LOGIT_ROWS)) {
        let t = targets.len();
        let places_t = Tensor::<B, 1, Int>::from_data(TensorData::from(places), device);
        let targets_t1 =
            Tensor::<B, 2, Int>::from_data(TensorData::new(targets.to_vec(), [t, 1]), device);
        let x_1td = x_nd.clone().select(0, places_t).reshape([1, t, d]);
        let logits = model.logits(x_1td);
        let v = logits.dims()[2];
        // Half-precision logits are rounded already; the sum over the vocabulary should not be rounded to half
        // precision again.
        let logits = match logits.dtype() {
            DType::F16 | DType::BF16 => logits.cast(DType::F32),
            _ => logits,
        };
        let logits_tv = logits.reshape([t, v]);
        let largest_t1 = logits_tv.clone().max_dim(1);
        let chosen_t1 = logits_tv.clone().gather(1, targets_t1) - largest_t1.clone();
        // Relative to the largest logit, so that nothing overflows.
        let sum_t1 = row_sums((logits_tv.clone() - largest_t1).exp());
        let greedy_t1 = logits_tv.argmax(1);
        log_likelihoods.extend(floats(chosen_t1 - sum_t1.log())?);
        let likeliest = greedy_t1.try_into_data().map_err(failed)?;
        let likeliest: Vec<i64> = likeliest.iter().collect();
        let both = likeliest.iter().zip(targets);
        is_greedy.extend(both.map(|(&likeliest, &target)| likeliest == i64::from(target)));
    }

    let both = log_likelihoods.into_iter().zip(is_greedy);
    let mut tokens = both.map(|(log_likelihood, is_greedy)| TokenScore {
        log_likelihood,
        is_greedy,
    });
    let scores = batch.iter().map(|request| {
        let scores: Vec<TokenScore> = tokens.by_ref().take(request.scored).collect();
        if Score::of(&scores).log_likelihood.is_finite() {
            Ok(scores)
        } else {
            Err(EvalError::NotFinite)
        }
    });
    scores.collect()
}

/// The sums of the rows of `x [t, v]`, as `[t, 1]`. Parts of a row are summed first: most numbers are so small that in
/// f32 they would be lost when added to the sum of a whole vocabulary.
fn row_sums<B: KernelBackend>(x_tv: Tensor<B, 2>) -> Tensor<B, 2> {
    let [t, v] = x_tv.dims();
    let part = 1 << v.trailing_zeros().min(8);
    let parts: Tensor<B, 3> = x_tv.reshape([t, v / part, part]).sum_dim(2);
    parts.reshape([t, v / part]).sum_dim(1)
}

/// Copies `x [t, 1]` to the host.
fn floats<B: KernelBackend>(x: Tensor<B, 2>) -> Result<Vec<f64>, EvalError> {
    let data = x.try_into_data().map_err(failed)?;
    Ok(data.iter::<f64>().collect())
}

fn failed(error: impl std::fmt::Display) -> EvalError {
    EvalError::Device(BackendError::Failed {
        reason: error.to_string(),
    })
}
