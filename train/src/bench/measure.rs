//! The measurements.

use std::path::Path;
use std::time::Instant;

use burn::module::ParamId;
use datasets::Batch;
use kernels::TrainBackend;
use kernels::profile::{self, Kind, Span, Times};
use kernels::runtime::{Memory, synchronise};
use model::Layout;
use serde::Serialize;

use super::TEACHER;
use super::batch::batch;
use super::checkpoint::{self, CheckpointCost};
use super::matmul_rate::MatmulRate;
use super::networks::Networks;
use crate::config::{Config, StageConfig};
use crate::error::TrainError;
use crate::evaluate;
use crate::optimizer::AdamW;
use crate::parallel::{Arriving, FlatOrder, Ranks, Sharing};
use crate::run::StopRequest;
use crate::stages::{Arithmetic, StageStep, teacher_alone, train_parts};
use crate::step::{Measured, TrainStep};
use crate::summary::peak_memory_bytes;

/// Steps before those that count: they compile kernels and reserve memory.
const WARM: usize = 3;
/// Batches, over and over: they are made before anything is timed.
const BATCHES: u64 = 4;
/// Too small to change what a step costs, or what random networks compute.
const LR: f64 = 1e-6;

/// The first step of a stage: its last steps may compute something else.
const FIRST: StageStep = StageStep {
    number: 0,
    of: usize::MAX,
};

/// A row of the table.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    /// Its name, or [`TEACHER`].
    pub(super) stage: String,
    pub(super) batch: usize,
    pub(super) length: usize,
    /// From the median step, waiting for each step.
    pub(super) tokens_per_second: f64,
    /// From as many steps with one wait at their end, as in a run.
    pub(super) queued_tokens_per_second: f64,
    pub(super) operations_per_token: f64,
    /// As a share of the rate of a matrix product alone.
    pub(super) share_of_matmul_rate: f64,
    pub(super) memory_bytes: Option<u64>,
    pub(super) memory_in_use_bytes: Option<u64>,
    /// The loss of the last step. If it is not finite, the steps changed nothing.
    pub(super) loss: Option<f64>,
    /// The time of each kind of work in a step whose ops wait for each other.
    pub(super) milliseconds: Vec<(String, f64)>,
    /// The trace of the same step.
    #[serde(skip)]
    pub(super) spans: Vec<Span>,
    /// What a checkpoint costs, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) checkpoint: Option<CheckpointCost>,
    /// Where several ranks share the steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ranks: Option<Exchanged>,
}

/// What several ranks exchange in a step, and what that costs.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Exchanged {
    pub(super) ranks: usize,
    pub(super) moments_are_sharded: bool,
    /// Queued steps of this rank's batch, without the other ranks.
    pub(super) tokens_per_second_of_one: f64,
    /// The rate of all ranks, as a share of that of as many ranks without any exchange.
    pub(super) efficiency: f64,
    /// Bytes that each rank sends in a step, if the ranks send in a ring.
    pub(super) bytes: u64,
    /// The time of that exchange alone, with no other work on the device.
    pub(super) milliseconds: f64,
    /// The share of that time by which a step is shorter than one rank's step and the exchange together.
    pub(super) hidden: f64,
}

/// What is timed: a stage on sequences of one length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape<'a> {
    /// `None` times the teacher's forward pass.
    pub(super) stage: Option<&'a StageConfig>,
    pub(super) batch: usize,
    pub(super) length: usize,
}

impl Shape<'_> {
    pub(super) fn name(&self) -> &str {
        self.stage.map_or(TEACHER, |stage| &stage.name)
    }
}

/// Teacher and student, and how they are timed.
pub(super) struct Subject<'a, B: TrainBackend> {
    pub(super) networks: Networks<B>,
    pub(super) config: &'a Config,
    pub(super) rate: MatmulRate,
    /// Where checkpoints are written beside steps, if that is asked for.
    pub(super) checkpoints: Option<&'a Path>,
    pub(super) device: &'a B::Device,
    pub(super) ranks: Ranks<B::InnerBackend>,
}

impl<B: TrainBackend> Subject<'_, B> {
    /// Times `steps` steps of `shape`, twice. The student is the one that the row before has trained.
    pub(super) fn row(&mut self, shape: Shape<'_>, steps: usize) -> Result<Row, TrainError> {
        // Frees the memory that the row before has reserved.
        B::memory_cleanup(self.device);
        let (teacher, student) = (&self.networks.teacher_config, &self.networks.student_config);
        let arithmetic = match shape.stage {
            None => Arithmetic::teacher_alone(shape.length, teacher),
            Some(stage) => stage.kind.arithmetic(shape.length, teacher, student),
        };
        let timed = match shape.stage {
            None => self.teacher(shape, steps)?,
            Some(stage) => self.stage(stage, shape, steps)?,
        };
        let world = self.ranks.place().world;
        let tokens = (world * shape.batch * shape.length) as f64;
        let tokens_per_second = tokens / timed.median;
        // For one device, like the rate of a product.
        let operations = arithmetic.total() / world as f64;
        Ok(Row {
            stage: shape.name().to_owned(),
            batch: shape.batch,
            length: shape.length,
            tokens_per_second,
            queued_tokens_per_second: tokens / timed.queued,
            operations_per_token: arithmetic.total(),
            share_of_matmul_rate: operations * tokens_per_second / self.rate.0,
            memory_bytes: match timed.memory {
                Some(memory) => Some(memory.reserved),
                None => peak_memory_bytes(),
            },
            memory_in_use_bytes: timed.memory.map(|memory| memory.in_use),
            loss: timed.loss,
            milliseconds: milliseconds(&timed.times),
            spans: timed.times.spans().to_vec(),
            checkpoint: timed.checkpoint,
            ranks: timed.exchanged,
        })
    }

    fn teacher(&self, shape: Shape<'_>, steps: usize) -> Result<Timed, TrainError> {
        let teacher = &self.networks.teacher;
        let vocab_size = self.networks.teacher_config.vocab_size;
        timed::<B>(shape, steps, vocab_size, self.device, |batch| {
            let ids_bl = evaluate::ids(&batch.ids, batch.context, self.device);
            teacher_alone(teacher, ids_bl);
        })
    }

    fn stage(
        &mut self,
        stage: &StageConfig,
        shape: Shape<'_>,
        steps: usize,
    ) -> Result<Timed, TrainError> {
        let world = self.ranks.place().world;
        let stage = StageConfig {
            batch: world * shape.batch,
            micro_batch: shape.batch,
            ..stage.clone()
        };
        let of_all = Shape {
            batch: stage.batch,
            ..shape
        };
        let (precision, device) = (self.config.precision, self.device);
        let student = self.networks.student.take();
        let student = train_parts(student.expect("a student for every stage"), &stage.lr);
        let teacher = &self.networks.teacher;
        let sharing = (!self.ranks.is_alone()).then(|| Sharing {
            ranks: self.ranks.clone(),
            order: FlatOrder::of(&student, Layout::default()),
            config: self.config.parallel.clone(),
            stop: StopRequest::default(),
            device: device.clone(),
        });
        let vocab_size = self.networks.teacher_config.vocab_size;
        let rates = stage.lr.map(|_| LR);
        let time = |student, shape: Shape<'_>, sharing: Option<Sharing<B::InnerBackend>>| {
            // For one rank the stage has one pass.
            let stage = StageConfig {
                batch: shape.batch,
                ..stage.clone()
            };
            let mut train_step = TrainStep::<B>::new(&stage, teacher, &student, precision, device);
            let mut optimizer = AdamW::new(&self.config.optimizer);
            if let Some(sharing) = sharing {
                let place = sharing.config.shard_moments.then(|| sharing.ranks.place());
                optimizer = optimizer.sharing(place);
                train_step = train_step.among(sharing);
            }
            let mut student = Some(Arriving::from(student));
            let mut last: Option<Measured<B::InnerBackend>> = None;
            let mut timed = timed::<B>(shape, steps, vocab_size, device, |batch| {
                let before = student.take().expect("a student after every step");
                let (after, measured) =
                    train_step.step(before, &mut optimizer, batch, &rates, FIRST);
                (student, last) = (Some(after), Some(measured));
            })?;
            let read = Measured::read(last.into_iter().collect());
            timed.loss = read.first().map(|read| read.loss);
            let student = student.map(Arriving::wait);
            Ok::<_, TrainError>((student, timed, train_step, optimizer))
        };
        let (mut student, mut timed, train_step, mut optimizer) =
            time(student, of_all, sharing.clone())?;
        if let Some(sharing) = sharing {
            // A rank has no moments of a parameter with fewer elements than there are ranks before it.
            let own: Vec<_> = optimizer.moments.keys().copied().collect();
            let all = sharing.of_any_rank(&own, device);
            let ids: Vec<_> = all.iter().map(|entry| entry.id).collect();
            let seconds = exchange::<B>(&sharing, &ids, device)?;
            B::memory_cleanup(device);
            let before = student.take().expect("a student after every step");
            let (after, alone, ..) = time(before, shape, None)?;
            student = after;
            let bytes = sharing.exchanged_bytes(&ids);
            timed.exchanged = Some(Exchanged {
                ranks: world,
                moments_are_sharded: sharing.config.shard_moments,
                tokens_per_second_of_one: (shape.batch * shape.length) as f64 / alone.queued,
                efficiency: alone.queued / timed.queued,
                bytes,
                milliseconds: 1e3 * seconds,
                hidden: if bytes == 0 {
                    1.0
                } else {
                    (1.0 - (timed.queued - alone.queued) / seconds).clamp(0.0, 1.0)
                },
            });
        } else if let Some(folder) = self.checkpoints {
            let subject = checkpoint::Subject {
                folder,
                config: self.config,
                stage: &stage.name,
                student: &self.networks.student_model,
            };
            let batches = batches(shape, vocab_size);
            let step = |before, optimizer: &mut AdamW<B::InnerBackend>, batch: &Batch| {
                let (after, _) = train_step.step(before, optimizer, batch, &rates, FIRST);
                after.wait()
            };
            let before = student.take().expect("a student after every step");
            let (after, cost) = checkpoint::measure::<B>(
                &subject,
                before,
                &mut optimizer,
                &batches,
                steps,
                device,
                step,
            )?;
            (student, timed.checkpoint) = (Some(after), Some(cost));
        }
        self.networks.student = student;
        Ok(timed)
    }
}

/// Seconds of a step's exchange with no other work on the device: the mean of several in a row, after one to warm up.
fn exchange<B: TrainBackend>(
    sharing: &Sharing<B::InnerBackend>,
    ids: &[ParamId],
    device: &B::Device,
) -> Result<f64, TrainError> {
    let rounds = 5;
    sharing.exchange(ids, device);
    synchronise::<B>(device)?;
    sharing.ranks.barrier(device);
    let begun = Instant::now();
    for _ in 0..rounds {
        sharing.exchange(ids, device);
    }
    synchronise::<B>(device)?;
    Ok(begun.elapsed().as_secs_f64() / f64::from(rounds))
}

/// The results of [`timed`].
struct Timed {
    /// Seconds of the median step.
    median: f64,
    /// Seconds of a step among many that are queued.
    queued: f64,
    memory: Option<Memory>,
    times: Times,
    loss: Option<f64>,
    checkpoint: Option<CheckpointCost>,
    exchanged: Option<Exchanged>,
}

fn batches(shape: Shape<'_>, vocab_size: usize) -> Vec<Batch> {
    (0..BATCHES)
        .map(|i| batch(i, shape.batch, shape.length, vocab_size))
        .collect()
}

fn timed<B: TrainBackend>(
    shape: Shape<'_>,
    steps: usize,
    vocab_size: usize,
    device: &B::Device,
    mut step: impl FnMut(&Batch),
) -> Result<Timed, TrainError> {
    let batches = batches(shape, vocab_size);
    let mut batches = batches.iter().cycle();
    let mut next = || batches.next().expect("a cycle has no end");
    let mut seconds = vec![];
    for i in 0..WARM + steps {
        let begun = Instant::now();
        step(next());
        synchronise::<B>(device)?;
        if i >= WARM {
            seconds.push(begun.elapsed().as_secs_f64());
        }
    }
    let begun = Instant::now();
    for _ in 0..steps {
        step(next());
    }
    synchronise::<B>(device)?;
    let queued = begun.elapsed().as_secs_f64() / steps as f64;
    // Read before the step whose ops wait for each other, since no run has such a step.
    let memory = B::memory(device);
    let waited_for = device.clone();
    let wait = move || synchronise::<B>(&waited_for);
    let ((), times) = profile::measure(wait, || step(next()))?;
    Ok(Timed {
        median: median(seconds),
        queued,
        memory,
        times,
        loss: None,
        checkpoint: None,
        exchanged: None,
    })
}

pub(super) fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// The time of each kind of work and of the rest; only the rest if the backend's ops are not timed.
fn milliseconds(times: &Times) -> Vec<(String, f64)> {
    let kinds = Kind::ALL.map(|kind| (kind.to_string(), times.of(kind)));
    let kinds = kinds.into_iter().filter(|(_, time)| !time.is_zero());
    let all = kinds.chain([("other".to_owned(), times.other())]);
    all.map(|(kind, time)| (kind, 1e3 * time.as_secs_f64()))
        .collect()
}
