//! What a row says about a student, in words.

use super::estimate::Estimate;
use super::row::Row;
use super::{Audit, NO_ATTENTION, TEACHER, WINDOW};
use crate::eval::Control;

/// The number of standard errors above which a difference counts.
const ERRORS: f64 = 2.0;

/// The largest difference of mean log-likelihoods or shares that may be a rounding error.
const ROUNDING: f64 = 1e-4;

/// The fewest documents in which two models must differ for a difference to count. If two equal models differ in five
/// documents, all five favour the same model once in 16 times.
const DIFFERING: usize = 6;

/// The fewest documents that allow a verdict.
pub const LEAST: usize = 8;

/// How a student compares with the teacher's controls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Better than the teacher within a window.
    BeyondWindow,
    /// No better than that, and better than the teacher without attention.
    NotBeyondWindow,
    /// No better than the teacher without attention.
    NotBeyondNoAttention,
    /// The row allows no verdict.
    Unknown,
}

/// The verdict on a student in one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How the student compares with the teacher's controls.
    pub standing: Standing,
    /// The whole verdict in words.
    pub words: String,
}

/// Whether one model's value is above another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    More,
    Same,
    Less,
}

/// Compares two values by their difference; they are the same within two standard errors.
fn compare(difference: Estimate) -> Option<Comparison> {
    let error = (ERRORS * difference.stderr?).max(ROUNDING);
    Some(if difference.value > error {
        Comparison::More
    } else if difference.value < -error {
        Comparison::Less
    } else {
        Comparison::Same
    })
}

/// Compares `model` with `other` on the same documents.
fn compare_models(row: &Row, model: usize, other: usize) -> Option<Comparison> {
    let compared = compare(row.difference(model, other)?)?;
    if row.differing(model, other) < DIFFERING {
        return Some(Comparison::Same);
    }
    Some(compared)
}

/// What `row` says about the student at index `student`.
pub fn verdict(audit: &Audit, row: &Row, student: usize) -> Verdict {
    let unknown = |words: String| Verdict {
        standing: Standing::Unknown,
        words,
    };
    let to = |other| compare_models(row, student, other);
    let (counted, all) = row.items();
    if [TEACHER, WINDOW, NO_ATTENTION, student]
        .iter()
        .any(|&model| row.raw(model).is_none())
    {
        return unknown("not measured".into());
    }
    if counted == 0 {
        return unknown(format!("the teacher passes none of {all}"));
    }
    let documents = row.documents();
    let (true, Some(window), Some(none), Some(teacher)) = (
        documents >= LEAST,
        to(WINDOW),
        to(NO_ATTENTION),
        to(TEACHER),
    ) else {
        return unknown(format!("{documents} documents are too few to say"));
    };

    let floor = row.above_floor(student).and_then(compare);
    let is_above_floor = floor.is_none_or(|floor| floor == Comparison::More);
    let (standing, found) = match (window, none) {
        (Comparison::More, _) if is_above_floor => {
            (Standing::BeyondWindow, "beyond the window control")
        }
        (Comparison::More, _) => (Standing::NotBeyondWindow, "no more than its own floor"),
        (Comparison::Same, Comparison::More) => {
            (Standing::NotBeyondWindow, "no more than the window control")
        }
        (Comparison::Less, Comparison::More) => (
            Standing::NotBeyondWindow,
            "less than the window control, more than no attention",
        ),
        (_, Comparison::Same) => (Standing::NotBeyondNoAttention, "no more than no attention"),
        (_, Comparison::Less) => (Standing::NotBeyondNoAttention, "less than no attention"),
    };
    let level = match teacher {
        Comparison::More => "above the teacher",
        Comparison::Same => "level with the teacher",
        Comparison::Less => "below the teacher",
    };
    let mut words = format!("{found}; {level}");
    let needs = parts(audit, row, student, true);
    if !needs.is_empty() {
        words += &format!("; needs {}", needs.join(" and "));
    }
    let idle = parts(audit, row, student, false);
    if !idle.is_empty() {
        words += &format!("; no worse without {}", idle.join(" or "));
    }
    let teachers = compare_models(row, TEACHER, WINDOW);
    if teachers != Some(Comparison::More) {
        words += "; the teacher itself has no more than the window control here";
    }
    Verdict { standing, words }
}

/// The parts that the student needs in this row, because it is worse without them, or, if `is_needed` is false, those
/// without which it is no worse.
fn parts(audit: &Audit, row: &Row, student: usize, is_needed: bool) -> Vec<String> {
    let controls = audit.controls(student).filter_map(|control| {
        let part = match audit.columns[control].control? {
            Control::NoSsm => "its SSM".to_owned(),
            Control::NoAttention | Control::Window(_) => "its attention".to_owned(),
            Control::Reset(tokens) => {
                format!("what its state carries from {tokens} tokens to the next {tokens}")
            }
        };
        let without = compare_models(row, student, control)?;
        ((without == Comparison::More) == is_needed).then_some(part)
    });
    controls.collect()
}

/// What all rows together say about the student at index `student`. Only rows count in which the teacher is better than
/// within its window, since a window is enough for the others.
pub fn summary(audit: &Audit, rows: &[Row], student: usize) -> String {
    let verdicts = rows.iter().map(|row| (row, verdict(audit, row, student)));
    let told = verdicts.filter(|(row, verdict)| {
        verdict.standing != Standing::Unknown
            && compare_models(row, TEACHER, WINDOW) == Some(Comparison::More)
    });
    let told: Vec<(&Row, Verdict)> = told.collect();
    let is_in = |standing| told.iter().any(|(_, verdict)| verdict.standing == standing);
    let n = told.len();
    if n == 0 {
        return "no row says anything".into();
    }
    let beyond = told
        .iter()
        .filter(|(_, verdict)| verdict.standing == Standing::BeyondWindow);
    let beyond: Vec<&str> = beyond.map(|(row, _)| &*row.name).collect();
    if !beyond.is_empty() {
        let (k, names) = (beyond.len(), beyond.join("; "));
        return format!("beyond the window control in {k} of {n} rows: {names}");
    }
    let control = if is_in(Standing::NotBeyondWindow) {
        "the window control"
    } else {
        "no attention"
    };
    format!("nothing beyond {control} in any of {n} rows")
}
