//! The computation of a mixer, over whole sequences and token by token.

use std::fmt::Debug;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels::{AttentionParts, KernelBackend, TransferParts, Window};

use super::attention::Attention;
use super::discrete_mamba2::DiscreteMamba2;
use super::{MixerRows, MixerState, StateError, StateTensors};
use crate::layers::Linear;
use crate::sequences::Sequences;

/// The computation of a layer's mixer. Letters in shapes: b sequences, l tokens, h heads.
pub trait TokenMixer<B: KernelBackend>: Debug {
    /// The initial decoding state of `batch` sequences.
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

    /// Joins several projections of the same input to one product, if the mixer has such projections. This is faster on
    /// a GPU. Afterwards, the mixer can be neither cast, packed, trained nor saved.
    fn fuse_projections(&mut self) {}

    /// `u [b, l, d_model]` to the same shape, from an empty state.
    fn forward(&self, u: Tensor<B, 3>) -> Tensor<B, 3> {
        self.forward_of(u.into())
    }

    /// [`forward`](Self::forward) for rows that may hold several documents. The output of each document is the same as
    /// if it were alone: no token reads tokens before its document, and positions count from the start of the document.
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

    /// The output for `u [b, l, d_model]`, in the same shape. `u` are the tokens that follow the tokens in `state`;
    /// they are added to `state`. However a sequence is split into calls, down to single tokens, the outputs and the
    /// final state are the same.
    ///
    /// # Panics
    /// If `state` is that of another kind of mixer.
    fn prefill(&self, u: Tensor<B, 3>, state: &mut MixerState<B>) -> Tensor<B, 3>;

    /// The computation between the projections for one token for each sequence, which follows the tokens in `state`.
    /// `projected` are the outputs of [`entries`](Self::entries), `[b, d]` each.
    ///
    /// # Panics
    /// If `state` is that of another kind of mixer.
    fn step(&self, projected: Vec<Tensor<B, 2>>, state: &mut MixerState<B>) -> StepOutput<'_, B>;

    /// [`step`](Self::step) for the rows of a batch, each at its own position. The output of a row that is not
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
    /// before, and each [`step_rows`](Self::step_rows) too, whichever rows are occupied. If true, a state that counts
    /// tokens must implement [`set_position`](super::DecodingState::set_position), and rows must not count tokens,
    /// because a step that the device repeats does not count.
    fn repeats_its_steps(&self) -> bool {
        false
    }

    /// How many [steps](Self::step), from `_state` on, make the same launches on the same memory. If the mixer
    /// [`repeats_its_steps`](Self::repeats_its_steps), these are all steps; otherwise none, or as many as a cache has
    /// room for.
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

    /// Limits its attention to `_window`. An attention whose own window has as many last tokens or fewer is not
    /// changed. Returns whether the mixer contains attention.
    fn narrow_attention(&mut self, _window: Window) -> bool {
        false
    }

    /// Makes the output of its attention zero, including the bias. Returns whether the mixer contains attention.
    /// Afterwards, the mixer can be neither trained nor saved.
    fn silence_attention(&mut self) -> bool {
        false
    }

    /// Makes the output of its state-space mixer zero, including the bias. Returns whether it contains a state-space
    /// mixer. Afterwards, the mixer can be neither trained nor saved.
    fn silence_ssm(&mut self) -> bool {
        false
    }

    /// Makes its state-space mixer reset its state to zero before each token whose position is a multiple of `_tokens`.
    /// The window of the convolution is not reset, and positions continue to count. Returns whether it contains a
    /// state-space mixer. For inference: [`mixing_matrix`](Self::mixing_matrix) and its factors remain those of the
    /// whole sequence.
    fn reset_state_every(&mut self, _tokens: usize) -> bool {
        false
    }

    /// Makes windowed attention that is added to a state-space mixer add nothing to the rows of a batch for which
    /// `_rows` is true; an empty list means no row. Returns whether the mixer contains such attention. It applies to
    /// [`forward`](Self::forward) and [`forward_onto`](Self::forward_onto), on batches of as many rows. It is used in
    /// training, so that the state-space mixer learns to work without this attention.
    fn leave_out_window(&mut self, _rows: &[bool]) -> bool {
        false
    }

    /// Whether its output is the plain sum of the state-space mixer's output and the attention's.
    fn is_sum(&self) -> bool {
        true
    }

    /// Copies the teacher's attention, `_theirs`, into the attention beside a state-space mixer: the heads that this
    /// mixer keeps.
    fn take_over(&mut self, _theirs: &Attention<B>) {}

    /// The context of the attention beside a state-space mixer, for input `u [b, l, d_model]`: `[b, l, heads, p]`,
    /// where `heads` is the teacher's number of heads. `None` if the attention adds to no head.
    fn added_context(&self, _u: Tensor<B, 3>, _heads: usize) -> Option<Tensor<B, 4>> {
        None
    }

    /// The output of that attention, which is added to the mixer's output: `[b, l, d_model]`.
    fn added_output(&self, _u: Tensor<B, 3>) -> Option<Tensor<B, 3>> {
        None
    }
}

/// The output of a mixer in a decoding step, which is added to the residual stream.
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
