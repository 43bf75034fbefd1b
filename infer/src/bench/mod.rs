//! Rows as people read them and as programs do.

use serde_json::json;

use super::measure::{Bandwidth, Row};

/// A table in Markdown.
pub fn markdown(bandwidth: Bandwidth, rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.model.chars().count()).max();
    let width = width.unwrap_or(0).max(5);
    let mut text = format!(
        "A copy reads and writes {:.1} GB/s.\n\n",
        1e-9 * bandwidth.0
    );
    text += &format!(
        "| {:width$} | kind    | {:10} | batch | prompt | prefill tokens/s | decode tokens/s | step ms \
         | state of a sequence, MiB | % of bandwidth |\n",
        "model", "dtype"
    );
    text += &format!(
        "|{:-<w$}|---------|------------|------:|-------:|-----------------:|----------------:|--------:\
         |-------------------------:|---------------:|\n",
        "",
        w = width + 2
    );
    for row in rows {
        text += &format!(
            "| {:width$} | {:7} | {:10} | {:5} | {:6} | {:16.1} | {:15.1} | {:7.3} | {:24.2} | {:14.1} |\n",
            row.model,
            row.kind,
            row.dtype,
            row.batch,
            row.prompt_tokens,
            row.prefill_tokens_per_second,
            row.decode_tokens_per_second,
            row.step_milliseconds,
            row.state_bytes as f64 / f64::from(1 << 20),
            100.0 * row.share_of_bandwidth,
        );
    }
    text
}

/// One object on one line.
pub fn json(bandwidth: Bandwidth, rows: &[Row]) -> String {
    let object = json!({ "copy_bytes_per_second": bandwidth, "rows": rows });
    format!("{object}\n")
}
