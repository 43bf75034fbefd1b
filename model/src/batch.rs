//! Sequences that decode together, each at its own position.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use kernels::KernelBackend;

use crate::block::{Mixer, PhiBlock};
use crate::lm::CausalLm;
use crate::precision::{to_dtype, widen};
use crate::state::{KvCache, Mamba2State, MixerState, State};

/// The states of a fixed number of sequences, its rows, each of which is free or holds one.
///
/// A Phi-Mamba's states have one size, so they lie in one tensor a layer, in which a sequence that
/// joins overwrites a row; nothing else moves when sequences come and go. Caches of attention are as
/// long as their sequences and stay apart, one a row: the projections around them, which is where
/// the weights are, run over all rows at once, and only the attention itself goes row by row.
///
/// The number of rows never changes, so that every [`step`](CausalLm::step_batch) is the same
/// computation whoever takes part: what a row gives does not depend on what is in the others, nor on
/// whether anything is.
#[derive(Debug)]
pub struct Batch<B: Backend> {
    layers: Vec<LayerBatch<B>>,
    occupied: Vec<bool>,
}

/// One layer's part of a [`Batch`].
#[derive(Debug)]
enum LayerBatch<B: Backend> {
    DiscreteMamba2(Mamba2State<B>),
    Attention(Vec<KvCache<B>>),
}

impl<B: Backend> Batch<B> {
    /// How many sequences it can hold.
    pub fn rows(&self) -> usize {
        self.occupied.len()
    }

    /// Puts a sequence, the only one of `state`, into `row`, over what was there.
    ///
    /// # Panics
    /// If there is no such row, or `state` belongs to another network or to several sequences.
    pub fn put(&mut self, row: usize, state: State<B>) {
        self.occupied[row] = true;
        assert_eq!(
            self.layers.len(),
            state.layers.len(),
            "the state belongs to a network with another number of layers"
        );
        for (layer, state) in self.layers.iter_mut().zip(state.layers) {
            match (layer, state) {
                (LayerBatch::DiscreteMamba2(rows), MixerState::DiscreteMamba2(state)) => {
                    let [one, c, w] = state.conv.dims();
                    let [_, h, p, n] = state.ssm.dims();
                    assert_eq!(one, 1, "the state must be that of one sequence");
                    let at = row..row + 1;
                    let conv = [at.clone(), 0..c, 0..w];
                    replace(&mut rows.conv, |rows| {
                        // Prefill leaves a window in the dtype of the parameters.
                        let window = to_dtype(state.conv, rows.dtype());
                        rows.slice_assign(conv, window)
                    });
                    let ssm = [at, 0..h, 0..p, 0..n];
                    replace(&mut rows.ssm, |rows| rows.slice_assign(ssm, state.ssm));
                }
                (LayerBatch::Attention(rows), MixerState::Attention(cache)) => rows[row] = cache,
                _ => panic!("the state belongs to another network: its mixer is of the other kind"),
            }
        }
    }

    /// Frees `row`. A cache that was there is let go of; a state of fixed size waits to be
    /// overwritten.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn free(&mut self, row: usize) {
        self.occupied[row] = false;
        for layer in &mut self.layers {
            if let LayerBatch::Attention(rows) = layer {
                rows[row] = KvCache::default();
            }
        }
    }

    /// Bytes that its tensors hold, those of free rows included.
    pub fn bytes(&self) -> usize {
        let layers = self.layers.iter();
        layers
            .map(|layer| match layer {
                LayerBatch::DiscreteMamba2(state) => state.bytes(),
                LayerBatch::Attention(rows) => rows.iter().map(KvCache::bytes).sum(),
            })
            .sum()
    }
}

/// Puts what `with` makes of `x` in its place. Meanwhile nothing else holds `x`, so that a backend may write
/// where it is.
fn replace<B: Backend, const D: usize>(
    x: &mut Tensor<B, D>,
    with: impl FnOnce(Tensor<B, D>) -> Tensor<B, D>,
) {
    let placeholder = Tensor::empty([1; D], (&x.device(), x.dtype()));
    *x = with(std::mem::replace(x, placeholder));
}

impl<B: Backend> CausalLm<B> {
    /// A batch of `rows` free rows.
    pub fn new_batch(&self, rows: usize, device: &B::Device) -> Batch<B> {
        let layers = self.backbone.layers.iter();
        let layers = layers.map(|layer| match layer.mixer.new_state(rows, device) {
            MixerState::DiscreteMamba2(Mamba2State { conv, ssm }) => {
                // As steps leave it: in f32 whatever the dtype of the parameters.
                let conv = widen(conv);
                LayerBatch::DiscreteMamba2(Mamba2State { conv, ssm })
            }
            MixerState::Attention(cache) => LayerBatch::Attention(vec![cache; rows]),
        });
        Batch {
            layers: layers.collect(),
            occupied: vec![false; rows],
        }
    }
}

impl<B: KernelBackend> CausalLm<B> {
    /// Reads one more id a row, `[rows]`, and gives the logits after it: `[rows, vocab_size]`. Free
    /// rows need an id too, any that exists; what comes of it has no meaning.
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
        let x = self.embed(ids);
        let both = layers.iter().zip(&mut batch.layers);
        let x = both.fold(x, |x, (layer, state)| {
            layer.step_batch(x, state, &batch.occupied)
        });
        self.step_logits(x)
    }
}

impl<B: KernelBackend> PhiBlock<B> {
    /// `x [rows, d_model]`, one token a row after those that `state` holds.
    fn step_batch(
        &self,
        x: Tensor<B, 2>,
        state: &mut LayerBatch<B>,
        occupied: &[bool],
    ) -> Tensor<B, 2> {
        self.step_with(x, |mut projected| match (&self.mixer, state) {
            (Mixer::DiscreteMamba2(mixer), LayerBatch::DiscreteMamba2(state)) => {
                mixer.recur(projected.swap_remove(0), state)
            }
            (Mixer::Attention(attention), LayerBatch::Attention(caches)) => {
                let qkv = projected.try_into().expect("queries, keys and values");
                attention.attend_rows(qkv, caches, occupied)
            }
            _ => panic!("the batch belongs to another network: its mixer is of the other kind"),
        })
    }
}
