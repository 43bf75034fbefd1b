//! `GET /metrics`: what Prometheus reads.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::{PATHS, Server};

/// A number of durations and their sum.
#[derive(Clone, Copy, Default)]
struct Durations {
    count: u64,
    sum: Duration,
}

impl Durations {
    fn add(&mut self, duration: Duration) {
        self.count += 1;
        self.sum += duration;
    }
}

/// What is counted of the requests themselves; the engine counts its own work.
#[derive(Default)]
pub(super) struct Metrics {
    counted: Mutex<Counted>,
}

#[derive(Clone, Default)]
struct Counted {
    /// By path and status.
    responses: BTreeMap<(&'static str, u16), u64>,
    first_token: Durations,
    response: Durations,
}

impl Metrics {
    fn with(&self, count: impl FnOnce(&mut Counted)) {
        // Whatever went wrong while others counted, numbers are numbers.
        count(&mut self.counted.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// From a request to its first token.
    pub(super) fn first_token(&self, after: Duration) {
        self.with(|counted| counted.first_token.add(after));
    }
}

/// Counts every response.
pub(super) async fn count(
    State(server): State<Arc<Server>>,
    request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    // Whatever else is asked for must not fill the memory with names.
    let path = PATHS.iter().find(|path| **path == request.uri().path());
    let path = path.copied().unwrap_or("other");
    let response = next.run(request).await;
    let status = response.status().as_u16();
    server.metrics.with(|counted| {
        *counted.responses.entry((path, status)).or_default() += 1;
        counted.response.add(started.elapsed());
    });
    response
}

/// The page that Prometheus reads.
pub(super) async fn metrics(State(server): State<Arc<Server>>) -> impl IntoResponse {
    let mut page = Page::default();
    let gauges = server.engine.gauges();
    page.counter(
        "infer_prompt_tokens_total",
        "Prompt tokens read.",
        gauges.prompt_tokens.load(Relaxed),
    );
    page.counter(
        "infer_generated_tokens_total",
        "Tokens made.",
        gauges.tokens.load(Relaxed),
    );
    page.gauge(
        "infer_sequences_running",
        "Texts at work.",
        gauges.sequences.load(Relaxed),
    );
    page.gauge(
        "infer_sequences_waiting",
        "Texts in the queue.",
        server.engine.waiting(),
    );
    page.gauge(
        "infer_slots",
        "The most texts at work.",
        server.engine.slots(),
    );
    page.gauge(
        "infer_state_bytes",
        "Memory of the states of the texts at work.",
        gauges.state_bytes.load(Relaxed),
    );

    let mut counted = Counted::default();
    server.metrics.with(|now| counted = now.clone());
    let name = "infer_http_responses_total";
    page.describe(name, "counter", "Responses by path and status.");
    for ((path, code), n) in counted.responses {
        page.line(&format!("{name}{{path=\"{path}\",code=\"{code}\"}}"), n);
    }
    page.durations(
        "infer_first_token_seconds",
        "From a request to its first token.",
        counted.first_token,
    );
    page.durations(
        "infer_http_response_seconds",
        "From a request to its response, of a stream to its beginning.",
        counted.response,
    );

    let mut headers = HeaderMap::new();
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, text);
    (headers, page.0)
}

/// Prometheus' text format.
#[derive(Default)]
struct Page(String);

impl Page {
    fn describe(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, value: impl Display) {
        let _ = writeln!(self.0, "{name} {value}");
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.describe(name, "counter", help);
        self.line(name, value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: usize) {
        self.describe(name, "gauge", help);
        self.line(name, value);
    }

    fn durations(&mut self, name: &str, help: &str, durations: Durations) {
        self.describe(name, "summary", help);
        self.line(&format!("{name}_sum"), durations.sum.as_secs_f64());
        self.line(&format!("{name}_count"), durations.count);
    }
}
