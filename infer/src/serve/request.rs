//! The body of `POST /v1/completions`: OpenAI's fields, and samplers that other servers have added.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use datasets::Tokenizer;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::echo::Echo;
use super::error::ApiError;
use crate::engine::Request;
use crate::sampling::SamplingSettings;

/// The most that a request may ask for.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// Tokens to make for each text.
    pub max_tokens: usize,
    /// Texts at once.
    pub texts: usize,
}

/// The most stop strings. Each is searched for with every token.
const STOPS: usize = 16;
/// The most bytes of a stop string.
const STOP_BYTES: usize = 1024;
/// The most likeliest tokens that are named beside each token.
const ALTERNATIVES: usize = 20;

/// The most that is echoed over all texts of a request: tokens of prompts, times one more than the number
/// of likeliest tokens. A reply has about a hundred bytes for each.
const ECHOED: usize = 1 << 20;

/// The fields of a body. `null` means the same as leaving a field out.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Body {
    model: Option<String>,
    prompt: Option<PromptField>,
    max_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f64>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    seed: Option<i64>,
    stop: Option<StopField>,
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
    logit_bias: Option<Map<String, Value>>,
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "prompt must be a string, a list of strings, a list of token ids, or a list of \
                 lists of token ids"
)]
enum PromptField {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    IdLists(Vec<Vec<u32>>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "stop must be a string or a list of strings")]
enum StopField {
    One(String),
    Several(Vec<String>),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct StreamOptions {
    include_usage: Option<bool>,
    include_obfuscation: Option<bool>,
}

/// A parsed and checked body.
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
}

impl CompletionPlan {
    /// Parses the body of a request to `model`. No bytes make it panic.
    ///
    /// # Errors
    /// An [`ApiError`] that names what is wrong.
    pub(super) fn read(
        body: &[u8],
        model: &str,
        tokenizer: &Tokenizer,
        limits: &Limits,
        deadline: Instant,
    ) -> Result<Self, ApiError> {
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
        let stream = body.stream.unwrap_or(false);
        let options = body.stream_options.unwrap_or_default();
        let stop = stop_strings(body.stop)?;
        let prompts = body.prompt.unwrap_or(PromptField::Text(String::new()));
        let prompts = encode(prompts, tokenizer)?;
        let texts = prompts.len().saturating_mul(n);
        if texts > limits.texts {
            let most = limits.texts;
            let message =
                format!("{texts} texts at once (prompts times n); at most {most} can wait");
            return Err(ApiError::invalid_field("n", message));
        }
        let echoes = if echo {
            Some(echoes(&prompts, n, alternatives, tokenizer)?)
        } else {
            None
        };
        let each = prompts.into_iter().flat_map(|prompt| {
            (0..n as u64).map(move |i| (prompt.clone(), sampling.seed.wrapping_add(i)))
        });
        let requests = each.map(|(prompt, seed)| Request {
            prompt,
            sampling: SamplingSettings { seed, ..sampling },
            max_tokens,
            stop: stop.clone(),
            alternatives,
            score_prompt: echo && alternatives.is_some(),
            deadline: Some(deadline),
        });
        Ok(Self {
            requests: requests.collect(),
            n,
            echoes,
            stream,
            stream_usage: options.include_usage.unwrap_or(false),
        })
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

fn stop_strings(stop: Option<StopField>) -> Result<Vec<String>, ApiError> {
    let stop = match stop {
        None => Vec::new(),
        Some(StopField::One(stop)) => vec![stop],
        Some(StopField::Several(stop)) => stop,
    };
    let refused = |message| Err(ApiError::invalid_field("stop", message));
    if stop.len() > STOPS {
        return refused(format!("{} stop strings; at most {STOPS}", stop.len()));
    }
    if stop.iter().any(String::is_empty) {
        return refused("a stop string is empty".to_owned());
    }
    if stop.iter().any(|stop| stop.len() > STOP_BYTES) {
        return refused(format!("a stop string is longer than {STOP_BYTES} bytes"));
    }
    Ok(stop)
}

fn encode(prompt: PromptField, tokenizer: &Tokenizer) -> Result<Vec<Arc<[u32]>>, ApiError> {
    let texts = |texts: &[String]| {
        let ids = tokenizer.encode_batch(texts);
        ids.map_err(|error| ApiError::invalid_field("prompt", error.to_string()))
    };
    let mut prompts = match prompt {
        PromptField::Text(text) => texts(&[text])?,
        PromptField::Texts(all) => texts(&all)?,
        PromptField::Ids(ids) => vec![ids],
        PromptField::IdLists(lists) => lists,
    };
    if prompts.is_empty() {
        return Err(ApiError::invalid_field("prompt", "prompt is an empty list"));
    }
    // A text without a prompt begins after an end-of-text, as documents did in training.
    for prompt in prompts.iter_mut().filter(|prompt| prompt.is_empty()) {
        prompt.extend(tokenizer.end_of_text());
    }
    Ok(prompts.into_iter().map(Arc::from).collect())
}

fn echoes(
    prompts: &[Arc<[u32]>],
    n: usize,
    alternatives: Option<usize>,
    tokenizer: &Tokenizer,
) -> Result<Vec<Arc<Echo>>, ApiError> {
    let tokens: usize = prompts.iter().map(|prompt| prompt.len()).sum();
    let each = alternatives.unwrap_or(0) + 1;
    if tokens.saturating_mul(n).saturating_mul(each) > ECHOED {
        let message = format!(
            "echo of {tokens} tokens of prompts, for each of {n} texts, with {each} scores a token, \
             is too much at once; the product may be {ECHOED} at most"
        );
        return Err(ApiError::invalid_field("echo", message));
    }
    let echoes = prompts
        .iter()
        .map(|prompt| Echo::of(prompt, tokenizer).map(Arc::new));
    let echoes: Result<_, _> = echoes.collect();
    echoes.map_err(|error| ApiError::internal(error.to_string()))
}

#[cfg(test)]
mod tests;
