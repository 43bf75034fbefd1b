//! What the passes of a step have in common.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use burn::tensor::DType;
use datasets::Batch;
use kernels::TrainBackend;
use model::{Block, PhiMamba};

use super::TrainStep;
use crate::parallel::Arriving;
use crate::stages::{Parts, StageStep, in_dtype, left_out, on_graph_of_its_own};
use crate::teacher_cache::CachedPredictions;

/// What the passes of a step share. Parameters of the student may still be in transit. When a pass first asks for a
/// layer, a copy of it in the dtype of the passes is made, and is kept.
pub(super) struct Working<'a, B: TrainBackend> {
    own: Mutex<Arriving<B>>,
    dtype: DType,
    layers: Vec<OnceLock<Block<B>>>,
    whole: OnceLock<PhiMamba<B>>,
    /// The rows of the batch that are read without a window.
    left_out: Vec<bool>,
    micro_batch: usize,
    pub(super) batch: &'a Batch,
    pub(super) predictions: Option<&'a CachedPredictions>,
    pub(super) at: StageStep,
}

impl<B: TrainBackend> TrainStep<B> {
    /// What the passes of step `at` over `batch` have in common.
    pub(super) fn working<'a>(
        &self,
        student: Arriving<B>,
        (batch, predictions): (&'a Batch, Option<&'a CachedPredictions>),
        at: StageStep,
    ) -> Working<'a, B> {
        Working {
            dtype: self.precision.dtype(),
            layers: (0..student.layers()).map(|_| OnceLock::new()).collect(),
            whole: OnceLock::new(),
            own: Mutex::new(student),
            left_out: left_out(self.kind.window_dropout(), self.seed, at, batch.batch),
            micro_batch: self.micro_batch,
            batch,
            predictions,
            at,
        }
    }
}

impl<B: TrainBackend> Working<'_, B> {
    fn own(&self) -> MutexGuard<'_, Arriving<B>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The whole student for pass `number`, with its window left out in the rows that were drawn for that; `None`
    /// without window dropout, or if the student has no window.
    pub(super) fn without_window(&self, number: usize) -> Option<PhiMamba<B>> {
        let rows = self.left_out.chunks(self.micro_batch).nth(number)?;
        // `without_window_in` returns `None` for a student without a window.
        self.whole().without_window_in(rows)
    }

    /// The student itself. All copies are freed, so that the optimizer can update it in place.
    pub(super) fn into_student(self) -> PhiMamba<B> {
        let own = self.own.into_inner();
        own.unwrap_or_else(PoisonError::into_inner).wait()
    }
}

impl<B: TrainBackend> Parts<B> for Working<'_, B> {
    fn layers(&self) -> usize {
        self.layers.len()
    }

    fn layer(&self, number: usize) -> Block<B> {
        let layer = match self.whole.get() {
            Some(student) => &student.backbone.layers[number],
            None => {
                self.layers[number].get_or_init(|| in_dtype(&self.own().layer(number), self.dtype))
            }
        };
        on_graph_of_its_own(layer)
    }

    fn whole(&self) -> PhiMamba<B> {
        let whole = || in_dtype(self.own().whole(), self.dtype);
        on_graph_of_its_own(self.whole.get_or_init(whole))
    }
}
