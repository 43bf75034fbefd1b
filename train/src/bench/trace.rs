//! The measured steps as a trace, which Perfetto (ui.perfetto.dev) and chrome://tracing draw.
//!
//! The form is the JSON object of Chrome's Trace Event Format: a row of the bench is a process, a span a complete
//! event (`X`), in microseconds.

use kernels::profile::Span;
use serde_json::{Value, json};

use super::measure::Row;

/// The trace of all rows.
pub(super) fn json(rows: &[Row]) -> String {
    let events = rows.iter().enumerate().flat_map(|(process, row)| {
        let name = format!("{}, {} x {}", row.stage, row.batch, row.length);
        let named = json!({
            "name": "process_name", "ph": "M", "pid": process, "tid": 0, "args": {"name": name},
        });
        let spans = row.spans.iter().map(move |span| event(process, span));
        std::iter::once(named).chain(spans)
    });
    let events: Vec<Value> = events.collect();
    json!({"traceEvents": events, "displayTimeUnit": "ms"}).to_string()
}

fn event(process: usize, span: &Span) -> Value {
    let microseconds = |time: std::time::Duration| time.as_nanos() as f64 / 1e3;
    let mut event = json!({
        "name": span.name,
        "cat": span.category,
        "ph": "X",
        "ts": microseconds(span.begin),
        "dur": microseconds(span.duration),
        "pid": process,
        "tid": span.thread,
    });
    if let Some(place) = span.place {
        event["args"] = json!({"at": format!("{}:{}", place.file(), place.line())});
    }
    event
}
