//! Which parameters train in a stage.

use std::collections::HashSet;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use kernels::TrainBackend;
use model::{Layout, PhiMamba, named_parameters};

use crate::config::{Part, Stage};

/// The student with gradients asked of the parts that `stage` trains, and of nothing else.
pub fn train_parts<B: TrainBackend>(student: PhiMamba<B>, stage: &Stage) -> PhiMamba<B> {
    let parameters = named_parameters(&student, Layout::default());
    let trained = parameters
        .into_iter()
        .filter(|p| stage.trains(part_of(&p.path)));
    student.map(&mut Freeze(trained.map(|p| p.id).collect()))
}

/// A copy of the student whose graph shares no node with any other: Burn locks a graph for as long as
/// it is walked, and passes that share parameters would share one.
pub fn on_graph_of_its_own<B: TrainBackend>(student: &PhiMamba<B>) -> PhiMamba<B> {
    student.clone().map(&mut Detach { dtype: None })
}

/// A copy of the student with every parameter in `dtype`: what the passes of a step compute with, where
/// that is not the dtype of the student itself.
pub fn in_dtype<B: TrainBackend>(student: &PhiMamba<B>, dtype: DType) -> PhiMamba<B> {
    student.clone().map(&mut Detach { dtype: Some(dtype) })
}

/// The part that a published name belongs to.
fn part_of(name: &str) -> Part {
    if name.contains(".mixer.") {
        Part::Mixer
    } else if name.contains(".mlp.") {
        Part::Mlp
    } else if name.contains("layernorm") {
        Part::Norm
    } else if name.contains("embedding") {
        Part::Embedding
    } else {
        Part::Head
    }
}

struct Freeze(HashSet<ParamId>);

impl<B: Backend> ModuleMapper<B> for Freeze {
    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let trains = self.0.contains(&parameter.id);
        // One that was not read yet is drawn now: each copy that a step makes would draw it for itself.
        let _ = parameter.val();
        parameter.set_require_grad(trains)
    }
}

struct Detach {
    /// What to cast to, if anything.
    dtype: Option<DType>,
}

impl<B: TrainBackend> ModuleMapper<B> for Detach {
    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, value, mapper) = parameter.consume();
        let trains = value.is_require_grad();
        let value = value.inner();
        let value = match self.dtype {
            Some(dtype) if dtype != value.dtype() => value.cast(dtype),
            _ => value,
        };
        let value = Tensor::from_inner(value).set_require_grad(trains);
        Param::from_mapped_value(id, value, mapper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_published_name_has_its_part() {
        for (name, part) in [
            ("backbone.embedding.weight", Part::Embedding),
            ("backbone.layers.0.input_layernorm.bias", Part::Norm),
            ("backbone.layers.11.mixer.in_proj.weight", Part::Mixer),
            (
                "backbone.layers.2.mixer.self_attn.q_proj.weight",
                Part::Mixer,
            ),
            ("backbone.layers.0.mlp.fc1.weight", Part::Mlp),
            ("backbone.final_layernorm.weight", Part::Norm),
            ("lm_head.bias", Part::Head),
        ] {
            assert_eq!(part_of(name), part, "{name}");
        }
    }
}
