//! Sequences that decode together, each at its own position.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use kernels::KernelBackend;

use crate::decoding::State;
use crate::lm::CausalLm;
use crate::mixers::MixerRows;
use crate::steps::Steps;

/// The states of a fixed number of sequences, its rows, each of which is free or holds one.
///
/// How the states of the rows are stored in a layer depends on its mixer ([`MixerRows`]).
///
/// The number of rows never changes, so that every [`step`](CausalLm::step_batch) is the same computation, whichever
/// rows are in use. The output of a row depends neither on the content of the other rows nor on whether they are in
/// use.
#[derive(Debug)]
pub struct Batch<B: Backend> {
    layers: Vec<MixerRows<B>>,
    occupied: Vec<bool>,
    /// The recorded step that the device repeats, if there is one.
    steps: Steps<B>,
}

impl<B: Backend> Batch<B> {
    /// How many sequences it can hold.
    pub fn rows(&self) -> usize {
        self.occupied.len()
    }

    /// Puts the only sequence of `state` into `row`, and replaces the sequence that was there.
    ///
    /// # Panics
    /// If there is no such row, or `state` belongs to another network or to several sequences.
    pub fn put(&mut self, row: usize, state: State<B>) {
        self.occupied[row] = true;
        // `put` may replace tensors of the rows, so a recorded step is no longer valid.
        self.steps = Steps::default();
        // The rows may take over the tensors of `state`, and a clone of `state` may hold them too.
        state.steps.lend();
        assert_eq!(
            self.layers.len(),
            state.layers.len(),
            "the state belongs to a network with another number of layers"
        );
        for (layer, state) in self.layers.iter_mut().zip(state.layers) {
            layer.put(row, state);
        }
    }

    /// Frees `row`. An attention cache is dropped; a state of fixed size stays in memory until it is overwritten.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn free(&mut self, row: usize) {
        self.occupied[row] = false;
        for layer in &mut self.layers {
            layer.free(row);
        }
    }

    /// Bytes that its tensors hold, those of free rows included.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.bytes()).sum()
    }
}

impl<B: KernelBackend> CausalLm<B> {
    /// A batch of `rows` free rows on `device`, which is the network's. It holds each mixer's states for all
    /// `rows` from here on, as [`Batch::bytes`] counts them; the caches of attention are empty, and grow with
    /// their sequences.
    pub fn new_batch(&self, rows: usize, device: &B::Device) -> Batch<B> {
        let layers = self.backbone.layers.iter();
        Batch {
            layers: layers
                .map(|layer| layer.mixer.new_rows(rows, device))
                .collect(),
            occupied: vec![false; rows],
            steps: Steps::default(),
        }
    }

    /// Reads one more id for each row, `[rows]`, and returns the logits after it: `[rows, vocab_size]`. A free row
    /// needs an id too, any one below `vocab_size`; its logits have no meaning. The device may repeat recorded steps,
    /// as in [`step`](Self::step).
    ///
    /// # Panics
    /// If `batch` belongs to another network, or `ids` are not one a row.
    pub fn step_batch(&self, ids: Tensor<B, 1, Int>, batch: &mut Batch<B>) -> Tensor<B, 2> {
        let rows = batch.rows();
        assert_eq!(ids.dims(), [rows], "there must be one id a row");
        let layers = &self.backbone.layers;
        assert_eq!(
            layers.len(),
            batch.layers.len(),
            "the batch belongs to a network with another number of layers"
        );
        let (states, occupied) = (&mut batch.layers, &batch.occupied);
        // Each row has its own cache of attention, in memory that changes as rows come and go.
        let alike = if self.repeats_its_steps() {
            usize::MAX
        } else {
            0
        };
        batch.steps.take(self, ids, alike, |ids| {
            let both = layers.iter().zip(&mut *states);
            let x = both.fold(self.embed(ids), |x, (layer, rows)| {
                layer.step_rows(x, rows, occupied)
            });
            self.step_logits(x)
        })
    }
}
