//! The live view of a run: a progress bar, plain lines, or a dashboard.

use std::io::{IsTerminal, stderr, stdout};
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};

use super::dashboard::Dashboard;
use super::{Evaluation, StepMetrics};
use crate::logging::say;
use crate::summary::{StageSummary, time};

/// One stage of the run ahead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagePlan {
    /// The stage's name.
    pub stage: String,
    /// Its optimizer steps.
    pub steps: usize,
    /// Training tokens of one step.
    pub tokens_per_step: u64,
}

impl StagePlan {
    /// Its training tokens.
    pub fn tokens(&self) -> u64 {
        self.steps as u64 * self.tokens_per_step
    }
}

/// Shows a run as it goes, on stderr; stdout stays free for the result.
///
/// For each stage call [`Watch::stage_begin`], [`Watch::step`] after every optimizer step,
/// [`Watch::evaluation`] and [`Watch::stage_end`]; [`Watch::note`] at any time. Dropping it gives
/// the terminal back.
pub enum Watch {
    /// A progress bar: the choice when stderr is a terminal.
    Bar(Bar),
    /// A line every few steps: the choice when stderr is a file or a pipe.
    Plain(Plain),
    /// Burn's terminal dashboard, when asked for and stdout is a terminal.
    Dashboard(Box<Dashboard>),
    /// No output: another process shows the run.
    Silent,
}

/// A progress bar for the stage that runs.
pub struct Bar {
    plan: Vec<StagePlan>,
    bar: ProgressBar,
}

/// Lines for the stage that runs.
pub struct Plain {
    /// What every line begins with.
    name: String,
    plan: Vec<StagePlan>,
    every: usize,
    steps: usize,
    /// When this process began the stage, and how many of its steps were done then.
    begun: (Instant, usize),
}

impl Watch {
    /// A view of a run of `plan`: the dashboard if `dashboard` is set and stdout is a terminal, or
    /// else a bar if stderr is one, or else a line every `every` steps.
    pub fn new(plan: Vec<StagePlan>, every: usize, dashboard: bool) -> Self {
        if dashboard && stdout().is_terminal() {
            return Self::Dashboard(Box::new(Dashboard::new(plan)));
        }
        let mut watch = if stderr().is_terminal() {
            Self::bar(plan)
        } else {
            Self::plain(plan, every)
        };
        if dashboard {
            watch.note("no dashboard: the output is not a terminal");
        }
        watch
    }

    /// A progress bar.
    pub fn bar(plan: Vec<StagePlan>) -> Self {
        Self::Bar(Bar {
            plan,
            bar: ProgressBar::hidden(),
        })
    }

    /// A line every `every` steps.
    pub fn plain(plan: Vec<StagePlan>, every: usize) -> Self {
        Self::Plain(Plain {
            name: String::new(),
            plan,
            every: every.max(1),
            steps: 0,
            begun: (Instant::now(), 0),
        })
    }

    /// A line every `every` steps for one of several runs that train together; each line begins with the run's name.
    pub fn named_lines(name: &str, plan: Vec<StagePlan>, every: usize) -> Self {
        let mut watch = Self::plain(plan, every);
        if let Self::Plain(view) = &mut watch {
            view.name = format!("{name}: ");
        }
        watch
    }

    /// Stage `stage` begins, or continues after `done` of its steps.
    pub fn stage_begin(&mut self, stage: &str, done: usize) {
        match self {
            Self::Bar(view) => view.begin(stage, done),
            Self::Plain(view) => view.begin(stage, done),
            Self::Dashboard(view) => view.begin(stage, done),
            Self::Silent => {}
        }
    }

    /// An optimizer step is done; `skipped` of all steps of the run so far were not finite.
    pub fn step(&mut self, metrics: &StepMetrics, skipped: usize) {
        if metrics.skipped {
            self.note(&format!(
                "{} step {} skipped: loss {}, gradient norm {} ({skipped} skipped so far)",
                metrics.stage, metrics.step, metrics.loss, metrics.grad_norm
            ));
        }
        match self {
            Self::Bar(view) => view.step(metrics),
            Self::Plain(view) => view.step(metrics),
            Self::Dashboard(view) => view.step(metrics, skipped),
            Self::Silent => {}
        }
    }

    /// Teacher and student have been measured.
    pub fn evaluation(&mut self, evaluation: &Evaluation) {
        if let Self::Dashboard(view) = self {
            view.evaluation(evaluation);
        }
        let Evaluation {
            teacher_perplexity: teacher,
            student_perplexity: student,
            ..
        } = evaluation;
        let stage = evaluation.stage.as_deref().unwrap_or("untrained");
        let when = match evaluation.step {
            Some(step) => format!("{stage} step {step}"),
            None => stage.to_owned(),
        };
        let tasks = evaluation.tasks.iter();
        let tasks = tasks.map(|(name, score)| format!(", {name} {score:.4}"));
        self.note(&format!(
            "{when}: perplexity {student:.2}, teacher {teacher:.2}, ratio {:.4}{}",
            student / teacher,
            tasks.collect::<String>()
        ));
    }

    /// Says something once, without disturbing the bar. The dashboard has no place for it: there it
    /// is printed at the end.
    pub fn note(&mut self, text: &str) {
        match self {
            Self::Bar(view) => view.bar.suspend(|| say(text)),
            Self::Plain(view) => say(format_args!("{}{text}", view.name)),
            Self::Dashboard(view) => view.note(text),
            Self::Silent => {}
        }
    }

    /// The stage is over.
    pub fn stage_end(&mut self, summary: &StageSummary) {
        if let Self::Bar(view) = self {
            view.bar.finish_and_clear();
        }
        self.note(&format!(
            "{} done: {} steps, {} tokens in {} ({} tokens/s), loss {:.4}",
            summary.stage,
            HumanCount(summary.steps as u64),
            HumanCount(summary.tokens),
            time(summary.seconds),
            HumanCount(summary.tokens_per_second() as u64),
            summary.loss,
        ));
    }

    /// Whether the user has asked, in the dashboard, that the run stop after this step.
    pub fn stop_requested(&self) -> bool {
        match self {
            Self::Bar(_) | Self::Plain(_) | Self::Silent => false,
            Self::Dashboard(view) => view.stop_requested(),
        }
    }
}

fn steps(plan: &[StagePlan], stage: &str) -> usize {
    let planned = plan.iter().find(|planned| planned.stage == stage);
    planned.map_or(0, |planned| planned.steps)
}

impl Bar {
    fn begin(&mut self, stage: &str, done: usize) {
        self.bar.finish_and_clear();
        let style = ProgressStyle::with_template(
            "{prefix:.bold} {wide_bar:.cyan/dim} {pos}/{len}  {msg}  {eta} left",
        )
        .expect("the template above is well-formed")
        .progress_chars("━━─");
        self.bar = ProgressBar::new(steps(&self.plan, stage) as u64)
            .with_style(style)
            .with_prefix(stage.to_owned())
            .with_position(done as u64);
        // Steps done before this process began say nothing about its speed.
        self.bar.reset_eta();
        self.bar.enable_steady_tick(Duration::from_secs(1));
    }

    fn step(&mut self, metrics: &StepMetrics) {
        self.bar.set_message(format!(
            "loss {:.4}  lr {:.2e}  {} tokens/s",
            metrics.loss,
            metrics.lr,
            HumanCount(metrics.tokens_per_second as u64)
        ));
        self.bar.set_position(metrics.step as u64);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Plain {
    fn begin(&mut self, stage: &str, done: usize) {
        self.steps = steps(&self.plan, stage);
        self.begun = (Instant::now(), done);
    }

    fn step(&mut self, metrics: &StepMetrics) {
        let is_due = metrics.step.is_multiple_of(self.every) || metrics.step == self.steps;
        if is_due && !metrics.skipped {
            say(self.line(metrics, self.begun.0.elapsed()));
        }
    }

    /// The line for a step that ended `elapsed` after the stage began.
    fn line(&self, metrics: &StepMetrics, elapsed: Duration) -> String {
        let done = metrics.step.saturating_sub(self.begun.1).max(1);
        let left = self.steps.saturating_sub(metrics.step);
        format!(
            "{}{}  step {:>width$}/{}  loss {:.4}  lr {:.2e}  grad norm {:.3}  {} tokens/s  {} left",
            self.name,
            metrics.stage,
            metrics.step,
            self.steps,
            metrics.loss,
            metrics.lr,
            metrics.grad_norm,
            HumanCount(metrics.tokens_per_second as u64),
            time(elapsed.as_secs_f64() / done as f64 * left as f64),
            width = self.steps.to_string().len(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_line_says_it_all() {
        let plan = vec![StagePlan {
            stage: "long".to_owned(),
            steps: 500,
            tokens_per_step: 1024,
        }];
        let Watch::Plain(mut plain) = Watch::plain(plan, 20) else {
            unreachable!()
        };
        plain.begin("long", 40);
        let metrics = StepMetrics {
            stage: "long".to_owned(),
            step: 60,
            tokens: 61_440,
            loss: 1.234_56,
            lr: 5e-3,
            grad_norm: 0.5,
            tokens_per_second: 8123.9,
            skipped: false,
            seconds: 10.0,
            ..StepMetrics::default()
        };
        // 20 steps in 10 seconds leave 440 steps for 220 seconds: the 40 before do not count.
        let line = "long  step  60/500  loss 1.2346  lr 5.00e-3  grad norm 0.500  8,123 tokens/s  00:03:40 left";
        assert_eq!(plain.line(&metrics, Duration::from_secs(10)), line);
        plain.name = "base: ".to_owned();
        let named = plain.line(&metrics, Duration::from_secs(10));
        assert_eq!(named, format!("base: {line}"));
    }
}
