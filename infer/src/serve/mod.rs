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
//! - The text of a request with a seed is always the same, whatever else the server does, and no
//!   other request's text is ever in it.
//! - Every answer that is no success is OpenAI's error object, and says in a sentence what is wrong.
//!   A field that would change the text if it were heeded is heeded or refused.
//! - When as many requests wait as may, or arrive as there is memory for, further ones are told so at
//!   once (429, with `Retry-After`). When there are many connections, further ones wait to be taken.
//!   Bodies have a length limit, heads and bodies a time limit, and so have texts, which end where
//!   they are.
//! - Whoever hangs up gives its place away.
//!
//! # Why so little is here
//!
//! A handler turns a body into [`engine::Request`](crate::engine::Request)s and their
//! [`Answer`](crate::engine::Answer)s into JSON. Dropping an answer ends the work for it, and a
//! handler is dropped with its connection, so there is no list of connections to keep; the queue is
//! the engine's.

mod args;
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
use std::net::TcpListener;
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

use crate::engine::{Engine, EngineThread};
use error::ApiError;
use metrics::Metrics;
use reply::json_response;
use request::Limits;

pub use args::{ServeArgs, ServeError};

/// Every path but a model's own.
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

/// What a server is told.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The model's name in requests and replies.
    pub name: String,
    /// What requests must bring as their bearer token, if anything.
    pub api_key: Option<String>,
    /// The most tokens that a request may ask for.
    pub max_tokens: usize,
    /// When a text ends even if it is not complete.
    pub time_limit: Duration,
    /// The bytes of a body, at most.
    pub body_limit: usize,
    /// The time in which the head of a request must have arrived, from when a connection is open or
    /// its last request answered.
    pub head_time: Duration,
    /// The time that a body may take to arrive.
    pub body_time: Duration,
}

/// How many bodies of the longest length may be on their way to the engine at once. Each takes a few
/// times its length while it is understood.
const ARRIVING: usize = 16;

/// What every handler sees.
struct Server {
    engine: Engine,
    /// Room for bodies that arrive and are understood, in [units](completions::units).
    arriving: Arc<Semaphore>,
    tokenizer: Arc<Tokenizer>,
    options: ServerOptions,
    limits: Limits,
    metrics: Metrics,
    /// Seconds since 1970 when it began.
    created: u64,
}

/// Serves `engine` on `listener` until `stop`, then takes no more requests and ends when those that
/// there are have been answered, or their time limit has passed.
///
/// # Errors
///
/// The listener cannot be listened to, or the engine has stopped by itself.
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
    match server.engine.has_stopped() {
        true => Ok(thread.join()?),
        false => Ok(()),
    }
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
    match engine.has_stopped() {
        false => json_response(StatusCode::OK, &json!({"status": "ok"})),
        true => json_response(
            StatusCode::SERVICE_UNAVAILABLE,
            &json!({"status": "stopped"}),
        ),
    }
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

/// The token of an `Authorization`, whose scheme may be written in any letters.
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let space = authorization.iter().position(|&byte| byte == b' ')?;
    let (scheme, token) = authorization.split_at(space);
    let is_bearer = scheme.eq_ignore_ascii_case(b"Bearer");
    is_bearer.then(|| token.trim_ascii())
}

/// Whether two keys are the same, in a time that does not tell where they differ.
fn equal(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b));
    a.len() == b.len() && differences == 0
}
