//! `infer serve`: the [engine](crate::engine) behind OpenAI's HTTP interface.
//!
//! ```text
//! POST /v1/completions  texts, whole or as server-sent events
//! GET  /v1/models       the model
//! GET  /health          whether the engine is at work
//! GET  /metrics         counts, for Prometheus
//! GET  /                a page for a person
//! ```
//!
//! # What a client can count on
//!
//! - The text of a request with a seed is always the same, whatever the load, and never contains text of
//!   another request.
//! - Every error is OpenAI's error object, with a sentence that says what is wrong. A field that would
//!   change the text is obeyed or refused, never ignored.
//! - When the queue is full, or too many bodies arrive at once, further requests are refused at once (429,
//!   with `Retry-After`). When there are too many connections, further ones wait to be accepted. Bodies
//!   have a length limit; heads and bodies of requests and whole texts have time limits, and a text that
//!   reaches its limit ends there.
//! - A client that closes its connection frees its place.
//!
//! # Why this module is small
//!
//! A handler turns a body into [`engine::Request`](crate::engine::Request)s and their
//! [`Answer`](crate::engine::Answer)s into JSON. Dropping an answer ends the work for it, and a handler is
//! dropped with its connection, so no list of connections is needed; the queue is the engine's.

mod completions;
mod echo;
mod error;
mod metrics;
mod models;
mod page;
mod reply;
mod request;
mod shutdown;
mod texts;

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use datasets::Tokenizer;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::engine::{Engine, EngineError, EngineThread};
use error::ApiError;
use metrics::Metrics;
use reply::json_response;
use request::Limits;

/// Why a server cannot start, or has stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is taken, or not this machine's.
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
    /// The API key is empty, or not text.
    #[error(
        "the API key is empty or no text, so anyone could use the server; --api-key or INFER_API_KEY gives \
         another, and neither opens the server to all"
    )]
    ApiKey,
    /// The asynchronous runtime cannot start.
    #[error("the server cannot begin: {0}")]
    Runtime(io::Error),
    /// The engine cannot start, or has stopped.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Every path but a model's own, under which responses are counted.
const PATHS: [&str; 8] = [
    "/",
    "/page.css",
    "/page.js",
    "/icon.svg",
    "/health",
    "/metrics",
    "/v1/models",
    "/v1/completions",
];

/// The settings of a server.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The model's name in requests and replies.
    pub name: String,
    /// The bearer token that requests must have; `None` for an open server.
    pub api_key: Option<String>,
    /// The most tokens that a request may ask for.
    pub max_tokens: usize,
    /// The time after which a text ends even if it is not complete.
    pub time_limit: Duration,
    /// The most bytes of a body.
    pub body_limit: usize,
    /// The time in which the head of a request must arrive, counted from the opening of the connection or
    /// the end of the last response.
    pub head_time: Duration,
    /// The time that a body may take to arrive.
    pub body_time: Duration,
}

/// How many bodies of the greatest length may be received and parsed at once. Each takes a few times its
/// length of memory while it is parsed.
const ARRIVING: usize = 16;

/// What all handlers share.
struct Server {
    engine: Engine,
    /// Room for bodies that are being received and parsed, in [units](completions::units).
    arriving: Arc<Semaphore>,
    tokenizer: Arc<Tokenizer>,
    options: ServerOptions,
    limits: Limits,
    metrics: Metrics,
    /// When the server started, in seconds since 1970.
    created: u64,
}

/// [`serve`] until a signal ends it (Ctrl-C, or SIGTERM), on a runtime that it starts.
///
/// # Errors
/// [`ServeError::Runtime`], and those of [`serve`].
pub(crate) fn run(
    engine: (Engine, EngineThread),
    tokenizer: Arc<Tokenizer>,
    options: ServerOptions,
    listener: TcpListener,
) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(ServeError::Runtime)?;
    let stop = shutdown::signals();
    runtime.block_on(serve(engine, tokenizer, options, listener, stop))
}

/// Serves `engine` on `listener` until `stop` resolves. Then it takes no more requests, and returns when
/// all requests that it has are answered, or their time limit has passed.
///
/// # Errors
/// [`ServeError::Listener`] if the listener fails, and [`ServeError::Engine`] if the engine has stopped by
/// a fault.
pub async fn serve(
    (engine, thread): (Engine, EngineThread),
    tokenizer: Arc<Tokenizer>,
    options: ServerOptions,
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let limits = Limits {
        max_tokens: options.max_tokens,
        texts: engine.queue(),
    };
    let room = ARRIVING * completions::units(options.body_limit) as usize;
    let server = Arc::new(Server {
        engine,
        arriving: Arc::new(Semaphore::new(room)),
        tokenizer,
        limits,
        options,
        metrics: Metrics::default(),
        created: now.map_or(0, |now| now.as_secs()),
    });
    listener
        .set_nonblocking(true)
        .map_err(ServeError::Listener)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(ServeError::Listener)?;
    let router = router(server.clone());
    let times = (server.options.head_time, server.options.time_limit);
    shutdown::serve(listener, router, &server.engine, stop, times).await;
    if server.engine.has_stopped() {
        thread.join()?;
    }
    Ok(())
}

fn router(server: Arc<Server>) -> Router {
    let keyed = Router::new()
        .route("/v1/completions", post(completions::completions))
        .route("/v1/models", get(models::models))
        .route("/v1/models/{*name}", get(models::model))
        .route("/metrics", get(metrics::metrics))
        .route_layer(middleware::from_fn_with_state(server.clone(), check_key));
    Router::new()
        .route("/", get(page::html))
        .route("/page.css", get(page::css))
        .route("/page.js", get(page::js))
        .route("/icon.svg", get(page::icon))
        .route("/health", get(health))
        .merge(keyed)
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
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

async fn check_key(
    State(server): State<Arc<Server>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if let Some(key) = &server.options.api_key {
        let given = request.headers().get(header::AUTHORIZATION);
        let given = given.and_then(|given| bearer(given.as_bytes()));
        if !given.is_some_and(|given| equal(given, key.as_bytes())) {
            return Err(ApiError::unauthorised());
        }
    }
    Ok(next.run(request).await)
}

/// The token of an `Authorization` header, if its scheme is `Bearer` in any case of letters.
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let space = authorization.iter().position(|&byte| byte == b' ')?;
    let (scheme, token) = authorization.split_at(space);
    let is_bearer = scheme.eq_ignore_ascii_case(b"Bearer");
    is_bearer.then(|| token.trim_ascii())
}

/// Whether two keys are equal. The time of the comparison does not depend on where they differ.
fn equal(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b));
    a.len() == b.len() && differences == 0
}
