//! Rows as people read them and as programs do.

use std::fmt::Write as _;

use serde_json::{Map, json};

use super::measure::{MatmulRate, Row};

/// What all rows have in common.
pub(super) struct Head<'a> {
    pub(super) backend: &'a str,
    pub(super) precision: String,
    /// What the teacher's weights are.
    pub(super) teacher: String,
    pub(super) steps: usize,
    pub(super) rate: MatmulRate,
}

/// Two tables in Markdown: the rates, and where a step's time goes.
pub(super) fn markdown(head: &Head<'_>, rows: &[Row]) -> String {
    let mut text = format!(
        "{}, {}, {}, {} steps a row. A product of matrices alone: {:.2} TFLOP/s.\n\n",
        head.backend,
        head.precision,
        head.teacher,
        head.steps,
        1e-12 * head.rate.0,
    );
    text += "| stage | batch | length |  tokens/s | queued | GFLOP a token | % of product | memory GiB |    loss |\n";
    text += "|------:|------:|-------:|----------:|-------:|--------------:|-------------:|-----------:|--------:|\n";
    for row in rows {
        let memory = row
            .memory_bytes
            .map(|bytes| bytes as f64 / f64::from(1 << 30));
        let _ = writeln!(
            text,
            "| {:5} | {:5} | {:6} | {:9.0} | {:6.0} | {:13.3} | {:12.1} | {:>10} | {:>7} |",
            row.stage,
            row.batch,
            row.length,
            row.tokens_per_second,
            row.queued_tokens_per_second,
            1e-9 * row.operations_per_token,
            100.0 * row.share_of_matmul_rate,
            memory.map_or(String::new(), |gib| format!("{gib:.2}")),
            row.loss.map_or(String::new(), |loss| format!("{loss:.3}")),
        );
    }
    text += "\nMilliseconds of a step whose ops wait for each other:\n\n";
    for row in rows {
        let sum: f64 = row.milliseconds.iter().map(|(_, ms)| ms).sum();
        let parts = row.milliseconds.iter();
        let parts = parts.map(|(kind, ms)| format!("{kind} {ms:.2} ({:.0}%)", 100.0 * ms / sum));
        let parts: Vec<_> = parts.collect();
        let _ = writeln!(
            text,
            "stage {}, {} x {}: {sum:.2}: {}",
            row.stage,
            row.batch,
            row.length,
            parts.join(", "),
        );
    }
    text
}

/// One object on one line.
pub(super) fn json(head: &Head<'_>, rows: &[Row]) -> String {
    let rows = rows.iter().map(|row| {
        let kinds = row.milliseconds.iter();
        let kinds: Map<_, _> = kinds.map(|(kind, ms)| (kind.clone(), json!(ms))).collect();
        let mut row = json!(row);
        row["milliseconds"] = kinds.into();
        row
    });
    let object = json!({
        "backend": head.backend,
        "precision": head.precision,
        "teacher": head.teacher,
        "steps": head.steps,
        "matmul_operations_per_second": head.rate,
        "rows": rows.collect::<Vec<_>>(),
    });
    object.to_string()
}
