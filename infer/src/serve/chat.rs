//! `POST /v1/chat/completions`: the next turn of a conversation.
//!
//! The model's chat template makes one prompt from the messages; after that, a turn is a text like any other.

mod messages;

use datasets::Tokenizer;
use serde::Serialize;

use super::Server;
use super::answer::Endpoint;
use super::error::ApiError;
use super::fields::{Anything, Body, fields};
use super::prompt::Prompts;
use super::request::{Limits, OwnTerms, SharedFields, TextRequest, check_alternatives};
use super::texts::{ScoredToken, TextPiece};
use super::token_name::{finite, token_text};
use crate::chat::ChatTemplate;
use messages::Messages;

/// The endpoint.
pub(super) struct Chat;

fields! {
    /// OpenAI's fields that only this endpoint has.
    struct ChatFields {
        messages: Messages,
        max_completion_tokens: usize,
        logprobs: bool,
        top_logprobs: usize,
        // These have no effect on the text.
        metadata: Anything,
        parallel_tool_calls: Anything,
        prompt_cache_key: Anything,
        safety_identifier: Anything,
        service_tier: Anything,
        // These are refused by name, unless they have no effect.
        audio: Anything,
        function_call: Anything,
        functions: Anything,
        modalities: Vec<String>,
        prediction: Anything,
        reasoning_effort: Anything,
        response_format: ResponseFormat,
        store: Anything,
        tool_choice: Anything,
        tools: Anything,
        verbosity: Anything,
        web_search_options: Anything,
    }
}

/// The format of the text. Other members describe it.
#[derive(Debug, serde::Deserialize)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
}

impl Endpoint for Chat {
    const PROMPT: &'static str = "messages";
    const ID: &'static str = "chatcmpl";
    const WHOLE: &'static str = "chat.completion";
    const PIECE: &'static str = "chat.completion.chunk";

    type Choice = ChatChoice;
    type Delta = ChatDelta;

    fn read(body: &[u8], server: &Server) -> Result<TextRequest, ApiError> {
        let template = server.chat.as_ref().map_err(String::as_str);
        read(body, &server.options.name, template, &server.limits)
    }

    fn choice(tokenizer: &Tokenizer, text: TextPiece) -> ChatChoice {
        ChatChoice {
            index: text.index,
            message: ChatMessage {
                role: ASSISTANT,
                content: text.text,
                refusal: None,
            },
            logprobs: text.tokens.map(|tokens| Logprobs::of(tokenizer, tokens)),
            finish_reason: text.finish,
        }
    }

    fn delta(tokenizer: &Tokenizer, piece: TextPiece) -> ChatDelta {
        let is_text = !piece.text.is_empty() || piece.finish.is_none();
        ChatDelta {
            index: piece.index,
            delta: Delta {
                role: None,
                content: is_text.then_some(piece.text),
            },
            logprobs: piece.tokens.map(|tokens| Logprobs::of(tokenizer, tokens)),
            finish_reason: piece.finish,
        }
    }

    fn opening(index: usize) -> Option<ChatDelta> {
        Some(ChatDelta {
            index,
            delta: Delta {
                role: Some(ASSISTANT),
                content: Some(String::new()),
            },
            logprobs: None,
            finish_reason: None,
        })
    }
}

/// Reads the body of a request to `model`, and makes a prompt from its messages by `template`. If there is no template,
/// the reason for that becomes the error.
///
/// # Errors
/// An [`ApiError`] that names what is wrong.
fn read(
    body: &[u8],
    model: &str,
    template: Result<&ChatTemplate, &str>,
    limits: &Limits,
) -> Result<TextRequest, ApiError> {
    let Body { shared, own } = Body::<SharedFields, ChatFields>::read(body)?;
    shared.check(model)?;
    own.refuse_unsupported()?;
    let template = template.map_err(ApiError::no_chat)?;
    let max_tokens = max_tokens(&own, &shared, limits)?;
    let alternatives = own.alternatives()?;
    let messages = own.messages.unwrap_or_default().check()?;
    let prompt = template.render(&messages, true);
    let prompt = prompt.map_err(|error| ApiError::invalid_field("messages", error.to_string()))?;
    let terms = OwnTerms {
        prompts: Prompts::Chat(prompt),
        max_tokens,
        alternatives,
        echo: false,
    };
    shared.request(terms, limits)
}

/// The most tokens of an answer, by either of OpenAI's two names; without them, the limit of the server.
fn max_tokens(own: &ChatFields, shared: &SharedFields, limits: &Limits) -> Result<usize, ApiError> {
    let (param, asked) = match (own.max_completion_tokens, shared.max_tokens) {
        (Some(new), Some(old)) if new != old => {
            let message = format!(
                "max_completion_tokens is {new} and max_tokens, its old name, is {old}; give one of them"
            );
            return Err(ApiError::invalid_field("max_tokens", message));
        }
        (Some(new), _) => ("max_completion_tokens", new),
        (None, Some(old)) => ("max_tokens", old),
        (None, None) => return Ok(limits.max_tokens),
    };
    if asked == 0 {
        let message = format!("{param} is 0; it must be at least 1");
        return Err(ApiError::invalid_field(param, message));
    }
    limits.check_max_tokens(param, asked)
}

impl ChatFields {
    /// Refuses, in OpenAI's words, options that would change the text and that this server does not support.
    fn refuse_unsupported(&self) -> Result<(), ApiError> {
        let all: [(_, &Option<Anything>, &[&str]); 10] = [
            ("tools", &self.tools, &[]),
            ("tool_choice", &self.tool_choice, &["none", "auto"]),
            ("functions", &self.functions, &[]),
            ("function_call", &self.function_call, &["none", "auto"]),
            ("audio", &self.audio, &[]),
            ("prediction", &self.prediction, &[]),
            ("reasoning_effort", &self.reasoning_effort, &["none"]),
            ("store", &self.store, &[]),
            ("verbosity", &self.verbosity, &["medium"]),
            ("web_search_options", &self.web_search_options, &[]),
        ];
        for (param, value, without_effect) in all {
            match value {
                None | Some(Anything::Nothing) => {}
                Some(Anything::Word(word)) if without_effect.contains(&word.as_str()) => {}
                Some(_) => return Err(ApiError::unsupported_parameter(param)),
            }
        }
        if let Some(format) = self.response_format.as_ref()
            && format.kind != "text"
        {
            return Err(ApiError::unsupported_value("response_format", &format.kind));
        }
        let modalities = self.modalities.iter().flatten();
        match modalities.into_iter().find(|modality| *modality != "text") {
            Some(other) => Err(ApiError::unsupported_value("modalities", other)),
            None => Ok(()),
        }
    }

    /// How many of the likeliest tokens each score names; `None` for no scores.
    fn alternatives(&self) -> Result<Option<usize>, ApiError> {
        let asked = self.top_logprobs;
        match (self.logprobs.unwrap_or(false), asked) {
            (true, n) => check_alternatives("top_logprobs", n.unwrap_or(0)).map(Some),
            (false, None | Some(0)) => Ok(None),
            (false, Some(_)) => {
                let message = "top_logprobs needs logprobs to be true";
                Err(ApiError::invalid_field("top_logprobs", message))
            }
        }
    }
}

/// The role of the model.
const ASSISTANT: &str = "assistant";

/// One turn.
#[derive(Serialize)]
pub(super) struct ChatChoice {
    index: usize,
    message: ChatMessage,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct ChatMessage {
    role: &'static str,
    content: String,
    refusal: Option<String>,
}

/// A piece of a turn.
#[derive(Serialize)]
pub(super) struct ChatDelta {
    index: usize,
    delta: Delta,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

/// The scores of some tokens.
#[derive(Serialize)]
struct Logprobs {
    content: Vec<NamedScore>,
    refusal: Option<Vec<NamedScore>>,
}

/// A token with its score, and the likeliest tokens at its position.
#[derive(Serialize)]
struct NamedScore {
    #[serde(flatten)]
    token: NamedToken,
    top_logprobs: Vec<NamedToken>,
}

#[derive(Serialize)]
struct NamedToken {
    token: String,
    logprob: f64,
    bytes: Option<Vec<u8>>,
}

impl Logprobs {
    /// The scores of `tokens`, without the token that ends a turn: the bytes of all tokens together are those of the
    /// text.
    fn of(tokenizer: &Tokenizer, tokens: Vec<ScoredToken>) -> Self {
        let named = |id: u32, log_probability| NamedToken {
            token: token_text(tokenizer, id),
            logprob: finite(log_probability),
            bytes: tokenizer.token_bytes(id),
        };
        let of_text = tokens.into_iter().filter(|token| !token.is_end);
        let content = of_text.filter_map(|token| {
            let score = token.score?;
            let likeliest = score.likeliest.into_iter();
            Some(NamedScore {
                token: named(token.id, score.log_probability),
                top_logprobs: likeliest.map(|(id, score)| named(id, score)).collect(),
            })
        });
        Self {
            content: content.collect(),
            refusal: None,
        }
    }
}

#[cfg(test)]
mod tests;
