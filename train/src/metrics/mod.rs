//! What a run shows while it works, and what it records.
//!
//! The loop makes one [`StepMetrics`] per optimizer step. [`MetricsLog`] appends it to `metrics.jsonl`, from which the
//! report is drawn and which any other tool can read; [`Watch`] shows it on the terminal; [`Mirrors`] sends it to
//! TensorBoard and Prometheus. These do not depend on each other.

mod dashboard;
mod log;
mod mirrors;
mod prometheus;
mod tensorboard;
mod watch;

pub use log::{LogMark, MetricsError, MetricsLog, read, read_what_can_be};
pub use mirrors::Mirrors;
pub use watch::{StagePlan, Watch};

use std::collections::BTreeMap;

use model::Part;
use serde::{Deserialize, Serialize};

use crate::summary::{null_is_nan, nulls_are_nan};

/// One optimizer step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// The stage's name.
    pub stage: String,
    /// Steps of this stage done, this one included.
    pub step: usize,
    /// Training tokens of the run so far, over all its stages.
    pub tokens: u64,
    /// The stage's loss, averaged over the step's sequences; not finite in a skipped step.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// The learning rate: of the parts that train, the highest.
    pub lr: f64,
    /// Global gradient norm before clipping; not finite in a skipped step.
    #[serde(deserialize_with = "null_is_nan")]
    pub grad_norm: f64,
    /// The same for each part that has a gradient.
    #[serde(default, deserialize_with = "nulls_are_nan")]
    pub grad_norms: BTreeMap<Part, f64>,
    /// Training tokens per second of this step. If several steps were read together, the mean over them.
    pub tokens_per_second: f64,
    /// Floating-point operations per second of both models, as `train bench` counts them; recomputation does not count.
    #[serde(default)]
    pub operations_per_second: f64,
    /// The same, divided by the rate of a matrix product alone in the run's dtype on this device, times the number of
    /// ranks. That rate is measured when a process begins. Null in logs of earlier versions.
    #[serde(default)]
    pub device_share: Option<f64>,
    /// Seconds for which the step waited for its text.
    #[serde(default)]
    pub data_wait: f64,
    /// Bytes of the device's memory that the process has reserved; if tensors are in the host's memory, the bytes that
    /// the process uses of that. Null if the system does not say.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Whether the step changed nothing because loss or gradient was not finite, or the loss a spike
    /// (`guard.action = "skip"`).
    pub skipped: bool,
    /// Seconds of training so far, over all stages and resumptions, without evaluations and checkpoints.
    pub seconds: f64,
}

/// A measurement of teacher and student on the held-out text, after a stage or within one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The stage that has just ended or is under way; null before the first.
    pub stage: Option<String>,
    /// Steps of the stage done, if it is under way (`evaluation.every`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<usize>,
    /// Training tokens of the run so far.
    pub tokens: u64,
    /// Perplexity of the teacher.
    #[serde(deserialize_with = "null_is_nan")]
    pub teacher_perplexity: f64,
    /// Perplexity of the student.
    #[serde(deserialize_with = "null_is_nan")]
    pub student_perplexity: f64,
    /// The student's scores in tasks, by task and metric, as `piqa/acc` (`evaluation.tasks`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tasks: BTreeMap<String, f64>,
}

/// Information that the numbers of a run do not show: accepted changes of its inputs, and damage that was worked
/// around.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The stage in which it was noticed.
    pub stage: String,
    /// Steps of this stage done then.
    pub step: usize,
    /// The note.
    pub text: String,
}

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Record {
    /// After each optimizer step.
    Step(StepMetrics),
    /// After each stage, and every `evaluation.every` steps within one.
    Evaluation(Evaluation),
    /// Whenever there is something to say.
    Note(Note),
}

/// How far a run has come: the stage it is in, and the steps of that stage that are done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The stage's name.
    pub stage: String,
    /// Steps of it done.
    pub step: usize,
}
