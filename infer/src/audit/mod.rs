//! Compares what students have kept of their teacher with controls that have less attention or state.
//!
//! ```text
//! texts, tasks, probes -> Measures -> Outcomes of each model -> Rows  -> Verdicts -> table, JSON, page
//!                         plan        measure, answers          row      verdict
//! ```
//!
//! A [`Measure`](measure::Measure) is a list of documents, the same for every model. The result of a model on a
//! document is a list of items, each a number: the log-likelihood of a token, or 1 for a right answer and 0 for a wrong
//! one. A [`Row`] of the table selects some of these items. So every difference between two models is one between the
//! same items, and its standard error is that of paired documents.
//!
//! The teacher is the first model. Its controls follow, whose attention is narrowed or switched off, and then each
//! student with its own controls. `docs/audit.md` defines every row.

mod answers;
mod chart;
mod estimate;
mod json;
mod measure;
mod page;
mod plan;
mod report;
mod row;
mod verdict;

use std::path::PathBuf;

use kernels::Window;

use crate::eval::{Control, EvalError};

pub(crate) use json::json;
pub(crate) use measure::{Outcome, Reader};
pub(crate) use page::page;
pub(crate) use plan::{Plan, PlanOptions, plan};
pub(crate) use report::table;
pub(crate) use row::{Row, rows};

/// The teacher's index in the list of models.
const TEACHER: usize = 0;
/// The index of the teacher within a window.
const WINDOW: usize = 1;
/// The index of the teacher without attention.
const NO_ATTENTION: usize = 2;

/// The teacher's controls, in the order of these indices.
pub(crate) const OF_TEACHER: [Control; 2] = [
    Control::Window(Window {
        window: 64,
        sinks: 4,
    }),
    Control::NoAttention,
];

/// Why an audit cannot be done, or is incomplete. Each message is complete.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// A student with another tokenizer, which would read other tokens.
    #[error(
        "{}: its tokenizer is not the teacher's, so the two cannot be compared document by document; give the teacher \
         that it was distilled from",
        model.display()
    )]
    OtherTokenizer {
        /// The student.
        model: PathBuf,
    },
    /// A teacher without attention, which its controls would not change.
    #[error(
        "{}: no layer of this model has attention, so there are no controls beside which a student could stand; give the \
         Transformer that the students were distilled from as --teacher",
        model.display()
    )]
    NoAttention {
        /// The teacher.
        model: PathBuf,
    },
    /// There is nothing to measure: no text, no data, and no probe.
    #[error(
        "nothing is left to measure; --text takes text files, --data a folder with tasks, --tasks names probes: {}",
        left_out.join("; ")
    )]
    Nothing {
        /// What was left out, and why.
        left_out: Vec<String>,
    },
    /// The texts, the data or the tokenizer cannot be used.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// Some measures have failed; the results of the others are shown.
    #[error("{} of {all} measurements failed: {}", failed.len(), failed.join("; "))]
    Failed {
        /// Which, of which model, and why.
        failed: Vec<String>,
        /// The number of all measurements.
        all: usize,
    },
}

/// A model that was measured.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    /// As the user named it.
    pub model: String,
    /// The control, if this is one.
    pub control: Option<Control>,
    /// The index of the model that this is a control of.
    pub of: Option<usize>,
}

impl Column {
    /// Its name in tables, such as `runs/tiny/student, no-ssm`.
    pub fn name(&self) -> String {
        match self.control {
            Some(control) => format!("{}, {control}", self.model),
            None => self.model.clone(),
        }
    }
}

/// The results of every model.
#[derive(Debug)]
pub(crate) struct Audit {
    /// What was measured.
    pub plan: Plan,
    /// The models: the teacher and its controls, then each student followed by its controls.
    pub columns: Vec<Column>,
    /// For each model, its results in each measure, or why the measure failed.
    pub outcomes: Vec<Vec<Result<Vec<Outcome>, String>>>,
    /// What could not be measured, a line each.
    pub left_out: Vec<String>,
}

impl Audit {
    /// An audit without models yet.
    pub fn new(plan: Plan) -> Self {
        let left_out = plan.left_out.clone();
        Self {
            plan,
            columns: vec![],
            outcomes: vec![],
            left_out,
        }
    }

    /// The indices of the students.
    pub fn students(&self) -> impl Iterator<Item = usize> {
        let columns = self.columns.iter().enumerate();
        let students = columns.filter(|(i, column)| *i > TEACHER && column.of.is_none());
        students.map(|(i, _)| i)
    }

    /// The indices of the controls of the model at index `model`.
    pub fn controls(&self, model: usize) -> impl Iterator<Item = usize> {
        let columns = self.columns.iter().enumerate();
        let controls = columns.filter(move |(_, column)| column.of == Some(model));
        controls.map(|(i, _)| i)
    }

    /// The lines of the table.
    pub fn rows(&self) -> Vec<Row> {
        rows(&self.plan.measures, &self.outcomes)
    }

    /// Returns all failures as one [`AuditError::Failed`].
    ///
    /// # Errors
    /// If any measurement has failed.
    pub fn check(&self) -> Result<(), AuditError> {
        let mut failed = vec![];
        for (column, outcomes) in self.columns.iter().zip(&self.outcomes) {
            for (measure, outcome) in self.plan.measures.iter().zip(outcomes) {
                if let Err(reason) = outcome {
                    failed.push(format!("{}, {}: {reason}", measure.name, column.name()));
                }
            }
        }
        if failed.is_empty() {
            return Ok(());
        }
        let all = self.columns.len() * self.plan.measures.len();
        Err(AuditError::Failed { failed, all })
    }
}

#[cfg(test)]
mod tests;
