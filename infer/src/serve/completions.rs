//! `POST /v1/completions`.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderValue, header};
use axum::response::sse::{Event as Line, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;

use super::Server;
use super::connections::Connection;
use super::error::ApiError;
use super::reply::{CompletionChoice, Heading};
use super::reply_room::ReplyRoom;
use super::request::{CompletionPlan, CompletionRequest};
use super::texts::TextStreams;
use crate::engine::SubmitError;

/// A reply that can have no more bytes needs no room among the large ones.
const SMALL_REPLY: usize = 1 << 20;

/// The bytes of a reply that are given to the connection at a time.
const SLICE: usize = 64 * 1024;

/// A request with more bytes of text is encoded apart from the others, so that these do not wait for it.
const LONG_TEXT: usize = 64 * 1024;

/// Makes the texts that the body asks for.
pub(super) async fn completions(
    State(server): State<Arc<Server>>,
    Extension(connection): Extension<Arc<Connection>>,
    request: Request,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    let deadline = started + server.options.time_limit;
    let plan = plan(&server, &connection, request, deadline).await?;
    // Small replies cannot take much together, and large ones are not to keep them out.
    let room = if plan.reply_bytes > SMALL_REPLY {
        let room = server.replies.take(plan.reply_bytes, &connection);
        Some(room.ok_or_else(ApiError::no_room)?)
    } else {
        None
    };
    let heading = Heading::new(&server.options.name);
    let (streams, usage) = (plan.stream, plan.stream_usage);
    let texts = TextStreams::begin(server, plan, started)?;
    if streams {
        Ok(stream(heading, texts, usage, room))
    } else {
        whole(heading, texts, room).await
    }
}

/// Receives and parses the body, and encodes its prompts, as long as there is room for that.
async fn plan(
    server: &Arc<Server>,
    connection: &Arc<Connection>,
    request: Request,
    deadline: Instant,
) -> Result<CompletionPlan, ApiError> {
    check_head(&request, server.options.body_limit)?;
    let (body, mut room) = receive(server, connection, request).await?;
    let reader = server.clone();
    let parsed = off_the_runtime(move || {
        CompletionRequest::read(&body, &reader.options.name, &reader.limits)
    });
    let parsed = parsed.await?;
    let is_long = parsed.prompts.text_bytes() > LONG_TEXT;
    if is_long {
        // Others arrive meanwhile.
        let units = units(parsed.prompts.text_bytes());
        let long = server.long_texts.clone().try_acquire_many_owned(units);
        room = long.map_err(|_| SubmitError::Full)?;
    }
    let is_dropped = Arc::new(AtomicBool::new(false));
    // The connection was closed, or the server has no more time for it.
    let _dropped = SetOnDrop(is_dropped.clone());
    let encoder = server.clone();
    off_the_runtime(move || {
        let stopped = || {
            let now = Instant::now();
            let last = encoder.engine.last_moment();
            is_dropped.load(Relaxed) || deadline <= now || last.is_some_and(|last| last <= now)
        };
        let plan = || parsed.plan(&encoder.tokenizer, &encoder.limits, deadline, &stopped);
        let plan = if is_long {
            encoder.long_text_threads.install(plan)
        } else {
            plan()
        };
        drop(room);
        plan
    })
    .await
}

/// Sets a flag when it is dropped.
struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Runs what keeps a core busy, on a thread for that.
async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ApiError::internal(error.to_string()))?
}

/// How many units of room so many bytes take: one per KiB.
pub(super) fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

/// Checks what the head says of the body.
///
/// # Errors
/// The body is not declared as JSON, or is declared longer than `limit`.
fn check_head(request: &Request, limit: usize) -> Result<(), ApiError> {
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
    if declared.is_some_and(|length| length > limit) {
        return Err(ApiError::too_large(limit));
    }
    Ok(())
}

/// Receives the body, and takes room for it as it comes.
///
/// # Errors
/// The body is too long, breaks off or does not arrive in time, or there is no room for it.
async fn receive(
    server: &Server,
    connection: &Arc<Connection>,
    request: Request,
) -> Result<(Vec<u8>, OwnedSemaphorePermit), ApiError> {
    let waits = connection.wait();
    let limit = server.options.body_limit;
    let arriving = || server.arriving.clone();
    let receive = async {
        let mut body = Vec::new();
        let mut room = arriving()
            .try_acquire_many_owned(1)
            .map_err(|_| SubmitError::Full)?;
        let mut chunks = request.into_body().into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| ApiError::broken_body(&deepest(&error)))?;
            if body.len() + chunk.len() > limit {
                return Err(ApiError::too_large(limit));
            }
            body.extend_from_slice(&chunk);
            let lacks = (units(body.len()) as usize).saturating_sub(room.num_permits());
            let lacks = u32::try_from(lacks).unwrap_or(u32::MAX);
            let more = arriving().try_acquire_many_owned(lacks);
            room.merge(more.map_err(|_| SubmitError::Full)?);
        }
        Ok((body, room))
    };
    let received = tokio::time::timeout(server.options.body_time, receive).await;
    drop(waits);
    received.unwrap_or_else(|_| Err(ApiError::too_slow()))
}

/// The first cause of an error.
fn deepest(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// One response with all texts, when they have ended.
async fn whole(
    heading: Heading,
    mut texts: TextStreams,
    room: Option<ReplyRoom>,
) -> Result<Response, ApiError> {
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
    for choice in &mut choices {
        // Some of a prompt's scores would pass for all of them.
        if texts.lacks_scores(choice.index) {
            choice.logprobs = None;
        }
    }
    let usage = texts.usage();
    drop(texts);
    let reply = off_the_runtime(move || {
        let reply = heading.reply(choices, Some(usage));
        // Serialising strings and finite numbers does not fail.
        Ok(serde_json::to_vec(&reply).unwrap_or_default())
    });
    Ok(whole_reply(reply.await?, room))
}

/// A response with a reply, which keeps its room until the client has it.
fn whole_reply(json: Vec<u8>, mut room: Option<ReplyRoom>) -> Response {
    let length = json.len();
    // It is seldom as long as it could have been.
    if let Some(room) = &mut room {
        room.shrink_to(length);
    }
    let slices = stream::unfold((Bytes::from(json), room), |(mut rest, room)| async move {
        let slice = rest.split_to(rest.len().min(SLICE));
        (!slice.is_empty()).then(|| (Ok::<_, Infallible>(slice), (rest, room)))
    });
    let mut response = Response::new(Body::from_stream(slices));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
        .headers_mut()
        .insert(header::CONTENT_LENGTH, length.into());
    response
}

/// The next line of a stream.
enum NextLine {
    Piece,
    Done,
}

/// A stream of server-sent events: each piece of a text as soon as it is made.
fn stream(heading: Heading, texts: TextStreams, usage: bool, room: Option<ReplyRoom>) -> Response {
    let lines = stream::unfold(
        Some((heading, texts, room, NextLine::Piece)),
        move |state| async move {
            let (heading, mut texts, room, next) = state?;
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
            let state = then.map(|next| (heading, texts, room, next));
            Some((Ok::<_, Infallible>(line), state))
        },
    );
    Sse::new(lines).into_response()
}

fn json_line(json: &impl Serialize) -> Line {
    // Serialising strings and finite numbers does not fail.
    Line::default().data(serde_json::to_string(json).unwrap_or_default())
}
