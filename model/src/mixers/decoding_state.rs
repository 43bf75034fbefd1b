//! What a mixer remembers in decoding: of one batch of sequences, or of rows that are each at their own position.

use std::fmt::Debug;

use burn::tensor::backend::{Backend, ExecutionError};
use burn::tensor::{Tensor, TensorData};

use super::MixerState;

/// What a mixer carries from one token to the next, for one batch of sequences of one length.
pub trait DecodingState {
    /// Bytes that its tensors hold.
    fn bytes(&self) -> usize;

    /// Bytes that a step reads and writes.
    fn step_traffic(&self) -> usize;

    /// Counts the tokens read so far as `_position`, where they are counted: a step that a device has repeated was not
    /// counted, and one that was taken again to be recorded was counted twice. Needed where there are
    /// [`TokenMixer::steps_alike`](super::TokenMixer::steps_alike).
    fn set_position(&mut self, _position: usize) {}

    /// Its tensors with their names within the layer, such as `ssm`; none before the first token where the
    /// state is then empty.
    ///
    /// # Errors
    /// The backend's, if they cannot be read from the device.
    fn tensors(&self) -> Result<Vec<(&'static str, TensorData)>, ExecutionError>;
}

/// The states of sequences that decode together, one a row, each at its own position.
pub trait StateRows<B: Backend>: Debug {
    /// Puts the state of one sequence into `row`, over what was there.
    ///
    /// # Panics
    /// If there is no such row, or `state` is that of another kind of mixer or of several sequences.
    fn put(&mut self, row: usize, state: MixerState<B>);

    /// Forgets what is in `row`, if that frees memory.
    ///
    /// # Panics
    /// If there is no such row.
    fn free(&mut self, row: usize);

    /// Bytes that its tensors hold, those of free rows included.
    fn bytes(&self) -> usize;
}

/// Bytes that `x` holds.
pub(super) fn bytes_of<B: Backend, const D: usize>(x: &Tensor<B, D>) -> usize {
    x.shape().num_elements() * x.dtype().size()
}
