//! What a student really kept of its teacher, beside controls that have less than a student claims to have.
//!
//! ```text
//! texts, tasks, probes -> Measures -> Outcomes of each model -> Rows  -> Verdicts -> table, JSON, page
//!                         plan        measure, answers          row      verdict
//! ```
//!
//! A [`Measure`](measure::Measure) is a list of documents, the same for every model. What a model does on a document is a list of
//! items, each a number: the log-likelihood of a token, or 1 for a right answer and 0 for a wrong one. A [`Row`] of the
//! table is a choice of these items. So every difference between two models is one between the same items, and its
//! standard error is that of paired documents.
//!
//! The teacher is the first model. After it come its controls, whose attention is narrowed or silenced, and after those
//! each student with controls of its own. `docs/audit.md` defines every row.

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

/// The teacher's place among the models.
const TEACHER: usize = 0;
/// That of the teacher within a window.
const WINDOW: usize = 1;
/// That of the teacher without attention.
const NO_ATTENTION: usize = 2;

/// The teacher's controls, in the places that the constants name.
pub(crate) const OF_TEACHER: [Control; 2] = [
    Control::Window(Window {
        window: 64,
        sinks: 4,
    }),
    Control::NoAttention,
];

/// Why an audit cannot be done, or is not whole. Each message is complete.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// A student with another tokenizer: it would read other tokens.
    #[error(
        "{}: its tokenizer is not the teacher's, so the two cannot be compared document by document; give the teacher \
         that it was distilled from",
        model.display()
    )]
    OtherTokenizer {
        /// The student.
        model: PathBuf,
    },
    /// A teacher that its controls would leave as it is.
    #[error(
        "{}: no layer of this model has attention, so there are no controls beside which a student could stand; give the \
         Transformer that the students were distilled from as --teacher",
        model.display()
    )]
    NoAttention {
        /// The teacher.
        model: PathBuf,
    },
    /// No text, no data, and no probe.
    #[error(
        "nothing is left to measure; --text takes text files, --data a folder with tasks, --tasks names probes"
    )]
    Nothing,
    /// The texts, the data or the tokenizer cannot be used.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// Some measures have failed; the results of the others are shown.
    #[error("{} of {all} measurements failed: {}", failed.len(), failed.join("; "))]
    Failed {
        /// Which, of which model, and why.
        failed: Vec<String>,
        /// All that were made.
        all: usize,
    },
}

/// A model that was measured.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    /// As the user named it.
    pub model: String,
    /// What was taken away from it.
    pub control: Option<Control>,
    /// The place of the model that this is a control of.
    pub of: Option<usize>,
}

impl Column {
    /// Such as `runs/tiny/student, no-ssm`.
    pub fn name(&self) -> String {
        match self.control {
            Some(control) => format!("{}, {control}", self.model),
            None => self.model.clone(),
        }
    }
}

/// What every model did.
#[derive(Debug)]
pub(crate) struct Audit {
    /// What was measured.
    pub plan: Plan,
    /// The models: the teacher, its controls, and each student before its own.
    pub columns: Vec<Column>,
    /// Of each model, what it did in each measure, or why it failed.
    pub outcomes: Vec<Vec<Result<Vec<Outcome>, String>>>,
    /// What could not be done, a line each.
    pub left_out: Vec<String>,
}

impl Audit {
    /// Before any model is measured.
    pub fn new(plan: Plan) -> Self {
        let left_out = plan.left_out.clone();
        Self {
            plan,
            columns: vec![],
            outcomes: vec![],
            left_out,
        }
    }

    /// The places of the students.
    pub fn students(&self) -> impl Iterator<Item = usize> {
        let columns = self.columns.iter().enumerate();
        let students = columns.filter(|(i, column)| *i > TEACHER && column.of.is_none());
        students.map(|(i, _)| i)
    }

    /// The places of the controls of the model at `model`.
    pub fn controls(&self, model: usize) -> impl Iterator<Item = usize> {
        let columns = self.columns.iter().enumerate();
        let controls = columns.filter(move |(_, column)| column.of == Some(model));
        controls.map(|(i, _)| i)
    }

    /// The lines of the table.
    pub fn rows(&self) -> Vec<Row> {
        rows(&self.plan.measures, &self.outcomes)
    }

    /// What has failed, as [`AuditError::Failed`].
    ///
    /// # Errors
    /// If anything has.
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
