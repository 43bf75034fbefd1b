//! Timings of models, as a table for people and as JSON for programs.

mod measure;

use comfy_table::CellAlignment::{Left, Right};
use serde_json::json;

use crate::table::{self, Column};

pub(crate) use measure::{Bandwidth, Subject, Timing};

const COLUMNS: [Column; 10] = [
    ("model", Left),
    ("kind", Left),
    ("dtype", Left),
    ("batch", Right),
    ("prompt", Right),
    ("prefill tokens/s", Right),
    ("decode tokens/s", Right),
    ("step ms", Right),
    ("state of a sequence, MiB", Right),
    ("% of bandwidth", Right),
];

/// A table in Markdown.
pub(crate) fn markdown(bandwidth: Bandwidth, timings: &[Timing]) -> String {
    let rows = timings.iter().map(|timing| {
        [
            timing.model.clone(),
            timing.kind.into(),
            timing.dtype.clone(),
            timing.batch.to_string(),
            timing.prompt_tokens.to_string(),
            format!("{:.1}", timing.prefill_tokens_per_second),
            format!("{:.1}", timing.decode_tokens_per_second),
            format!("{:.3}", timing.step_milliseconds),
            format!("{:.2}", timing.state_bytes as f64 / f64::from(1 << 20)),
            format!("{:.1}", 100.0 * timing.share_of_bandwidth),
        ]
    });
    let gigabytes = 1e-9 * bandwidth.0;
    let table = table::markdown(&COLUMNS, 1, rows);
    format!("A pass over memory reads and writes {gigabytes:.1} GB/s.\n\n{table}")
}

/// One JSON object on one line.
pub(crate) fn json(bandwidth: Bandwidth, timings: &[Timing]) -> String {
    let object = json!({ "copy_bytes_per_second": bandwidth, "rows": timings });
    format!("{object}\n")
}
