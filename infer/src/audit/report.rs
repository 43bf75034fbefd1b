//! The table on the terminal, and the format of its numbers.

use comfy_table::CellAlignment::{Left, Right};

use super::estimate::Estimate;
use super::row::{Row, Unit};
use super::verdict::{summary, verdict};
use super::{Audit, Column as Model, NO_ATTENTION, TEACHER, WINDOW};
use crate::eval::Control;
use crate::table::{Column, markdown};

const COLUMNS: [Column; 12] = [
    ("Measure", Left),
    ("Items", Right),
    ("Model", Left),
    ("Value", Right),
    ("To teacher", Right),
    ("Kept", Right),
    ("Teacher", Right),
    ("Window", Right),
    ("No attention", Right),
    ("Own: no SSM, no attention, reset", Right),
    ("Chance or floor", Right),
    ("Verdict", Left),
];

/// As Markdown: every row for every student, a summary of each student, and what was left out.
pub fn table(audit: &Audit) -> String {
    let rows = audit.rows();
    let lines = rows.iter().flat_map(|row| {
        let students = audit.students().enumerate();
        students.map(move |(i, student)| line(audit, row, student, i == 0))
    });
    let mut text = markdown(&COLUMNS, 0, lines);
    let models: Vec<String> = audit
        .columns
        .iter()
        .filter(|column| column.of.is_none())
        .map(Model::name)
        .collect();
    text += &format!("\nteacher: {}\n", models[TEACHER]);
    for student in audit.students() {
        let name = audit.columns[student].name();
        text += &format!("{name}: {}\n", summary(audit, &rows, student));
    }
    for line in &audit.left_out {
        text += &format!("{line}\n");
    }
    text
}

fn line(audit: &Audit, row: &Row, student: usize, is_first: bool) -> [String; 12] {
    let of_row = |text: String| if is_first { text } else { String::new() };
    let value = |model| {
        row.value(model)
            .map_or("-".into(), |v| with_error(row.unit, v))
    };
    let own = [Control::NoSsm, Control::NoAttention, Control::Reset(0)];
    let own = own.map(|kind| {
        let mut controls = audit.controls(student);
        let control = controls.find(|&control| {
            let control = audit.columns[control].control;
            control.is_some_and(|control| {
                std::mem::discriminant(&control) == std::mem::discriminant(&kind)
            })
        });
        control.map_or("-".into(), value)
    });
    let floor = row.floor(student).map(|floor| floor.value);
    let least = floor.or(row.chance()).map(|least| number(row.unit, least));
    [
        of_row(row.name.clone()),
        of_row(items(row)),
        audit.columns[student].name(),
        value(student),
        to_teacher(row, student),
        kept(row, student),
        of_row(value(TEACHER)),
        of_row(value(WINDOW)),
        of_row(value(NO_ATTENTION)),
        own.join(", "),
        least.unwrap_or("-".into()),
        verdict(audit, row, student).words,
    ]
}

/// The number of items that count; if the teacher does not get all right, also the number of all.
pub fn items(row: &Row) -> String {
    match row.items() {
        (counted, all) if counted == all => counted.to_string(),
        (counted, all) => format!("{counted} of {all}"),
    }
}

/// A value of a row.
pub fn number(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Perplexity => format!("{:.2}", (-value).exp()),
        Unit::Share => format!("{value:.3}"),
    }
}

/// A value of a row and its standard error.
pub fn with_error(unit: Unit, estimate: Estimate) -> String {
    let shown = match unit {
        Unit::Perplexity => perplexity(estimate),
        Unit::Share => estimate,
    };
    let digits = if unit == Unit::Perplexity { 2 } else { 3 };
    let error = shown.stderr.map(|stderr| format!(" ± {stderr:.digits$}"));
    format!("{:.digits$}{}", shown.value, error.unwrap_or_default())
}

/// A perplexity of a mean log-likelihood.
pub fn perplexity(estimate: Estimate) -> Estimate {
    let value = (-estimate.value).exp();
    estimate.map(|x| (-x).exp(), value)
}

/// How far a model is from the teacher: the quotient of their perplexities, or the difference of their shares.
pub fn to_teacher(row: &Row, model: usize) -> String {
    let Some(difference) = row.difference(model, TEACHER) else {
        return "-".into();
    };
    let (value, sign) = match row.unit {
        Unit::Perplexity => (perplexity(difference), "×"),
        Unit::Share if difference.value < 0.0 => (difference.map(f64::abs, 1.0), "-"),
        Unit::Share => (difference, "+"),
    };
    let error = value.stderr.map(|stderr| format!(" ± {stderr:.3}"));
    format!("{sign}{:.3}{}", value.value, error.unwrap_or_default())
}

/// See [`Row::kept`].
pub fn kept(row: &Row, model: usize) -> String {
    let Some(kept) = row.kept(model) else {
        return "-".into();
    };
    let error = kept
        .stderr
        .map(|stderr| format!(" ± {:.1}", 100.0 * stderr));
    format!("{:.1}{} %", 100.0 * kept.value, error.unwrap_or_default())
}
