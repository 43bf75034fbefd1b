//! `GET /metrics`: counters for Prometheus, in the OpenMetrics text format.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;

use super::error::ApiError;
use super::{ARRIVING, PATHS, Server, room_units};

const CONTENT_TYPE: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    path: &'static str,
    code: u16,
}

/// Why the server has closed a connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Closed {
    /// The client did not read.
    NotReading,
    /// No request was being processed on it, and another connection needed its place.
    MadeRoom,
    /// Its address had the most connections that it may have.
    TooMany,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClosedLabels {
    reason: &'static str,
}

/// Counts of requests. The engine counts its own work in [`Gauges`](crate::engine::Gauges).
pub(super) struct Metrics {
    responses: Family<Labels, Counter>,
    closed: Family<ClosedLabels, Counter>,
    first_token: Histogram,
    response: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        // From a millisecond to a minute.
        let seconds = || Histogram::new(exponential_buckets(1e-3, 4.0, 9));
        Self {
            responses: Family::default(),
            closed: Family::default(),
            first_token: seconds(),
            response: seconds(),
        }
    }
}

impl Metrics {
    /// Counts the time from a request to its first token.
    pub(super) fn first_token(&self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
    }

    /// Counts a connection that the server has closed.
    pub(super) fn closed(&self, reason: Closed) {
        let reason = match reason {
            Closed::NotReading => "not_reading",
            Closed::MadeRoom => "made_room",
            Closed::TooMany => "too_many",
        };
        let labels = ClosedLabels { reason };
        self.closed.get_or_create(&labels).inc();
    }

    /// Counts an error that is sent before any handler gets the request.
    pub(super) fn refused(&self, status: StatusCode) {
        let code = status.as_u16();
        let path = "other";
        let labels = Labels { path, code };
        self.responses.get_or_create(&labels).inc();
    }
}

/// Counts every response.
pub(super) async fn count(
    State(server): State<Arc<Server>>,
    request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    // Unknown paths share one name, so that clients cannot use up memory with new names.
    let path = PATHS.iter().find(|path| **path == request.uri().path());
    let path = path.copied().unwrap_or("other");
    let response = next.run(request).await;
    let code = response.status().as_u16();
    let metrics = &server.metrics;
    metrics
        .responses
        .get_or_create(&Labels { path, code })
        .inc();
    metrics.response.observe(started.elapsed().as_secs_f64());
    response
}

/// The bytes that are taken of the room for so many things of so many bytes.
fn taken(room: &Semaphore, things: usize, bytes: usize) -> usize {
    1024 * room_units(things, bytes).saturating_sub(room.available_permits())
}

/// The page that Prometheus reads.
pub(super) async fn metrics(
    State(server): State<Arc<Server>>,
) -> Result<impl IntoResponse, ApiError> {
    let (engine, metrics) = (&server.engine, &server.metrics);
    let gauges = engine.gauges();
    let mut registry = Registry::with_prefix("infer");
    for (name, help, count) in [
        ("prompt_tokens", "Prompt tokens read", &gauges.prompt_tokens),
        ("generated_tokens", "Tokens made", &gauges.tokens),
    ] {
        registry.register(name, help, ConstCounter::new(count.load(Relaxed)));
    }
    for (name, help, value) in [
        (
            "sequences_running",
            "Texts at work",
            gauges.sequences.load(Relaxed),
        ),
        ("sequences_waiting", "Texts in the queue", engine.waiting()),
        ("slots", "The most texts at work", engine.slots()),
        ("connections", "Open connections", server.connections.len()),
        (
            "arriving_bytes",
            "Room that arriving bodies take",
            taken(&server.arriving, ARRIVING, server.options.body_limit),
        ),
        (
            "reply_bytes",
            "Room that large replies take which are being made and sent",
            server.replies.taken(),
        ),
        (
            "state_bytes",
            "Memory of the states of the texts at work",
            gauges.state_bytes.load(Relaxed),
        ),
    ] {
        registry.register(name, help, ConstGauge::new(value as u64));
    }
    registry.register(
        "http_responses",
        "Responses by path and status",
        metrics.responses.clone(),
    );
    registry.register(
        "connections_closed",
        "Connections that the server has closed, by reason",
        metrics.closed.clone(),
    );
    registry.register(
        "first_token_seconds",
        "From a request to its first token",
        metrics.first_token.clone(),
    );
    registry.register(
        "http_response_seconds",
        "From a request to its response, of a stream to its beginning",
        metrics.response.clone(),
    );
    let mut page = String::new();
    let encoded = text::encode(&mut page, &registry);
    encoded.map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], page))
}
