//! What the mixer carries from one token to the next.

use burn::tensor::backend::{Backend, ExecutionError};
use burn::tensor::{Tensor, TensorData};

use crate::mixers::{DecodingState, MixerState, StateRows, bytes_of};

/// The state of a [`Toeplitz`](super::Toeplitz) mixer: a cache of the tokens that its taps reach.
#[derive(Debug, Clone)]
pub struct ToeplitzState<B: Backend> {
    /// The last `length` inputs of the matrix, the latest last, zeros before the first: `[b, length, d_inner]`; f32 in
    /// a half-precision network. One more than the next output needs.
    pub inputs: Tensor<B, 3>,
    /// Tokens read so far.
    pub position: usize,
}

impl<B: Backend> DecodingState for ToeplitzState<B> {
    fn bytes(&self) -> usize {
        bytes_of(&self.inputs)
    }

    fn step_traffic(&self) -> usize {
        2 * self.bytes()
    }

    fn tensors(&self) -> Result<Vec<(&'static str, TensorData)>, ExecutionError> {
        Ok(vec![("inputs", self.inputs.clone().try_into_data()?)])
    }
}

/// The states of a batch, a row a sequence. Where a sequence begins is where the zeros end.
#[derive(Debug)]
pub struct ToeplitzRows<B: Backend> {
    /// `[rows, length, d_inner]`.
    pub(super) inputs: Tensor<B, 3>,
}

impl<B: Backend> StateRows<B> for ToeplitzRows<B> {
    fn put(&mut self, row: usize, mut state: MixerState<B>) {
        let own = ToeplitzState::within(&mut state).inputs.clone();
        let [one, k, d] = own.dims();
        assert_eq!(one, 1, "the state must be that of one sequence");
        let rows = self.inputs.clone();
        self.inputs = rows.slice_assign([row..row + 1, 0..k, 0..d], own);
    }

    /// The row waits to be overwritten.
    fn free(&mut self, _row: usize) {}

    fn bytes(&self) -> usize {
        bytes_of(&self.inputs)
    }
}
