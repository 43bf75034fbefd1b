//! The gradients of one optimizer step, gathered layer by layer and pass by pass.

use std::collections::HashMap;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels::TrainBackend;

/// Sums of gradients, flattened, by parameter.
#[derive(Debug)]
pub struct Gradients<B: Backend> {
    sums: HashMap<ParamId, Tensor<B, 1>>,
}

impl<B: Backend> Default for Gradients<B> {
    fn default() -> Self {
        Self {
            sums: HashMap::new(),
        }
    }
}

impl<B: kernels::KernelBackend> Gradients<B> {
    /// Adds what a backward pass gave for the parameters of `module`.
    pub fn add<A, M>(&mut self, module: &M, gradients: &A::Gradients)
    where
        A: TrainBackend<InnerBackend = B>,
        M: Module<A>,
    {
        module.visit(&mut Collect::<A> {
            gradients,
            sums: self,
        });
    }

    /// Adds the sums of `other`.
    pub fn merge(&mut self, other: Self) {
        for (id, gradient) in other.sums {
            self.add_one(id, gradient);
        }
    }

    fn add_one(&mut self, id: ParamId, gradient: Tensor<B, 1>) {
        let sum = match self.sums.remove(&id) {
            Some(sum) => sum + gradient,
            None => gradient,
        };
        self.sums.insert(id, sum);
    }

    /// The gradient of one parameter, taken out; `None` if the loss does not reach it.
    pub fn take(&mut self, id: ParamId) -> Option<Tensor<B, 1>> {
        self.sums.remove(&id)
    }

    /// The norm of all gradients together, read back in one transfer; 0 if there are none.
    pub fn norm(&self) -> f64 {
        let squares = self.sums.values().cloned().map(kernels::squared_norm);
        // In the order of the ids' hash, which changes from run to run, sums in f32 would differ.
        let mut squares: Vec<f64> = match squares.collect::<Vec<_>>() {
            none if none.is_empty() => vec![],
            some => Tensor::cat(some, 0).into_data().iter::<f64>().collect(),
        };
        squares.sort_by(f64::total_cmp);
        squares.iter().sum::<f64>().sqrt()
    }
}

struct Collect<'a, A: TrainBackend> {
    gradients: &'a A::Gradients,
    sums: &'a mut Gradients<A::InnerBackend>,
}

impl<A: TrainBackend> ModuleVisitor<A> for Collect<'_, A> {
    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<A, D>>) {
        let Some(gradient) = parameter.val().grad(self.gradients) else {
            return;
        };
        let n = gradient.shape().num_elements();
        self.sums.add_one(parameter.id, gradient.reshape([n]));
    }
}
