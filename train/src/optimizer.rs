//! AdamW over a whole network, with global-norm clipping.
//!
//! Burn's optimizers are not used: they clip each tensor by its own norm, pass over each parameter a
//! dozen times, and lose their moments when a model is loaded from safetensors, since they are
//! filed under ids that do not survive it. Here moments are filed under published names on disk.

use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels::optim::adamw::Update;
use kernels::runtime::collective::Place;
use kernels::{AdamWStep, KernelBackend, TrainBackend};
use model::PhiMamba;

use crate::config;
use crate::gradients::Gradients;

/// What AdamW remembers of one parameter.
#[derive(Debug, Clone)]
pub struct Moments<B: Backend> {
    /// First and second moment, flattened; of a parameter that ranks share, those of this rank's share.
    pub values: [Tensor<B, 1>; 2],
    /// Steps done, those that were not finite included.
    pub time: u64,
}

/// The optimizer of one stage; `B` is the inner backend.
#[derive(Debug)]
pub struct AdamW<B: Backend> {
    config: config::Optimizer,
    /// A step whose loss is higher changes nothing.
    pub(crate) loss_limit: Option<f64>,
    /// Where ranks share the moments of each parameter: which of them this is.
    pub(crate) place: Option<Place>,
    /// By parameter; empty before the first step.
    pub moments: HashMap<ParamId, Moments<B>>,
}

impl<B: KernelBackend> AdamW<B> {
    /// Nothing remembered.
    pub fn new(config: &config::Optimizer) -> Self {
        Self {
            config: config.clone(),
            loss_limit: None,
            place: None,
            moments: HashMap::new(),
        }
    }

    /// The options it was made with.
    pub fn config(&self) -> &config::Optimizer {
        &self.config
    }

    /// The same, with moments of this rank's share of each parameter alone ([`share`](fn@crate::parallel::share)).
    pub fn sharing(self, place: Option<Place>) -> Self {
        Self { place, ..self }
    }

    /// The numbers of the step `time`, from 1, of a parameter of so many dimensions.
    pub(crate) fn numbers(&self, lr: f64, dimensions: usize, time: u64) -> AdamWStep {
        let config = &self.config;
        let decays = config.decay == config::Decay::All || dimensions >= 2;
        AdamWStep {
            lr,
            beta1: config.beta1,
            beta2: config.beta2,
            epsilon: config.epsilon,
            weight_decay: if decays { config.weight_decay } else { 0.0 },
            time,
        }
    }

    /// The factor for the sum of the gradients of `passes` passes, as one element, f32 or wider. It turns the
    /// sum, whose norm is `norm`, into the mean, clipped to the largest norm. Where `loss` or `norm` is not
    /// finite, or the loss above its limit, it is not a number, and [`step`](Self::step) then does nothing. The host
    /// reads neither.
    pub fn scale(&self, norm: Tensor<B, 1>, loss: Tensor<B, 1>, passes: usize) -> Tensor<B, 1> {
        let share = 1.0 / passes as f64;
        let mean_norm = norm * share;
        let dtype = mean_norm.dtype();
        let loss = if loss.dtype() == dtype {
            loss
        } else {
            loss.cast(dtype)
        };
        // Zero, unless one of them is not finite.
        let mut finite = (mean_norm.clone() - mean_norm.clone()) + (loss.clone() - loss.clone());
        if let Some(limit) = self.loss_limit {
            finite = finite.mask_fill(loss.greater_elem(limit), f32::NAN);
        }
        let clip = self.config.clip_norm;
        if clip <= 0.0 {
            return finite + share;
        }
        // PyTorch's clip_grad_norm_ adds the same 1e-6.
        let coefficient = ((mean_norm + 1e-6).recip() * clip).clamp_max(1.0);
        coefficient * share + finite
    }

    /// One step of every parameter that has a gradient and, by `lr`, a learning rate. Gradients are multiplied
    /// by the one element of `scale`; where that is not finite, everything stays as it is but for the count of
    /// steps.
    pub fn step<A: TrainBackend<InnerBackend = B>>(
        &mut self,
        student: PhiMamba<A>,
        gradients: Gradients<B>,
        scale: Tensor<B, 1>,
        lr: impl Fn(ParamId) -> Option<f64>,
    ) -> PhiMamba<A> {
        let mut taken = Taken {
            optimizer: self,
            gradients,
            lr,
            ids: vec![],
            updates: vec![],
        };
        let student = student.map(&mut taken);
        let (ids, updates) = (taken.ids, taken.updates);
        let times: Vec<u64> = updates.iter().map(|update| update.step.time).collect();
        let updated = kernels::adamw_steps(updates, scale);
        let mut values = HashMap::new();
        for ((id, time), (value, moments)) in ids.into_iter().zip(times).zip(updated) {
            let moments = Moments {
                values: moments,
                time,
            };
            self.moments.insert(id, moments);
            values.insert(id, value);
        }
        student.map(&mut Put(values))
    }
}

/// Takes the parameters that a step changes out of the student, so that nothing else holds them, and leaves one element
/// in place of each.
struct Taken<'a, B: Backend, F> {
    optimizer: &'a mut AdamW<B>,
    gradients: Gradients<B>,
    lr: F,
    ids: Vec<ParamId>,
    updates: Vec<Update<B>>,
}

impl<A, F> ModuleMapper<A> for Taken<'_, A::InnerBackend, F>
where
    A: TrainBackend,
    F: Fn(ParamId) -> Option<f64>,
{
    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<A, D>>) -> Param<Tensor<A, D>> {
        let gradient = self.gradients.take(parameter.id);
        let (Some(gradient), Some(lr)) = (gradient, (self.lr)(parameter.id)) else {
            return parameter;
        };
        let (id, value, mapper) = parameter.consume();
        let shape = value.dims();
        let value = value.inner().reshape([shape.iter().product::<usize>()]);
        let moments = self.optimizer.moments.remove(&id);
        let Moments { values, time } = moments.unwrap_or_else(|| Moments {
            values: [value.zeros_like(), value.zeros_like()],
            time: 0,
        });
        // A view of the whole shape that takes no memory: [`Put`] reads the shape from it.
        let place = Tensor::<A::InnerBackend, D>::empty([1; D], &value.device());
        self.ids.push(id);
        self.updates.push(Update {
            parameter: value,
            start: 0,
            gradient,
            moments: values,
            step: self.optimizer.numbers(lr, D, time + 1),
        });
        Param::from_mapped_value(id, Tensor::from_inner(place.expand(shape)), mapper)
    }
}

/// Puts the parameters back, which are flat.
pub(crate) struct Put<B: Backend>(pub(crate) HashMap<ParamId, Tensor<B, 1>>);

impl<A: TrainBackend> ModuleMapper<A> for Put<A::InnerBackend> {
    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<A, D>>) -> Param<Tensor<A, D>> {
        let Some(value) = self.0.remove(&parameter.id) else {
            return parameter;
        };
        let (id, place, mapper) = parameter.consume();
        let value = Tensor::from_inner(value.reshape(place.dims())).require_grad();
        Param::from_mapped_value(id, value, mapper)
    }
}
