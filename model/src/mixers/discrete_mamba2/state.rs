//! The state of the mixer between one token and the next.

use burn::tensor::backend::{Backend, ExecutionError};
use burn::tensor::{Tensor, TensorData};

use crate::mixers::{DecodingState, MixerState, StateRows, bytes_of};
use crate::precision::to_dtype;

/// The state of a [`DiscreteMamba2`](super::DiscreteMamba2): of one size, however much was read.
#[derive(Debug, Clone)]
pub struct Mamba2State<B: Backend> {
    /// The last `d_conv` inputs of the convolution, the latest last, zeros before the first:
    /// `[b, conv_dim, d_conv]`. One more than the next output needs, as published. In the dtype of the
    /// parameters after a prefill, f32 or wider after a step.
    pub conv: Tensor<B, 3>,
    /// `[b, h, p, n]`; f32 in a half-precision network. If B and C have rotary positions, the state is relative to the
    /// latest token: each B is turned back by its distance from that token.
    pub ssm: Tensor<B, 4>,
    /// Tokens read so far.
    pub position: usize,
}

impl<B: Backend> DecodingState for Mamba2State<B> {
    fn bytes(&self) -> usize {
        bytes_of(&self.conv) + bytes_of(&self.ssm)
    }

    fn step_traffic(&self) -> usize {
        2 * self.bytes()
    }

    fn set_position(&mut self, position: usize) {
        self.position = position;
    }

    fn tensors(&self) -> Result<Vec<(&'static str, TensorData)>, ExecutionError> {
        Ok(vec![
            ("conv", self.conv.clone().try_into_data()?),
            ("ssm", self.ssm.clone().try_into_data()?),
        ])
    }
}

/// The states of a batch, which lie in one [`Mamba2State`], a row a sequence: one that joins overwrites a
/// row, and nothing else moves.
#[derive(Debug)]
pub struct Mamba2Rows<B: Backend> {
    /// Its own position means nothing.
    pub(super) state: Mamba2State<B>,
    /// Of each row, tokens read so far.
    pub(super) positions: Vec<usize>,
}

impl<B: Backend> Mamba2Rows<B> {
    /// The state of one row.
    pub(super) fn row(&self, row: usize) -> Mamba2State<B> {
        Mamba2State {
            conv: self.state.conv.clone().narrow(0, row, 1),
            ssm: self.state.ssm.clone().narrow(0, row, 1),
            position: self.positions[row],
        }
    }
}

impl<B: Backend> StateRows<B> for Mamba2Rows<B> {
    fn put(&mut self, row: usize, mut state: MixerState<B>) {
        let Mamba2State {
            conv,
            ssm,
            position,
        } = Mamba2State::within(&mut state).clone();
        drop(state);
        self.positions[row] = position;
        let rows = &mut self.state;
        let [one, c, w] = conv.dims();
        let [_, h, p, n] = ssm.dims();
        assert_eq!(one, 1, "the state must be that of one sequence");
        let at = row..row + 1;
        replace(&mut rows.conv, |rows| {
            // Prefill leaves a window in the dtype of the parameters.
            let window = to_dtype(conv, rows.dtype());
            rows.slice_assign([at.clone(), 0..c, 0..w], window)
        });
        replace(&mut rows.ssm, |rows| {
            rows.slice_assign([at.clone(), 0..h, 0..p, 0..n], ssm)
        });
    }

    /// The row waits to be overwritten.
    fn free(&mut self, _row: usize) {}

    fn bytes(&self) -> usize {
        self.state.bytes()
    }
}

/// Puts `with(x)` in the place of `x`. Meanwhile nothing else holds `x`, so that a backend may write
/// where it is.
fn replace<B: Backend, const D: usize>(
    x: &mut Tensor<B, D>,
    with: impl FnOnce(Tensor<B, D>) -> Tensor<B, D>,
) {
    let placeholder = Tensor::empty([1; D], (&x.device(), x.dtype()));
    *x = with(std::mem::replace(x, placeholder));
}
