//! Burn's terminal dashboard, fed from this crate's own training loop.
//!
//! burn-train's `Learner` does not fit stages with different losses and a frozen teacher, but its dashboard only needs
//! named numbers: every metric is registered once and updated at each step. The losses of the stages are separate
//! metrics, since their scales differ.
//!
//! Two properties of burn-train 0.21's renderer matter here. Its thread polls without sleeping and keeps one core busy,
//! which is why the dashboard is not the default. And the terminal is in raw mode, so that Ctrl-C does nothing: `q`
//! opens a menu that stops the run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use burn::data::dataloader::Progress;
use burn_train::Interrupter;
use burn_train::metric::{
    MetricDefinition, MetricEntry, MetricId, NumericAttributes, NumericEntry, SerializedEntry,
};
use burn_train::renderer::tui::TuiMetricsRendererWrapper;
use burn_train::renderer::{
    MetricState, MetricsRenderer, MetricsRendererTraining, ProgressType, TrainingProgress,
};
use indicatif::HumanCount;

use super::{Evaluation, StagePlan, StepMetrics};
use crate::logging::say;

const LEARNING_RATE: &str = "Learning rate";
const GRADIENT_NORM: &str = "Gradient norm";
const TOKENS_PER_SECOND: &str = "Tokens per second";
const STUDENT_PERPLEXITY: &str = "Student perplexity";
const TEACHER_PERPLEXITY: &str = "Teacher perplexity";

/// The dashboard, from its first stage to its drop.
pub struct Dashboard {
    plan: Vec<StagePlan>,
    interrupter: Interrupter,
    /// Open from the first stage on; `None` before that, and after the user has chosen to kill the run.
    renderer: Option<TuiMetricsRendererWrapper>,
    killed: bool,
    /// Notes that could not be shown while the dashboard had the screen.
    notes: Vec<String>,
}

impl Dashboard {
    pub(super) fn new(plan: Vec<StagePlan>) -> Self {
        Self {
            plan,
            interrupter: Interrupter::new(),
            renderer: None,
            killed: false,
            notes: Vec::new(),
        }
    }

    pub(super) fn begin(&mut self, stage: &str, done: usize) {
        if self.renderer.is_none() && !self.killed {
            // The remaining time is estimated without the tokens that were done before a resume.
            let done = self.tokens_before(stage) + done as u64 * self.tokens_per_step(stage);
            self.renderer = Some(TuiMetricsRendererWrapper::new(
                self.interrupter.clone(),
                Some(done as usize),
            ));
            for name in self.metric_names() {
                self.tell(|renderer| renderer.register_metric(definition(&name)));
            }
        }
    }

    pub(super) fn step(&mut self, metrics: &StepMetrics, skipped: usize) {
        if !metrics.skipped {
            let values = [
                (loss_name(&metrics.stage), metrics.loss),
                (LEARNING_RATE.to_owned(), metrics.lr),
                (GRADIENT_NORM.to_owned(), metrics.grad_norm),
                (TOKENS_PER_SECOND.to_owned(), metrics.tokens_per_second),
            ];
            for (name, value) in values {
                self.tell(|renderer| renderer.update_train(state(&name, value)));
            }
        }
        let progress = TrainingProgress {
            progress: None,
            global_progress: Progress::new(
                self.tokens_before(&metrics.stage) as usize
                    + metrics.step * self.tokens_per_step(&metrics.stage) as usize,
                self.tokens_in_all() as usize,
            ),
            iteration: Some(metrics.step),
        };
        let steps = (self.planned(&metrics.stage)).map_or(0, |plan| plan.steps);
        let number = self.before(&metrics.stage).count() + 1;
        let status = vec![
            ProgressType::Detailed {
                tag: "Stage".to_owned(),
                progress: Progress::new(number, self.plan.len()),
            },
            ProgressType::Detailed {
                tag: "Step".to_owned(),
                progress: Progress::new(metrics.step, steps),
            },
            ProgressType::Value {
                tag: "Skipped".to_owned(),
                value: skipped,
            },
        ];
        self.tell(|renderer| renderer.render_train(progress, status));
    }

    pub(super) fn evaluation(&mut self, evaluation: &Evaluation) {
        for (name, value) in [
            (STUDENT_PERPLEXITY, evaluation.student_perplexity),
            (TEACHER_PERPLEXITY, evaluation.teacher_perplexity),
        ] {
            self.tell(|renderer| renderer.update_valid(state(name, value)));
        }
    }

    pub(super) fn note(&mut self, text: &str) {
        if self.renderer.is_some() {
            self.notes.push(text.to_owned());
        } else {
            say(text);
        }
    }

    pub(super) fn stop_requested(&self) -> bool {
        self.killed || self.interrupter.should_stop()
    }

    /// Passes something to the renderer, which panics if the user chose to kill the run from its
    /// menu: that becomes a request to stop, so that the run ends with a checkpoint.
    fn tell(&mut self, message: impl FnOnce(&mut TuiMetricsRendererWrapper)) {
        if let Some(renderer) = &mut self.renderer
            && catch_unwind(AssertUnwindSafe(|| message(renderer))).is_err()
        {
            self.killed = true;
            self.close();
        }
    }

    fn close(&mut self) {
        // Dropping it gives the terminal back.
        self.renderer = None;
        for note in self.notes.drain(..) {
            say(note);
        }
    }

    fn metric_names(&self) -> Vec<String> {
        let losses = self.plan.iter().map(|plan| loss_name(&plan.stage));
        let others = [
            LEARNING_RATE,
            GRADIENT_NORM,
            TOKENS_PER_SECOND,
            STUDENT_PERPLEXITY,
            TEACHER_PERPLEXITY,
        ];
        losses.chain(others.map(str::to_owned)).collect()
    }

    fn planned(&self, stage: &str) -> Option<&StagePlan> {
        self.plan.iter().find(|plan| plan.stage == stage)
    }

    fn tokens_per_step(&self, stage: &str) -> u64 {
        self.planned(stage).map_or(0, |plan| plan.tokens_per_step)
    }

    /// The planned stages before `stage`.
    fn before<'a>(&'a self, stage: &'a str) -> impl Iterator<Item = &'a StagePlan> {
        self.plan.iter().take_while(move |plan| plan.stage != stage)
    }

    fn tokens_before(&self, stage: &str) -> u64 {
        self.before(stage).map(StagePlan::tokens).sum()
    }

    fn tokens_in_all(&self) -> u64 {
        self.plan.iter().map(StagePlan::tokens).sum()
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        self.close();
    }
}

fn loss_name(stage: &str) -> String {
    format!("Loss of {stage}")
}

fn definition(name: &str) -> MetricDefinition {
    MetricDefinition {
        metric_id: id(name),
        name: name.to_owned(),
        description: None,
        attributes: NumericAttributes {
            unit: None,
            higher_is_better: name == TOKENS_PER_SECOND,
        }
        .into(),
    }
}

fn state(name: &str, value: f64) -> MetricState {
    let formatted = match name {
        LEARNING_RATE => format!("{value:.2e}"),
        TOKENS_PER_SECOND => HumanCount(value as u64).to_string(),
        STUDENT_PERPLEXITY | TEACHER_PERPLEXITY => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    };
    let entry = SerializedEntry::new(formatted, value.to_string());
    MetricState::Numeric(
        MetricEntry::new(id(name), entry),
        NumericEntry::Value(value),
    )
}

fn id(name: &str) -> MetricId {
    MetricId::new(Arc::new(name.to_owned()))
}
