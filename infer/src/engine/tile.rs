//! Sequences that take their steps together.

use std::time::Instant;

use burn::tensor::{Int, Tensor};
use kernels::KernelBackend;
use model::{Batch, CausalLm, State};

use super::device::read_logits;
use super::request::Finish;
use super::sequence::Sequence;
use crate::GenerateError;

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
}

impl<'t, B: KernelBackend> Tile<'t, B> {
    pub(super) fn new(model: &CausalLm<B>, device: &B::Device) -> Self {
        Self {
            batch: model.new_batch(ROWS, device),
            rows: Default::default(),
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
        let newest = |row: &Option<Sequence>| row.as_ref().map_or(0, |it| it.newest as i32);
        let ids_b: [i32; ROWS] = std::array::from_fn(|row| newest(&self.rows[row]));
        let ids_b = Tensor::<B, 1, Int>::from_ints(ids_b, device);
        let mut logits_bv = match read_logits(model.step_batch(ids_b, &mut self.batch), device) {
            Ok(logits_bv) => logits_bv,
            Err(error) => return self.fail(error),
        };
        let each = logits_bv.chunks_mut(model.vocab_size());
        for (row, logits_v) in each.enumerate() {
            if let Some(sequence) = self.rows[row].take() {
                self.rows[row] = sequence.write(logits_v);
                if self.rows[row].is_none() {
                    self.batch.free(row);
                }
            }
        }
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
