//! Phi's feed-forward half: up, `gelu_new`, down.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels::KernelBackend;

use crate::init::Init;
use crate::layers::Linear;

/// `fc2(gelu_new(fc1(x)))`.
#[derive(Module, Debug)]
pub struct PhiMlp<B: Backend> {
    /// `d_model` to `intermediate_size`.
    pub fc1: Linear<B>,
    /// `intermediate_size` to `d_model`.
    pub fc2: Linear<B>,
}

impl<B: Backend> PhiMlp<B> {
    pub(crate) fn new(init: &mut Init<B>, d_model: usize, intermediate_size: usize) -> Self {
        Self {
            fc1: Linear::phi(init, intermediate_size, d_model),
            fc2: Linear::phi(init, d_model, intermediate_size),
        }
    }
}

impl<B: KernelBackend> PhiMlp<B> {
    /// `x [.., d_model]` to the same shape.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        self.fc2.forward(self.fc1.forward_gelu(x))
    }

    /// `residual + forward(x)`, all `[.., d_model]`.
    pub(crate) fn forward_onto<const D: usize>(
        &self,
        residual: Tensor<B, D>,
        x: Tensor<B, D>,
    ) -> Tensor<B, D> {
        self.fc2.forward_onto(residual, self.fc1.forward_gelu(x))
    }
}
