//! Chooses the next token from the logits of one position.
//!
//! The warpers below are pure functions on a slice of logits, one for each setting. Each does the same as the class of
//! the same name in Hugging Face's `transformers`, also for ties and for the rounding of probabilities to f32. A
//! removed token gets the logit `-inf`; at least one token always remains. [`Sampler`] applies them in the order of
//! `transformers` and then draws a token.

use std::collections::BTreeSet;

use chacha20::ChaCha8Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use kernels::decode::sample::{Choice, Warp};

/// How the next token is chosen. The default is greedy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingSettings {
    /// Above 1, tokens that occur in the prompt or the text so far become less likely; 1 is off.
    pub repetition_penalty: f32,
    /// The logits are divided by this; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Only the `top_k` likeliest tokens can be drawn; 0 is off, 1 always takes the likeliest token.
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability can be drawn; 1 is off.
    ///
    /// In f64, since `1 - top_p` is computed before it is rounded to the f32 of the probabilities.
    pub top_p: f64,
    /// Only tokens at least this fraction as likely as the likeliest can be drawn; 0 is off.
    pub min_p: f32,
    /// The seed of the random numbers.
    pub seed: u64,
}

impl Default for SamplingSettings {
    fn default() -> Self {
        Self {
            repetition_penalty: 1.0,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
        }
    }
}

impl SamplingSettings {
    /// Checks that every setting is in its range.
    ///
    /// # Errors
    /// [`SamplingError::Setting`] for the first that is not.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let penalty = f64::from(self.repetition_penalty);
        let temperature = f64::from(self.temperature);
        let min_p = f64::from(self.min_p);
        let wrong = |name, value, range| Err(SamplingError::Setting { name, value, range });
        if !(penalty > 0.0 && penalty.is_finite()) {
            return wrong("repetition_penalty", penalty, "above 0");
        }
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return wrong("temperature", temperature, "0 or above");
        }
        if !(0.0..=1.0).contains(&self.top_p) {
            return wrong("top_p", self.top_p, "from 0 to 1");
        }
        if !(0.0..=1.0).contains(&min_p) {
            return wrong("min_p", min_p, "from 0 to 1");
        }
        Ok(())
    }
}

/// Why no token could be chosen.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub enum SamplingError {
    /// A setting is out of its range.
    #[error("{} is {value}; it must be {range}", name.replace('_', "-"))]
    Setting {
        /// The field of [`SamplingSettings`], which the command line writes with hyphens.
        name: &'static str,
        /// Its value.
        value: f64,
        /// The range, in words.
        range: &'static str,
    },
    /// A logit is NaN or `+inf`.
    #[error(
        "the model's logit for token {token} is {logit}, which is no score; its weights are broken \
         or its arithmetic overflowed"
    )]
    NotAScore {
        /// The first such token.
        token: usize,
        /// Its logit.
        logit: f32,
    },
    /// Every logit is `-inf`, or there is none.
    #[error("the model gives no token a chance: every logit is -inf")]
    NoToken,
}

/// Chooses tokens one after another. It remembers them for the repetition penalty.
///
/// ```
/// use infer::{Sampler, SamplingSettings};
///
/// let mut greedy = Sampler::new(SamplingSettings::default(), 3, &[])?;
/// assert_eq!(greedy.choose(&mut [0.5, 2.0, 1.0])?, 1);
/// # Ok::<(), infer::SamplingError>(())
/// ```
pub struct Sampler {
    settings: SamplingSettings,
    vocab_size: usize,
    seen: BTreeSet<u32>,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler for a text that starts with `prompt`. It never chooses `vocab_size` or a larger id: models
    /// pad their vocabulary with rows that were never trained.
    ///
    /// # Errors
    /// [`SamplingError::Setting`].
    pub fn new(
        settings: SamplingSettings,
        vocab_size: usize,
        prompt: &[u32],
    ) -> Result<Self, SamplingError> {
        settings.validate()?;
        Ok(Self {
            settings,
            vocab_size,
            seen: prompt.iter().copied().collect(),
            rng: ChaCha8Rng::seed_from_u64(settings.seed),
        })
    }

    /// Chooses the next token from its logits `[v]`, which are warped in place.
    ///
    /// # Errors
    /// [`SamplingError::NotAScore`] and [`SamplingError::NoToken`].
    pub fn choose(&mut self, logits: &mut [f32]) -> Result<u32, SamplingError> {
        let point = self.next_choice().point;
        self.choose_at(logits, point)
    }

    /// How the next token is chosen: the settings and, unless they are greedy, a new random number, which is the point
    /// at which the cumulative distribution is cut.
    pub(crate) fn next_choice(&mut self) -> Choice {
        let warp = Warp::from(&self.settings);
        let point = if warp.is_greedy() {
            0.0
        } else {
            uniform(&mut self.rng)
        };
        Choice { warp, point }
    }

    /// [`choose`](Self::choose) by the point of a [`next_choice`](Self::next_choice).
    ///
    /// # Errors
    /// As [`choose`](Self::choose).
    pub(crate) fn choose_at(
        &mut self,
        logits: &mut [f32],
        point: f64,
    ) -> Result<u32, SamplingError> {
        let vocab_size = self.vocab_size.min(logits.len());
        let logits = &mut logits[..vocab_size];
        let broken = |logit: &f32| logit.is_nan() || *logit == f32::INFINITY;
        if let Some(token) = logits.iter().position(broken) {
            let logit = logits[token];
            return Err(SamplingError::NotAScore { token, logit });
        }

        let settings = &self.settings;
        repetition_penalty(logits, &self.seen, settings.repetition_penalty);
        let token = if Warp::from(settings).is_greedy() {
            likeliest(logits)?
        } else {
            temperature(logits, settings.temperature);
            top_k(logits, settings.top_k);
            top_p(logits, settings.top_p);
            min_p(logits, settings.min_p);
            draw(logits, point)?
        };
        self.saw(token);
        Ok(token)
    }

    /// Remembers a token that the device has chosen.
    pub(crate) fn saw(&mut self, token: u32) {
        self.seen.insert(token);
    }

    pub(crate) fn settings(&self) -> &SamplingSettings {
        &self.settings
    }

    /// The distinct tokens of the text so far.
    pub(crate) fn seen(&self) -> &BTreeSet<u32> {
        &self.seen
    }
}

/// `RepetitionPenaltyLogitsProcessor`: divides the positive logits of the `seen` tokens by `penalty` and multiplies the
/// negative ones by it. This is done once for each token, however often it was seen.
pub fn repetition_penalty(logits: &mut [f32], seen: &BTreeSet<u32>, penalty: f32) {
    for &token in seen {
        let Some(logit) = logits.get_mut(token as usize) else {
            continue;
        };
        // Neither a large penalty nor one near 0 makes a logit infinite; a removed token stays removed.
        if *logit >= 0.0 {
            *logit = (*logit / penalty).min(f32::MAX);
        } else if logit.is_finite() {
            *logit = (*logit * penalty).max(f32::MIN);
        }
    }
}

/// `TemperatureLogitsWarper`: divides the logits by `temperature`, which is above 0.
///
/// The largest logit is subtracted first. That changes no probability, and then even the smallest
/// temperature makes no logit infinite.
pub fn temperature(logits: &mut [f32], temperature: f32) {
    let max = max(logits);
    if max.is_finite() {
        for logit in logits {
            *logit = (*logit - max) / temperature;
        }
    }
}

/// `TopKLogitsWarper`: removes the tokens below the `k`-th largest logit. All tokens that are equal to it remain. If
/// `k` is 0 or above the size of the vocabulary, nothing is removed.
pub fn top_k(logits: &mut [f32], k: usize) {
    if k == 0 || k >= logits.len() {
        return;
    }
    let mut sorted = logits.to_vec();
    let (_, &mut kth, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    for logit in logits {
        if *logit < kth {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// `TopPLogitsWarper`: in ascending order, removes tokens until the cumulative probability exceeds `1 - p`. The last
/// token always remains; of tokens with equal logits, the lower ids are removed first. If `p` is 1, nothing is removed.
pub fn top_p(logits: &mut [f32], p: f64) {
    if p >= 1.0 {
        return;
    }
    let threshold = (1.0 - p) as f32;
    let probabilities = softmax(logits);
    // Sorting a whole vocabulary would take longer than the rest of this function. Tokens that are less likely than
    // this are removed at any place in the order: all of them together do not reach the threshold.
    let negligible = threshold / 2.0 / logits.len() as f32;
    let mut cumulative = 0.0;
    let mut ascending = Vec::new();
    for (token, &probability) in probabilities.iter().enumerate() {
        if probability < negligible {
            cumulative += f64::from(probability);
            logits[token] = f32::NEG_INFINITY;
        } else {
            ascending.push(token);
        }
    }
    ascending.sort_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    ascending.pop();
    for token in ascending {
        cumulative += f64::from(probabilities[token]);
        if cumulative as f32 > threshold {
            break;
        }
        logits[token] = f32::NEG_INFINITY;
    }
}

/// `MinPLogitsWarper`: removes the tokens less likely than `p` times the likeliest. A `p` of 0 removes
/// nothing.
pub fn min_p(logits: &mut [f32], p: f32) {
    if p <= 0.0 {
        return;
    }
    let probabilities = softmax(logits);
    let threshold = p * max(&probabilities);
    for (logit, probability) in logits.iter_mut().zip(probabilities) {
        if probability < threshold {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// The token with the largest logit; the first one, if several are equal.
///
/// # Errors
/// [`SamplingError::NoToken`].
pub fn likeliest(logits: &[f32]) -> Result<u32, SamplingError> {
    let max = max(logits);
    match logits.iter().position(|&logit| logit == max) {
        Some(token) if max > f32::NEG_INFINITY => Ok(token as u32),
        _ => Err(SamplingError::NoToken),
    }
}

/// The token at `point`, in [0, 1), of the cumulative distribution that the logits define. A token
/// with the logit `-inf` is never drawn.
///
/// # Errors
/// [`SamplingError::NoToken`].
pub fn draw(logits: &[f32], point: f64) -> Result<u32, SamplingError> {
    let max = max(logits);
    let weight = |logit: f32| f64::from(logit - max).exp();
    let mut left = point * logits.iter().map(|&logit| weight(logit)).sum::<f64>();
    let mut token = likeliest(logits)?;
    for (candidate, &logit) in logits.iter().enumerate() {
        let weight = weight(logit);
        if weight > 0.0 {
            // If rounding errors leave a remainder after the last candidate, the last one is drawn.
            token = candidate as u32;
            if left < weight {
                break;
            }
            left -= weight;
        }
    }
    Ok(token)
}

/// The probabilities of the logits, summed in f64 and rounded to f32.
fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = max(logits);
    let mut probabilities: Vec<f32> = logits.iter().map(|logit| (logit - max).exp()).collect();
    let sum: f64 = probabilities.iter().copied().map(f64::from).sum();
    for probability in &mut probabilities {
        *probability /= sum as f32;
    }
    probabilities
}

fn max(values: &[f32]) -> f32 {
    values.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// A number in [0, 1) with 53 random bits.
fn uniform(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}
