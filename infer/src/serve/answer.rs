//! The part of an endpoint that makes texts: from a request to a whole reply or a stream. [`Endpoint`] has the
//! differences between the endpoints.

use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderValue, header};
use axum::response::sse::{Event as Line, Sse};
use axum::response::{IntoResponse, Response};
use datasets::Tokenizer;
use futures_util::stream;
use serde::Serialize;

use super::Server;
use super::body::{check_head, receive, units};
use super::connections::Connection;
use super::error::ApiError;
use super::reply::Heading;
use super::reply_room::ReplyRoom;
use super::request::{TextPlan, TextRequest};
use super::texts::{TextPiece, TextStreams};
use crate::engine::SubmitError;

/// An endpoint: how its bodies are read, and how its replies are written.
pub(super) trait Endpoint: 'static {
    /// The field with the prompt.
    const PROMPT: &'static str;
    /// The prefix of the ids of its replies.
    const ID: &'static str;
    /// The name of the object of a whole reply.
    const WHOLE: &'static str;
    /// The name of the object of a piece of a stream.
    const PIECE: &'static str;

    /// A whole text in JSON.
    type Choice: Serialize + Send;
    /// A piece of a text in JSON.
    type Delta: Serialize + Send;

    /// Reads a body, as far as possible before its prompts are encoded. This may take some time.
    ///
    /// # Errors
    /// An [`ApiError`] that names what is wrong.
    fn read(body: &[u8], server: &Server) -> Result<TextRequest, ApiError>;

    /// A whole text.
    fn choice(tokenizer: &Tokenizer, text: TextPiece) -> Self::Choice;

    /// A piece of a text in a stream.
    fn delta(tokenizer: &Tokenizer, piece: TextPiece) -> Self::Delta;

    /// The first piece of a stream for each text, before any of the text is made.
    fn opening(index: usize) -> Option<Self::Delta>;
}

/// A reply that cannot be longer than this, in bytes, takes none of the room for large replies.
const SMALL_REPLY: usize = 1 << 20;

/// The bytes of a reply that are given to the connection at a time.
const SLICE: usize = 64 * 1024;

/// A request with more bytes of text is encoded separately, so that other requests do not wait for it.
const LONG_TEXT: usize = 64 * 1024;

/// Makes the texts that the body asks for.
pub(super) async fn answer<E: Endpoint>(
    State(server): State<Arc<Server>>,
    Extension(connection): Extension<Arc<Connection>>,
    request: Request,
) -> Result<Response, ApiError> {
    let answered = texts::<E>(server, connection, request).await;
    answered.map_err(|error| error.with_prompt(E::PROMPT))
}

async fn texts<E: Endpoint>(
    server: Arc<Server>,
    connection: Arc<Connection>,
    request: Request,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    let deadline = started + server.options.time_limit;
    let plan = plan::<E>(&server, &connection, request, deadline).await?;
    // Small replies together need little memory, and large ones must not keep them out.
    let room = if plan.reply_bytes > SMALL_REPLY {
        let room = server.replies.take(plan.reply_bytes, &connection);
        Some(room.ok_or_else(ApiError::no_room)?)
    } else {
        None
    };
    let heading = Heading::new(E::ID, &server.options.name);
    let (streams, usage) = (plan.stream, plan.stream_usage);
    let texts = TextStreams::begin(server, plan, started)?;
    if streams {
        Ok(stream::<E>(heading, texts, usage, room))
    } else {
        whole::<E>(heading, texts, room).await
    }
}

/// Receives and parses the body, and encodes its prompts, when there is room for each of these steps.
async fn plan<E: Endpoint>(
    server: &Arc<Server>,
    connection: &Arc<Connection>,
    request: Request,
    deadline: Instant,
) -> Result<TextPlan, ApiError> {
    check_head(&request, server.options.body_limit)?;
    let (body, mut room) = receive(server, connection, request).await?;
    let reader = server.clone();
    let parsed = off_the_runtime(move || E::read(&body, &reader)).await?;
    let is_long = parsed.prompts().text_bytes() > LONG_TEXT;
    if is_long {
        // Other requests can arrive meanwhile.
        let units = units(parsed.prompts().text_bytes());
        let long = server.long_texts.clone().try_acquire_many_owned(units);
        room = long.map_err(|_| SubmitError::Full)?;
    }
    let is_dropped = Arc::new(AtomicBool::new(false));
    // Set when the connection was closed, or the server has no time left for the request.
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

/// Runs work that keeps a core busy, on a blocking thread.
async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ApiError::internal(error.to_string()))?
}

/// One response with all texts, when they have ended.
async fn whole<E: Endpoint>(
    heading: Heading,
    mut texts: TextStreams,
    room: Option<ReplyRoom>,
) -> Result<Response, ApiError> {
    let piece = |index| TextPiece {
        index,
        // A text without a token has no scores in it, and not none at all.
        tokens: texts.is_scored(index).then(Vec::new),
        ..TextPiece::default()
    };
    let mut choices: Vec<TextPiece> = (0..texts.len()).map(piece).collect();
    while let Some(piece) = texts.next().await {
        let piece = piece?;
        choices[piece.index].extend(piece);
    }
    for choice in &mut choices {
        // A part of a prompt's scores would look like all of them.
        if texts.lacks_scores(choice.index) {
            choice.tokens = None;
        }
    }
    let usage = texts.usage();
    let tokenizer = texts.tokenizer().clone();
    drop(texts);
    let reply = off_the_runtime(move || {
        let choices = choices.into_iter();
        let choices = choices.map(|text| E::choice(&tokenizer, text)).collect();
        let reply = heading.reply(E::WHOLE, choices, Some(usage));
        // Serialising strings and finite numbers does not fail.
        Ok(serde_json::to_vec(&reply).unwrap_or_default())
    });
    Ok(whole_reply(reply.await?, room))
}

/// A response with a reply, which holds its room until the client has received it.
fn whole_reply(json: Vec<u8>, mut room: Option<ReplyRoom>) -> Response {
    let length = json.len();
    // A reply is seldom as long as it could have been, so the rest of the room is given back.
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
    /// The openings of the texts that have none yet.
    Openings(Range<usize>),
    Piece,
    Done,
}

/// A stream of server-sent events: each piece of a text as soon as it is made.
fn stream<E: Endpoint>(
    heading: Heading,
    texts: TextStreams,
    usage: bool,
    room: Option<ReplyRoom>,
) -> Response {
    let first = NextLine::Openings(0..texts.len());
    let lines = stream::unfold(
        Some((heading, texts, room, first)),
        move |state| async move {
            let (heading, mut texts, room, mut next) = state?;
            let mut opening = None;
            if let NextLine::Openings(indices) = &mut next {
                opening = indices.next().and_then(E::opening);
            }
            let (line, then) = match (opening, next) {
                (Some(delta), next) => {
                    let line = json_line(&heading.reply(E::PIECE, vec![delta], None));
                    (line, Some(next))
                }
                (None, NextLine::Done) => (Line::default().data("[DONE]"), None),
                (None, _) => match texts.next().await {
                    Some(Ok(piece)) => {
                        let delta = E::delta(texts.tokenizer(), piece);
                        let line = json_line(&heading.reply(E::PIECE, vec![delta], None));
                        (line, Some(NextLine::Piece))
                    }
                    // Nothing follows an error.
                    Some(Err(error)) => (json_line(&error.to_json()), None),
                    None if usage => {
                        let none: Vec<E::Delta> = Vec::new();
                        let reply = heading.reply(E::PIECE, none, Some(texts.usage()));
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
