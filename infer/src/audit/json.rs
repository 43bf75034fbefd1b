//! The results as JSON: every value of every model, also those that the table leaves out.

use serde_json::{Map, Value, json};

use super::estimate::Estimate;
use super::report::perplexity;
use super::row::{Row, Unit};
use super::verdict::{Standing, summary, verdict};
use super::{Audit, OF_TEACHER, TEACHER};

/// Everything that was measured.
pub fn json(audit: &Audit) -> Value {
    let rows = audit.rows();
    let columns = audit.columns.iter().map(|column| {
        json!({
            "name": column.name(),
            "model": column.model,
            "control": column.control.map(|control| control.to_string()),
            "control_of": column.of.map(|of| audit.columns[of].name()),
        })
    });
    let summaries = audit.students().map(|student| {
        let words = summary(audit, &rows, student);
        (audit.columns[student].name(), Value::String(words))
    });
    let options = &audit.plan.options;
    json!({
        "models": columns.collect::<Value>(),
        "controls": OF_TEACHER.map(|control| control.to_string()),
        "max_length": audit.plan.max_length,
        "limit": options.limit,
        "seed": options.seed,
        "text": options.text.iter().map(|path| path.display().to_string()).collect::<Value>(),
        "data": options.data.as_ref().map(|path| path.display().to_string()),
        "verdicts": summaries.collect::<Map<_, _>>(),
        "rows": rows.iter().map(|row| self::row(audit, row)).collect::<Value>(),
        "left_out": audit.left_out,
        "failed": failed(audit),
    })
}

fn row(audit: &Audit, row: &Row) -> Value {
    let (counted, all) = row.items();
    let shown = |estimate: Estimate| match row.unit {
        Unit::Perplexity => perplexity(estimate),
        Unit::Share => estimate,
    };
    let values = audit.columns.iter().enumerate().map(|(i, column)| {
        let value = json!({
            "value": number(row.value(i).map(shown)),
            "to_teacher": number(row.difference(i, TEACHER).map(shown)),
            "kept": number(row.kept(i)),
            "of_all_items": number(row.raw(i).map(shown)),
            "floor": number(row.floor(i)),
        });
        (column.name(), value)
    });
    let verdicts = audit.students().map(|student| {
        let verdict = verdict(audit, row, student);
        let standing = match verdict.standing {
            Standing::BeyondWindow => "beyond the window control",
            Standing::NotBeyondWindow => "not beyond the window control",
            Standing::NotBeyondNoAttention => "not beyond no attention",
            Standing::Unknown => "unknown",
        };
        let words = json!({"standing": standing, "words": verdict.words});
        (audit.columns[student].name(), words)
    });
    json!({
        "name": row.name,
        "unit": match row.unit {
            Unit::Perplexity => "perplexity",
            Unit::Share => "share",
        },
        "documents": row.documents(),
        "items": counted,
        "of_items": all,
        "chance": row.chance(),
        "models": values.collect::<Map<_, _>>(),
        "verdicts": verdicts.collect::<Map<_, _>>(),
    })
}

fn number(estimate: Option<Estimate>) -> Value {
    estimate.map_or(
        Value::Null,
        |estimate| json!({"value": estimate.value, "stderr": estimate.stderr}),
    )
}

fn failed(audit: &Audit) -> Vec<String> {
    match audit.check() {
        Err(super::AuditError::Failed { failed, .. }) => failed,
        _ => vec![],
    }
}
