//! The requests of all endpoints that make texts: the fields that their bodies share, and the requests to the engine
//! that are made from them.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use datasets::Tokenizer;
use serde::Deserialize;

use super::echo::Echo;
use super::error::ApiError;
use super::fields::{Anything, StopStrings, fields};
use super::prompt::Prompts;
use crate::engine::Request;
use crate::sampling::SamplingSettings;

/// The limits of a request.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// Tokens to make for each text.
    pub max_tokens: usize,
    /// Texts at once.
    pub texts: usize,
    /// Bytes of the longest text that can be within the model's positions; `None` if there is no such limit.
    pub prompt_bytes: Option<usize>,
    /// Tokens of a prompt and its text together; `None` for a model that has no such bound.
    pub positions: Option<usize>,
    /// Bytes of a reply.
    pub reply_bytes: usize,
}

impl Limits {
    /// Checks a number of tokens to make.
    ///
    /// # Errors
    /// The number is above the limit.
    pub(super) fn check_max_tokens(
        &self,
        param: &'static str,
        max_tokens: usize,
    ) -> Result<usize, ApiError> {
        let most = self.max_tokens;
        if max_tokens > most {
            let message = format!("{param} is {max_tokens}; this server makes at most {most}");
            return Err(ApiError::invalid_field(param, message));
        }
        Ok(max_tokens)
    }
}

/// The most tokens that are listed, with their scores, for each token.
const ALTERNATIVES: usize = 20;

/// The bytes of a reply for each token, roughly.
const TOKEN_BYTES: usize = 32;
/// The bytes of a reply for each score that it names, roughly.
const SCORE_BYTES: usize = 100;

fields! {
    /// OpenAI's fields that every endpoint has, and samplers that other servers have added.
    pub(super) struct SharedFields {
        model: String,
        max_tokens: usize,
        temperature: f32,
        top_p: f64,
        top_k: i64,
        min_p: f32,
        repetition_penalty: f32,
        seed: i64,
        stop: StopStrings,
        n: usize,
        stream: bool,
        stream_options: StreamOptions,
        /// A name for the user, which is ignored.
        user: String,
        // These are refused by name, unless they have no effect.
        presence_penalty: f64,
        frequency_penalty: f64,
        logit_bias: Anything,
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct StreamOptions {
    include_usage: Option<bool>,
    include_obfuscation: Option<bool>,
}

/// The values of a body's fields that are specific to an endpoint.
#[derive(Debug)]
pub(super) struct OwnTerms {
    /// The prompts.
    pub prompts: Prompts,
    /// The most tokens of each text.
    pub max_tokens: usize,
    /// How many of the likeliest tokens the score of each token names; `None` for no scores.
    pub alternatives: Option<usize>,
    /// Whether the texts begin with their prompts.
    pub echo: bool,
}

/// A body that was read and checked, as far as possible before its prompts are encoded.
#[derive(Debug)]
pub(super) struct TextRequest {
    own: OwnTerms,
    n: usize,
    sampling: SamplingSettings,
    stop: Vec<String>,
    stream: bool,
    stream_usage: bool,
}

/// The engine requests that a body asks for.
#[derive(Debug)]
pub(super) struct TextPlan {
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

impl SharedFields {
    /// Checks that the body is for `model`, and has no field that would change the text if this server had it.
    ///
    /// # Errors
    /// An [`ApiError`] that names the field.
    pub(super) fn check(&self, model: &str) -> Result<(), ApiError> {
        if let Some(asked) = self.model.as_deref().filter(|asked| *asked != model) {
            return Err(ApiError::no_such_model(asked, model));
        }
        let penalty = |penalty: Option<f64>| penalty.is_some_and(|penalty| penalty != 0.0);
        let biased = !matches!(self.logit_bias, None | Some(Anything::Nothing));
        refuse_if(&[
            ("presence_penalty", penalty(self.presence_penalty)),
            ("frequency_penalty", penalty(self.frequency_penalty)),
            ("logit_bias", biased),
        ])
    }

    /// Combines these fields with those of the endpoint into a request.
    ///
    /// # Errors
    /// An [`ApiError`] that names what is wrong.
    pub(super) fn request(self, own: OwnTerms, limits: &Limits) -> Result<TextRequest, ApiError> {
        let n = self.n.unwrap_or(1);
        if n == 0 {
            return Err(ApiError::invalid_field(
                "n",
                "n is 0; it must be at least 1",
            ));
        }
        let sampling = self.sampling()?;
        let options = self.stream_options.unwrap_or_default();
        let request = TextRequest {
            own,
            n,
            sampling,
            stop: self.stop.unwrap_or_default().check()?,
            stream: self.stream.unwrap_or(false),
            stream_usage: options.include_usage.unwrap_or(false),
        };
        request.check_prompts(limits)?;
        // Even without the prompts' tokens the reply may be too large.
        request.reply_bytes(request.own.prompts.len(), 0, limits)?;
        Ok(request)
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

impl TextRequest {
    /// The prompts.
    pub(super) fn prompts(&self) -> &Prompts {
        &self.own.prompts
    }

    /// Refuses too many prompts, and prompts that must have too many tokens.
    fn check_prompts(&self, limits: &Limits) -> Result<(), ApiError> {
        let count = self.own.prompts.len();
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
        let bytes = self.own.prompts.longest_text();
        match (limits.prompt_bytes, limits.positions) {
            (Some(most), Some(positions)) if bytes > most => {
                Err(ApiError::prompt_too_long(bytes, most, positions))
            }
            _ => Ok(()),
        }
    }

    /// Encodes the prompts, for texts that end at `deadline`; an error if `stopped` returns true first.
    ///
    /// # Errors
    /// An [`ApiError`] that names what is wrong, or says that there was no time left.
    pub(super) fn plan(
        mut self,
        tokenizer: &Tokenizer,
        limits: &Limits,
        deadline: Instant,
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<TextPlan, ApiError> {
        let count = self.own.prompts.len();
        let prompts = std::mem::replace(&mut self.own.prompts, Prompts::Ids(Vec::new()));
        let begin = prompts.begin(tokenizer);
        let prompts = prompts.encode(tokenizer, stopped)?;
        let echoed = if self.own.echo {
            prompts.iter().map(|prompt| prompt.len()).sum()
        } else {
            0
        };
        let reply_bytes = self.reply_bytes(count, echoed, limits)?;
        let echoes = self
            .own
            .echo
            .then(|| echoes(&prompts, begin, tokenizer))
            .transpose()?;
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
            max_tokens: self.own.max_tokens,
            stop: self.stop.clone(),
            alternatives: self.own.alternatives,
            score_prompt: self.own.echo && self.own.alternatives.is_some(),
            deadline: Some(deadline),
        });
        Ok(TextPlan {
            requests: requests.collect(),
            n: self.n,
            echoes,
            stream: self.stream,
            stream_usage: self.stream_usage,
            reply_bytes,
        })
    }

    /// The estimated size of the reply in bytes: `n` texts for each of the prompts, preceded by `echoed` tokens of the
    /// prompts.
    ///
    /// # Errors
    /// The size is above the limit.
    fn reply_bytes(
        &self,
        prompts: usize,
        echoed: usize,
        limits: &Limits,
    ) -> Result<usize, ApiError> {
        let most = limits.positions.map_or(self.own.max_tokens, |positions| {
            // One more token can be made after the last position.
            self.own.max_tokens.min(positions.saturating_add(1))
        });
        let tokens = most.saturating_mul(prompts).saturating_add(echoed);
        let tokens = tokens.saturating_mul(self.n);
        let scores = self.own.alternatives.map_or(0, |likeliest| likeliest + 1);
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

/// Refuses the first field in the list whose flag is true: the client has asked for something that this server lacks.
///
/// # Errors
/// An [`ApiError`] that names it.
pub(super) fn refuse_if(fields: &[(&'static str, bool)]) -> Result<(), ApiError> {
    match fields.iter().find(|(_, asked_for)| *asked_for) {
        Some((field, _)) => {
            let message = format!("this server has no {field}; leave it out");
            Err(ApiError::invalid_field(field, message))
        }
        None => Ok(()),
    }
}

/// Checks the number of alternatives that each score lists.
///
/// # Errors
/// There are too many.
pub(super) fn check_alternatives(param: &'static str, n: usize) -> Result<usize, ApiError> {
    if n > ALTERNATIVES {
        let message = format!("{param} is {n}; it may be {ALTERNATIVES} at most");
        return Err(ApiError::invalid_field(param, message));
    }
    Ok(n)
}

/// A random seed.
fn any_seed() -> u64 {
    RandomState::new().hash_one(())
}

/// The prompts as texts, of which the first `begin` tokens are no part.
fn echoes(
    prompts: &[Arc<[u32]>],
    begin: usize,
    tokenizer: &Tokenizer,
) -> Result<Vec<Arc<Echo>>, ApiError> {
    let echoes = prompts
        .iter()
        .map(|prompt| Echo::of(prompt, begin, tokenizer).map(Arc::new));
    let echoes: Result<_, _> = echoes.collect();
    echoes.map_err(|error| ApiError::internal(error.to_string()))
}
