//! Sequences that take their steps together.

use std::time::Instant;

use burn::tensor::{Int, Tensor};
use kernels::KernelBackend;
use kernels::choice::{Choice, Warp};
use model::{Batch, CausalLm, State};

use super::device::{read_logits, settle};
use super::request::Finish;
use super::sequence::Sequence;
use crate::chooser::Chooser;
use crate::{GenerateError, SamplingSettings};

/// Sequences in a tile, at most.
///
/// A tile always computes as many rows, so that a sequence's numbers are the same in any company: a
/// product over more rows may well add in another order. Few enough for one sequence alone not to pay
/// much for the empty rows, and enough to share the reading of the weights, which is what a step
/// takes its time for.
pub(super) const ROWS: usize = 8;

/// Some sequences and their states.
pub(super) struct Tile<'t, B: KernelBackend> {
    batch: Batch<B>,
    rows: [Option<Sequence<'t>>; ROWS],
    chooser: Chooser<B>,
}

/// What the rows have made of a step: how each chooses, what the device has chosen, and the logits
/// `[ROWS, v]` if any row needs them here.
struct Step {
    choices: Vec<Choice>,
    chosen: Vec<Option<u32>>,
    logits_bv: Option<Vec<f32>>,
}

impl<'t, B: KernelBackend> Tile<'t, B> {
    /// For texts of the first `vocab_size` tokens of the model's.
    pub(super) fn new(model: &CausalLm<B>, vocab_size: usize, device: &B::Device) -> Self {
        Self {
            batch: model.new_batch(ROWS, device),
            rows: Default::default(),
            chooser: Chooser::new(ROWS, vocab_size, model.vocab_size(), device),
        }
    }

    /// How many sequences there are.
    pub(super) fn len(&self) -> usize {
        self.rows.iter().flatten().count()
    }

    /// Bytes of the states.
    pub(super) fn bytes(&self) -> usize {
        self.batch.bytes()
    }

    /// Lets a sequence in that has read its prompt.
    ///
    /// # Panics
    /// If there is no room.
    pub(super) fn join(&mut self, sequence: Sequence<'t>, state: State<B>) {
        let free = self.rows.iter().position(Option::is_none);
        let row = free.expect("a tile with a free row");
        self.batch.put(row, state);
        self.chooser.begin(row, &sequence.sampler);
        self.rows[row] = Some(sequence);
    }

    /// Lets go of the sequences whose reader has gone or whose time is up.
    pub(super) fn clear(&mut self, now: Instant) {
        for row in 0..ROWS {
            if let Some(sequence) = self.rows[row].take_if(|it| it.over(now)) {
                self.batch.free(row);
                sequence.finish(Finish::TimeUp);
            }
        }
    }

    /// One step of every sequence.
    pub(super) fn step(&mut self, model: &CausalLm<B>, device: &B::Device) {
        if self.len() == 0 {
            return;
        }
        let Step {
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

    fn compute(&mut self, model: &CausalLm<B>, device: &B::Device) -> Result<Step, GenerateError> {
        let newest = |row: &Option<Sequence>| row.as_ref().map_or(0, |it| it.newest as i32);
        let ids_b: [i32; ROWS] = std::array::from_fn(|row| newest(&self.rows[row]));
        let ids_b = Tensor::<B, 1, Int>::from_ints(ids_b, device);
        let logits_bv = model.step_batch(ids_b, &mut self.batch);
        let rows = self.rows.iter_mut();
        let choices: Vec<Choice> = rows
            .map(|row| row.as_mut().map_or(idle(), |it| it.sampler.next_choice()))
            .collect();
        let chosen = self.chooser.choose(logits_bv.clone(), &choices)?.tokens;
        let here = |(row, chosen): (&Option<Sequence>, &Option<u32>)| {
            row.as_ref()
                .is_some_and(|it| chosen.is_none() || it.scores())
        };
        let logits_bv = match self.rows.iter().zip(&chosen).any(here) {
            true => Some(read_logits(logits_bv, device)?),
            false => {
                settle::<B>(device)?;
                None
            }
        };
        Ok(Step {
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

/// The choice of a row without a sequence.
fn idle() -> Choice {
    let warp = Warp::from(&SamplingSettings::default());
    Choice { warp, point: 0.0 }
}
