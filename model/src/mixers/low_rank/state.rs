//! What the mixer carries from one token to the next.

use burn::tensor::backend::{Backend, ExecutionError};
use burn::tensor::{Tensor, TensorData};

use crate::mixers::{DecodingState, MixerState, StateRows, bytes_of};

/// The state of a [`LowRank`](super::LowRank) mixer: of one size, however much was read. f32 in a half-precision
/// network.
#[derive(Debug, Clone)]
pub struct LowRankState<B: Backend> {
    /// The last `d_conv` inputs of the convolution, the latest last, zeros before the first: `[b, d_conv, conv_dim]`.
    pub conv: Tensor<B, 3>,
    /// The sum of `x_j B_j^T` over the tokens that were read, `[b, h, p, n]`.
    pub sums: Tensor<B, 4>,
    /// Tokens read so far.
    pub position: usize,
}

impl<B: Backend> DecodingState for LowRankState<B> {
    fn bytes(&self) -> usize {
        bytes_of(&self.conv) + bytes_of(&self.sums)
    }

    fn step_traffic(&self) -> usize {
        2 * self.bytes()
    }

    fn tensors(&self) -> Result<Vec<(&'static str, TensorData)>, ExecutionError> {
        Ok(vec![
            ("conv", self.conv.clone().try_into_data()?),
            ("sums", self.sums.clone().try_into_data()?),
        ])
    }
}

/// The states of a batch, which lie in one [`LowRankState`], a row a sequence.
#[derive(Debug)]
pub struct LowRankRows<B: Backend> {
    /// Its position means nothing.
    pub(super) state: LowRankState<B>,
}

impl<B: Backend> StateRows<B> for LowRankRows<B> {
    fn put(&mut self, row: usize, mut state: MixerState<B>) {
        let LowRankState { conv, sums, .. } = LowRankState::within(&mut state).clone();
        let ([one, w, c], [_, h, p, n]) = (conv.dims(), sums.dims());
        assert_eq!(one, 1, "the state must be that of one sequence");
        let (rows, at) = (&mut self.state, row..row + 1);
        rows.conv = (rows.conv.clone()).slice_assign([at.clone(), 0..w, 0..c], conv);
        rows.sums = (rows.sums.clone()).slice_assign([at, 0..h, 0..p, 0..n], sums);
    }

    /// The row waits to be overwritten.
    fn free(&mut self, _row: usize) {}

    fn bytes(&self) -> usize {
        self.state.bytes()
    }
}
