//! The parts of replies that all endpoints share, in OpenAI's form.

use std::hash::{BuildHasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Serialize;

use crate::engine::Finish;

/// One response, or one piece of a stream.
#[derive(Serialize)]
pub(super) struct Reply<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<C>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

/// The number of tokens of a response.
#[derive(Clone, Copy, Serialize, Default)]
pub(super) struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
}

impl Usage {
    pub(super) fn new(prompt_tokens: usize, completion_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
        }
    }
}

/// The fields that all replies to a request share.
pub(super) struct Heading {
    id: String,
    created: u64,
    model: String,
}

impl Heading {
    pub(super) fn new(kind: &str, model: &str) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let random = || RandomState::new().hash_one(());
        Self {
            id: format!("{kind}-{:016x}{:016x}", random(), random()),
            created: now.map_or(0, |now| now.as_secs()),
            model: model.into(),
        }
    }

    pub(super) fn reply<C>(
        &self,
        object: &'static str,
        choices: Vec<C>,
        usage: Option<Usage>,
    ) -> Reply<'_, C> {
        Reply {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            choices,
            usage,
        }
    }
}

/// OpenAI's name for why a text has ended.
pub(super) fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::EndOfText | Finish::StopString => "stop",
        Finish::MaxTokens | Finish::ContextFull | Finish::TimeUp => "length",
    }
}

/// A response with a JSON body.
pub(super) fn json_response(status: StatusCode, json: &impl Serialize) -> Response {
    // Serialising strings and finite numbers does not fail.
    let json = serde_json::to_string(json).unwrap_or_default();
    let mut response = Response::new(Body::from(json));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
