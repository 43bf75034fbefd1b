//! `POST /v1/completions`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use axum::body::{Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::sse::{Event as Line, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;

use super::Server;
use super::error::ApiError;
use super::reply::{CompletionChoice, Heading, json_response};
use super::request::CompletionPlan;
use super::texts::TextStreams;
use crate::engine::SubmitError;

/// Makes the texts that the body asks for.
pub(super) async fn completions(
    State(server): State<Arc<Server>>,
    request: Request,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    let deadline = started + server.options.time_limit;
    let plan = parse(&server, request, deadline).await?;
    let heading = Heading::new(&server.options.name);
    let (streams, usage) = (plan.stream, plan.stream_usage);
    let texts = TextStreams::begin(server, plan, started)?;
    if streams {
        Ok(stream(heading, texts, usage))
    } else {
        whole(heading, texts).await
    }
}

/// Receives and parses the body, if there is room for it.
async fn parse(
    server: &Arc<Server>,
    request: Request,
    deadline: Instant,
) -> Result<CompletionPlan, ApiError> {
    let length = length(&request, server.options.body_limit)?;
    let room = server
        .arriving
        .clone()
        .try_acquire_many_owned(units(length));
    let room = room.map_err(|_| SubmitError::Full)?;
    let body = receive(server, request).await?;
    let reader = server.clone();
    // Encoding a long prompt keeps a core busy, and continues even if the connection is closed meanwhile.
    let plan = tokio::task::spawn_blocking(move || {
        let plan = reader.plan(&body, deadline);
        drop((body, room));
        plan
    });
    let plan = plan.await;
    plan.map_err(|error| ApiError::internal(error.to_string()))?
}

/// How many units of the room for arriving bodies a body of this length takes: one per KiB.
pub(super) fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

/// The declared length of a body in bytes, or `limit` if none is declared.
///
/// # Errors
/// The body is not declared as JSON, or is declared longer than `limit`.
fn length(request: &Request, limit: usize) -> Result<usize, ApiError> {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let content_type = content_type
        .and_then(|value| value.to_str().ok())
        .unwrap_or("");
    let essence = content_type.split(';').next().unwrap_or("").trim();
    // A web page of another origin cannot send this type without a preflight request.
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::not_json());
    }
    let declared = request.headers().get(header::CONTENT_LENGTH);
    let declared = declared.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    match declared.unwrap_or(limit) {
        length if length > limit => Err(ApiError::too_large(limit)),
        length => Ok(length),
    }
}

/// Receives the body.
///
/// # Errors
/// The body is too long, or does not arrive in time.
async fn receive(server: &Server, request: Request) -> Result<Bytes, ApiError> {
    let limit = server.options.body_limit;
    let body = to_bytes(request.into_body(), limit);
    match tokio::time::timeout(server.options.body_time, body).await {
        Ok(Ok(body)) => Ok(body),
        // A body without a declared length.
        Ok(Err(_)) => Err(ApiError::too_large(limit)),
        Err(_) => Err(ApiError::too_slow()),
    }
}

impl Server {
    fn plan(&self, body: &[u8], deadline: Instant) -> Result<CompletionPlan, ApiError> {
        CompletionPlan::read(
            body,
            &self.options.name,
            &self.tokenizer,
            &self.limits,
            deadline,
        )
    }
}

/// One response with all texts, when they have ended.
async fn whole(heading: Heading, mut texts: TextStreams) -> Result<Response, ApiError> {
    let mut choices = Vec::new();
    for index in 0..texts.len() {
        choices.push(CompletionChoice {
            index,
            ..CompletionChoice::default()
        });
    }
    while let Some(piece) = texts.next().await {
        let piece = piece?;
        choices[piece.index].extend(piece);
    }
    let reply = heading.reply(choices, Some(texts.usage()));
    Ok(json_response(StatusCode::OK, &reply))
}

/// The next line of a stream.
enum NextLine {
    Piece,
    Done,
}

/// A stream of server-sent events: each piece of a text as soon as it is made.
fn stream(heading: Heading, texts: TextStreams, usage: bool) -> Response {
    let lines = stream::unfold(
        Some((heading, texts, NextLine::Piece)),
        move |state| async move {
            let (heading, mut texts, next) = state?;
            let (line, then) = match next {
                NextLine::Done => (Line::default().data("[DONE]"), None),
                NextLine::Piece => match texts.next().await {
                    Some(Ok(piece)) => {
                        let line = json_line(&heading.reply(vec![piece], None));
                        (line, Some(NextLine::Piece))
                    }
                    // Nothing follows an error.
                    Some(Err(error)) => (json_line(&error.to_json()), None),
                    None if usage => {
                        let reply = heading.reply(Vec::new(), Some(texts.usage()));
                        (json_line(&reply), Some(NextLine::Done))
                    }
                    None => (Line::default().data("[DONE]"), None),
                },
            };
            let state = then.map(|next| (heading, texts, next));
            Some((Ok::<_, Infallible>(line), state))
        },
    );
    Sse::new(lines).into_response()
}

fn json_line(json: &impl Serialize) -> Line {
    // Serialising strings and finite numbers does not fail.
    Line::default().data(serde_json::to_string(json).unwrap_or_default())
}
