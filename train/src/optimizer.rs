//! AdamW over a whole network, with global-norm clipping.
//!
//! Burn's optimizers are not used: they clip each tensor by its own norm, pass over each parameter a
//! dozen times, and lose their moments when a model is loaded from safetensors, since they are
//! filed under ids that do not survive it. Here moments are filed under published names on disk.

use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use kernels::{AdamWStep, KernelBackend, TrainBackend};
use model::PhiMamba;

use crate::config;
use crate::gradients::Gradients;

/// What AdamW remembers of one parameter.
#[derive(Debug, Clone)]
pub struct Moments<B: Backend> {
    /// First and second moment, flattened.
    pub values: [Tensor<B, 1>; 2],
    /// Steps done.
    pub time: u64,
}

/// The optimizer of one stage; `B` is the inner backend.
#[derive(Debug)]
pub struct AdamW<B: Backend> {
    config: config::Optimizer,
    /// By parameter; empty before the first step.
    pub moments: HashMap<ParamId, Moments<B>>,
}

impl<B: KernelBackend> AdamW<B> {
    /// Nothing remembered.
    pub fn new(config: &config::Optimizer) -> Self {
        Self {
            config: config.clone(),
            moments: HashMap::new(),
        }
    }

    /// One step of every parameter that has a gradient. `norm` is the gradients' global norm and
    /// `passes` how many passes they are summed over; both only scale them.
    pub fn step<A: TrainBackend<InnerBackend = B>>(
        &mut self,
        student: PhiMamba<A>,
        gradients: Gradients<B>,
        norm: f64,
        passes: usize,
        lr: f64,
    ) -> PhiMamba<A> {
        let mean_norm = norm / passes as f64;
        let clip = self.config.clip_norm;
        // PyTorch's clip_grad_norm_ adds the same 1e-6.
        let coefficient = match clip > 0.0 {
            true => (clip / (mean_norm + 1e-6)).min(1.0),
            false => 1.0,
        };
        student.map(&mut Update {
            optimizer: self,
            gradients,
            scale: coefficient / passes as f64,
            scale_on_device: None,
            lr,
        })
    }
}

struct Update<'a, B: Backend> {
    optimizer: &'a mut AdamW<B>,
    gradients: Gradients<B>,
    /// Multiplies every gradient.
    scale: f64,
    /// The same, from the first gradient on.
    scale_on_device: Option<Tensor<B, 1>>,
    lr: f64,
}

impl<A: TrainBackend> ModuleMapper<A> for Update<'_, A::InnerBackend> {
    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<A, D>>) -> Param<Tensor<A, D>> {
        let Some(gradient) = self.gradients.take(parameter.id) else {
            return parameter;
        };
        let config = &self.optimizer.config;
        let decays = config.decay == config::Decay::All || D >= 2;
        let (id, value, mapper) = parameter.consume();
        let shape = value.shape();
        let value = value.inner().reshape([shape.num_elements()]);
        let moments = self.optimizer.moments.remove(&id);
        let Moments { values, time } = moments.unwrap_or_else(|| Moments {
            values: [value.zeros_like(), value.zeros_like()],
            time: 0,
        });
        let step = AdamWStep {
            lr: self.lr,
            beta1: config.beta1,
            beta2: config.beta2,
            epsilon: config.epsilon,
            weight_decay: if decays { config.weight_decay } else { 0.0 },
            time: time + 1,
        };
        let scale = TensorData::from([self.scale]);
        let scale = (self.scale_on_device)
            .get_or_insert_with(|| Tensor::from_data(scale, &gradient.device()))
            .clone();
        let (value, values) = kernels::adamw_step(value, gradient, values, scale, step);
        let time = time + 1;
        self.optimizer.moments.insert(id, Moments { values, time });
        let value = Tensor::from_inner(value.reshape(shape)).require_grad();
        Param::from_mapped_value(id, value, mapper)
    }
}
