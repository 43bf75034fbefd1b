//! The gradients of one optimizer step, gathered layer by layer and pass by pass.

use std::collections::{BTreeMap, HashMap, HashSet};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels::TrainBackend;
use model::widen;

/// Receives the gradients of a pass as soon as they are computed.
pub trait Sink<B: Backend> {
    /// Receives the gradient of one parameter, flattened. A gradient that comes in several parts is added up.
    fn take_in(&mut self, id: ParamId, gradient: Tensor<B, 1>);

    /// Called when the pass has given all gradients that it has computed so far, before it computes others.
    fn pause(&mut self) {}
}

impl<B: Backend> dyn Sink<B> + '_ {
    /// Passes on the gradients that a backward pass computed for the parameters of `module`.
    pub fn add<A, M>(&mut self, module: &M, gradients: &A::Gradients)
    where
        A: TrainBackend<InnerBackend = B>,
        M: Module<A>,
    {
        module.visit(&mut Collect::<A> {
            gradients,
            sink: self,
        });
        self.pause();
    }

    /// Passes on the gradient of one parameter.
    pub fn add_parameter<const D: usize>(&mut self, id: ParamId, gradient: Tensor<B, D>) {
        let n = gradient.shape().num_elements();
        self.take_in(id, gradient.reshape([n]));
        self.pause();
    }
}

/// Sums of gradients, flattened, by parameter. A gradient of one pass stays in that pass's dtype; a sum of several is
/// f32 or wider.
#[derive(Debug)]
pub struct Gradients<B: Backend> {
    sums: HashMap<ParamId, Tensor<B, 1>>,
    /// In the order of their first parts, so that sums over all of them are the same in every run.
    order: Vec<ParamId>,
    /// In the order of their last parts.
    completed: Vec<ParamId>,
    /// The number of parts of each gradient in one pass.
    parts: HashMap<ParamId, usize>,
}

impl<B: Backend> Default for Gradients<B> {
    fn default() -> Self {
        Self {
            sums: HashMap::new(),
            order: vec![],
            completed: vec![],
            parts: HashMap::new(),
        }
    }
}

impl<B: kernels::KernelBackend> Sink<B> for Gradients<B> {
    fn take_in(&mut self, id: ParamId, gradient: Tensor<B, 1>) {
        let parts = self.parts.entry(id).or_default();
        *parts += 1;
        if *parts > 1 {
            self.completed.retain(|other| *other != id);
        }
        self.completed.push(id);
        self.add_one(id, gradient);
    }
}

impl<B: kernels::KernelBackend> Gradients<B> {
    /// Adds the gradients that a backward pass computed for the parameters of `module`.
    pub fn add<A, M>(&mut self, module: &M, gradients: &A::Gradients)
    where
        A: TrainBackend<InnerBackend = B>,
        M: Module<A>,
    {
        (self as &mut dyn Sink<B>).add::<A, M>(module, gradients);
    }

    /// Adds the gradient of one parameter.
    pub fn add_parameter<const D: usize>(&mut self, id: ParamId, gradient: Tensor<B, D>) {
        (self as &mut dyn Sink<B>).add_parameter(id, gradient);
    }

    /// Adds the sums of `other`, of another pass.
    pub fn merge(&mut self, mut other: Self) {
        let all: HashSet<ParamId> = other.completed.iter().copied().collect();
        self.completed.retain(|id| !all.contains(id));
        self.completed.append(&mut other.completed);
        self.parts.extend(other.parts);
        for id in other.order {
            if let Some(gradient) = other.sums.remove(&id) {
                self.add_one(id, gradient);
            }
        }
    }

    fn add_one(&mut self, id: ParamId, gradient: Tensor<B, 1>) {
        let sum = match self.sums.remove(&id) {
            Some(sum) => widen(sum) + widen(gradient),
            None => {
                if !self.order.contains(&id) {
                    self.order.push(id);
                }
                gradient
            }
        };
        self.sums.insert(id, sum);
    }

    /// The number of parts in which one pass gave the gradient of a parameter; 0 if it gave none.
    pub fn parts(&self, id: ParamId) -> usize {
        self.parts.get(&id).copied().unwrap_or_default()
    }

    /// The parameters whose gradients have not been taken out, with the number of elements of each, in the order in
    /// which their last parts came.
    pub fn completed(&self) -> impl Iterator<Item = (ParamId, usize)> {
        let sums = self.completed.iter();
        sums.filter_map(|id| Some((*id, self.sums.get(id)?.shape().num_elements())))
    }

    /// The gradient of one parameter, taken out; `None` if the loss does not reach it.
    pub fn take(&mut self, id: ParamId) -> Option<Tensor<B, 1>> {
        self.sums.remove(&id)
    }

    /// The parameters that have one, in the order in which they first came in.
    pub fn ids(&self) -> &[ParamId] {
        &self.order
    }

    /// The gradients `sums`, in the order of `ids`; several of one parameter are added up.
    pub fn of(ids: &[ParamId], sums: impl IntoIterator<Item = (ParamId, Tensor<B, 1>)>) -> Self {
        let mut gradients = Self::default();
        for (id, sum) in sums {
            gradients.take_in(id, sum);
        }
        let has_one = |id: &&ParamId| gradients.sums.contains_key(*id);
        gradients.order = ids.iter().filter(has_one).copied().collect();
        gradients
    }

    /// The sum of the squares of all gradients together, as one element on their device; `None` if there are none.
    pub fn squares(&self) -> Option<Tensor<B, 1>> {
        let all = self.order.iter().filter_map(|id| self.sums.get(id));
        let all: Vec<_> = all.cloned().collect();
        (!all.is_empty()).then(|| kernels::squared_norms(all))
    }

    /// The norm of all gradients together, as one element on their device; `None` if there are none.
    pub fn norm(&self) -> Option<Tensor<B, 1>> {
        self.squares().map(Tensor::sqrt)
    }

    /// The norm of the gradients of each group of parameters, as one element on their device. Those without a
    /// `group` are left out.
    pub fn norms<G: Ord>(&self, group: impl Fn(ParamId) -> Option<G>) -> BTreeMap<G, Tensor<B, 1>> {
        let squares = self.squares_of(group).into_iter();
        squares
            .map(|(group, squares)| (group, squares.sqrt()))
            .collect()
    }

    /// The sum of the squares of the gradients of each group of parameters, as [`norms`](Self::norms) has them.
    pub fn squares_of<G: Ord>(
        &self,
        group: impl Fn(ParamId) -> Option<G>,
    ) -> BTreeMap<G, Tensor<B, 1>> {
        let mut groups: BTreeMap<G, Vec<Tensor<B, 1>>> = BTreeMap::new();
        for id in &self.order {
            if let (Some(sum), Some(group)) = (self.sums.get(id), group(*id)) {
                groups.entry(group).or_default().push(sum.clone());
            }
        }
        let groups = groups.into_iter();
        groups
            .map(|(group, sums)| (group, kernels::squared_norms(sums)))
            .collect()
    }

    /// Multiplies each gradient by the one element of its `factor`, f32 or wider, where it has one.
    pub(crate) fn scale(&mut self, factor: impl Fn(ParamId) -> Option<Tensor<B, 1>>) {
        for id in &self.order {
            let Some(factor) = factor(*id) else { continue };
            if let Some(sum) = self.sums.remove(id) {
                self.sums.insert(*id, widen(sum) * factor);
            }
        }
    }
}

struct Collect<'a, A: TrainBackend> {
    gradients: &'a A::Gradients,
    sink: &'a mut dyn Sink<A::InnerBackend>,
}

impl<A: TrainBackend> ModuleVisitor<A> for Collect<'_, A> {
    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<A, D>>) {
        if let Some(gradient) = parameter.val().grad(self.gradients) {
            let n = gradient.shape().num_elements();
            self.sink.take_in(parameter.id, gradient.reshape([n]));
        }
    }
}
