//! One optimizer step: its passes, the sum of their gradients, the update.
//!
//! Nothing here waits for the device: loss and norm stay on the device, and so does the factor that clips the
//! gradients. The host can queue step after step, and reads loss and norm when it has to show them.

mod lockstep;
mod measured;
mod working;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use burn::module::{AutodiffModule, Module, ParamId};
use burn::tensor::Tensor;
use datasets::Batch;
use kernels::profile::region;
use kernels::{DocumentStarts, TrainBackend};
use model::{Part, Phi, PhiMamba};

use crate::clipping::{Place, clips_cells, places_of};
use crate::config::{Precision, StageConfig};
use crate::error::TrainError;
use crate::evaluate;
use crate::gradients::{Gradients, Sink};
use crate::optimizer::AdamW;
use crate::parallel::{Arriving, Outlet, Plan, Sharing};
use crate::parallel_passes::ParallelPasses;
use crate::stages::{Kind, PassStudent, Rates, StageStep, TokenBatch};
use crate::teacher_cache::CachedPredictions;

pub use lockstep::Learning;
pub use measured::{Measured, ReadMeasured};

use self::working::Working;

/// The optimizer steps of one stage: all that they share.
///
/// [`step`](Self::step) takes the student, the optimizer and a batch, and returns the student after one update
/// of the parts that train. The student's own parameters stay in the dtype that they have, f32 in a run; the
/// passes compute with a copy in the dtype of the precision.
pub struct TrainStep<B: TrainBackend> {
    kind: Kind,
    /// The part and the layer of each of the student's parameters.
    places: HashMap<ParamId, Place>,
    /// `None` if the teacher's predictions are read from a cache.
    teacher: Option<Phi<B::InnerBackend>>,
    micro_batch: usize,
    /// The number of passes of a step, over all ranks.
    passes: usize,
    precision: Precision,
    parallel: ParallelPasses,
    /// The seed of random draws within a step.
    seed: u64,
    device: B::Device,
    /// `None` if this process computes all passes.
    sharing: Option<Sharing<B::InnerBackend>>,
    /// The order in which the gradients of the last step came.
    plan: Mutex<Plan>,
    /// The last plan that all ranks were found to have in common.
    agreed: Mutex<Plan>,
}

/// The loss of each pass of a step, `[1]`, and the sum of the passes' gradients.
type Passed<B> = (Vec<Tensor<B, 1>>, Gradients<B>);

/// The panic message if a stage that computes the teacher was made without it.
const NO_TEACHER: &str = "a stage that reads no predictions has its teacher";

impl<B: TrainBackend> TrainStep<B> {
    /// The steps of `stage`, which train `student` with `teacher`. The teacher must be in the dtype of `precision` and
    /// have as many ids as the student. A [`step`](Self::step) can take any student with the parameter ids of this one.
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
            plan: Mutex::default(),
            agreed: Mutex::default(),
        }
    }

    /// The same steps, with their passes divided among the ranks of `sharing`, whose number must divide the number of
    /// passes. Each rank gets the whole batch.
    pub fn among(self, sharing: Sharing<B::InnerBackend>) -> Self {
        let own = self.passes / sharing.ranks.place().world;
        Self {
            parallel: ParallelPasses::new::<B>(own),
            sharing: Some(sharing),
            ..self
        }
    }

    /// The same with this seed for random draws within a step; the default is 0.
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// The student after one more step, and the loss and norm of that step. The student is passed by value, so that its
    /// parameters have one owner and the optimizer can update them in place. If ranks share the step, parameters of the
    /// result may still be in transit from the others.
    ///
    /// `batch` has the sequences of all passes of the step; `rates` are the learning rates by part, and parts without a
    /// rate do not change; `at` is the place of the step in its stage.
    ///
    /// # Panics
    /// If this was made without a teacher.
    pub fn step(
        &self,
        student: impl Into<Arriving<B>>,
        optimizer: &mut AdamW<B::InnerBackend>,
        batch: &Batch,
        rates: &Rates,
        at: StageStep,
    ) -> (Arriving<B>, Measured<B::InnerBackend>) {
        self.reserve_and_update(student.into(), optimizer, (batch, None), rates, at)
    }

    /// [`step`](Self::step) with the teacher's cached predictions of `batch` instead of the teacher.
    pub fn step_from_cache(
        &self,
        student: impl Into<Arriving<B>>,
        optimizer: &mut AdamW<B::InnerBackend>,
        batch: &Batch,
        predictions: &CachedPredictions,
        rates: &Rates,
        at: StageStep,
    ) -> (Arriving<B>, Measured<B::InnerBackend>) {
        let both = (batch, Some(predictions));
        self.reserve_and_update(student.into(), optimizer, both, rates, at)
    }

    /// The tensors of one step have the same sizes as those of the next. In CubeCL's persistent pool, a new tensor gets
    /// the memory of an earlier tensor of the same size, which is looked up by that size. In its other pools, a device
    /// with thousands of tensors spends more time on the search for memory than on computing.
    fn reserve_and_update(
        &self,
        student: Arriving<B>,
        optimizer: &mut AdamW<B::InnerBackend>,
        batch: (&Batch, Option<&CachedPredictions>),
        rates: &Rates,
        at: StageStep,
    ) -> (Arriving<B>, Measured<B::InnerBackend>) {
        let step = |(student, optimizer)| self.update(student, optimizer, batch, rates, at);
        B::memory_persistent_allocations(&self.device, (student, optimizer), step)
    }

    /// Checks that all ranks send their gradients in the same order: after the first step of a stage, and after each
    /// change of the order. The order must change on all ranks at the same step: a rank that changes it alone would
    /// wait for ever.
    ///
    /// # Errors
    /// [`TrainError::Ranks`] with the ranks whose order is another.
    pub(crate) fn agree(&self) -> Result<(), TrainError> {
        let Some(sharing) = &self.sharing else {
            return Ok(());
        };
        let plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let mut agreed = self.agreed.lock().unwrap_or_else(PoisonError::into_inner);
        if *plan != *agreed {
            plan.agree(sharing)?;
            *agreed = plan.clone();
        }
        Ok(())
    }

    /// The loss, `[1]`, that the teacher itself has in the student's place on the first pass over `batch`: the lowest
    /// loss that a student is expected to reach. It is 0 if student and teacher are compared layer by layer, and the
    /// teacher's mean entropy if predictions are compared.
    ///
    /// # Panics
    /// If this was made without a teacher.
    pub fn floor(&self, batch: &Batch) -> Tensor<B::InnerBackend, 1> {
        let teacher = self.teacher.as_ref().expect(NO_TEACHER);
        let tokens = self.tokens(batch, 0);
        let student = PhiMamba::<B>::from_inner(teacher.clone()).no_grad();
        let first = StageStep { number: 0, of: 1 };
        let mut gradients = Gradients::default();
        (self.kind).pass(&(&student).into(), teacher, tokens, first, &mut gradients)
    }

    /// The same for a stage that reads the teacher's predictions: the loss of a student that predicts exactly these;
    /// `None` if it does not follow from them.
    pub fn floor_from_cache(&self, predictions: &CachedPredictions) -> Option<f64> {
        let entropy = predictions.entropy(self.micro_batch);
        self.kind.cached_floor(entropy)
    }

    /// See [`step`](Self::step).
    fn update(
        &self,
        student: Arriving<B>,
        optimizer: &mut AdamW<B::InnerBackend>,
        batch: (&Batch, Option<&CachedPredictions>),
        rates: &Rates,
        at: StageStep,
    ) -> (Arriving<B>, Measured<B::InnerBackend>) {
        let working = self.working(student, batch, at);
        if let Some(sharing) = &self.sharing {
            return self.update_among(sharing, working, optimizer, rates);
        }
        let all = 0..self.passes;
        let passed = region("passes", || self.run(&working, all));
        let (student, measured) = self.updated(working.into_student(), optimizer, passed, rates);
        (student.into(), measured)
    }

    /// The student after its update with the results of its passes, in a run without other ranks.
    fn updated(
        &self,
        student: PhiMamba<B>,
        optimizer: &mut AdamW<B::InnerBackend>,
        (losses, mut gradients): Passed<B::InnerBackend>,
        rates: &Rates,
    ) -> (PhiMamba<B>, Measured<B::InnerBackend>) {
        let loss = Tensor::cat(losses, 0).mean();
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

    /// [`update`](Self::update) if other ranks compute other passes. If this rank's passes run one after the other,
    /// gradients are sent while its last pass still goes backward.
    fn update_among(
        &self,
        sharing: &Sharing<B::InnerBackend>,
        working: Working<'_, B>,
        optimizer: &mut AdamW<B::InnerBackend>,
        rates: &Rates,
    ) -> (Arriving<B>, Measured<B::InnerBackend>) {
        let part = |id| self.part(id);
        let rate = |id| rates.of(part(id)?);
        let place = sharing.ranks.place();
        let own = self.passes / place.world;
        let own = place.rank * own..(place.rank + 1) * own;
        // It may happen that no row of a rank's passes uses the window, while rows of another rank do.
        let differ = self.kind.window_dropout() > 0.0;
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let (losses, (mut reduced, next)) = region("passes", || {
            if !self.parallel.is_in_a_row() {
                let (losses, gradients) = self.run(&working, own);
                let outlet = Outlet::of_all(sharing, &plan, gradients);
                return (losses, outlet.finish(differ));
            }
            let last = own.end - 1;
            let (mut losses, before) = self.run(&working, own.start..last);
            let mut outlet = Outlet::new(sharing, &plan, before);
            losses.push(self.pass(&working, last, &mut outlet));
            (losses, outlet.finish(differ))
        });
        let student = working.into_student();
        *plan = next;
        let loss = Tensor::cat(losses, 0).mean();
        let config = optimizer.config();
        let clips = clips_cells(config);
        let cell = |id| self.places.get(&id).copied().filter(|_| clips);
        let all = sharing.global(loss, &reduced.sums, &reduced.ids, part, cell);
        let (sums, squares) = (&mut reduced.sums, all.squares_of_cells);
        let clipped = sums.clip_by(squares, config, &self.places, self.passes);
        let left = clipped.unwrap_or_else(|| all.norm.clone());
        let scale = optimizer.scale(left, all.loss.clone(), self.passes);
        let student = region("update", || {
            if sharing.config.shard_moments {
                sharing.step(optimizer, student, reduced, scale, rate)
            } else {
                optimizer.step(student, reduced.sums, scale, rate).into()
            }
        });
        let measured = self.measured(all.loss, all.norm, all.norms, Some(all.stops));
        (student, measured)
    }

    /// The measured values of a step. The norms, which are those of the sum of gradients, become those of the mean.
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

    /// The part of `batch` that pass number `number` reads.
    fn tokens(&self, batch: &Batch, number: usize) -> TokenBatch<B> {
        let count = self.micro_batch * batch.context;
        let part = number * count..batch.ids.len().min((number + 1) * count);
        let tensor = |values: &[i32]| evaluate::ids(values, batch.context, &self.device);
        let labels = &batch.labels[part.clone()];
        let starts = batch.starts.as_ref().map(|starts| &starts[part.clone()]);
        // If every row is a single document, the rows are computed as rows without documents.
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

    /// The losses of the passes of these `numbers`, and the sum of their gradients.
    fn run(&self, working: &Working<'_, B>, numbers: Range<usize>) -> Passed<B::InnerBackend> {
        let (mut losses, mut gradients) = (vec![], Gradients::default());
        self.parallel.run(
            numbers,
            |number| {
                let mut gradients = Gradients::default();
                let loss = self.pass(working, number, &mut gradients);
                (loss, gradients)
            },
            |(loss, of_pass)| {
                losses.push(loss);
                gradients.merge(of_pass);
            },
        );
        (losses, gradients)
    }

    /// The loss of pass `number`, whose gradients go to `gradients`.
    fn pass(
        &self,
        working: &Working<'_, B>,
        number: usize,
        gradients: &mut dyn Sink<B::InnerBackend>,
    ) -> Tensor<B::InnerBackend, 1> {
        let without_window = working.without_window(number);
        let student = match &without_window {
            Some(student) => student.into(),
            None => PassStudent::coming(working),
        };
        let student = &student;
        let tokens = self.tokens(working.batch, number);
        if let Some(predictions) = working.predictions {
            let first = number * self.micro_batch;
            let last = first + tokens.ids.dims()[0];
            let teacher = predictions.classes(first..last, &self.device);
            self.kind.cached_pass(student, teacher, tokens, gradients)
        } else {
            let teacher = self.teacher.as_ref().expect(NO_TEACHER);
            self.kind
                .pass(student, teacher, tokens, working.at, gradients)
        }
    }
}
