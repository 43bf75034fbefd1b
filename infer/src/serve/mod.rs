//! `infer serve`: the [engine](crate::engine) behind OpenAI's HTTP interface.
//!
//! ```text
//! POST /v1/completions       texts, whole or as server-sent events
//! POST /v1/chat/completions  the next turns of conversations, likewise
//! GET  /v1/models            the model
//! GET  /health               whether the engine is at work
//! GET  /metrics              counts, for Prometheus
//! GET  /                     a page for a person
//! ```
//!
//! # Guarantees for clients
//!
//! - The text of a request with a seed is always the same, under any load, and never contains text of another request.
//! - Every error is OpenAI's error object, with a sentence that says what is wrong. A field that would change the text is
//!   obeyed or refused, never ignored.
//! - Requests take turns ([`engine`](crate::engine)): a request for many texts does not make another one wait until it is
//!   done.
//! - If the queue is full, or if too many bodies arrive or large replies are made at the same time, further requests are
//!   refused at once (429, with `Retry-After`). Bodies and replies have a length limit; a request whose reply could be
//!   longer is refused before anything is computed.
//! - Heads of requests, bodies and whole texts have time limits. A text that reaches its limit ends there, and texts of the
//!   request that have not begun end too, all with `finish_reason` `length`. Only if nothing at all was made, the answer is
//!   an error (503). If not all tokens of a prompt were scored, its `logprobs` is `null`.
//! - A client that closes its connection frees its place. The connection is closed if a client reads nothing of its answer
//!   for a minute, or less than about two KiB a second; for a large reply, also if it reads less than 64 KiB a second for
//!   longer than a minute. One address gets at most half of the room for large replies.
//! - When the server is stopped, texts continue for the grace time; then what was made is sent.
//! - If there are too many connections, in all or of one address, connections without a request that is being processed
//!   are closed to make room for new ones.
//! - Only requests for the server's own hosts are answered, and no requests of other sites' pages.
//!
//! # Structure
//!
//! A handler turns a body into [`engine::Request`](crate::engine::Request)s and their
//! [`Answer`](crate::engine::Answer)s into JSON. `answer` does this for every endpoint that makes texts; `completions`
//! and `chat` have the differences. Dropping an answer ends the work for it, and a handler is dropped with its
//! connection; the engine has the queue. `client` handles faults of clients below HTTP, and `connections` limits the
//! number of clients.

mod answer;
mod body;
mod chat;
mod client;
mod completions;
mod connections;
mod echo;
mod error;
mod fields;
mod hosts;
mod key;
mod metrics;
mod models;
mod page;
mod prompt;
mod reply;
mod reply_room;
mod request;
mod shutdown;
mod texts;
mod token_name;

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZero;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware;
use axum::response::Response;
use axum::routing::{get, post};
use datasets::Tokenizer;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::chat::ChatTemplate;
use crate::engine::{Engine, EngineError, EngineThread};
use answer::answer;
use connections::Connections;
use error::ApiError;
use hosts::Hosts;
pub(crate) use hosts::allowed_host;
use key::Key;
use metrics::Metrics;
use reply::json_response;
use reply_room::ReplyRooms;
use request::Limits;

/// Why a server cannot start, or has stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is in use, or does not belong to this machine.
    #[error("cannot listen on {address}: {source}; --port chooses another, 0 any that is free")]
    Address {
        /// The address.
        address: SocketAddr,
        /// The operating system's error.
        source: io::Error,
    },
    /// The listening socket has failed.
    #[error("the server's socket has failed: {0}")]
    Listener(io::Error),
    /// The API key is empty, or no header can hold it.
    #[error(
        "the API key is empty or no line of text, so anyone or nobody could use the server; --api-key or \
         INFER_API_KEY gives another, and neither opens the server to all"
    )]
    ApiKey,
    /// The asynchronous runtime cannot start.
    #[error("the server cannot begin: {0}")]
    Runtime(io::Error),
    /// The engine cannot start, or has stopped.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// All paths, except those of single models. Responses are counted by these.
const PATHS: [&str; 9] = [
    "/",
    "/page.css",
    "/page.js",
    "/icon.svg",
    "/health",
    "/metrics",
    "/v1/models",
    "/v1/completions",
    "/v1/chat/completions",
];

/// The settings of a server.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The model's name in requests and replies.
    pub name: String,
    /// The bearer token that requests must contain; `None` for an open server. Surrounding white space is ignored.
    pub api_key: Option<String>,
    /// Additional names and addresses of the server, besides loopback addresses and the address that it listens on; in
    /// lower case, and without ports.
    pub allowed_hosts: Vec<String>,
    /// The most tokens that a request may ask for.
    pub max_tokens: usize,
    /// The time after which a text ends even if it is not complete.
    pub time_limit: Duration,
    /// The most bytes of a body.
    pub body_limit: usize,
    /// The largest estimated size of a reply, in bytes.
    pub reply_limit: usize,
    /// The most connections of one address.
    pub connections_per_address: usize,
    /// The time in which the head of a request must arrive, counted from the opening of the connection or
    /// the end of the last response.
    pub head_time: Duration,
    /// The time that a body may take to arrive.
    pub body_time: Duration,
    /// The connection of a client is closed after the client has taken nothing of what is sent for this time. For a
    /// large reply, it is closed when the client has made the server wait for this time in total, not counting the time
    /// that the bytes take at 64 KiB a second.
    pub write_time: Duration,
    /// The longest time that a stop may take. Shortly before its end, all texts end and are sent.
    pub grace: Duration,
}

/// A model that can be served.
pub struct ServedModel {
    /// The engine that computes its texts.
    pub engine: Engine,
    /// The engine's thread.
    pub engine_thread: EngineThread,
    /// The engine's tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The model's chat template, or the reason why there is none, for clients that ask for a chat.
    pub chat: Result<ChatTemplate, String>,
}

/// How many bodies of the largest size may be received and parsed at the same time. A body needs a few times its size
/// in memory while it is parsed.
const ARRIVING: usize = 16;

/// How many bodies of the largest size may have their texts encoded at the same time, separately from short ones.
/// Besides its text, such a body needs about the same amount of memory for its tokens.
const LONG_TEXTS: usize = 16;

/// How many replies of the largest size may be made and sent at the same time, besides small ones; half of them for one
/// client. A reply needs a few times its size in memory.
const REPLIES: usize = 4;

/// How many clients at the same time are sent the error that they have too many connections.
const REFUSALS: usize = 64;

/// The number of connections that are allowed in addition to one for each text that can run or wait: for other
/// requests, and for clients that have not sent a request yet.
const SPARE: usize = 256;

/// What all handlers share.
struct Server {
    engine: Engine,
    connections: Arc<Connections>,
    /// Limits how many clients at the same time are sent the error that they have too many connections.
    refusals: Arc<Semaphore>,
    /// Room for bodies that are being received and parsed, in [units](body::units).
    arriving: Arc<Semaphore>,
    /// Room for long texts that are being encoded, and the threads for that.
    long_texts: Arc<Semaphore>,
    long_text_threads: rayon::ThreadPool,
    /// Room for large replies that are being made and sent.
    replies: Arc<ReplyRooms>,
    tokenizer: Arc<Tokenizer>,
    /// The chat template, or why there is none.
    chat: Result<ChatTemplate, String>,
    options: ServerOptions,
    hosts: Hosts,
    key: Option<Key>,
    limits: Limits,
    metrics: Metrics,
    /// When the server started, in seconds since 1970.
    created: u64,
}

/// [`serve`] until a signal (Ctrl-C, or SIGTERM) ends it, on a runtime that this function starts. `announce` is called
/// when signals are handled.
///
/// # Errors
/// [`ServeError::Runtime`], and those of [`serve`].
pub(crate) fn run(
    model: ServedModel,
    options: ServerOptions,
    listener: TcpListener,
    announce: impl FnOnce(),
) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(ServeError::Runtime)?;
    let served = runtime.block_on(async {
        let stop = shutdown::signals();
        announce();
        serve(model, options, listener, stop).await
    });
    // Work that remains on other threads has no client any more.
    runtime.shutdown_background();
    served
}

/// Serves `model` on `listener` until `stop` resolves. Then it takes no more requests, and returns when
/// all requests that it has are answered, or the grace time has passed.
///
/// # Errors
/// [`ServeError::Listener`] if the listener fails, [`ServeError::ApiKey`], [`ServeError::Runtime`] if there
/// are no threads, and [`ServeError::Engine`] if the engine has stopped by a fault.
pub async fn serve(
    model: ServedModel,
    options: ServerOptions,
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let ServedModel {
        engine,
        engine_thread,
        tokenizer,
        chat,
    } = model;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let limits = Limits {
        max_tokens: options.max_tokens,
        texts: engine.queue(),
        prompt_bytes: longest_prompt(&tokenizer, engine.facts().max_positions),
        positions: engine.facts().max_positions,
        reply_bytes: options.reply_limit,
    };
    let key = options.api_key.as_deref().map(Key::new).transpose()?;
    let address = listener.local_addr().map_err(ServeError::Listener)?;
    let hosts = Hosts {
        bound: address.ip(),
        allowed: options.allowed_hosts.clone(),
    };
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let long_text_threads = rayon::ThreadPoolBuilder::new()
        .num_threads(cores.div_ceil(2))
        .thread_name(|i| format!("long-texts-{i}"))
        .build()
        .map_err(|error| ServeError::Runtime(io::Error::other(error)))?;
    let most = engine.slots() + engine.queue() + SPARE;
    let server = Arc::new(Server {
        connections: Connections::new(most, options.connections_per_address),
        refusals: Arc::new(Semaphore::new(REFUSALS)),
        arriving: room(ARRIVING, options.body_limit),
        long_texts: room(LONG_TEXTS, options.body_limit),
        long_text_threads,
        replies: ReplyRooms::new(REPLIES.saturating_mul(options.reply_limit)),
        engine,
        tokenizer,
        chat,
        limits,
        hosts,
        key,
        options,
        metrics: Metrics::default(),
        created: now.map_or(0, |now| now.as_secs()),
    });
    listener
        .set_nonblocking(true)
        .map_err(ServeError::Listener)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(ServeError::Listener)?;
    let router = router(server.clone());
    shutdown::serve(listener, router, &server, stop).await;
    if server.engine.has_stopped() {
        engine_thread.join()?;
    }
    Ok(())
}

/// Checks that a key can be used, before a server starts with it.
///
/// # Errors
/// [`ServeError::ApiKey`] if it is empty, or if no header can hold it.
pub(crate) fn check_api_key(key: &str) -> Result<(), ServeError> {
    Key::new(key).map(drop)
}

/// Room for `things` objects of `bytes` bytes each.
fn room(things: usize, bytes: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(room_units(things, bytes)))
}

/// The same room in [units](body::units).
fn room_units(things: usize, bytes: usize) -> usize {
    let units = things.saturating_mul(body::units(bytes) as usize);
    units.min(Semaphore::MAX_PERMITS)
}

/// The most bytes that a text within the model's positions can have; `None` if there is no such limit.
fn longest_prompt(tokenizer: &Tokenizer, max_positions: Option<usize>) -> Option<usize> {
    Some(tokenizer.longest_token()?.saturating_mul(max_positions?))
}

fn router(server: Arc<Server>) -> Router {
    let keyed = Router::new()
        .route("/v1/completions", post(answer::<completions::Completions>))
        .route("/v1/chat/completions", post(answer::<chat::Chat>))
        .route("/v1/models", get(models::models))
        .route("/v1/models/{*name}", get(models::model))
        .route("/metrics", get(metrics::metrics))
        .route_layer(middleware::from_fn_with_state(server.clone(), key::check));
    Router::new()
        .route("/", get(page::html))
        .route("/page.css", get(page::css))
        .route("/page.js", get(page::js))
        .route("/icon.svg", get(page::icon))
        .route("/health", get(health))
        .merge(keyed)
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(server.clone(), hosts::check))
        .layer(middleware::from_fn_with_state(
            server.clone(),
            metrics::count,
        ))
        .with_state(server)
}

async fn health(State(server): State<Arc<Server>>) -> Response {
    let engine = &server.engine;
    let (status, word) = if engine.has_stopped() {
        (StatusCode::SERVICE_UNAVAILABLE, "stopped")
    } else {
        (StatusCode::OK, "ok")
    };
    json_response(status, &json!({"status": word}))
}

async fn no_such_path(request: Request) -> ApiError {
    ApiError::no_such_path(request.uri().path())
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::wrong_method(request.method().as_str(), request.uri().path())
}
