//! Students of Llama and of the families like it: the teacher's blocks with Discrete Mamba-2 in the place of
//! attention, pure or hybrid.
//!
//! The names and shapes of tensors are those of goombalab/mohawk's `LayeredMambaLM` with `LlamaBlock` or
//! `Qwen2Block`. The files that are written here say the sizes and, layer by layer, the mixer. Read are that code's
//! own, too, which list components, and those of Llamba.

mod file;
mod llamba;
mod mohawk;

use serde_json::Value;

use super::python::{PythonModule, STUDENTS, name_module};
use super::{
    BlockOrder, Family, FamilyFile, HeadConfig, Layout, MlpConfig, MlpKind, ModelConfig,
    NetworkConfig, NormConfig, NormKind,
};
use crate::config_error::{ConfigError, check_layers, check_positive, check_sizes};
use crate::mixers::attention::AttentionConfig;
use crate::mixers::discrete_mamba2::DiscreteMamba2Config;
use crate::mixers::{MixerConfig, RopeScaling};

/// The multiple that published vocabularies are padded to.
const VOCAB_MULTIPLE: usize = 8;

/// A student's configuration, pure or hybrid.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaMambaConfig {
    /// The teacher's family, as its own files call it, such as `llama`.
    pub family: String,
    /// Tokens in the vocabulary, before padding.
    pub vocab_size: usize,
    /// The rotary positions of every layer that keeps attention, and of the teacher.
    pub rope: Rope,
    /// The network, with a vocabulary that is padded.
    pub network: NetworkConfig,
}

/// Rotary positions over whole heads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// How the frequencies are changed for longer sequences.
    pub scaling: Option<RopeScaling>,
}

impl Rope {
    /// That of attention in a network `d_model` wide.
    fn of(attention: &AttentionConfig, d_model: usize) -> Self {
        Self {
            theta: attention.rope_theta,
            head_dim: attention.head_dim(d_model),
            scaling: attention.rope_scaling,
        }
    }
}

/// Llama's blocks around these mixers, with MLPs of a width, with biases or without.
fn llamas_network(
    vocab_size: usize,
    d_model: usize,
    epsilon: f64,
    (intermediate_size, bias): (usize, bool),
    head: HeadConfig,
    mixers: Vec<MixerConfig>,
) -> NetworkConfig {
    NetworkConfig {
        vocab_size,
        d_model,
        block_order: BlockOrder::Sequential,
        norm: NormConfig {
            kind: NormKind::RmsNorm,
            epsilon,
        },
        mlp: MlpConfig {
            kind: MlpKind::SwiGlu,
            intermediate_size,
            bias,
        },
        head,
        mixers,
    }
}

/// With the sizes of heads written out, as a file has them.
fn explicit(mixer: &MixerConfig, d_model: usize) -> MixerConfig {
    let of_ssm = |ssm: &mut DiscreteMamba2Config| {
        ssm.head_dim = Some(ssm.head_dim(d_model));
        // It has no meaning beside that.
        ssm.expand = 1;
    };
    let of_attention = |attention: &mut AttentionConfig| {
        attention.head_dim = Some(attention.head_dim(d_model));
    };
    let mut mixer = mixer.clone();
    match &mut mixer {
        MixerConfig::DiscreteMamba2(ssm) => of_ssm(ssm),
        MixerConfig::Attention(attention) => of_attention(attention),
        MixerConfig::BesideAttention(both) => {
            of_ssm(&mut both.ssm);
            both.attention.iter_mut().for_each(of_attention);
        }
        _ => {}
    }
    mixer
}

impl LlamaMambaConfig {
    /// What its tensors are called.
    pub const LAYOUT: Layout = Layout::new(&[
        (
            "backbone.layers.#.mixer.Attention.dense.",
            "backbone.layers.#.mixer.self_attn.o_proj.",
        ),
        (
            "backbone.layers.#.mixer.Attention.",
            "backbone.layers.#.mixer.self_attn.",
        ),
        (
            "backbone.layers.#.mixer.DiscreteMamba2.d",
            "backbone.layers.#.mixer.D",
        ),
        (
            "backbone.layers.#.mixer.DiscreteMamba2.",
            "backbone.layers.#.mixer.",
        ),
        (
            "backbone.layers.#.mixer.BesideAttention.ssm.d",
            "backbone.layers.#.mixer1.D",
        ),
        (
            "backbone.layers.#.mixer.BesideAttention.ssm.",
            "backbone.layers.#.mixer1.",
        ),
        (
            "backbone.layers.#.mixer.BesideAttention.attention.dense.",
            "backbone.layers.#.mixer2.self_attn.o_proj.",
        ),
        (
            "backbone.layers.#.mixer.BesideAttention.attention.",
            "backbone.layers.#.mixer2.self_attn.",
        ),
        (
            "backbone.layers.#.mixer.BesideAttention.adapter.",
            "backbone.layers.#.adapter.out_proj.",
        ),
        (
            "backbone.layers.#.post_mixer_layernorm.",
            "backbone.layers.#.post_attention_layernorm.",
        ),
        (
            "backbone.layers.#.mlp.gate.",
            "backbone.layers.#.mlp.gate_proj.",
        ),
        (
            "backbone.layers.#.mlp.up.",
            "backbone.layers.#.mlp.up_proj.",
        ),
        (
            "backbone.layers.#.mlp.down.",
            "backbone.layers.#.mlp.down_proj.",
        ),
    ]);

    /// Reads the text of a `config.json`: one of this crate's, or a published one of goombalab/mohawk's checkpoints
    /// or of Llamba.
    ///
    /// # Errors
    /// [`ConfigError`] if it is not such a file, asks for a feature that is not implemented, or its sizes do not fit
    /// together.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let root: Value = serde_json::from_str(text)?;
        let config = if let Some(components) = mohawk::components(&root) {
            mohawk::read(components)?
        } else if llamba::is_one(&root) {
            llamba::read(&root)?
        } else {
            file::read(&root)?
        };
        config.validate()?;
        Ok(config)
    }

    /// The student of `teacher`, whose files call its family `family`: its sizes, with these mixers, one a layer.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] if a mixer does not fit, or the format has no words for it or for the teacher's
    /// blocks.
    pub fn student_with(
        teacher: &impl Family,
        family: &str,
        mixers: Vec<MixerConfig>,
    ) -> Result<Self, ConfigError> {
        teacher.validate()?;
        let network = teacher.network();
        let d_model = network.d_model;
        let attention = network.mixers.iter().find_map(|mixer| match mixer {
            MixerConfig::Attention(attention) => Some(attention.clone()),
            _ => None,
        });
        let Some(attention) = attention else {
            return Err(ConfigError::Invalid(format!(
                "{} has no attention to take the place of",
                teacher.name()
            )));
        };
        for mixer in &mixers {
            mixer.validate(d_model)?;
        }
        let mixers = mixers.iter().map(|mixer| explicit(mixer, d_model));
        let config = Self {
            family: family.into(),
            vocab_size: network.vocab_size,
            rope: Rope::of(&attention, d_model),
            network: NetworkConfig {
                vocab_size: network.vocab_size.next_multiple_of(VOCAB_MULTIPLE),
                mixers: mixers.collect(),
                ..network
            },
        };
        config.validate()?;
        Ok(config)
    }
}

impl FamilyFile for LlamaMambaConfig {
    fn recognises(root: &Value) -> bool {
        let is_own =
            root.get("layers").is_some_and(Value::is_array) && root.get("family").is_some();
        is_own || llamba::is_one(root) || mohawk::components(root).is_some()
    }

    fn parse(text: &str) -> Result<Self, ConfigError> {
        Self::from_json(text)
    }
}

impl Family for LlamaMambaConfig {
    fn name(&self) -> &'static str {
        let has_attention = |mixer: &MixerConfig| {
            matches!(
                mixer,
                MixerConfig::Attention(_) | MixerConfig::BesideAttention(_)
            )
        };
        if self.network.mixers.iter().any(has_attention) {
            "hybrid Llama-Mamba"
        } else {
            "Llama-Mamba"
        }
    }

    fn network(&self) -> NetworkConfig {
        self.network.clone()
    }

    fn max_positions(&self) -> Option<usize> {
        None
    }

    fn layout(&self) -> Layout {
        Self::LAYOUT
    }

    fn to_json(&self) -> String {
        let mut root = file::write(self);
        name_module(&mut root);
        format!("{root:#}")
    }

    fn python_module(&self) -> Option<PythonModule> {
        Some(STUDENTS)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let network = &self.network;
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("padded_vocab_size", network.vocab_size),
            ("d_model", network.d_model),
            ("mlp.hidden", network.mlp.intermediate_size),
            ("rope.head_dim", self.rope.head_dim),
        ])?;
        check_layers("n_layers", network.mixers.len())?;
        check_positive("norm_epsilon", network.norm.epsilon)?;
        check_positive("rope.theta", self.rope.theta)?;
        if let Some(scaling) = self.rope.scaling {
            scaling.validate()?;
        }
        if network.vocab_size < self.vocab_size {
            return Err(ConfigError::Invalid(format!(
                "`padded_vocab_size` is {}, less than `vocab_size`, {}",
                network.vocab_size, self.vocab_size
            )));
        }
        let like_llama = network.block_order == BlockOrder::Sequential
            && network.norm.kind == NormKind::RmsNorm
            && network.mlp.kind == MlpKind::SwiGlu;
        if !like_llama {
            return Err(ConfigError::Invalid(
                "a Llama-Mamba has Llama's blocks: RMS norms, one half after the other, and a gated MLP".into(),
            ));
        }
        for (i, mixer) in network.mixers.iter().enumerate() {
            mixer.validate(network.d_model)?;
            let written = file::write_layer(mixer, network.d_model, self.rope);
            let again = written.as_object();
            let again = again.map(|layer| file::read_layer(layer, i, self.rope));
            if again.transpose()?.as_ref() != Some(mixer) {
                return Err(ConfigError::Invalid(format!(
                    "a Llama-Mamba's format has no words for the options of layer {i}, {}",
                    mixer.describe(network.d_model)
                )));
            }
        }
        Ok(())
    }

    fn student_with(&self, mixers: Vec<MixerConfig>) -> Result<ModelConfig, ConfigError> {
        Ok(Self::student_with(self, &self.family, mixers)?.into())
    }
}
