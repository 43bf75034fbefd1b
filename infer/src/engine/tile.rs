//! Tiles: sequences that take their steps together.

use burn::tensor::{Int, Tensor};
use kernels::KernelBackend;
use kernels::decode::sample::{Choice, Warp};
use model::{Batch, CausalLm, State};

use super::request::{Finish, Moment};
use super::sequence::Sequence;
use crate::device::{read_settled, settle};
use crate::device_sampler::DeviceSampler;
use crate::error::GenerateError;
use crate::sampling::SamplingSettings;

/// The rows of a tile, each for one sequence or empty.
///
/// A tile always computes this many rows, so that a sequence's numbers do not depend on the others: a
/// product over more rows may add in another order. The number is small, so that a single sequence loses
/// little to the empty rows, and large enough to share the reading of the weights, which takes most of
/// the time of a step.
pub(super) const ROWS: usize = 8;

/// Up to [`ROWS`] sequences and their states.
pub(super) struct Tile<'t, B: KernelBackend> {
    batch: Batch<B>,
    rows: [Option<Sequence<'t>>; ROWS],
    device_sampler: DeviceSampler<B>,
}

/// The results of one step.
struct TileStep {
    /// How each row chooses.
    choices: Vec<Choice>,
    /// The token that the device has chosen for each row, if it has.
    chosen: Vec<Option<u32>>,
    /// The logits `[ROWS, v]`, if any row needs them on the host.
    logits_bv: Option<Vec<f32>>,
}

impl<'t, B: KernelBackend> Tile<'t, B> {
    /// An empty tile. Only the first `vocab_size` tokens of the model's vocabulary are chosen.
    pub(super) fn new(model: &CausalLm<B>, vocab_size: usize, device: &B::Device) -> Self {
        Self {
            batch: model.new_batch(ROWS, device),
            rows: Default::default(),
            device_sampler: DeviceSampler::new(ROWS, vocab_size, model.vocab_size(), device),
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
                self.batch.free(row);
                sequence.finish(Finish::TimeUp);
            }
        }
    }

    /// Takes one step of every sequence.
    pub(super) fn step(&mut self, model: &CausalLm<B>, device: &B::Device) {
        if self.len() == 0 {
            return;
        }
        let TileStep {
            choices,
            chosen,
            mut logits_bv,
        } = match self.compute(model, device) {
            Ok(step) => step,
            Err(error) => return self.fail(error),
        };
        let v = model.vocab_size();
        for row in 0..ROWS {
            if let Some(sequence) = self.rows[row].take() {
                let logits_v = logits_bv.as_mut().map(|all| &mut all[row * v..][..v]);
                self.rows[row] = sequence.write(choices[row], chosen[row], logits_v);
                if self.rows[row].is_none() {
                    self.batch.free(row);
                }
            }
        }
    }

    fn compute(
        &mut self,
        model: &CausalLm<B>,
        device: &B::Device,
    ) -> Result<TileStep, GenerateError> {
        let newest =
            |row: &Option<Sequence>| row.as_ref().map_or(0, |sequence| sequence.newest as i32);
        let ids_b: [i32; ROWS] = std::array::from_fn(|row| newest(&self.rows[row]));
        let ids_b = Tensor::<B, 1, Int>::from_ints(ids_b, device);
        let logits_bv = model.step_batch(ids_b, &mut self.batch);
        let rows = self.rows.iter_mut();
        let choices: Vec<Choice> = rows
            .map(|row| {
                row.as_mut()
                    .map_or(idle(), |sequence| sequence.sampler.next_choice())
            })
            .collect();
        let chosen = self
            .device_sampler
            .choose(logits_bv.clone(), &choices)?
            .tokens;
        let here = |(row, chosen): (&Option<Sequence>, &Option<u32>)| {
            row.as_ref()
                .is_some_and(|sequence| chosen.is_none() || sequence.scores())
        };
        let logits_bv = if self.rows.iter().zip(&chosen).any(here) {
            Some(read_settled(logits_bv, device)?)
        } else {
            settle::<B>(device)?;
            None
        };
        Ok(TileStep {
            choices,
            chosen,
            logits_bv,
        })
    }

    /// Ends every sequence with the error.
    fn fail(&mut self, error: GenerateError) {
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
