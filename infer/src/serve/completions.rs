//! `POST /v1/completions`: continues prompts.

use datasets::Tokenizer;
use serde::Serialize;
use serde_json::{Map, Value};

use super::Server;
use super::answer::Endpoint;
use super::error::ApiError;
use super::fields::{Body, fields};
use super::prompt::Prompts;
use super::request::{Limits, OwnTerms, SharedFields, TextRequest, check_alternatives, refuse_if};
use super::texts::{ScoredToken, TextPiece};
use super::token_name::{finite, token_text};

/// The endpoint.
pub(super) struct Completions;

fields! {
    /// OpenAI's fields that only this endpoint has.
    struct CompletionFields {
        prompt: Prompts,
        logprobs: usize,
        echo: bool,
        // These are refused by name, unless they have no effect.
        best_of: usize,
        suffix: String,
    }
}

impl Endpoint for Completions {
    const PROMPT: &'static str = "prompt";
    const ID: &'static str = "cmpl";
    const WHOLE: &'static str = "text_completion";
    const PIECE: &'static str = "text_completion";

    type Choice = CompletionChoice;
    type Delta = CompletionChoice;

    fn read(body: &[u8], server: &Server) -> Result<TextRequest, ApiError> {
        read(body, &server.options.name, &server.limits)
    }

    fn choice(tokenizer: &Tokenizer, text: TextPiece) -> CompletionChoice {
        CompletionChoice {
            text: text.text,
            index: text.index,
            logprobs: text.tokens.map(|tokens| Logprobs::of(tokenizer, tokens)),
            finish_reason: text.finish,
        }
    }

    fn delta(tokenizer: &Tokenizer, piece: TextPiece) -> CompletionChoice {
        Self::choice(tokenizer, piece)
    }

    fn opening(_: usize) -> Option<CompletionChoice> {
        None
    }
}

/// Reads the body of a request to `model`.
///
/// # Errors
/// An [`ApiError`] that names what is wrong.
fn read(body: &[u8], model: &str, limits: &Limits) -> Result<TextRequest, ApiError> {
    let Body { shared, own } = Body::<SharedFields, CompletionFields>::read(body)?;
    shared.check(model)?;
    let n = shared.n.unwrap_or(1);
    refuse_if(&[
        ("best_of", own.best_of.is_some_and(|best_of| best_of != n)),
        ("suffix", own.suffix.is_some_and(|text| !text.is_empty())),
    ])?;
    let echo = own.echo.unwrap_or(false);
    let max_tokens = shared.max_tokens.unwrap_or(16);
    if max_tokens == 0 && !echo {
        let message = "max_tokens is 0, which makes sense with echo only";
        return Err(ApiError::invalid_field("max_tokens", message));
    }
    let logprobs = own.logprobs.map(|n| check_alternatives("logprobs", n));
    let terms = OwnTerms {
        prompts: own.prompt.unwrap_or(Prompts::Texts(vec![String::new()])),
        max_tokens: limits.check_max_tokens("max_tokens", max_tokens)?,
        alternatives: logprobs.transpose()?,
        echo,
    };
    shared.request(terms, limits)
}

/// One text, or a piece of it.
#[derive(Serialize)]
pub(super) struct CompletionChoice {
    text: String,
    index: usize,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
}

/// The scores of some tokens, one entry per token in each field.
#[derive(Serialize, Default)]
struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f64>>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
    text_offset: Vec<usize>,
}

impl Logprobs {
    fn of(tokenizer: &Tokenizer, tokens: Vec<ScoredToken>) -> Self {
        let mut logprobs = Self::default();
        for token in tokens {
            logprobs.push(tokenizer, &token);
        }
        logprobs
    }

    fn push(&mut self, tokenizer: &Tokenizer, token: &ScoredToken) {
        let name = token_text(tokenizer, token.id);
        let score = token.score.as_ref();
        self.token_logprobs
            .push(score.map(|score| finite(score.log_probability)));
        self.top_logprobs.push(score.map(|score| {
            // Names are unique, and in order of likelihood, so that the first one is the greedy choice.
            let mut top = Map::new();
            for (id, log_probability) in &score.likeliest {
                top.entry(token_text(tokenizer, *id))
                    .or_insert_with(|| finite(*log_probability).into());
            }
            // The token itself is listed too, even if it was not likely.
            top.entry(&name)
                .or_insert_with(|| finite(score.log_probability).into());
            top
        }));
        self.tokens.push(name);
        self.text_offset.push(token.offset);
    }
}

#[cfg(test)]
mod tests;
