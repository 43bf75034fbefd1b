//! One optimizer step: its passes, the sum of their gradients, the update.
//!
//! Nothing here waits for the device: loss and norm stay where they were computed, and so does the
//! factor that clips the gradients. The host may queue step after step, and read loss and norm when it
//! has something to show.

mod lockstep;

use std::collections::{BTreeMap, HashMap};

use burn::module::{AutodiffModule, Module, ParamId};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use datasets::Batch;
use kernels::profile::region;
use kernels::{DocumentStarts, TrainBackend};
use model::{Part, Phi, PhiMamba};

use crate::clipping::{Place, places_of};
use crate::config::{Precision, StageConfig};
use crate::evaluate;
use crate::gradients::Gradients;
use crate::optimizer::AdamW;
use crate::parallel::Sharing;
use crate::parallel_passes::ParallelPasses;
use crate::stages::{Kind, Rates, StageStep, TokenBatch, in_dtype, left_out, on_graph_of_its_own};
use crate::teacher_cache::CachedPredictions;

pub use lockstep::Learning;

/// The optimizer steps of one stage: everything that they share.
///
/// [`step`](Self::step) takes the student, the optimizer and a batch, and returns the student after one update
/// of the parts that train. The student's own parameters stay in the dtype that they have, f32 in a run; the
/// passes compute with a copy in the dtype of the precision.
pub struct TrainStep<B: TrainBackend> {
    kind: Kind,
    /// Where each of the student's parameters belongs.
    places: HashMap<ParamId, Place>,
    /// `None` where the teacher's predictions are read.
    teacher: Option<Phi<B::InnerBackend>>,
    micro_batch: usize,
    /// Of a step, on all ranks together.
    passes: usize,
    precision: Precision,
    parallel: ParallelPasses,
    /// Of what is drawn in a step.
    seed: u64,
    device: B::Device,
    /// `None` where this process does all passes.
    sharing: Option<Sharing<B::InnerBackend>>,
}

/// The loss of each pass of a step, `[1]`, and the sum of their gradients.
type Passed<B> = (Vec<Tensor<B, 1>>, Gradients<B>);

/// Of a panic where a stage that computes the teacher was made without it.
const NO_TEACHER: &str = "a stage that reads no predictions has its teacher";

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
        Self::with(stage, Some(teacher.clone()), student, precision, device)
    }

    /// The same for a `stage` that reads the teacher's predictions from its
    /// [`teacher_cache`](crate::stages::Stage::teacher_cache): its steps are
    /// [`step_from_cache`](Self::step_from_cache).
    pub fn without_teacher(
        stage: &StageConfig,
        student: &PhiMamba<B>,
        precision: Precision,
        device: &B::Device,
    ) -> Self {
        Self::with(stage, None, student, precision, device)
    }

    fn with(
        stage: &StageConfig,
        teacher: Option<Phi<B::InnerBackend>>,
        student: &PhiMamba<B>,
        precision: Precision,
        device: &B::Device,
    ) -> Self {
        Self {
            kind: stage.kind.clone(),
            places: places_of(student),
            teacher,
            micro_batch: stage.micro_batch,
            passes: stage.accumulation(),
            precision,
            parallel: ParallelPasses::new::<B>(stage.accumulation()),
            seed: 0,
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

    /// The same with another seed of what is drawn in a step, which is 0 otherwise.
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// The student after one more step, and the loss and norm of that step. The student is passed by value so
    /// that its parameters have one owner and the optimizer can update them in place.
    ///
    /// `at` is which step of the stage it is; `batch` holds the sequences of all its passes; `rates` are its learning
    /// rates by part, and a part without one does not change.
    ///
    /// # Panics
    /// If this was made without a teacher.
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
        let both = (batch, None);
        let step = |(student, optimizer)| self.update(student, optimizer, both, rates, at);
        B::memory_persistent_allocations(&self.device, (student, optimizer), step)
    }

    /// [`step`](Self::step) with the teacher's predictions of `batch` in the teacher's place.
    pub fn step_from_cache(
        &self,
        student: PhiMamba<B>,
        optimizer: &mut AdamW<B::InnerBackend>,
        batch: &Batch,
        predictions: &CachedPredictions,
        rates: &Rates,
        at: StageStep,
    ) -> (PhiMamba<B>, Measured<B::InnerBackend>) {
        let both = (batch, Some(predictions));
        let step = |(student, optimizer)| self.update(student, optimizer, both, rates, at);
        B::memory_persistent_allocations(&self.device, (student, optimizer), step)
    }

    /// The loss that the teacher itself has in the student's place, `[1]`, on the first pass over `batch`: the least that
    /// a student is expected to come to. It is 0 where a student is compared with the teacher layer by layer, and the
    /// mean entropy of the teacher where predictions are.
    ///
    /// # Panics
    /// If this was made without a teacher.
    pub fn floor(&self, batch: &Batch) -> Tensor<B::InnerBackend, 1> {
        let teacher = self.teacher.as_ref().expect(NO_TEACHER);
        let tokens = self.tokens(batch, 0);
        let student = PhiMamba::<B>::from_inner(teacher.clone()).no_grad();
        let first = StageStep { number: 0, of: 1 };
        (self.kind).pass(&student, teacher, tokens, first, &mut Gradients::default())
    }

    /// The same for a stage that reads the teacher's predictions: the loss of a student that predicts what these say, if
    /// that follows from them.
    pub fn floor_from_cache(&self, predictions: &CachedPredictions) -> Option<f64> {
        let entropy = predictions.entropy(self.micro_batch);
        self.kind.cached_floor(entropy)
    }

    /// See [`step`](Self::step).
    fn update(
        &self,
        student: PhiMamba<B>,
        optimizer: &mut AdamW<B::InnerBackend>,
        batch: (&Batch, Option<&CachedPredictions>),
        rates: &Rates,
        at: StageStep,
    ) -> (PhiMamba<B>, Measured<B::InnerBackend>) {
        let passed = region("passes", || self.passes(&student, batch, at));
        self.updated(student, optimizer, passed, rates)
    }

    /// The student after the update by what its passes gave: the loss of each, and the sum of their gradients.
    fn updated(
        &self,
        student: PhiMamba<B>,
        optimizer: &mut AdamW<B::InnerBackend>,
        (losses, mut gradients): Passed<B::InnerBackend>,
        rates: &Rates,
    ) -> (PhiMamba<B>, Measured<B::InnerBackend>) {
        let loss = Tensor::cat(losses, 0).mean();
        if let Some(sharing) = &self.sharing {
            return self.update_among(sharing, student, optimizer, (loss, gradients), rates);
        }
        let norm = match gradients.norm() {
            Some(norm) => norm,
            None => loss.zeros_like(),
        };
        let norms = gradients.norms(|id| self.part(id));
        let clipped = gradients.clip(optimizer.config(), &self.places, self.passes);
        let left = clipped.unwrap_or_else(|| norm.clone());
        let scale = optimizer.scale(left, loss.clone(), self.passes);
        let rate = |id| rates.of(self.part(id)?);
        let student = region("update", || optimizer.step(student, gradients, scale, rate));
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
        let part = |id| self.part(id);
        let rate = |id| rates.of(part(id)?);
        let gradients = if self.kind.window_dropout() > 0.0 {
            // No row of a rank's passes may reach a window that another rank's do.
            sharing.completed(gradients, &self.device)
        } else {
            gradients
        };
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

    /// The part of `batch` that pass `number` goes over.
    fn tokens(&self, batch: &Batch, number: usize) -> TokenBatch<B> {
        let count = self.micro_batch * batch.context;
        let part = number * count..batch.ids.len().min((number + 1) * count);
        let tensor = |values: &[i32]| evaluate::ids(values, batch.context, &self.device);
        let labels = &batch.labels[part.clone()];
        let starts = batch.starts.as_ref().map(|starts| &starts[part.clone()]);
        // Rows of one document each take the way of rows without documents.
        let starts = starts.filter(|starts| starts.iter().any(|start| *start > 0));
        TokenBatch {
            ids: tensor(&batch.ids[part]),
            has_ends: labels.iter().any(|label| *label < 0),
            labels: tensor(labels),
            documents: starts.map(|starts| DocumentStarts::new(tensor(starts))),
        }
    }

    /// The part of a parameter of the student.
    fn part(&self, id: ParamId) -> Option<Part> {
        Some(self.places.get(&id)?.part)
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

    /// What the passes of a step over so many `rows` compute with.
    fn working(&self, student: &PhiMamba<B>, at: StageStep, rows: usize) -> Working<B> {
        Working {
            student: in_dtype(student, self.precision.dtype()),
            left_out: left_out(self.kind.window_dropout(), self.seed, at, rows),
            micro_batch: self.micro_batch,
        }
    }

    /// The loss of each pass over a part of `batch` that this process does, and the sum of their gradients.
    fn passes(
        &self,
        student: &PhiMamba<B>,
        (batch, predictions): (&Batch, Option<&CachedPredictions>),
        at: StageStep,
    ) -> Passed<B::InnerBackend> {
        let working = self.working(student, at, batch.batch);
        let (first, own) = self.own_passes();
        let passes = (first..first + own).map(|number| (working.of_pass(number), number));
        let (mut losses, mut gradients) = (vec![], Gradients::default());
        self.parallel.run(
            passes,
            |(student, number)| {
                let tokens = self.tokens(batch, number);
                let mut gradients = Gradients::default();
                let kind = &self.kind;
                let loss = if let Some(predictions) = predictions {
                    let first = number * self.micro_batch;
                    let last = first + tokens.ids.dims()[0];
                    let teacher = predictions.classes(first..last, &self.device);
                    kind.cached_pass(&student, teacher, tokens, &mut gradients)
                } else {
                    let teacher = self.teacher.as_ref().expect(NO_TEACHER);
                    kind.pass(&student, teacher, tokens, at, &mut gradients)
                };
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

/// A student as the passes of a step compute with it.
struct Working<B: TrainBackend> {
    /// In the dtype of the passes.
    student: PhiMamba<B>,
    /// The rows of the batch for which its windows are left out.
    left_out: Vec<bool>,
    micro_batch: usize,
}

impl<B: TrainBackend> Working<B> {
    /// The student of pass `number`.
    fn of_pass(&self, number: usize) -> PhiMamba<B> {
        let student = on_graph_of_its_own(&self.student);
        match self.left_out.chunks(self.micro_batch).nth(number) {
            // A student without a window is as it is.
            Some(rows) => student.clone().without_window_in(rows).unwrap_or(student),
            None => student,
        }
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
