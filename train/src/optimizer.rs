//! AdamW over a whole network, with global-norm clipping.
//!
//! Burn's optimizers are not used: they clip each tensor by its own norm, pass over each parameter about twelve times,
//! and lose their moments when a model is loaded from safetensors, since the moments are stored under ids that change
//! then. Here moments are stored on disk under the published names of the parameters.

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

/// AdamW's state of one parameter.
#[derive(Debug, Clone)]
pub struct Moments<B: Backend> {
    /// First and second moment, flattened; if ranks share the parameter, only this rank's share.
    pub values: [Tensor<B, 1>; 2],
    /// Number of steps done, including those that were not finite.
    pub time: u64,
}

/// The optimizer of one stage; `B` is the inner backend.
#[derive(Debug)]
pub struct AdamW<B: Backend> {
    config: config::Optimizer,
    /// If the loss of a step is higher, the step changes nothing.
    pub(crate) loss_limit: Option<f64>,
    /// This rank's place, if ranks share the moments of each parameter.
    pub(crate) place: Option<Place>,
    /// By parameter; empty before the first step.
    pub moments: HashMap<ParamId, Moments<B>>,
}

impl<B: KernelBackend> AdamW<B> {
    /// An optimizer without moments.
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

    /// The same optimizer, but only with the moments of this rank's share of each parameter
    /// ([`share`](fn@crate::parallel::share)).
    pub fn sharing(self, place: Option<Place>) -> Self {
        Self { place, ..self }
    }

    /// The coefficients of step `time`, counted from 1, for a parameter with this number of dimensions.
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

    /// The factor for the sum of the gradients of `passes` passes, `[1]`, f32 or wider. `norm` is the norm of that sum.
    /// The factor turns the sum into the mean and clips it to the largest norm. If `loss` or `norm` is not finite, or
    /// if the loss is above its limit, the factor is NaN, and [`step`](Self::step) then changes nothing. All of it is
    /// computed on the device, without a read by the host.
    pub fn scale(&self, norm: Tensor<B, 1>, loss: Tensor<B, 1>, passes: usize) -> Tensor<B, 1> {
        let share = 1.0 / passes as f64;
        let mean_norm = norm * share;
        let dtype = mean_norm.dtype();
        let loss = if loss.dtype() == dtype {
            loss
        } else {
            loss.cast(dtype)
        };
        // Zero, or NaN if one of them is not finite.
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

    /// Updates every parameter that has a gradient and, by `lr`, a learning rate. Gradients are multiplied by `scale`,
    /// `[1]`; if that is not finite, only the number of steps changes.
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

/// Takes the parameters that a step changes out of the student, and leaves a placeholder of one element in each place.
/// Nothing else then holds the parameters, so that they can be updated in place.
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

/// Puts parameters, which are flattened, back into the student.
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
