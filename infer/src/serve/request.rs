//! The body of `POST /v1/completions`: OpenAI's fields, and samplers that other servers have added.

mod fields;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use datasets::Tokenizer;
use serde::Deserialize;

use super::echo::Echo;
use super::error::ApiError;
use super::prompt::Prompts;
use crate::engine::Request;
use crate::sampling::SamplingSettings;
use fields::{Members, StopStrings};

/// The most that a request may ask for.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// Tokens to make for each text.
    pub max_tokens: usize,
    /// Texts at once.
    pub texts: usize,
    /// Bytes of a text that can be within the model's positions; `None` if there is no such bound.
    pub prompt_bytes: Option<usize>,
    /// Tokens of a prompt and its text together; `None` for a model that has no such bound.
    pub positions: Option<usize>,
    /// Bytes of a reply.
    pub reply_bytes: usize,
}

/// The most likeliest tokens that are named beside each token.
const ALTERNATIVES: usize = 20;

/// The bytes of a reply for each token, roughly.
const TOKEN_BYTES: usize = 32;
/// The bytes of a reply for each score that it names, roughly.
const SCORE_BYTES: usize = 100;

/// The fields of a body. `null` means the same as leaving a field out.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Body {
    model: Option<String>,
    prompt: Option<Prompts>,
    max_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f64>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    seed: Option<i64>,
    stop: Option<StopStrings>,
    n: Option<usize>,
    logprobs: Option<usize>,
    echo: Option<bool>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    /// A name for the user, which is ignored.
    user: Option<String>,
    // These are refused by name, unless they have no effect.
    best_of: Option<usize>,
    suffix: Option<String>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    logit_bias: Option<Members>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct StreamOptions {
    include_usage: Option<bool>,
    include_obfuscation: Option<bool>,
}

/// A body that was read and checked, as far as that can be done before its prompts are encoded.
#[derive(Debug)]
pub(super) struct CompletionRequest {
    /// The prompts.
    pub prompts: Prompts,
    n: usize,
    max_tokens: usize,
    alternatives: Option<usize>,
    echo: bool,
    sampling: SamplingSettings,
    stop: Vec<String>,
    stream: bool,
    stream_usage: bool,
}

/// What a body asks the engine for.
#[derive(Debug)]
pub(super) struct CompletionPlan {
    /// `n` requests for each prompt, one prompt after the other.
    pub requests: Vec<Request>,
    /// The number of texts for each prompt.
    pub n: usize,
    /// The decoded prompts, if the texts begin with them.
    pub echoes: Option<Vec<Arc<Echo>>>,
    /// Whether to send the text while it is made.
    pub stream: bool,
    /// Whether to send the number of tokens at the end of a stream.
    pub stream_usage: bool,
    /// The bytes that the reply may have, roughly.
    pub reply_bytes: usize,
}

impl CompletionRequest {
    /// Reads the body of a request to `model`. No bytes make it panic, and it takes no more memory than a
    /// few times their number.
    ///
    /// # Errors
    /// An [`ApiError`] that names what is wrong.
    pub(super) fn read(body: &[u8], model: &str, limits: &Limits) -> Result<Self, ApiError> {
        let unreadable = |error| ApiError::invalid(format!("the body cannot be read: {error}"));
        // Serde would accept a list as the fields in their order.
        if body.trim_ascii_start().first() == Some(&b'[') {
            return Err(unreadable("it is a list and no object".to_owned()));
        }
        let body: Body =
            serde_json::from_slice(body).map_err(|error| unreadable(error.to_string()))?;
        if let Some(asked) = body.model.as_deref().filter(|asked| *asked != model) {
            return Err(ApiError::no_such_model(asked, model));
        }
        body.refuse_unsupported()?;
        let echo = body.echo.unwrap_or(false);
        let max_tokens = body.max_tokens(echo, limits)?;
        let alternatives = body.alternatives()?;
        let n = body.n.unwrap_or(1);
        if n == 0 {
            return Err(ApiError::invalid_field(
                "n",
                "n is 0; it must be at least 1",
            ));
        }
        let sampling = body.sampling()?;
        let options = body.stream_options.unwrap_or_default();
        let prompts = body.prompt.unwrap_or(Prompts::Texts(vec![String::new()]));
        let request = Self {
            prompts,
            n,
            max_tokens,
            alternatives,
            echo,
            sampling,
            stop: body.stop.unwrap_or_default().check()?,
            stream: body.stream.unwrap_or(false),
            stream_usage: options.include_usage.unwrap_or(false),
        };
        request.check_prompts(limits)?;
        // Also without the prompts' tokens, the reply may be too large.
        request.reply_bytes(request.prompts.len(), 0, limits)?;
        Ok(request)
    }

    /// Refuses too many prompts, and those that are too long whatever their tokens are.
    fn check_prompts(&self, limits: &Limits) -> Result<(), ApiError> {
        let count = self.prompts.len();
        if count == 0 {
            return Err(ApiError::invalid_field("prompt", "prompt is an empty list"));
        }
        let texts = count.saturating_mul(self.n);
        if texts > limits.texts {
            let most = limits.texts;
            let message =
                format!("{texts} texts at once (prompts times n); at most {most} can wait");
            return Err(ApiError::invalid_field("n", message));
        }
        let bytes = self.prompts.longest_text();
        match (limits.prompt_bytes, limits.positions) {
            (Some(most), Some(positions)) if bytes > most => {
                Err(ApiError::prompt_too_long(bytes, most, positions))
            }
            _ => Ok(()),
        }
    }

    /// Encodes the prompts, unless `stopped` says so first, for texts that end at `deadline`.
    ///
    /// # Errors
    /// An [`ApiError`] that names what is wrong, or says that there was no time.
    pub(super) fn plan(
        mut self,
        tokenizer: &Tokenizer,
        limits: &Limits,
        deadline: Instant,
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<CompletionPlan, ApiError> {
        let count = self.prompts.len();
        let prompts = std::mem::replace(&mut self.prompts, Prompts::Ids(Vec::new()));
        let prompts = prompts.encode(tokenizer, stopped)?;
        let echoed = if self.echo {
            prompts.iter().map(|prompt| prompt.len()).sum()
        } else {
            0
        };
        let reply_bytes = self.reply_bytes(count, echoed, limits)?;
        let echoes = self.echo.then(|| echoes(&prompts, tokenizer)).transpose()?;
        let each = prompts.into_iter().flat_map(|prompt| {
            let seed = self.sampling.seed;
            (0..self.n as u64).map(move |i| (prompt.clone(), seed.wrapping_add(i)))
        });
        let requests = each.map(|(prompt, seed)| Request {
            prompt,
            sampling: SamplingSettings {
                seed,
                ..self.sampling
            },
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
            alternatives: self.alternatives,
            score_prompt: self.echo && self.alternatives.is_some(),
            deadline: Some(deadline),
        });
        Ok(CompletionPlan {
            requests: requests.collect(),
            n: self.n,
            echoes,
            stream: self.stream,
            stream_usage: self.stream_usage,
            reply_bytes,
        })
    }

    /// The bytes that the reply may have, roughly: `n` texts for each of the prompts, whose `echoed` tokens
    /// are before them.
    ///
    /// # Errors
    /// They are more than a reply may have.
    fn reply_bytes(
        &self,
        prompts: usize,
        echoed: usize,
        limits: &Limits,
    ) -> Result<usize, ApiError> {
        let most = limits.positions.map_or(self.max_tokens, |positions| {
            // The token after the last position is made, too.
            self.max_tokens.min(positions.saturating_add(1))
        });
        let tokens = most.saturating_mul(prompts).saturating_add(echoed);
        let tokens = tokens.saturating_mul(self.n);
        let scores = self.alternatives.map_or(0, |likeliest| likeliest + 1);
        let bytes = tokens.saturating_mul(TOKEN_BYTES + SCORE_BYTES * scores);
        let limit = limits.reply_bytes;
        if bytes <= limit {
            return Ok(bytes);
        }
        let message = format!(
            "the reply can have {tokens} tokens (max_tokens for each prompt, and with echo the prompt, \
             times n) with {scores} scores each (logprobs + 1), which is {bytes} bytes, at {TOKEN_BYTES} a \
             token and {SCORE_BYTES} a score; a reply of this server has {limit} at most, so ask for less \
             at once"
        );
        let param = if scores > 0 { "logprobs" } else { "max_tokens" };
        Err(ApiError::invalid_field(param, message))
    }
}

impl Body {
    /// Refuses fields that would change the text if this server had them.
    fn refuse_unsupported(&self) -> Result<(), ApiError> {
        let penalty = |penalty: Option<f64>| penalty.is_some_and(|penalty| penalty != 0.0);
        let n = self.n.unwrap_or(1);
        let refused = [
            ("best_of", self.best_of.is_some_and(|best_of| best_of != n)),
            (
                "suffix",
                self.suffix.as_ref().is_some_and(|text| !text.is_empty()),
            ),
            ("presence_penalty", penalty(self.presence_penalty)),
            ("frequency_penalty", penalty(self.frequency_penalty)),
            (
                "logit_bias",
                self.logit_bias
                    .as_ref()
                    .is_some_and(|bias| !bias.is_empty()),
            ),
        ];
        match refused.into_iter().find(|(_, asked_for)| *asked_for) {
            Some((field, _)) => {
                let message = format!("this server has no {field}; leave it out");
                Err(ApiError::invalid_field(field, message))
            }
            None => Ok(()),
        }
    }

    fn max_tokens(&self, echo: bool, limits: &Limits) -> Result<usize, ApiError> {
        let max_tokens = self.max_tokens.unwrap_or(16);
        let refused = |message| Err(ApiError::invalid_field("max_tokens", message));
        if max_tokens == 0 && !echo {
            return refused("max_tokens is 0, which makes sense with echo only".to_owned());
        }
        if max_tokens > limits.max_tokens {
            let most = limits.max_tokens;
            return refused(format!(
                "max_tokens is {max_tokens}; this server makes at most {most}"
            ));
        }
        Ok(max_tokens)
    }

    fn alternatives(&self) -> Result<Option<usize>, ApiError> {
        match self.logprobs {
            Some(n) if n > ALTERNATIVES => {
                let message = format!("logprobs is {n}; it may be {ALTERNATIVES} at most");
                Err(ApiError::invalid_field("logprobs", message))
            }
            logprobs => Ok(logprobs),
        }
    }

    fn sampling(&self) -> Result<SamplingSettings, ApiError> {
        let top_k = match self.top_k.unwrap_or(0) {
            // Some servers write -1 for off.
            -1 => 0,
            top_k => usize::try_from(top_k).map_err(|_| {
                ApiError::invalid_field("top_k", format!("top_k is {top_k}; it must be 0 or above"))
            })?,
        };
        let sampling = SamplingSettings {
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            temperature: self.temperature.unwrap_or(1.0),
            top_k,
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            seed: self.seed.map_or_else(any_seed, i64::cast_unsigned),
        };
        sampling.validate()?;
        Ok(sampling)
    }
}

/// A random seed.
fn any_seed() -> u64 {
    RandomState::new().hash_one(())
}

fn echoes(prompts: &[Arc<[u32]>], tokenizer: &Tokenizer) -> Result<Vec<Arc<Echo>>, ApiError> {
    let echoes = prompts
        .iter()
        .map(|prompt| Echo::of(prompt, tokenizer).map(Arc::new));
    let echoes: Result<_, _> = echoes.collect();
    echoes.map_err(|error| ApiError::internal(error.to_string()))
}

#[cfg(test)]
mod tests;
