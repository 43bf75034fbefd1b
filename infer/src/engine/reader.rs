//! Sequences whose prompt is being read. Texts of one request with the same prompt read it once.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use burn::tensor::{Int, Tensor, TensorData};
use kernels::KernelBackend;
use model::{CausalLm, State};

use super::request::{Finish, Moment};
use super::sequence::Sequence;
use crate::device::read_settled;
use crate::error::GenerateError;

/// How many tokens of a prompt go through the model at once.
///
/// Prompts are read in pieces, so that sequences that make tokens wait for one piece at most. The pieces are always cut
/// at the same places of a prompt, since other cuts would change the rounding.
const PIECE: usize = 256;

/// Sequences of one owner before their first token, which have the same prompt and share its state until
/// then.
pub(super) struct Reader<'t, B: KernelBackend> {
    sequences: Vec<Sequence<'t>>,
    state: State<B>,
}

/// A [`Reader`] after another piece of its prompt.
pub(super) enum ReadOutcome<'t, B: KernelBackend> {
    /// There is more to read.
    Reads(Reader<'t, B>),
    /// The prompt is read. These sequences have made their first token and make more; there may be none.
    Writes(Vec<Sequence<'t>>, State<B>),
}

impl<'t, B: KernelBackend> Reader<'t, B> {
    /// A reader of one sequence, from an empty `state`.
    pub(super) fn new(sequence: Sequence<'t>, state: State<B>) -> Self {
        Self {
            sequences: vec![sequence],
            state,
        }
    }

    /// The number of sequences.
    pub(super) fn len(&self) -> usize {
        self.sequences.len()
    }

    /// The owner of these sequences.
    pub(super) fn owner(&self) -> u64 {
        self.sequences[0].owner
    }

    /// The owner of each sequence.
    pub(super) fn owners(&self) -> impl Iterator<Item = u64> {
        self.sequences.iter().map(|sequence| sequence.owner)
    }

    /// The size of the state, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.state.bytes()
    }

    /// Whether `sequence` can join: nothing has been read yet, and it has the same prompt and asks for the same scores
    /// of it, as the texts of one request do.
    pub(super) fn suits(&self, sequence: &Sequence<'t>) -> bool {
        let (first, other) = (&self.sequences[0].request, &sequence.request);
        self.state.position == 0
            && self.owner() == sequence.owner
            && Arc::ptr_eq(&first.prompt, &other.prompt)
            && first.score_prompt == other.score_prompt
            && (!first.score_prompt || first.alternatives == other.alternatives)
    }

    /// Adds a sequence for which [`suits`](Self::suits) is true.
    pub(super) fn join(&mut self, sequence: Sequence<'t>) {
        self.sequences.push(sequence);
    }

    /// Ends the sequences whose answer was dropped or whose time is up. `false` if none is left.
    pub(super) fn clear(&mut self, now: Moment) -> bool {
        let (over, rest): (Vec<_>, _) = std::mem::take(&mut self.sequences)
            .into_iter()
            .partition(|sequence| sequence.over(now));
        for sequence in over {
            sequence.finish(Finish::TimeUp);
        }
        self.sequences = rest;
        !self.sequences.is_empty()
    }

    /// Reads a piece of the prompt.
    pub(super) fn read(mut self, model: &CausalLm<B>, device: &B::Device) -> ReadOutcome<'t, B> {
        match self.advance(model, device) {
            Ok(None) if !self.sequences.is_empty() => ReadOutcome::Reads(self),
            Ok(None) => ReadOutcome::Writes(Vec::new(), self.state),
            Ok(Some(logits_v)) => {
                let first_token =
                    |sequence: Sequence<'t>| sequence.begin_writing(&mut logits_v.clone());
                let writing = self.sequences.into_iter().filter_map(first_token);
                ReadOutcome::Writes(writing.collect(), self.state)
            }
            Err(error) => {
                Sequence::fail_all(self.sequences, error);
                ReadOutcome::Writes(Vec::new(), self.state)
            }
        }
    }

    /// Reads a piece. After the last piece, returns the logits `[v]` of the first token.
    fn advance(
        &mut self,
        model: &CausalLm<B>,
        device: &B::Device,
    ) -> Result<Option<Vec<f32>>, GenerateError> {
        let Self { sequences, state } = self;
        let (read, first) = (state.position, &sequences[0]);
        let rest = &first.request.prompt[read..];
        let piece = &rest[..rest.len().min(PIECE)];
        let is_last = piece.len() == rest.len();
        let ids: Vec<i32> = piece.iter().map(|&id| id as i32).collect();
        let ids_bl = TensorData::new(ids, [1, piece.len()]);
        let ids_bl = Tensor::<B, 2, Int>::from_data(ids_bl, device);
        let read_now = piece.len() as u64;
        first.gauges.prompt_tokens.fetch_add(read_now, Relaxed);
        let v = model.vocab_size();
        if !first.request.score_prompt {
            let logits_bv = model.prefill(ids_bl, state);
            return is_last.then(|| read_settled(logits_bv, device)).transpose();
        }
        let logits_blv = model.prefill_all(ids_bl, state);
        let mut logits_lv = read_settled(logits_blv, device)?;
        // Computed once: all sequences share the scores.
        match sequences[0].score_prompt(read, &logits_lv, v) {
            Ok(scores) => sequences
                .iter()
                .for_each(|sequence| sequence.give_scores(scores.clone())),
            Err(error) => {
                let failed = std::mem::take(sequences).into_iter();
                failed.for_each(|sequence| sequence.fail(error.clone().into()));
            }
        }
        Ok(is_last.then(|| logits_lv.split_off(logits_lv.len() - v)))
    }
}
