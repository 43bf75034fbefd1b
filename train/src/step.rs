//! One optimizer step: its passes, the sum of their gradients, the update.
//!
//! Nothing here waits for the device: loss and norm stay where they were computed, and so does the
//! factor that clips the gradients. The host may queue step after step, and read loss and norm when it
//! has something to show.

use std::collections::{BTreeMap, HashMap};

use burn::module::{AutodiffModule, Module, ParamId};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use datasets::Batch;
use kernels::TrainBackend;
use model::{Part, Phi, PhiMamba};

use crate::config::{Precision, StageConfig};
use crate::evaluate;
use crate::gradients::Gradients;
use crate::optimizer::AdamW;
use crate::parallel::Sharing;
use crate::parallel_passes::ParallelPasses;
use crate::stages::{Kind, Rates, StageStep, TokenBatch, in_dtype, on_graph_of_its_own, parts_of};

/// The optimizer steps of one stage: everything that they share.
///
/// [`step`](Self::step) takes the student, the optimizer and a batch, and returns the student after one update
/// of the parts that train. The student's own parameters stay in the dtype that they have, f32 in a run; the
/// passes compute with a copy in the dtype of the precision.
pub struct TrainStep<B: TrainBackend> {
    kind: Kind,
    /// The part of each of the student's parameters.
    parts: HashMap<ParamId, Part>,
    teacher: Phi<B::InnerBackend>,
    micro_batch: usize,
    /// Of a step, on all ranks together.
    passes: usize,
    precision: Precision,
    parallel: ParallelPasses,
    device: B::Device,
    /// `None` where this process does all passes.
    sharing: Option<Sharing<B::InnerBackend>>,
}

/// What a step has measured, one element each, on the device.
#[derive(Debug, Clone)]
pub struct Measured<B: Backend> {
    /// The mean loss over the passes.
    pub loss: Tensor<B, 1>,
    /// The norm of the mean gradient, before it is clipped.
    pub norm: Tensor<B, 1>,
    /// The same of each part that has a gradient.
    pub norms: BTreeMap<Part, Tensor<B, 1>>,
    /// Where ranks share the steps: how many of them were asked to stop.
    pub stops: Option<Tensor<B, 1>>,
}

/// What a step has measured, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadMeasured {
    /// The mean loss over the passes.
    pub loss: f64,
    /// The norm of the mean gradient, before it is clipped.
    pub norm: f64,
    /// The same of each part that has a gradient.
    pub norms: BTreeMap<Part, f64>,
    /// Whether a rank was asked to stop, where ranks share the steps: all know it of the same step.
    pub stops: bool,
}

impl<B: TrainBackend> TrainStep<B> {
    /// The steps of `stage`, which train `student` by `teacher`. The teacher is in the dtype of `precision`,
    /// with as many ids as the student; a [`step`](Self::step) may take any student with the parameter ids of
    /// this one.
    pub fn new(
        stage: &StageConfig,
        teacher: &Phi<B::InnerBackend>,
        student: &PhiMamba<B>,
        precision: Precision,
        device: &B::Device,
    ) -> Self {
        Self {
            kind: stage.kind.clone(),
            parts: parts_of(student),
            teacher: teacher.clone(),
            micro_batch: stage.micro_batch,
            passes: stage.accumulation(),
            precision,
            parallel: ParallelPasses::new::<B>(stage.accumulation()),
            device: device.clone(),
            sharing: None,
        }
    }

    /// The same steps, whose passes the ranks of `sharing` share: their number divides that of the passes. Each is given
    /// the whole batch.
    pub fn among(self, sharing: Sharing<B::InnerBackend>) -> Self {
        let own = self.passes / sharing.ranks.place().world;
        Self {
            parallel: ParallelPasses::new::<B>(own),
            sharing: Some(sharing),
            ..self
        }
    }

    /// The student after one more step, and the loss and norm of that step. The student is passed by value so
    /// that its parameters have one owner and the optimizer can update them in place.
    ///
    /// `at` is which step of the stage it is; `batch` holds the sequences of all its passes; `rates` are its learning
    /// rates by part, and a part without one does not change.
    pub fn step(
        &self,
        student: PhiMamba<B>,
        optimizer: &mut AdamW<B::InnerBackend>,
        batch: &Batch,
        rates: &Rates,
        at: StageStep,
    ) -> (PhiMamba<B>, Measured<B::InnerBackend>) {
        // The tensors of one step have the sizes of those of the next: each then gets the memory of one before it,
        // which is looked up by its size. In CubeCL's other pools a device with thousands of tensors spends more
        // time on finding memory than on computing.
        let step = |(student, optimizer)| self.update(student, optimizer, batch, rates, at);
        B::memory_persistent_allocations(&self.device, (student, optimizer), step)
    }

    /// The loss that the teacher itself has in the student's place, `[1]`, on the first pass over `batch`: the least that
    /// a student is expected to come to. It is 0 where a student is compared with the teacher layer by layer, and the
    /// mean entropy of the teacher where predictions are.
    pub fn floor(&self, batch: &Batch) -> Tensor<B::InnerBackend, 1> {
        let rows = self.micro_batch * batch.context;
        let tensor = |values: &[i32]| evaluate::ids(&values[..rows], batch.context, &self.device);
        let tokens = TokenBatch {
            ids: tensor(&batch.ids),
            labels: tensor(&batch.labels),
        };
        let student = PhiMamba::<B>::from_inner(self.teacher.clone()).no_grad();
        let first = StageStep { number: 0, of: 1 };
        (self.kind).pass(
            &student,
            &self.teacher,
            tokens,
            first,
            &mut Gradients::default(),
        )
    }

    /// See [`step`](Self::step).
    fn update(
        &self,
        student: PhiMamba<B>,
        optimizer: &mut AdamW<B::InnerBackend>,
        batch: &Batch,
        rates: &Rates,
        at: StageStep,
    ) -> (PhiMamba<B>, Measured<B::InnerBackend>) {
        let (losses, gradients) = self.passes(&student, batch, at);
        let loss = Tensor::cat(losses, 0).mean();
        if let Some(sharing) = &self.sharing {
            return self.update_among(sharing, student, optimizer, (loss, gradients), rates);
        }
        let norm = match gradients.norm() {
            Some(norm) => norm,
            None => loss.zeros_like(),
        };
        let norms = gradients.norms(|id| self.parts.get(&id).copied());
        let scale = optimizer.scale(norm.clone(), loss.clone(), self.passes);
        let rate = |id| rates.of(*self.parts.get(&id)?);
        let student = optimizer.step(student, gradients, scale, rate);
        (student, self.measured(loss, norm, norms, None))
    }

    /// [`update`](Self::update) where other ranks have done other passes: `loss` is the mean of this rank's, `gradients`
    /// their sum.
    fn update_among(
        &self,
        sharing: &Sharing<B::InnerBackend>,
        student: PhiMamba<B>,
        optimizer: &mut AdamW<B::InnerBackend>,
        (loss, gradients): (Tensor<B::InnerBackend, 1>, Gradients<B::InnerBackend>),
        rates: &Rates,
    ) -> (PhiMamba<B>, Measured<B::InnerBackend>) {
        let part = |id| self.parts.get(&id).copied();
        let rate = |id| rates.of(part(id)?);
        let ids = gradients.ids().to_vec();
        let shards = sharing.config.shard_moments;
        let sums = if shards {
            sharing.reduce_to_shares(gradients)
        } else {
            sharing.reduce(gradients)
        };
        let all = sharing.global(loss, &sums, &ids, part);
        let scale = optimizer.scale(all.norm.clone(), all.loss.clone(), self.passes);
        let student = if shards {
            sharing.step(optimizer, student, (&ids, sums), scale, rate)
        } else {
            optimizer.step(student, sums, scale, rate)
        };
        let measured = self.measured(all.loss, all.norm, all.norms, Some(all.stops));
        (student, measured)
    }

    /// What there is to read of a step: the norms of the sum of its gradients become those of their mean.
    fn measured(
        &self,
        loss: Tensor<B::InnerBackend, 1>,
        norm: Tensor<B::InnerBackend, 1>,
        norms: BTreeMap<Part, Tensor<B::InnerBackend, 1>>,
        stops: Option<Tensor<B::InnerBackend, 1>>,
    ) -> Measured<B::InnerBackend> {
        let of_mean = |norm: Tensor<B::InnerBackend, 1>| norm * (1.0 / self.passes as f64);
        Measured {
            loss,
            norm: of_mean(norm),
            norms: norms
                .into_iter()
                .map(|(part, norm)| (part, of_mean(norm)))
                .collect(),
            stops,
        }
    }

    /// Of the passes of a step, those that this process does: the first, and how many.
    fn own_passes(&self) -> (usize, usize) {
        match &self.sharing {
            Some(sharing) => {
                let place = sharing.ranks.place();
                let own = self.passes / place.world;
                (place.rank * own, own)
            }
            None => (0, self.passes),
        }
    }

    /// The loss of each pass over a part of `batch` that this process does, and the sum of their gradients.
    fn passes(
        &self,
        student: &PhiMamba<B>,
        batch: &Batch,
        at: StageStep,
    ) -> (Vec<Tensor<B::InnerBackend, 1>>, Gradients<B::InnerBackend>) {
        let rows = self.micro_batch * batch.context;
        let working = in_dtype(student, self.precision.dtype());
        let (first, own) = self.own_passes();
        let passes = batch.ids.chunks(rows).zip(batch.labels.chunks(rows));
        let passes = passes.skip(first).take(own);
        let passes = passes.map(|tokens| (on_graph_of_its_own(&working), tokens));
        let (mut losses, mut gradients) = (vec![], Gradients::default());
        self.parallel.run(
            passes,
            |(student, (ids, labels))| {
                let tensor = |values| evaluate::ids(values, batch.context, &self.device);
                let tokens = TokenBatch {
                    ids: tensor(ids),
                    labels: tensor(labels),
                };
                let mut gradients = Gradients::default();
                let (kind, teacher) = (&self.kind, &self.teacher);
                let loss = kind.pass(&student, teacher, tokens, at, &mut gradients);
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
    /// The values of each of `steps`, in one transfer.
    pub fn read(steps: Vec<Self>) -> Vec<ReadMeasured> {
        if steps.is_empty() {
            return vec![];
        }
        let dtype = steps[0].norm.dtype();
        let in_dtype = |value: &Tensor<B, 1>| {
            if value.dtype() == dtype {
                value.clone()
            } else {
                value.clone().cast(dtype)
            }
        };
        let values = steps.iter().flat_map(|step| {
            let both = [&step.loss, &step.norm].into_iter();
            let all = both.chain(step.norms.values()).chain(&step.stops);
            all.map(in_dtype)
        });
        let values = Tensor::cat(values.collect(), 0).into_data();
        let mut values = values.iter::<f64>();
        let mut next = || values.next().expect("a value for each tensor");
        let read = |step: Self| ReadMeasured {
            loss: next(),
            norm: next(),
            norms: step.norms.into_keys().map(|part| (part, next())).collect(),
            stops: step.stops.is_some_and(|_| next() > 0.0),
        };
        steps.into_iter().map(read).collect()
    }
}
