//! What each parameter is called in files.

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::lm::CausalLm;

/// Whose names a file uses. They differ in few places from the modules' own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Hugging Face's `PhiForCausalLM`.
    Phi,
    /// The published Phi-Mamba's.
    PhiMamba,
}

impl Layout {
    /// The published name of the parameter at `path` in a [`CausalLm`], such as
    /// `["backbone", "layers", "0", "mixer", "Attention", "q_proj", "weight"]`.
    pub(super) fn name(self, path: &[String]) -> String {
        let parts = path.iter().filter_map(|part| {
            Some(match (self, part.as_str()) {
                (_, "Attention") => "self_attn",
                (_, "DiscreteMamba2") => return None,
                (Self::PhiMamba, "d") => "D",
                (Self::Phi, "mixer") => return None,
                (Self::Phi, "backbone") => "model",
                (Self::Phi, "embedding") => "embed_tokens",
                (_, other) => other,
            })
        });
        parts.collect::<Vec<_>>().join(".")
    }
}

/// One parameter of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedParameter {
    /// Its published name.
    pub name: String,
    /// What Burn's gradients and optimisers know it by.
    pub id: ParamId,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its path in the module.
    pub(super) path: Vec<String>,
}

/// Every parameter of `model`, in the order of its fields, under its published name. Reads no
/// values, so nothing is drawn or copied.
pub fn named_parameters<B: Backend>(model: &CausalLm<B>, layout: Layout) -> Vec<NamedParameter> {
    let mut visitor = Names {
        layout,
        path: Vec::new(),
        found: Vec::new(),
    };
    model.visit(&mut visitor);
    visitor.found
}

struct Names {
    layout: Layout,
    path: Vec<String>,
    found: Vec<NamedParameter>,
}

impl<B: Backend> ModuleVisitor<B> for Names {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<B, D>>) {
        self.found.push(NamedParameter {
            name: self.layout.name(&self.path),
            id: parameter.id,
            shape: parameter.lazy_shape().to_vec(),
            path: self.path.clone(),
        });
    }
}
