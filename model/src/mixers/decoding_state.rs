//! The decoding states of a mixer: for a batch of sequences of the same length, or for rows at different positions.

use std::fmt::Debug;

use burn::tensor::backend::{Backend, ExecutionError};
use burn::tensor::{Tensor, TensorData};

use super::MixerState;

/// The state of a mixer between one token and the next, for a batch of sequences of the same length.
pub trait DecodingState {
    /// Bytes that its tensors hold.
    fn bytes(&self) -> usize;

    /// Bytes that a step reads and writes.
    fn step_traffic(&self) -> usize;

    /// Sets the number of tokens read so far to `_position`, if the state counts them. This corrects the count: a step
    /// that the device has repeated was not counted, and a step that was computed again for a recording was counted
    /// twice. A state must implement it if its mixer has [`TokenMixer::steps_alike`](super::TokenMixer::steps_alike).
    fn set_position(&mut self, _position: usize) {}

    /// Its tensors with their names within the layer, such as `ssm`. If the state is empty before the first token,
    /// there are none.
    ///
    /// # Errors
    /// The backend's, if they cannot be read from the device.
    fn tensors(&self) -> Result<Vec<(&'static str, TensorData)>, ExecutionError>;
}

/// The states of sequences that decode together, one a row, each at its own position.
pub trait StateRows<B: Backend>: Debug {
    /// Puts the state of one sequence into `row`, and replaces the state that was there.
    ///
    /// # Panics
    /// If there is no such row, or `state` is that of another kind of mixer or of several sequences.
    fn put(&mut self, row: usize, state: MixerState<B>);

    /// Drops the state in `row`, if that frees memory.
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
