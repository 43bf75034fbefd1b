//! The feed-forward half of a layer.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels::KernelBackend;
use kernels::decode::projections::{Activation, Input};

use crate::init::Init;
use crate::layers::Linear;

/// The options of the MLP, which is the feed-forward half of each layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MlpConfig {
    /// The activation between its projections.
    pub kind: MlpKind,
    /// Width of its hidden layer.
    pub intermediate_size: usize,
    /// Whether its projections have biases.
    pub bias: bool,
}

/// The activation between the projections of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlpKind {
    /// `down(gelu_new(up(x)))`, as in Phi.
    GeluNew,
    /// `down(silu(gate(x)) * up(x))`, as in Llama (arXiv 2002.05202).
    SwiGlu,
}

impl MlpConfig {
    /// Floating-point operations of the forward pass for one token, an addition and a multiplication counting
    /// as two.
    pub fn operations(&self, d_model: usize) -> f64 {
        let projections = match self.kind {
            MlpKind::GeluNew => 2.0,
            MlpKind::SwiGlu => 3.0,
        };
        2.0 * projections * d_model as f64 * self.intermediate_size as f64
    }
}

/// An MLP, gated where there is a `gate`.
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    /// `d_model` to `intermediate_size`: with it the MLP is a SwiGLU, without it `gelu_new` stands there.
    pub gate: Option<Linear<B>>,
    /// `d_model` to `intermediate_size`.
    pub up: Linear<B>,
    /// `intermediate_size` to `d_model`.
    pub down: Linear<B>,
}

impl<B: Backend> Mlp<B> {
    pub(crate) fn new(init: &mut Init<B>, d_model: usize, config: MlpConfig) -> Self {
        let MlpConfig {
            kind,
            intermediate_size: width,
            bias,
        } = config;
        let is_gated = kind == MlpKind::SwiGlu;
        Self {
            gate: is_gated.then(|| Linear::normal(init, [width, d_model], bias)),
            up: Linear::normal(init, [width, d_model], bias),
            down: Linear::normal(init, [d_model, width], bias),
        }
    }

    /// Every projection, for packing.
    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear<B>> {
        let others = [&mut self.up, &mut self.down];
        self.gate.iter_mut().chain(others)
    }

    /// The projections that read the normalised input in a decoding step, with what follows each.
    pub(crate) fn entries(&self) -> Vec<(&Linear<B>, Activation)> {
        match &self.gate {
            Some(gate) => vec![(gate, Activation::Silu), (&self.up, Activation::Identity)],
            None => vec![(&self.up, Activation::GeluNew)],
        }
    }
}

impl<B: KernelBackend> Mlp<B> {
    /// `x [.., d_model]` to the same shape.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        self.down.forward(self.hidden(x))
    }

    /// `residual + forward(x)`, all `[.., d_model]`.
    pub(crate) fn forward_onto<const D: usize>(
        &self,
        residual: Tensor<B, D>,
        x: Tensor<B, D>,
    ) -> Tensor<B, D> {
        self.down.forward_onto(residual, self.hidden(x))
    }

    /// What `down` reads.
    fn hidden<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        match &self.gate {
            Some(gate) => kernels::swiglu(gate.forward(x.clone()), self.up.forward(x)),
            None => self.up.forward_gelu(x),
        }
    }

    /// The same in a decoding step, from the outputs of [`entries`](Self::entries).
    pub(crate) fn hidden_of_step(&self, mut projected: Vec<Tensor<B, 2>>) -> Input<B> {
        let up = projected.pop().expect("one output a projection");
        Input {
            u: up,
            gate: projected.pop(),
        }
    }
}
