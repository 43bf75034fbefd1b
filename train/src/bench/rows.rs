//! Rows as people read them and as programs do.

use indicatif::HumanBytes;
use serde_json::{Map, json};

use super::matmul_rate::MatmulRate;
use super::measure::Row;
use crate::table::markdown;

/// What all rows have in common.
pub(super) struct Conditions<'a> {
    pub(super) backend: &'a str,
    pub(super) precision: String,
    /// What the teacher's weights are.
    pub(super) teacher: String,
    pub(super) steps: usize,
    pub(super) rate: MatmulRate,
}

/// A table in Markdown of the rates, and lines that say where a step's time goes.
pub(super) fn text(conditions: &Conditions<'_>, rows: &[Row]) -> String {
    let header = [
        "stage",
        "batch",
        "length",
        "tokens/s",
        "queued",
        "GFLOP a token",
        "% of product",
        "memory GiB",
        "loss",
    ];
    let cells = rows.iter().map(|row| {
        let gib = |bytes| bytes as f64 / f64::from(1 << 30);
        let two = |gib: f64| format!("{gib:.2}");
        vec![
            row.stage.clone(),
            row.batch.to_string(),
            row.length.to_string(),
            format!("{:.0}", row.tokens_per_second),
            format!("{:.0}", row.queued_tokens_per_second),
            format!("{:.3}", 1e-9 * row.operations_per_token),
            format!("{:.1}", 100.0 * row.share_of_matmul_rate),
            row.memory_bytes.map(gib).map_or(String::new(), two),
            row.loss.map_or(String::new(), |loss| format!("{loss:.3}")),
        ]
    });
    let times = rows.iter().map(|row| {
        let sum: f64 = row.milliseconds.iter().map(|(_, ms)| ms).sum();
        let parts = row.milliseconds.iter();
        let parts = parts.map(|(kind, ms)| format!("{kind} {ms:.2} ({:.0}%)", 100.0 * ms / sum));
        let parts = parts.collect::<Vec<_>>().join(", ");
        let (stage, batch, length) = (&row.stage, row.batch, row.length);
        format!("{stage}, {batch} x {length}: {sum:.2}: {parts}\n")
    });
    let costs = rows.iter().filter_map(|row| {
        let cost = row.checkpoint?;
        Some(format!(
            "{}, {} x {}: {:+.1}%: {:.2} ms a step, {:.2} ms beside a checkpoint ({} steps), which is read in {:.0} ms and \
             written in {:.0} ms, {}\n",
            row.stage,
            row.batch,
            row.length,
            100.0 * cost.overhead(),
            1e3 * cost.step_seconds,
            1e3 * cost.step_seconds_while_written,
            cost.steps_while_written,
            1e3 * cost.read_seconds,
            1e3 * cost.write_seconds,
            HumanBytes(cost.bytes),
        ))
    });
    let costs: String = costs.collect();
    let costs = if costs.is_empty() {
        costs
    } else {
        format!("\nHow much longer a step takes while a checkpoint is written:\n\n{costs}")
    };
    format!(
        "{}, {}, {}, {} steps a row. A product of matrices alone: {:.2} TFLOP/s.\n\n{}\n{}\n\
         Milliseconds of a step whose ops wait for each other:\n\n{}{costs}",
        conditions.backend,
        conditions.precision,
        conditions.teacher,
        conditions.steps,
        1e-12 * conditions.rate.0,
        markdown(header.map(str::to_owned).to_vec(), cells.collect()),
        exchanged(rows),
        times.collect::<String>(),
    )
}

/// A table of what ranks exchange; nothing where there are none.
fn exchanged(rows: &[Row]) -> String {
    let header = [
        "stage",
        "ranks",
        "moments",
        "tokens/s of one",
        "efficiency %",
        "MiB a rank sends",
        "ms alone",
        "hidden %",
    ];
    let cells = rows.iter().filter_map(|row| {
        let exchanged = row.ranks?;
        let moments = if exchanged.moments_are_sharded {
            "sharded"
        } else {
            "whole"
        };
        Some(vec![
            row.stage.clone(),
            exchanged.ranks.to_string(),
            moments.to_owned(),
            format!("{:.0}", exchanged.tokens_per_second_of_one),
            format!("{:.1}", 100.0 * exchanged.efficiency),
            format!("{:.1}", exchanged.bytes as f64 / f64::from(1 << 20)),
            format!("{:.2}", exchanged.milliseconds),
            format!("{:.0}", 100.0 * exchanged.hidden),
        ])
    });
    let cells: Vec<_> = cells.collect();
    if cells.is_empty() {
        return String::new();
    }
    let table = markdown(header.map(str::to_owned).to_vec(), cells);
    format!("\nBetween the ranks, in a step:\n\n{table}\n")
}

/// One object on one line.
pub(super) fn json(conditions: &Conditions<'_>, rows: &[Row]) -> String {
    let rows = rows.iter().map(|row| {
        let kinds = row.milliseconds.iter();
        let kinds: Map<_, _> = kinds.map(|(kind, ms)| (kind.clone(), json!(ms))).collect();
        let mut row = json!(row);
        row["milliseconds"] = kinds.into();
        row
    });
    let object = json!({
        "backend": conditions.backend,
        "precision": conditions.precision,
        "teacher": conditions.teacher,
        "steps": conditions.steps,
        "matmul_operations_per_second": conditions.rate,
        "rows": rows.collect::<Vec<_>>(),
    });
    object.to_string()
}
