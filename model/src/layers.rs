//! The two layers everything is made of, with parameters as PyTorch lays them out, so that files
//! need no transposition in either direction.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels::KernelBackend;

use crate::init::{Fill, Init};

/// `y = x W^T + b`.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// `[d_out, d_in]`.
    pub weight: Param<Tensor<B, 2>>,
    /// `[d_out]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
}

impl<B: Backend> Linear<B> {
    pub(crate) fn new(
        init: &mut Init<B>,
        [d_out, d_in]: [usize; 2],
        weight: Fill,
        bias: Option<Fill>,
    ) -> Self {
        Self {
            weight: init.parameter([d_out, d_in], weight),
            bias: bias.map(|fill| init.parameter([d_out], fill)),
        }
    }

    /// As Phi starts its projections: small normal weights, zero biases.
    pub(crate) fn phi(init: &mut Init<B>, d_out: usize, d_in: usize) -> Self {
        Self::new(init, [d_out, d_in], Fill::phi(), Some(Fill::constant(0.0)))
    }
}

impl<B: KernelBackend> Linear<B> {
    /// `x [.., d_in]` to `[.., d_out]`.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        let bias = self.bias.as_ref().map(Param::val);
        kernels::linear(x, self.weight.val(), bias)
    }

    /// `x [.., d_in]` times `n` rows of the weight from row `start`: `[.., n]`.
    ///
    /// For the pieces of one wide projection where gradients are needed: the backward pass of a
    /// slice writes zeros as large as what was sliced, and the weight is smaller than the output.
    pub fn forward_rows<const D: usize>(
        &self,
        x: Tensor<B, D>,
        start: usize,
        n: usize,
    ) -> Tensor<B, D> {
        let bias = self
            .bias
            .as_ref()
            .map(|bias| bias.val().narrow(0, start, n));
        kernels::linear(x, self.weight.val().narrow(0, start, n), bias)
    }
}

/// Normalisation over the last dimension.
#[derive(Module, Debug)]
pub struct LayerNorm<B: Backend> {
    /// `[d]`.
    pub weight: Param<Tensor<B, 1>>,
    /// `[d]`.
    pub bias: Param<Tensor<B, 1>>,
    /// Added to the variance.
    pub epsilon: f64,
}

impl<B: Backend> LayerNorm<B> {
    pub(crate) fn new(init: &mut Init<B>, d: usize, epsilon: f64) -> Self {
        Self {
            weight: init.parameter([d], Fill::constant(1.0)),
            bias: init.parameter([d], Fill::constant(0.0)),
            epsilon,
        }
    }
}

impl<B: KernelBackend> LayerNorm<B> {
    /// `x [.., d]` normalised, in the same shape.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        kernels::layer_norm(x, self.weight.val(), self.bias.val(), self.epsilon)
    }
}
