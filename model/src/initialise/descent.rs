//! Some steps of Adam on the mixer of one layer, for the parameters that linear equations cannot fit: those that decide
//! which keys a query matches, the convolution, and decays that depend on the token.
//!
//! The text is that of the fits, read again and again, so a step costs one layer's forward and backward pass and no
//! pass of the teacher. Nothing is drawn: the same text gives the same mixer.

use std::collections::HashMap;

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use kernels::optim::adamw::Update;
use kernels::{AdamWStep, KernelBackend};

use super::{InitError, Stop};
use crate::mixers::TokenMixer;
use crate::mixers::discrete_mamba2::DiscreteMamba2;
use crate::precision::widen;

/// What one step reads: some sequences of one layer.
pub(super) struct Example<B: KernelBackend> {
    /// What the mixer reads, `[b, l, d_model]`.
    pub read: Tensor<B, 3>,
    /// What it is to give, of the same shape.
    pub wanted: Tensor<B, 3>,
    /// How much each token counts, `[b, l, 1]`.
    pub weights: Tensor<B, 3>,
}

/// How long a descent is, and how steep.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descent {
    /// Steps, each of one example.
    pub steps: usize,
    /// The highest learning rate.
    pub lr: f64,
}

impl Descent {
    /// The share of the steps in which the learning rate rises.
    const WARM_UP: f64 = 0.1;
    /// What the learning rate falls to, as a share of the highest.
    const LAST: f64 = 0.01;

    /// The learning rate of a step, from 0: a short rise, then half a wave of a cosine.
    fn lr_at(self, step: usize) -> f64 {
        let done = step as f64 / self.steps as f64;
        let rise = ((step + 1) as f64 / (Self::WARM_UP * self.steps as f64)).min(1.0);
        let wave = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        self.lr * rise * (Self::LAST + (1.0 - Self::LAST) * wave)
    }

    /// The mixer after the steps, which take the `examples` in turn. `stop` is asked before each.
    ///
    /// # Errors
    /// [`InitError::Stopped`].
    pub(super) fn run<B: KernelBackend>(
        self,
        mamba: &DiscreteMamba2<B>,
        examples: &[Example<B>],
        stop: Stop<'_>,
    ) -> Result<DiscreteMamba2<B>, InitError> {
        // Adam does not depend on the scale of the loss, except through its epsilon. Gradients of a mean over many
        // numbers would be small compared with epsilon, so the loss is the relative error.
        let whole: f64 = examples
            .iter()
            .map(|example| squares(example.wanted.clone(), example.weights.clone()))
            .sum();
        if examples.is_empty() || whole <= 0.0 {
            return Ok(mamba.clone());
        }
        let share = examples.len() as f64 / whole;
        let mamba = DiscreteMamba2::<Autodiff<B>>::from_inner(mamba.clone());
        // What was set by hand is no parameter to train yet.
        let mut mamba = mamba.map(&mut Train);
        let one = Tensor::ones([1], &mamba.d.val().device());
        let mut moments = HashMap::new();
        for step in 0..self.steps {
            if stop() {
                return Err(InitError::Stopped);
            }
            let example = &examples[step % examples.len()];
            let given = widen(mamba.forward(Tensor::from_inner(example.read.clone())));
            let lacking = given - Tensor::from_inner(widen(example.wanted.clone()));
            let weights = Tensor::from_inner(widen(example.weights.clone()));
            let loss = (lacking.clone() * lacking * weights).sum() * share;
            let mut taken = Taken::<B> {
                gradients: loss.backward(),
                moments: &mut moments,
                step: AdamWStep {
                    lr: self.lr_at(step),
                    beta1: 0.9,
                    beta2: 0.95,
                    epsilon: 1e-8,
                    weight_decay: 0.0,
                    time: step as u64 + 1,
                },
                ids: vec![],
                updates: vec![],
            };
            mamba.visit(&mut taken);
            let Taken { ids, updates, .. } = taken;
            // In few launches: a layer is so small that it is these which take the time.
            let updated = kernels::adamw_steps(updates, one.clone());
            let mut values = HashMap::new();
            for (id, (value, own)) in ids.into_iter().zip(updated) {
                moments.insert(id, own);
                values.insert(id, value);
            }
            mamba = mamba.map(&mut Put(values));
        }
        Ok(mamba.valid())
    }
}

/// Takes what a step of Adam changes.
struct Taken<'a, B: KernelBackend> {
    gradients: <Autodiff<B> as AutodiffBackend>::Gradients,
    moments: &'a mut HashMap<ParamId, [Tensor<B, 1>; 2]>,
    step: AdamWStep,
    ids: Vec<ParamId>,
    updates: Vec<Update<B>>,
}

impl<B: KernelBackend> ModuleVisitor<Autodiff<B>> for Taken<'_, B> {
    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<Autodiff<B>, D>>) {
        let value = parameter.val();
        let Some(gradient) = value.grad(&self.gradients) else {
            return;
        };
        let n = value.shape().num_elements();
        let value = value.inner().reshape([n]);
        let moments = self.moments.remove(&parameter.id);
        let moments = moments.unwrap_or_else(|| [value.zeros_like(), value.zeros_like()]);
        self.ids.push(parameter.id);
        self.updates.push(Update {
            parameter: value,
            start: 0,
            gradient: gradient.reshape([n]),
            moments,
            step: self.step,
        });
    }
}

/// Puts the parameters back, which are flat.
struct Put<B: Backend>(HashMap<ParamId, Tensor<B, 1>>);

impl<B: KernelBackend> ModuleMapper<Autodiff<B>> for Put<B> {
    fn map_float<const D: usize>(
        &mut self,
        parameter: Param<Tensor<Autodiff<B>, D>>,
    ) -> Param<Tensor<Autodiff<B>, D>> {
        let Some(value) = self.0.remove(&parameter.id) else {
            return parameter;
        };
        let (id, old, mapper) = parameter.consume();
        let value = Tensor::from_inner(value.reshape(old.dims())).require_grad();
        Param::from_mapped_value(id, value, mapper)
    }
}

/// Asks for a gradient of every parameter.
struct Train;

impl<B: Backend> ModuleMapper<B> for Train {
    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        parameter.set_require_grad(true)
    }
}

/// The sum of the squares of `x [b, l, d]`, each token counting as its `weights [b, l, 1]` say.
pub(super) fn squares<B: KernelBackend>(x: Tensor<B, 3>, weights: Tensor<B, 3>) -> f64 {
    let x = widen(x);
    let sum = (x.clone() * x * widen(weights)).sum().into_data();
    sum.iter::<f64>().sum()
}

#[cfg(test)]
mod tests {
    use burn::module::Param;
    use burn::tensor::backend::Backend;
    use burn::tensor::{Distribution, Tensor};
    use burn_flex::Flex;

    use super::{Descent, Example, squares};
    use crate::mixers::TokenMixer;
    use crate::mixers::discrete_mamba2::{DiscreteMamba2, DiscreteMamba2Config};

    /// Towards outputs that a mixer of the same sizes can give.
    #[test]
    fn steps_come_nearer() {
        type B = Flex;
        let device = Default::default();
        B::seed(&device, 1);
        let options = DiscreteMamba2Config {
            d_state: 8,
            chunk_size: 8,
            ..DiscreteMamba2Config::with_heads(2)
        };
        let from = DiscreteMamba2::<B>::new(&options, 16, 1, &device).expect("fits");
        let mut to = from.clone();
        let weight = to.out_proj.weight.val();
        let noise = Tensor::random(weight.dims(), Distribution::Normal(0.0, 0.05), &device);
        to.out_proj.weight = Param::from_tensor(weight + noise);
        to.d = Param::from_tensor(to.d.val().mul_scalar(1.5));
        let example = |_| {
            let read = Tensor::<B, 3>::random([4, 16, 16], Distribution::Normal(0.0, 1.0), &device);
            Example {
                wanted: to.forward(read.clone()),
                read,
                weights: Tensor::ones([4, 16, 1], &device),
            }
        };
        let examples: Vec<Example<B>> = (0..2).map(example).collect();
        let lacking = |mamba: &DiscreteMamba2<B>| -> f64 {
            let of = |example: &Example<B>| {
                let given = mamba.forward(example.read.clone());
                squares(given - example.wanted.clone(), example.weights.clone())
            };
            examples.iter().map(of).sum()
        };
        let descent = Descent {
            steps: 80,
            lr: 1e-2,
        };
        let tuned = descent.run(&from, &examples, &|| false).expect("a mixer");
        let (before, after) = (lacking(&from), lacking(&tuned));
        assert!(after < 0.25 * before, "{after} of {before}");
        assert!(descent.run(&from, &examples, &|| true).is_err());
    }

    #[test]
    fn rates_rise_and_fall() {
        let descent = Descent {
            steps: 100,
            lr: 2.0,
        };
        assert!((descent.lr_at(0) - 0.2).abs() < 1e-12);
        let rates: Vec<f64> = (0..100).map(|step| descent.lr_at(step)).collect();
        let highest = rates.iter().copied().fold(0.0, f64::max);
        assert!(highest > 1.9 && highest < 2.0, "{highest}");
        assert!(rates[10..].windows(2).all(|pair| pair[1] < pair[0]));
        assert!(rates[99] < 0.03, "{}", rates[99]);
    }
}
