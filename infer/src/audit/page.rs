//! The results as one page without scripts, fonts or links.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart::{Curve, chart};
use super::report::{items, kept, number, perplexity, to_teacher, with_error};
use super::row::{Group, Row, Unit};
use super::verdict::{Standing, summary, verdict};
use super::{Audit, NO_ATTENTION, TEACHER, WINDOW};

const STYLE: &str = include_str!("page.css");

/// The number of colours for students.
const COLOURS: usize = 4;

/// The page as HTML.
pub fn page(audit: &Audit) -> String {
    let rows = audit.rows();
    let names: Vec<String> = audit.students().map(|i| audit.columns[i].name()).collect();
    let teacher = audit.columns[TEACHER].name();
    let title = format!("{} of {teacher}", names.join(", "));
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Audit: " (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "What was kept: " (title) }
                ul {
                    @for student in audit.students() {
                        li { b { (audit.columns[student].name()) } ": " (summary(audit, &rows, student)) }
                    }
                }
                p.note {
                    "A difference of more than two standard errors of paired documents counts as one. Of the probes, \
                     only what the teacher itself has right is scored. Bars show one standard error."
                }
                (pictures(audit, &rows))
                @for student in audit.students() {
                    h2 { (audit.columns[student].name()) " in numbers" }
                    (numbers(audit, &rows, student))
                }
                @if !audit.left_out.is_empty() {
                    h2 { "Left out" }
                    ul { @for line in &audit.left_out { li { (line) } } }
                }
            }
        }
    };
    page.into_string()
}

/// The models that are drawn: the teacher, its controls, and the students.
fn drawn(audit: &Audit) -> Vec<(usize, String)> {
    let known = [
        (TEACHER, "teacher"),
        (WINDOW, "window"),
        (NO_ATTENTION, "none"),
    ];
    let known = known.into_iter().map(|(i, class)| (i, class.to_owned()));
    let students = audit.students().enumerate();
    let students = students.map(|(n, student)| (student, format!("s{}", n % COLOURS)));
    let all = known.chain(students);
    all.filter(|(i, _)| *i < audit.columns.len()).collect()
}

fn pictures(audit: &Audit, rows: &[Row]) -> Markup {
    let of = |group| rows.iter().filter(move |row| row.group == group);
    let positions: Vec<&Row> = of(Group::Positions).collect();
    let mut probes: Vec<(&str, Vec<&Row>)> = vec![];
    for row in of(Group::Recall) {
        let probe = row.probe.as_deref().unwrap_or_default();
        match probes.iter_mut().find(|(known, _)| *known == probe) {
            Some((_, rows)) => rows.push(row),
            None => probes.push((probe, vec![row])),
        }
    }
    let tasks: Vec<&Row> = of(Group::Tasks).chain(of(Group::Answers)).collect();
    html! {
        h2 { "In pictures" }
        ul.key {
            @for (i, class) in drawn(audit) { li class=(class) { (audit.columns[i].name()) } }
        }
        div.panels {
            @if !positions.is_empty() {
                (figure(audit, "Perplexity by position", "the last position", &positions, |row| row.at))
            }
            @for (probe, rows) in &probes {
                (figure(audit, &format!("{probe}, of what the teacher has right"), "tokens", rows, |row| row.at))
            }
            @if !tasks.is_empty() {
                (figure(audit, "Tasks, the share that is right", "in the order of the table", &tasks, |_| None))
            }
        }
    }
}

/// One picture: `rows` from left to right, each named by what `at` gives or by its number.
fn figure(
    audit: &Audit,
    title: &str,
    axis: &str,
    rows: &[&Row],
    at: impl Fn(&Row) -> Option<usize>,
) -> Markup {
    let places = rows.iter().enumerate();
    let places = places.map(|(i, row)| at(row).unwrap_or(i + 1).to_string());
    let places: Vec<String> = places.collect();
    let is_share = rows.iter().all(|row| row.unit == Unit::Share);
    let curves = drawn(audit).into_iter().map(|(model, class)| Curve {
        name: audit.columns[model].name(),
        class,
        points: rows.iter().map(|row| point(row, model)).collect(),
    });
    let curves: Vec<Curve> = curves.collect();
    if curves
        .iter()
        .all(|curve| curve.points.iter().all(Option::is_none))
    {
        return html! {};
    }
    let range = if is_share {
        [0.0, 1.0]
    } else {
        // Without attention, the perplexity is far above all others; it is drawn at the upper end.
        let of = |i: usize| curves[i].points.iter().flatten().map(|point| point.0);
        let shown = (0..curves.len())
            .filter(|i| *i != NO_ATTENTION)
            .flat_map(of);
        let low = shown.clone().fold(f64::INFINITY, f64::min);
        [low * 0.95, shown.fold(low, f64::max) * 1.05]
    };
    html! {
        figure {
            h3 { (title) }
            (chart(&places, range, [axis, title], &curves))
        }
    }
}

/// A value that can be drawn, and its error.
fn point(row: &Row, model: usize) -> Option<(f64, f64)> {
    let value = row.value(model)?;
    let value = match row.unit {
        Unit::Perplexity => perplexity(value),
        Unit::Share => value,
    };
    let error = value.stderr.unwrap_or_default();
    (value.value.is_finite() && error.is_finite()).then_some((value.value, error))
}

fn numbers(audit: &Audit, rows: &[Row], student: usize) -> Markup {
    let value = |row: &Row, model| {
        row.value(model)
            .map_or("-".into(), |v| number(row.unit, v.value))
    };
    let own: Vec<usize> = audit.controls(student).collect();
    html! {
        div.wide {
            table {
                tr {
                    th { "measure" }
                    @for name in ["items", "value", "to teacher", "kept", "chance", "floor", "teacher", "window", "no attention"] {
                        th { (name) }
                    }
                    @for &control in &own {
                        th { @if let Some(control) = audit.columns[control].control { (control) } }
                    }
                    th.words { "verdict" }
                }
                @for row in rows {
                    tr {
                        td { (row.name) }
                        td { (items(row)) }
                        td { (row.value(student).map_or("-".into(), |v| with_error(row.unit, v))) }
                        td { (to_teacher(row, student)) }
                        td { (kept(row, student)) }
                        td { (row.chance().map_or("-".into(), |chance| format!("{chance:.3}"))) }
                        td { (row.floor(student).map_or("-".into(), |floor| number(row.unit, floor.value))) }
                        @for model in [TEACHER, WINDOW, NO_ATTENTION] { td { (value(row, model)) } }
                        @for &control in &own { td { (value(row, control)) } }
                        (words(audit, row, student))
                    }
                }
            }
        }
    }
}

fn words(audit: &Audit, row: &Row, student: usize) -> Markup {
    let verdict = verdict(audit, row, student);
    let is_beyond = verdict.standing == Standing::BeyondWindow;
    html! {
        td.words {
            @if is_beyond { span.beyond { (verdict.words) } } @else { (verdict.words) }
        }
    }
}
