//! What a mixer computes, over whole sequences and token by token.

use std::fmt::Debug;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels::{AttentionParts, KernelBackend, TransferParts, Window};

use super::attention::Attention;
use super::discrete_mamba2::DiscreteMamba2;
use super::{MixerRows, MixerState, StateError, StateTensors};
use crate::layers::Linear;
use crate::sequences::Sequences;

/// What the mixer of a layer computes. Letters in shapes: b sequences, l tokens, h heads.
pub trait TokenMixer<B: KernelBackend>: Debug {
    /// What decoding `batch` sequences starts from.
    fn new_state(&self, batch: usize, device: &B::Device) -> MixerState<B>;

    /// The states of `rows` sequences that decode together, all free.
    fn new_rows(&self, rows: usize, device: &B::Device) -> MixerRows<B>;

    /// The state of one sequence of `position` tokens, from what
    /// [`DecodingState::tensors`](super::DecodingState::tensors) gave.
    ///
    /// # Errors
    /// [`StateError`] for the first tensor that is not what this mixer needs.
    fn state_from_tensors(
        &self,
        position: usize,
        tensors: &mut StateTensors<'_>,
        device: &B::Device,
    ) -> Result<MixerState<B>, StateError>;

    /// The projections that read the layer's normalised input, in the order in which [`step`](Self::step)
    /// takes their outputs.
    fn entries(&self) -> Vec<&Linear<B>>;

    /// Every projection, for packing.
    fn linears_mut(&mut self) -> Vec<&mut Linear<B>>;

    /// Turns several projections of the same input into one product, where the mixer has such: faster on a
    /// GPU. A mixer after that can be neither cast nor packed, trained nor saved.
    fn fuse_projections(&mut self) {}

    /// `u [b, l, d_model]` to the same shape, from an empty state.
    fn forward(&self, u: Tensor<B, 3>) -> Tensor<B, 3> {
        self.forward_of(u.into())
    }

    /// [`forward`](Self::forward) of rows that may hold several documents, each of which gives what it gives alone: no
    /// token reads what came before the first of its document, and positions count from there.
    fn forward_of(&self, sequences: Sequences<B>) -> Tensor<B, 3>;

    /// `residual + forward_of(sequences)`, all `[b, l, d_model]`.
    fn forward_onto(&self, residual: Tensor<B, 3>, sequences: Sequences<B>) -> Tensor<B, 3>;

    /// The matrix `T [b, h, l, l]` with which each head mixes the tokens of `u [b, l, d_model]`; zero above
    /// the diagonal, and in f32 for half-precision input.
    fn mixing_matrix(&self, u: Tensor<B, 3>) -> Tensor<B, 4> {
        self.mixing_matrix_of(u.into())
    }

    /// [`mixing_matrix`](Self::mixing_matrix) of rows that may hold several documents: zero between these.
    fn mixing_matrix_of(&self, sequences: Sequences<B>) -> Tensor<B, 4>;

    /// [`forward_of`](Self::forward_of) and [`mixing_matrix_of`](Self::mixing_matrix_of), shared work done once. The
    /// plain form, for tests and tools: training does without the matrix.
    fn forward_with_matrix(&self, sequences: Sequences<B>) -> (Tensor<B, 3>, Tensor<B, 4>) {
        let matrix = self.mixing_matrix_of(sequences.clone());
        (self.forward_of(sequences), matrix)
    }

    /// The factors of the mixing matrix where it is a state-space one, for [`kernels::mixing_distance`].
    fn transfer_parts(&self, u: Tensor<B, 3>) -> Option<TransferParts<B>> {
        self.transfer_parts_of(u.into())
    }

    /// [`transfer_parts`](Self::transfer_parts) of rows that may hold several documents.
    fn transfer_parts_of(&self, _sequences: Sequences<B>) -> Option<TransferParts<B>> {
        None
    }

    /// The factors of the mixing matrix where it is softmax attention, for [`kernels::mixing_distance`].
    fn attention_parts(&self, u: Tensor<B, 3>) -> Option<AttentionParts<B>> {
        self.attention_parts_of(u.into())
    }

    /// [`attention_parts`](Self::attention_parts) of rows that may hold several documents.
    fn attention_parts_of(&self, _sequences: Sequences<B>) -> Option<AttentionParts<B>> {
        None
    }

    /// [`forward_of`](Self::forward_of) and [`attention_parts_of`](Self::attention_parts_of), shared work done once.
    fn forward_with_attention_parts(
        &self,
        sequences: Sequences<B>,
    ) -> (Tensor<B, 3>, Option<AttentionParts<B>>) {
        (self.forward_of(sequences), None)
    }

    /// `u [b, l, d_model]`, the tokens after those that `state` holds, to the same shape; `state` then holds
    /// them too. Any split of a sequence, down to single tokens, gives the outputs and the state of the whole.
    ///
    /// # Panics
    /// If `state` is that of another kind of mixer.
    fn prefill(&self, u: Tensor<B, 3>, state: &mut MixerState<B>) -> Tensor<B, 3>;

    /// What stands between the projections for one token after those that `state` holds: from the outputs of
    /// [`entries`](Self::entries), `[b, d]` each.
    ///
    /// # Panics
    /// If `state` is that of another kind of mixer.
    fn step(&self, projected: Vec<Tensor<B, 2>>, state: &mut MixerState<B>) -> StepOutput<'_, B>;

    /// [`step`](Self::step) for the rows of a batch, each at its own position. What a row gives that is not
    /// `occupied` has no meaning.
    ///
    /// # Panics
    /// If `rows` are those of another kind of mixer.
    fn step_rows(
        &self,
        projected: Vec<Tensor<B, 2>>,
        rows: &mut MixerRows<B>,
        occupied: &[bool],
    ) -> StepOutput<'_, B>;

    /// Whether each [`step`](Self::step) makes the same launches on the same memory, however many tokens were read
    /// before, and so does each [`step_rows`](Self::step_rows), whichever rows are occupied. A state that counts tokens
    /// must then have [`set_position`](super::DecodingState::set_position); rows may not count, as a step that a device has
    /// repeated does not.
    fn repeats_its_steps(&self) -> bool {
        false
    }

    /// How many [steps](Self::step) from `_state` on make the same launches on the same memory: all of them where the mixer
    /// [`repeats_its_steps`](Self::repeats_its_steps), and otherwise none, or as many as a cache has room for.
    fn steps_alike(&self, _state: &MixerState<B>) -> usize {
        if self.repeats_its_steps() {
            usize::MAX
        } else {
            0
        }
    }

    /// The discrete Mamba-2 in it, whose parameters an initialisation sets.
    fn mamba(&self) -> Option<&DiscreteMamba2<B>> {
        None
    }

    /// The same, to be changed.
    fn mamba_mut(&mut self) -> Option<&mut DiscreteMamba2<B>> {
        None
    }

    /// The softmax attention in it.
    fn softmax(&self) -> Option<&Attention<B>> {
        None
    }

    /// From now on its attention sees no more than `_window`: an attention whose own window has as many last tokens or
    /// fewer stays as it is. Whether there is attention in it.
    fn narrow_attention(&mut self, _window: Window) -> bool {
        false
    }

    /// From now on its attention adds nothing, not even a bias. Whether there is attention in it. The mixer can then
    /// be neither trained nor saved.
    fn silence_attention(&mut self) -> bool {
        false
    }

    /// From now on its state-space mixer adds nothing, not even a bias. Whether there is one in it. The mixer can then
    /// be neither trained nor saved.
    fn silence_ssm(&mut self) -> bool {
        false
    }

    /// From now on the state of its state-space mixer is emptied before each token whose position is a multiple of
    /// `_tokens`. The window of its convolution stays, and positions count on. Whether there is such a mixer in it. For inference: [`mixing_matrix`](Self::mixing_matrix) and its factors stay those of the whole sequence.
    fn reset_state_every(&mut self, _tokens: usize) -> bool {
        false
    }

    /// From now on its attention within a window, where it stands beside a state-space mixer and is added to it, adds
    /// nothing to the rows of a batch for which `_rows` says so; none of them says so of an empty list. Whether there is
    /// such attention. For [`forward`](Self::forward) and [`forward_onto`](Self::forward_onto), on batches of as many
    /// rows: in training, so that the state-space mixer learns to do without.
    fn leave_out_window(&mut self, _rows: &[bool]) -> bool {
        false
    }

    /// Whether its output is the state-space mixer's and what attention adds to it, and nothing comes between.
    fn is_sum(&self) -> bool {
        true
    }

    /// Copies the teacher's attention, `_theirs`, into the attention beside a state-space mixer: the heads that this
    /// mixer keeps.
    fn take_over(&mut self, _theirs: &Attention<B>) {}

    /// What attention beside a state-space mixer adds to the context of each of the teacher's `heads` heads, of
    /// `u [b, l, d_model]`: `[b, l, heads, p]`; `None` where it adds to none of them.
    fn added_context(&self, _u: Tensor<B, 3>, _heads: usize) -> Option<Tensor<B, 4>> {
        None
    }

    /// What it adds to the mixer's output, `[b, l, d_model]`.
    fn added_output(&self, _u: Tensor<B, 3>) -> Option<Tensor<B, 3>> {
        None
    }
}

/// What a mixer adds to the residual stream in a step of decoding.
pub struct StepOutput<'a, B: Backend> {
    /// Vectors `[b, d]`, and the projection that takes each to the residual stream.
    pub through: Vec<(Tensor<B, 2>, &'a Linear<B>)>,
    /// `[b, d_model]`, added as it is.
    pub plain: Option<Tensor<B, 2>>,
}

impl<'a, B: Backend> StepOutput<'a, B> {
    /// `y [b, d]` through one projection.
    pub fn through(y: Tensor<B, 2>, linear: &'a Linear<B>) -> Self {
        Self {
            through: vec![(y, linear)],
            plain: None,
        }
    }
}
