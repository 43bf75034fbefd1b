//! Loss and norm of steps whose values are still on the device.

use std::time::Instant;

use burn::tensor::backend::Backend;

use crate::step::Measured;

/// Steps whose loss and norm are still on the device.
pub(super) struct PendingMetrics<B: Backend> {
    steps: Vec<(usize, u64, f64, Measured<B>)>,
    /// When the last were read, or when training continued after that.
    since: Instant,
}

/// A step, read.
pub(super) struct ReadStep {
    /// Its number in the stage, from 1.
    pub(super) number: usize,
    /// Training tokens of the run up to its end.
    pub(super) tokens: u64,
    /// Its learning rate.
    pub(super) lr: f64,
    /// The mean loss over its passes.
    pub(super) loss: f64,
    /// The norm of its mean gradient.
    pub(super) norm: f64,
    /// How long it took: the mean over the steps that were read together.
    pub(super) seconds: f64,
}

impl<B: Backend> PendingMetrics<B> {
    pub(super) fn new() -> Self {
        Self {
            steps: vec![],
            since: Instant::now(),
        }
    }

    /// Starts the clock anew, after work that was no training. No step is pending then.
    pub(super) fn restart(&mut self) {
        self.since = Instant::now();
    }

    /// Step `number` is queued.
    pub(super) fn push(&mut self, number: usize, tokens: u64, lr: f64, measured: Measured<B>) {
        self.steps.push((number, tokens, lr, measured));
    }

    /// All of them, in order. Waits for the last to be done.
    pub(super) fn read(&mut self) -> Vec<ReadStep> {
        let steps = std::mem::take(&mut self.steps);
        let measured = steps.iter().map(|(_, _, _, measured)| measured.clone());
        let values = Measured::read(measured.collect());
        let seconds = self.since.elapsed().as_secs_f64() / steps.len().max(1) as f64;
        self.since = Instant::now();
        let both = steps.into_iter().zip(values);
        both.map(|((number, tokens, lr, _), [loss, norm])| ReadStep {
            number,
            tokens,
            lr,
            loss,
            norm,
            seconds,
        })
        .collect()
    }
}
