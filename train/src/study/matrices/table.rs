//! The findings as text.

use std::fmt::Write;

use super::classes::{Class, Point};
use super::{Approximations, Findings};
use crate::table::markdown;

/// A row of a table.
pub(super) struct Row {
    pub(super) class: &'static str,
    pub(super) method: String,
    pub(super) state: String,
    pub(super) parameters: String,
    pub(super) distance: String,
    pub(super) seconds: String,
}

/// A table with its heading.
pub(super) struct Section {
    pub(super) title: String,
    pub(super) rows: Vec<Row>,
}

/// What the columns of every table are.
pub(super) const HEADER: [&str; 6] = [
    "class",
    "method",
    "state",
    "parameters",
    "distance",
    "seconds",
];

impl Row {
    pub(super) fn cells(&self) -> [&str; 6] {
        [
            self.class,
            &self.method,
            &self.state,
            &self.parameters,
            &self.distance,
            &self.seconds,
        ]
    }
}

pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The mean of `values`, and their deviation where there are several.
fn with_deviation(values: &[f64]) -> String {
    let mean = mean(values);
    match values.len() {
        0 => "-".into(),
        1 => format!("{mean:.4}"),
        n => {
            let squares = values.iter().map(|value| (value - mean).powi(2));
            let deviation = (squares.sum::<f64>() / (n - 1) as f64).sqrt();
            format!("{mean:.4} ± {deviation:.4}")
        }
    }
}

fn last(found: &Approximations) -> &Point {
    found.trace.last().expect("a point at the end")
}

impl Findings {
    /// The approximations by `class` with `state`, one a seed.
    pub(super) fn of(&self, class: Class, state: usize) -> Vec<&Approximations> {
        let state = class.has_state().then_some(state);
        let all = self.approximations.iter();
        all.filter(|found| found.class == class.name() && found.state == state)
            .collect()
    }

    /// A row of `class` with `state`. `at` chooses the point of each trace that the row shows.
    fn row(
        &self,
        class: Class,
        state: usize,
        at: impl Fn(&Approximations) -> Option<&Point>,
    ) -> Option<Row> {
        let found = self.of(class, state);
        let points = found.iter().map(|found| at(found));
        let points: Vec<&Point> = points.collect::<Option<_>>()?;
        let first = *points.first()?;
        let distances: Vec<f64> = points.iter().map(|point| mean(&point.distances)).collect();
        let seconds: Vec<f64> = points.iter().map(|point| point.seconds).collect();
        Some(Row {
            class: class.title(),
            method: if class.is_by_steps() {
                format!("{}, {} steps", class.method(), first.step)
            } else {
                class.method().into()
            },
            state: if class.has_state() {
                state.to_string()
            } else {
                "-".into()
            },
            parameters: found[0].parameters.to_string(),
            distance: with_deviation(&distances),
            seconds: format!("{:.1}", mean(&seconds)),
        })
    }

    /// The tables. For each configured state, they compare the classes with that state, with as many parameters, and
    /// after the same time.
    pub(super) fn sections(&self) -> Vec<Section> {
        let l = self.settings.context;
        let mut sections = vec![];
        for (i, n) in self.settings.states.iter().enumerate() {
            let mut rows: Vec<Row> = Class::ALL
                .iter()
                .filter_map(|class| self.row(*class, *n, |found| Some(last(found))))
                .collect();
            let floors: Vec<f64> = self.targets.iter().map(|target| target.floors[i]).collect();
            rows.push(Row {
                class: "no matrix with this state",
                method: "is nearer (proved)".into(),
                state: n.to_string(),
                parameters: "-".into(),
                distance: format!("{:.4}", mean(&floors)),
                seconds: "-".into(),
            });
            sections.push(Section {
                title: format!("Equal states: {n}"),
                rows,
            });

            let parameters = Class::LowRank.parameters(l, *n);
            let rows = Class::ALL.iter().filter_map(|class| {
                let state = if class.has_state() {
                    class.largest_state(l, parameters)?
                } else {
                    0
                };
                self.row(*class, state, |found| Some(last(found)))
            });
            sections.push(Section {
                title: format!("Equal parameters: at most {parameters}"),
                rows: rows.collect(),
            });

            let by_steps = Class::ALL.iter().filter(|class| class.is_by_steps());
            let ends = by_steps.flat_map(|class| self.of(*class, *n));
            let time = ends.map(|found| last(found).seconds);
            let time = time.fold(f64::INFINITY, f64::min);
            let rows = Class::ALL.iter().filter_map(|class| {
                self.row(*class, *n, |found| {
                    let mut done = found.trace.iter();
                    done.rfind(|point| point.seconds <= time)
                })
            });
            sections.push(Section {
                title: format!(
                    "Equal times: state {n}, what each has after {time:.1} s (a closed form that takes longer is absent)"
                ),
                rows: rows.collect(),
            });
        }
        sections
    }

    /// What all figures have in common, in one sentence.
    pub(super) fn lead(&self) -> String {
        let settings = &self.settings;
        let norms: Vec<f64> = self.targets.iter().map(|target| target.norm).collect();
        let teacher = match settings.teacher.as_str() {
            "" => "the bundled teacher",
            name => name,
        };
        format!(
            "Approximations of {} attention matrices of {teacher}, {} tokens: the mean Frobenius norm of the difference \
             (± the deviation over {} seeds); the matrices' own mean norm is {:.4}. Adam with a rate of {}, on {}.",
            self.targets.len(),
            settings.context,
            settings.seeds.len(),
            mean(&norms),
            settings.lr,
            self.backend,
        )
    }

    /// All tables as Markdown.
    pub(super) fn table(&self) -> String {
        let mut text = self.lead();
        for Section { title, rows } in self.sections() {
            let header = HEADER.map(str::to_owned).to_vec();
            let cells = |row: &Row| row.cells().map(str::to_owned).to_vec();
            let rows = rows.iter().map(cells).collect();
            let _ = write!(text, "\n\n{title}\n\n{}", markdown(header, rows));
        }
        text
    }
}
