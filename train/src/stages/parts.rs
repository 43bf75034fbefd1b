//! The parts of a student: which of them train, and with which learning rates.

use std::collections::{BTreeMap, HashMap, HashSet};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use kernels::TrainBackend;
use model::{Layout, Part, PhiMamba, named_parameters};
use serde::{Deserialize, Serialize};

/// Learning rates by part. A part without a rate does not train.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rates(pub BTreeMap<Part, f64>);

impl Rates {
    /// One rate for all of `parts`.
    pub fn new(parts: &[Part], lr: f64) -> Self {
        Self(parts.iter().map(|part| (*part, lr)).collect())
    }

    /// The rate of `part`; `None` if it does not train.
    pub fn of(&self, part: Part) -> Option<f64> {
        self.0.get(&part).copied()
    }

    /// The lowest rate of all; infinity without any.
    pub fn lowest(&self) -> f64 {
        self.0.values().copied().fold(f64::INFINITY, f64::min)
    }

    /// The highest rate of all; 0 without any.
    pub fn highest(&self) -> f64 {
        self.0.values().copied().fold(0.0, f64::max)
    }

    /// The same parts, each rate replaced by `f` of it.
    pub fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Self(self.0.iter().map(|(part, lr)| (*part, f(*lr))).collect())
    }
}

/// The part of every parameter of `student`, by its id.
pub fn parts_of<B: TrainBackend>(student: &PhiMamba<B>) -> HashMap<ParamId, Part> {
    let parameters = named_parameters(student, Layout::default()).into_iter();
    parameters
        .map(|parameter| (parameter.id, parameter.part()))
        .collect()
}

/// The student with gradients enabled for the parts that have a rate, and disabled for all others.
pub fn train_parts<B: TrainBackend>(student: PhiMamba<B>, rates: &Rates) -> PhiMamba<B> {
    let parts = parts_of(&student).into_iter();
    let trained = parts.filter(|(_, part)| rates.of(*part).is_some());
    student.map(&mut Freeze(trained.map(|(id, _)| id).collect()))
}

/// A copy of the student, or of a part of it, whose autodiff graph shares no node with any other. Burn locks a graph
/// during its backward pass, and passes that share parameters would share one graph.
pub fn on_graph_of_its_own<B: TrainBackend, M: Module<B>>(student: &M) -> M {
    student.clone().map(&mut Detach::<B>::default())
}

/// A copy of the student, or of a part of it, with every parameter in `dtype`. The passes of a step compute with it if
/// the student itself has another dtype.
pub fn in_dtype<B: TrainBackend, M: Module<B>>(student: &M, dtype: DType) -> M {
    let mut others = Others::<B> {
        dtype,
        ids: vec![],
        values: vec![],
    };
    student.visit(&mut others);
    let cast = kernels::cast_all(others.values, dtype);
    let cast = others.ids.into_iter().zip(cast).collect();
    student.clone().map(&mut Detach::<B> { cast })
}

struct Freeze(HashSet<ParamId>);

impl<B: Backend> ModuleMapper<B> for Freeze {
    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let trains = self.0.contains(&parameter.id);
        // Burn initialises parameters when they are first read. If that did not happen here, each copy that a step
        // makes would initialise them again.
        let _ = parameter.val();
        parameter.set_require_grad(trains)
    }
}

/// Collects the parameters that are not in `dtype`, flattened.
struct Others<B: TrainBackend> {
    dtype: DType,
    ids: Vec<ParamId>,
    values: Vec<Tensor<B::InnerBackend, 1>>,
}

impl<B: TrainBackend> ModuleVisitor<B> for Others<B> {
    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<B, D>>) {
        let value = parameter.val().inner();
        if value.dtype() != self.dtype {
            let elements = value.shape().num_elements();
            self.ids.push(parameter.id);
            self.values.push(value.reshape([elements]));
        }
    }
}

/// Gives every parameter its own graph. If `cast` has a value for a parameter, that value is used.
struct Detach<B: TrainBackend> {
    /// Flattened.
    cast: HashMap<ParamId, Tensor<B::InnerBackend, 1>>,
}

impl<B: TrainBackend> Default for Detach<B> {
    fn default() -> Self {
        Self {
            cast: HashMap::new(),
        }
    }
}

impl<B: TrainBackend> ModuleMapper<B> for Detach<B> {
    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, value, mapper) = parameter.consume();
        let trains = value.is_require_grad();
        let value = value.inner();
        let value = match self.cast.remove(&id) {
            Some(cast) => cast.reshape(value.dims()),
            None => value,
        };
        let value = Tensor::from_inner(value).set_require_grad(trains);
        Param::from_mapped_value(id, value, mapper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_a_configuration() {
        for part in Part::ALL {
            let rates = Rates::new(&[part], 0.5);
            let text = toml::to_string(&rates).unwrap();
            assert_eq!(text, format!("{} = 0.5\n", part.name()));
            assert_eq!(toml::from_str::<Rates>(&text).unwrap(), rates);
        }
    }

    #[test]
    fn rates_are_by_part() {
        let rates = Rates([(Part::Mixer, 4.0), (Part::Head, 1.0)].into());
        assert_eq!(rates.of(Part::Mixer), Some(4.0));
        assert_eq!(rates.of(Part::Norm), None);
        assert_eq!((rates.lowest(), rates.highest()), (1.0, 4.0));
        let half = rates.map(|lr| 0.5 * lr);
        assert_eq!(half.0, [(Part::Mixer, 2.0), (Part::Head, 0.5)].into());
    }
}
