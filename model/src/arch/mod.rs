//! Families of checkpoints: what their `config.json` says, and what their tensors are called.
//!
//! A family is one file or folder here, with a type for its configuration that implements [`Family`]. The list at the
//! end of this file defines [`ModelConfig`] from all families: a new family is a file, its `mod` line, and one entry of
//! that list. Every family converts to [`NetworkConfig`], from which the network, [`CausalLm`](crate::CausalLm), is
//! built. No code outside this folder depends on the family of a model.

pub(crate) mod gguf;
mod keys;
mod layout;
mod llama;
mod llama_mamba;
mod own_mixers;
mod phi;
mod phi_mamba;
mod python;
mod student_layers;

use std::fmt::Debug;
use std::ops::Deref;

use serde_json::Value;

pub use layout::Layout;
pub use llama::{LlamaConfig, LlamaFamily};
pub use llama_mamba::{LlamaMambaConfig, Rope};
pub use phi::PhiConfig;
pub use phi_mamba::{BlockConfig, PhiMambaConfig};
pub use python::PythonModule;
pub use student_layers::student_mixers;

pub use crate::layers::{NormConfig, NormKind};
pub use crate::mlp::{MlpConfig, MlpKind};

use crate::config_error::ConfigError;
use crate::mixers::{MixerConfig, StateSize};

/// A network without its parameters, whichever file format it came in.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkConfig {
    /// Rows of the embedding and of the head, padding included.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Whether the two halves of a layer are computed in parallel or one after the other.
    pub block_order: BlockOrder,
    /// Every normalisation.
    pub norm: NormConfig,
    /// Every MLP.
    pub mlp: MlpConfig,
    /// The projection to the vocabulary.
    pub head: HeadConfig,
    /// One mixer a layer.
    pub mixers: Vec<MixerConfig>,
}

/// How the two halves of a layer stand to each other; see [`Block`](crate::Block).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockOrder {
    /// Both read the same normalised input, as in Phi.
    Parallel,
    /// The MLP reads the mixer's sum, behind a second normalisation, as in Llama.
    Sequential,
}

/// The projection to the vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadConfig {
    /// With the embedding's weight, and without a bias.
    Tied,
    /// With a second weight.
    Own {
        /// Whether it has a bias.
        bias: bool,
    },
}

impl NetworkConfig {
    /// The size of the decoding state of one sequence, in f32.
    pub fn state_size(&self) -> StateSize {
        let each = self.mixers.iter();
        let each = each.map(|mixer| mixer.state_size(self.d_model));
        each.fold(StateSize::default(), StateSize::plus)
    }

    /// Floating-point operations of the head for one token, an addition and a multiplication counting as two.
    /// The embedding multiplies nothing.
    pub fn head_operations(&self) -> f64 {
        2.0 * self.d_model as f64 * self.vocab_size as f64
    }
}

/// The configuration of one family of checkpoints, and everything that is special to the family.
pub trait Family: Debug {
    /// The model in a few words, such as `Phi`.
    fn name(&self) -> &'static str;

    /// The network that it describes.
    fn network(&self) -> NetworkConfig;

    /// The positions that attention was trained on, where that limits the model, such as a Phi's
    /// `max_position_embeddings`.
    fn max_positions(&self) -> Option<usize>;

    /// What its tensors are called.
    fn layout(&self) -> Layout;

    /// The text of its `config.json`.
    fn to_json(&self) -> String;

    /// A Python module that opens its folder in Hugging Face's transformers, if transformers has no class for it. The
    /// module is written beside the weights, and [`to_json`](Self::to_json) names it.
    fn python_module(&self) -> Option<PythonModule> {
        None
    }

    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the values that do not fit.
    fn validate(&self) -> Result<(), ConfigError>;

    /// The student that this family's models are distilled into: their network with these mixers, one a layer.
    ///
    /// # Errors
    /// [`ConfigError`] if a mixer does not fit, or no family of students can describe the result.
    fn student_with(&self, mixers: Vec<MixerConfig>) -> Result<ModelConfig, ConfigError>;

    /// [`student_with`](Self::student_with) `mixer` in every layer but those of `attention_layers` (counted from 0,
    /// in any order), which keep the teacher's.
    ///
    /// # Errors
    /// Also if a layer does not exist or is named twice.
    fn student(
        &self,
        mixer: &MixerConfig,
        attention_layers: &[usize],
    ) -> Result<ModelConfig, ConfigError> {
        self.validate()?;
        let mixer = |_: usize, _: &MixerConfig| Ok(mixer.clone());
        let mixers = student_mixers(self.network().mixers, attention_layers, mixer)?;
        self.student_with(mixers)
    }
}

/// What a family must provide so that its `config.json` can be read.
pub(crate) trait FamilyFile: Family + Sized {
    /// Whether a `config.json` belongs to this family. The families are tried in the order of the list.
    fn recognises(root: &Value) -> bool;

    /// Reads the text of one.
    ///
    /// # Errors
    /// [`ConfigError`] if it is not such a file, asks for a feature that is not implemented, or its sizes do not fit
    /// together.
    fn parse(text: &str) -> Result<Self, ConfigError>;
}

impl<F: Family> From<&F> for NetworkConfig {
    fn from(config: &F) -> Self {
        config.network()
    }
}

macro_rules! families {
    ($($(#[$doc:meta])* $family:ident: $config:ident = $model_type:literal;)*) => {
        /// The configuration of a model of any family. Its methods are those of [`Family`].
        #[derive(Debug, Clone, PartialEq)]
        pub enum ModelConfig {
            $($(#[$doc])* $family($config),)*
        }

        impl ModelConfig {
            /// Reads the text of a `config.json` of any family.
            ///
            /// # Errors
            /// [`ConfigError`] if it is not such a file, asks for a feature that is not implemented, or its sizes do
            /// not fit together.
            pub fn from_json(text: &str) -> Result<Self, ConfigError> {
                let root: Value = serde_json::from_str(text)?;
                $(if $config::recognises(&root) {
                    return Ok(Self::$family($config::parse(text)?));
                })*
                let model_type = root.get("model_type");
                Err(ConfigError::Unsupported {
                    key: "model_type".into(),
                    value: model_type.map_or("absent".into(), Value::to_string),
                    supported: [$($model_type),*].join(", "),
                })
            }
        }

        impl Deref for ModelConfig {
            type Target = dyn Family;

            fn deref(&self) -> &Self::Target {
                match self {
                    $(Self::$family(config) => config,)*
                }
            }
        }

        $(impl From<$config> for ModelConfig {
            fn from(config: $config) -> Self {
                Self::$family(config)
            }
        })*
    };
}

families! {
    /// The published Phi-Mamba's, pure or hybrid.
    PhiMamba: PhiMambaConfig = "Phi-Mamba's";
    /// A student of Llama or of a family like it, pure or hybrid.
    LlamaMamba: LlamaMambaConfig = "Llama-Mamba's";
    /// Hugging Face's `PhiForCausalLM`.
    Phi: PhiConfig = "phi";
    /// Hugging Face's `LlamaForCausalLM`, and those like it.
    Llama: LlamaConfig = "llama, mistral, qwen2, qwen3";
}

impl Family for ModelConfig {
    fn name(&self) -> &'static str {
        self.deref().name()
    }

    fn network(&self) -> NetworkConfig {
        self.deref().network()
    }

    fn max_positions(&self) -> Option<usize> {
        self.deref().max_positions()
    }

    fn layout(&self) -> Layout {
        self.deref().layout()
    }

    fn to_json(&self) -> String {
        self.deref().to_json()
    }

    fn python_module(&self) -> Option<PythonModule> {
        self.deref().python_module()
    }

    fn validate(&self) -> Result<(), ConfigError> {
        self.deref().validate()
    }

    fn student_with(&self, mixers: Vec<MixerConfig>) -> Result<ModelConfig, ConfigError> {
        self.deref().student_with(mixers)
    }
}
