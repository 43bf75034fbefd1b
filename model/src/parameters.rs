//! Every parameter of a network by its name.

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};

use crate::arch::Layout;
use crate::lm::CausalLm;

/// One parameter of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedParameter {
    /// Its name in the files of a family.
    pub name: String,
    /// Its path in the network, the same for every family, such as
    /// `backbone.layers.0.mixer.Attention.q_proj.weight`.
    pub path: String,
    /// Its id in Burn's gradients and optimisers.
    pub id: ParamId,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// The part of a network that a parameter belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The tokens' vectors.
    Embedding,
    /// What mixes tokens.
    Mixer,
    /// What mixes channels.
    Mlp,
    /// Every normalisation.
    Norm,
    /// The projection to the vocabulary, where it is not the embedding's.
    Head,
}

impl Part {
    /// All of them, in the order of a network.
    pub const ALL: [Self; 5] = [
        Self::Embedding,
        Self::Mixer,
        Self::Mlp,
        Self::Norm,
        Self::Head,
    ];

    /// As a configuration names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Mixer => "mixer",
            Self::Mlp => "mlp",
            Self::Norm => "norm",
            Self::Head => "head",
        }
    }

    /// That of the parameter at `path` in a [`CausalLm`].
    pub fn of(path: &str) -> Self {
        if path.contains(".mixer.") {
            Self::Mixer
        } else if path.contains(".mlp.") {
            Self::Mlp
        } else if path.contains("layernorm") {
            Self::Norm
        } else if path.contains("embedding") {
            Self::Embedding
        } else {
            Self::Head
        }
    }
}

impl NamedParameter {
    /// The part of the network that it belongs to.
    pub fn part(&self) -> Part {
        Part::of(&self.path)
    }
}

/// Every parameter of `model`, in the order of its fields, under its name in `layout`. Reads no
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
        let path = self.path.join(".");
        self.found.push(NamedParameter {
            name: self.layout.name(&path),
            path,
            id: parameter.id,
            shape: parameter.lazy_shape().to_vec(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::Part;

    #[test]
    fn every_path_has_its_part() {
        for (path, part) in [
            ("backbone.embedding.weight", Part::Embedding),
            ("backbone.layers.0.input_layernorm.bias", Part::Norm),
            ("backbone.layers.0.post_mixer_layernorm.weight", Part::Norm),
            ("backbone.layers.11.mixer.DiscreteMamba2.d", Part::Mixer),
            ("backbone.layers.2.mixer.Attention.q_proj.bias", Part::Mixer),
            ("backbone.layers.0.mlp.up.weight", Part::Mlp),
            ("backbone.final_layernorm.weight", Part::Norm),
            ("lm_head.bias", Part::Head),
        ] {
            assert_eq!(Part::of(path), part, "{path}");
        }
    }
}
