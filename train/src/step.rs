//! One optimizer step: its passes, the sum of their gradients, the update.
//!
//! Nothing here waits for the device: loss and norm stay where they were computed, and so does the
//! factor that clips the gradients. The host may queue step after step and read what they measured when
//! it has something to show.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use datasets::Batch;
use kernels::TrainBackend;
use model::{Phi, PhiMamba};

use crate::config::{Precision, Stage};
use crate::evaluate;
use crate::gradients::Gradients;
use crate::lanes::Lanes;
use crate::optimizer::AdamW;
use crate::stage::{Objective, TokenBatch, in_dtype, on_graph_of_its_own};

/// What all steps of a stage share.
pub struct Teaching<B: TrainBackend> {
    objective: Objective,
    teacher: Phi<B::InnerBackend>,
    micro_batch: usize,
    passes: usize,
    precision: Precision,
    lanes: Lanes,
    device: B::Device,
}

/// What a step has measured, one element each, on the device.
#[derive(Debug, Clone)]
pub struct Measured<B: Backend> {
    /// The mean loss over the passes.
    pub loss: Tensor<B, 1>,
    /// The norm of the mean gradient, before it is clipped.
    pub norm: Tensor<B, 1>,
}

impl<B: TrainBackend> Teaching<B> {
    /// Steps of `stage` towards `objective`. The teacher is in the dtype of `precision`.
    pub fn new(
        objective: Objective,
        teacher: &Phi<B::InnerBackend>,
        stage: &Stage,
        precision: Precision,
        device: &B::Device,
    ) -> Self {
        Self {
            objective,
            teacher: teacher.clone(),
            micro_batch: stage.micro_batch,
            passes: stage.accumulation(),
            precision,
            lanes: Lanes::new::<B>(stage.accumulation()),
            device: device.clone(),
        }
    }

    /// The student after one more step. It is handed over so that its parameters have one owner and the
    /// optimizer can update them in place.
    pub fn step(
        &self,
        student: PhiMamba<B>,
        optimizer: &mut AdamW<B::InnerBackend>,
        batch: &Batch,
        lr: f64,
    ) -> (PhiMamba<B>, Measured<B::InnerBackend>) {
        let (losses, gradients) = self.passes(&student, batch);
        let loss = Tensor::cat(losses, 0).mean();
        let norm = match gradients.norm() {
            Some(norm) => norm,
            None => loss.zeros_like(),
        };
        let scale = optimizer.scale(norm.clone(), loss.clone(), self.passes);
        let student = optimizer.step(student, gradients, scale, lr);
        let norm = norm * (1.0 / self.passes as f64);
        (student, Measured { loss, norm })
    }

    /// The loss of each pass over a part of `batch`, and the sum of their gradients.
    fn passes(
        &self,
        student: &PhiMamba<B>,
        batch: &Batch,
    ) -> (Vec<Tensor<B::InnerBackend, 1>>, Gradients<B::InnerBackend>) {
        let rows = self.micro_batch * batch.context;
        let working = in_dtype(student, self.precision.dtype());
        let passes = batch.ids.chunks(rows).zip(batch.labels.chunks(rows));
        let passes = passes.map(|tokens| (on_graph_of_its_own(&working), tokens));
        let (mut losses, mut gradients) = (vec![], Gradients::default());
        self.lanes.run(
            passes,
            |(student, (ids, labels))| {
                let tensor = |values| evaluate::ids(values, batch.context, &self.device);
                let tokens = TokenBatch {
                    ids: tensor(ids),
                    labels: tensor(labels),
                };
                let mut gradients = Gradients::default();
                let (objective, teacher) = (self.objective, &self.teacher);
                let loss = objective.pass(&student, teacher, tokens, &mut gradients);
                (loss, gradients)
            },
            |(loss, of_pass)| {
                losses.push(loss);
                gradients.merge(of_pass);
            },
        );
        (losses, gradients)
    }
}

impl<B: Backend> Measured<B> {
    /// Loss and norm of each of `steps`, in one transfer.
    pub fn read(steps: Vec<Self>) -> Vec<[f64; 2]> {
        if steps.is_empty() {
            return vec![];
        }
        let dtype = steps[0].norm.dtype();
        let both = steps.into_iter().flat_map(|it| {
            let loss = match it.loss.dtype() == dtype {
                true => it.loss,
                false => it.loss.cast(dtype),
            };
            [loss, it.norm]
        });
        let values = Tensor::cat(both.collect(), 0).into_data();
        let values: Vec<f64> = values.iter::<f64>().collect();
        values.chunks(2).map(|pair| [pair[0], pair[1]]).collect()
    }
}
