//! Losses and norms of steps that are still on the device.

use std::time::Instant;

use burn::tensor::backend::Backend;

use crate::step::{Measured, ReadMeasured};

/// Steps whose loss and norms are still on the device.
pub(super) struct PendingMetrics<B: Backend> {
    steps: Vec<(QueuedStep, Measured<B>)>,
    /// When the last steps were read, or when training continued after other work.
    since: Instant,
}

/// What is known of a step when it is queued.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueuedStep {
    /// Its number in the stage, from 1.
    pub(super) number: usize,
    /// Training tokens of the run up to its end.
    pub(super) tokens: u64,
    /// Its learning rate.
    pub(super) lr: f64,
    /// Seconds that it has waited for its text.
    pub(super) data_wait: f64,
}

/// A step whose values were read.
pub(super) struct ReadStep {
    /// What was known when it was queued.
    pub(super) queued: QueuedStep,
    /// The values that it has measured.
    pub(super) measured: ReadMeasured,
    /// Seconds that it took: the mean over the steps that were read together.
    pub(super) seconds: f64,
}

impl<B: Backend> PendingMetrics<B> {
    pub(super) fn new() -> Self {
        Self {
            steps: vec![],
            since: Instant::now(),
        }
    }

    /// Restarts the clock after work that was not training. No step may be pending then.
    pub(super) fn restart(&mut self) {
        self.since = Instant::now();
    }

    /// The same, but only if no steps are pending: pending steps keep their start time.
    pub(super) fn restart_if_idle(&mut self) {
        if self.steps.is_empty() {
            self.restart();
        }
    }

    /// Adds a step that was queued on the device.
    pub(super) fn push(&mut self, step: QueuedStep, measured: Measured<B>) {
        self.steps.push((step, measured));
    }

    /// The values of all pending steps, in order. Waits until the last of them is done.
    pub(super) fn read(&mut self) -> Vec<ReadStep> {
        let (steps, measured): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.steps).into_iter().unzip();
        let values = Measured::read(measured);
        let seconds = self.since.elapsed().as_secs_f64() / steps.len().max(1) as f64;
        self.since = Instant::now();
        let both = steps.into_iter().zip(values);
        both.map(|(queued, measured)| ReadStep {
            queued,
            measured,
            seconds,
        })
        .collect()
    }
}
