//! Rotary position embedding of the first dimensions of each head, as in Phi.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use kernels::KernelBackend;

use crate::precision::to_dtype;

/// The angles for a run of positions.
///
/// Pairs are `(i, i + dim / 2)` for `i < dim / 2`, each turned by `position * theta^(-2i / dim)`.
pub(crate) struct Rotary<B: Backend> {
    /// `[l, dim / 2]`.
    pub cos: Tensor<B, 2>,
    /// `[l, dim / 2]`.
    pub sin: Tensor<B, 2>,
}

impl<B: KernelBackend> Rotary<B> {
    /// For positions `start..start + l`. The angles are computed in 64 bits on the host: in 32, the
    /// product of a late position and a frequency has lost four digits before its cosine is taken.
    pub(crate) fn new(dim: usize, theta: f64, start: usize, l: usize, device: &B::Device) -> Self {
        let half = dim / 2;
        let frequency = |i: usize| theta.powf(-2.0 * i as f64 / dim as f64);
        let frequencies: Vec<f64> = (0..half).map(frequency).collect();
        let (mut cos, mut sin) = (Vec::with_capacity(l * half), Vec::with_capacity(l * half));
        for position in start..start + l {
            for frequency in &frequencies {
                let (s, c) = (position as f64 * frequency).sin_cos();
                cos.push(c);
                sin.push(s);
            }
        }
        let tensor = |values| Tensor::from_data(TensorData::new(values, [l, half]), device);
        Self {
            cos: tensor(cos),
            sin: tensor(sin),
        }
    }

    /// `x [b, l, h, p]` with the first `dim` of each head's `p` dimensions turned.
    pub(crate) fn rotate(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let dtype = x.dtype();
        let cos = to_dtype(self.cos.clone(), dtype);
        let sin = to_dtype(self.sin.clone(), dtype);
        kernels::rotary(x, cos, sin)
    }
}
