//! Tiles: sequences that take their steps together.
//!
//! If the device chooses the tokens, it is a step ahead of the host, as in a [`Generation`](crate::Generation): the
//! device computes while the host writes the texts. A sequence that has ended meanwhile has taken one step too many;
//! its row is overwritten by the next sequence.

use burn::tensor::{Int, Tensor};
use kernels::KernelBackend;
use kernels::decode::sample::{Choice, Warp};
use model::{Batch, CausalLm, State};

use super::request::{Finish, Moment};
use super::sequence::Sequence;
use crate::device::{check_so_far, read_settled, settle};
use crate::device_sampler::{Choosing, DeviceSampler};
use crate::error::GenerateError;
use crate::sampling::{SamplingError, SamplingSettings};

/// The rows of a tile, each for one sequence or empty.
///
/// A tile always computes this many rows, so that a sequence's numbers do not depend on the others: a product over
/// another number of rows may add in another order. The number is small, so that a single sequence loses little time to
/// empty rows. It is large enough to share the reading of the weights, which takes most of a step's time.
pub(super) const ROWS: usize = 8;

/// The most steps that are queued ahead in a row. After them the host waits for all queued work: some failures of a
/// device are only found in this way.
const AHEAD: usize = 16;

/// Up to [`ROWS`] sequences and their states.
pub(super) struct Tile<'t, B: KernelBackend> {
    batch: Batch<B>,
    rows: [Option<Sequence<'t>>; ROWS],
    device_sampler: DeviceSampler<B>,
    /// The next step, if it is queued already.
    ahead: Option<QueuedStep<B>>,
    /// The number of steps that were queued ahead in a row.
    steps_ahead: usize,
}

/// A step that was queued on the device.
struct QueuedStep<B: KernelBackend> {
    /// The rows whose sequence took part in it and has not ended since.
    rows: [bool; ROWS],
    /// How each row chooses.
    choices: Vec<Choice>,
    logits_bv: Tensor<B, 2>,
    /// `None` if the host has to choose.
    choosing: Option<Choosing<B>>,
}

/// The results of one step.
struct TileStep {
    /// The rows that they are for.
    rows: [bool; ROWS],
    choices: Vec<Choice>,
    /// The token that the device has chosen for each row; `None` if the host chooses.
    chosen: Option<Vec<Result<u32, SamplingError>>>,
    /// The logits `[ROWS, v]`, if any row needs them on the host.
    logits_bv: Option<Vec<f32>>,
}

impl<'t, B: KernelBackend> Tile<'t, B> {
    /// An empty tile. Only the first `vocab_size` ids of the model's vocabulary can be chosen.
    pub(super) fn new(model: &CausalLm<B>, vocab_size: usize, device: &B::Device) -> Self {
        Self {
            batch: model.new_batch(ROWS, device),
            rows: Default::default(),
            device_sampler: DeviceSampler::new(ROWS, vocab_size, model.vocab_size(), device),
            ahead: None,
            steps_ahead: 0,
        }
    }

    /// The number of sequences.
    pub(super) fn len(&self) -> usize {
        self.rows.iter().flatten().count()
    }

    /// The owner of each sequence.
    pub(super) fn owners(&self) -> impl Iterator<Item = u64> {
        self.rows.iter().flatten().map(|sequence| sequence.owner)
    }

    /// The size of the states, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.batch.bytes()
    }

    /// Adds a sequence, with the state after its prompt.
    ///
    /// # Panics
    /// If no row is free.
    pub(super) fn join(&mut self, sequence: Sequence<'t>, state: State<B>) {
        let free = self.rows.iter().position(Option::is_none);
        let row = free.expect("a tile with a free row");
        self.batch.put(row, state);
        self.device_sampler.begin(row, &sequence.sampler);
        self.rows[row] = Some(sequence);
    }

    /// Ends the sequences whose answer was dropped or whose time is up.
    pub(super) fn clear(&mut self, now: Moment) {
        for row in 0..ROWS {
            if let Some(sequence) = self.rows[row].take_if(|sequence| sequence.over(now)) {
                self.free(row);
                sequence.finish(Finish::TimeUp);
            }
        }
    }

    /// Frees a row whose sequence has ended. Queued results for that sequence are not used.
    fn free(&mut self, row: usize) {
        self.batch.free(row);
        if let Some(ahead) = &mut self.ahead {
            ahead.rows[row] = false;
        }
    }

    /// Takes one step of every sequence. If a step was queued ahead, sequences that have joined since take part in the
    /// next one.
    pub(super) fn step(&mut self, model: &CausalLm<B>, device: &B::Device) {
        if self.len() == 0 {
            self.ahead = None;
            return;
        }
        let TileStep {
            rows,
            choices,
            chosen,
            mut logits_bv,
        } = match self.compute(model, device) {
            Ok(step) => step,
            Err(error) => return self.fail(error),
        };
        let v = model.vocab_size();
        for row in (0..ROWS).filter(|row| rows[*row]) {
            if let Some(sequence) = self.rows[row].take() {
                let logits_v = logits_bv.as_mut().map(|all| &mut all[row * v..][..v]);
                let chosen = chosen.as_ref().map(|chosen| chosen[row].clone());
                self.rows[row] = sequence.write(choices[row], chosen, logits_v);
                if self.rows[row].is_none() {
                    self.free(row);
                }
            }
        }
    }

    fn compute(
        &mut self,
        model: &CausalLm<B>,
        device: &B::Device,
    ) -> Result<TileStep, GenerateError> {
        let QueuedStep {
            rows,
            choices,
            logits_bv,
            choosing,
        } = match self.ahead.take() {
            Some(step) => step,
            None => {
                let newest = |row: &Option<Sequence>| {
                    row.as_ref().map_or(0, |sequence| sequence.newest as i32)
                };
                let ids_b: [i32; ROWS] = std::array::from_fn(|row| newest(&self.rows[row]));
                self.queue(model, Tensor::from_ints(ids_b, device))
            }
        };
        let choosing = match choosing {
            Some(choosing) if self.goes_ahead(&rows) => {
                // Frees their memory for the logits of that step.
                drop(logits_bv);
                self.steps_ahead += 1;
                self.ahead = Some(self.queue(model, choosing.ids_b.clone()));
                let chosen = Some(choosing.wait()?);
                check_so_far::<B>(device)?;
                return Ok(TileStep {
                    rows,
                    choices,
                    chosen,
                    logits_bv: None,
                });
            }
            choosing => choosing,
        };
        self.steps_ahead = 0;
        let chosen = choosing.map(Choosing::wait).transpose()?;
        let mut sequences = self.rows.iter().flatten();
        let logits_bv = if chosen.is_none() || sequences.any(Sequence::scores) {
            Some(read_settled(logits_bv, device)?)
        } else {
            settle::<B>(device)?;
            None
        };
        Ok(TileStep {
            rows,
            choices,
            chosen,
            logits_bv,
        })
    }

    /// Queues a step on the device: it reads `ids_b [ROWS]` and chooses the tokens after them.
    fn queue(&mut self, model: &CausalLm<B>, ids_b: Tensor<B, 1, Int>) -> QueuedStep<B> {
        let logits_bv = model.step_batch(ids_b, &mut self.batch);
        let rows = self.rows.iter_mut();
        let choice = |row: &mut Option<Sequence>| match row {
            Some(sequence) => sequence.sampler.next_choice(),
            None => idle(),
        };
        let choices: Vec<Choice> = rows.map(choice).collect();
        QueuedStep {
            rows: self.rows.each_ref().map(Option::is_some),
            choosing: self.device_sampler.choose(logits_bv.clone(), &choices),
            choices,
            logits_bv,
        }
    }

    /// Whether the step after that of these `rows` can be queued before the host knows its tokens: the device has the
    /// tokens of all sequences, the host needs no logits, and not all texts end.
    fn goes_ahead(&self, rows: &[bool; ROWS]) -> bool {
        let sequences = || self.rows.iter().flatten();
        self.steps_ahead < AHEAD
            && self.rows.each_ref().map(Option::is_some) == *rows
            && !sequences().any(Sequence::scores)
            && sequences().any(Sequence::may_go_on)
    }

    /// Ends every sequence with the error.
    fn fail(&mut self, error: GenerateError) {
        self.ahead = None;
        for row in 0..ROWS {
            if self.rows[row].is_some() {
                self.batch.free(row);
            }
        }
        Sequence::fail_all(self.rows.iter_mut().filter_map(Option::take), error);
    }
}

/// The choice of an empty row.
fn idle() -> Choice {
    let warp = Warp::from(&SamplingSettings::default());
    Choice { warp, point: 0.0 }
}
