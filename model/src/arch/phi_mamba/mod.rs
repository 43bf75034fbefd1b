//! The published Phi-Mamba, pure or hybrid. Its configuration is nested, with runs of equal layers as
//! `Block1`, `Block2`, ...

mod file;

use serde_json::Value;

use super::python::{PythonModule, STUDENTS};
use super::student_layers::student_mixers;
use super::{
    BlockOrder, Family, FamilyFile, HeadConfig, Layout, MlpConfig, MlpKind, ModelConfig,
    NetworkConfig, NormConfig, NormKind,
};
use crate::config_error::{ConfigError, check_layers, check_positive, check_sizes};
use crate::mixers::MixerConfig;

/// The multiple that published vocabularies are padded to.
const VOCAB_MULTIPLE: usize = 8;

/// A student's configuration, pure or hybrid.
///
/// # What the published format cannot say
///
/// Its attention blocks have an empty `core_input`. Their sizes are then derived from the model: as many heads as the
/// Mamba blocks have value heads (or 32, Hugging Face's default, if there is no Mamba block), half of each head
/// rotated, base 10000. Files written here contain these sizes as explicit keys, which are used when the file is read;
/// the published code accepts and ignores them.
///
/// The published code fixes the normalisation's epsilon at 1e-5 and the MLP at four times the model's
/// width. A student of a teacher with other values has them as `layer_norm_eps` and
/// `intermediate_size` under `MixerModel.input`, written only where they differ. The published code
/// ignores both keys: it then computes with its own epsilon, slightly differently, and refuses the
/// MLP's weights for their shapes.
///
/// Options of the mixer that published ones lack (rotary positions, norms and a feature map of B and C, gates of B, a
/// bias of A_log) are further keys of `core_input`, written only where they are in use. The published code ignores these
/// keys, and would compute something else; the weights of a mixer with gates it refuses for their shapes.
///
/// For a mixer that the published format does not have, `CoreType` is the mixer's kind, and `core_input` holds its
/// options.
#[derive(Debug, Clone, PartialEq)]
pub struct PhiMambaConfig {
    /// Tokens in the vocabulary, before padding.
    pub vocab_size: usize,
    /// The embedding and the head are padded to a multiple of this.
    pub pad_vocab_size_multiple: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of the MLP's hidden layer.
    pub intermediate_size: usize,
    /// Added to the variance by every layer normalisation.
    pub layer_norm_eps: f64,
    /// Runs of equal layers, first to last.
    pub blocks: Vec<BlockConfig>,
}

/// A run of equal layers.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockConfig {
    /// How many layers.
    pub n_layers: usize,
    /// Kept for the file's sake: no dropout is applied here, in training or out of it.
    pub resid_dropout: f64,
    /// Their mixer.
    pub mixer: MixerConfig,
}

impl PhiMambaConfig {
    /// What its tensors are called.
    pub const LAYOUT: Layout = Layout::new(&[
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
        ("backbone.layers.#.mlp.up.", "backbone.layers.#.mlp.fc1."),
        ("backbone.layers.#.mlp.down.", "backbone.layers.#.mlp.fc2."),
    ]);

    /// The student of `teacher`: its sizes, with `mixer` in every layer but those of
    /// `attention_layers` (counted from 0, in any order), which keep the teacher's mixer.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] if a layer does not exist or is named twice, `mixer` does not fit, or the
    /// published format has no words for the teacher's blocks.
    pub fn student_of(
        teacher: &impl Family,
        mixer: &(impl Clone + Into<MixerConfig>),
        attention_layers: &[usize],
    ) -> Result<Self, ConfigError> {
        teacher.validate()?;
        let mixer: MixerConfig = mixer.clone().into();
        let mixer = |_: usize, _: &MixerConfig| Ok(mixer.clone());
        let mixers = student_mixers(teacher.network().mixers, attention_layers, mixer)?;
        Self::student_with(teacher, mixers)
    }

    /// The student of `teacher` with these mixers, one a layer.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] if a mixer does not fit, or the published format has no words for it or for the
    /// teacher's blocks.
    pub fn student_with(
        teacher: &impl Family,
        mixers: Vec<MixerConfig>,
    ) -> Result<Self, ConfigError> {
        teacher.validate()?;
        let network = teacher.network();
        let like_phi = network.block_order == BlockOrder::Parallel
            && network.norm.kind == NormKind::LayerNorm
            && (network.mlp.kind, network.mlp.bias) == (MlpKind::GeluNew, true)
            && network.head == HeadConfig::Own { bias: true };
        if !like_phi {
            return Err(ConfigError::Invalid(format!(
                "a Phi-Mamba has Phi's blocks, and those of {} are others",
                teacher.name()
            )));
        }
        let blocks = mixers.chunk_by(|a, b| a == b).map(|run| BlockConfig {
            n_layers: run.len(),
            resid_dropout: 0.0,
            mixer: run[0].clone(),
        });
        let config = Self {
            vocab_size: network.vocab_size,
            pad_vocab_size_multiple: VOCAB_MULTIPLE,
            d_model: network.d_model,
            intermediate_size: network.mlp.intermediate_size,
            layer_norm_eps: network.norm.epsilon,
            blocks: blocks.collect(),
        };
        config.validate()?;
        Ok(config)
    }

    /// Number of layers.
    pub fn n_layer(&self) -> usize {
        self.blocks.iter().map(|block| block.n_layers).sum()
    }

    /// Rows of the embedding and of the head: `vocab_size` rounded up to the multiple.
    pub fn padded_vocab_size(&self) -> usize {
        self.vocab_size
            .next_multiple_of(self.pad_vocab_size_multiple)
    }
}

impl FamilyFile for PhiMambaConfig {
    fn recognises(root: &Value) -> bool {
        root.get("LanguageModel").is_some()
    }

    fn parse(text: &str) -> Result<Self, ConfigError> {
        Self::from_json(text)
    }
}

impl Family for PhiMambaConfig {
    fn name(&self) -> &'static str {
        let blocks = self.blocks.iter();
        let mut mixers = blocks.map(|block| &block.mixer);
        if mixers.any(|mixer| mixer.has_attention_parts()) {
            "hybrid Phi-Mamba"
        } else {
            "Phi-Mamba"
        }
    }

    fn network(&self) -> NetworkConfig {
        let blocks = self.blocks.iter();
        let layers =
            blocks.flat_map(|block| std::iter::repeat_n(block.mixer.clone(), block.n_layers));
        NetworkConfig {
            vocab_size: self.padded_vocab_size(),
            d_model: self.d_model,
            block_order: BlockOrder::Parallel,
            norm: NormConfig {
                kind: NormKind::LayerNorm,
                epsilon: self.layer_norm_eps,
            },
            mlp: MlpConfig {
                kind: MlpKind::GeluNew,
                intermediate_size: self.intermediate_size,
                bias: true,
            },
            head: HeadConfig::Own { bias: true },
            mixers: layers.collect(),
        }
    }

    fn max_positions(&self) -> Option<usize> {
        None
    }

    fn layout(&self) -> Layout {
        Self::LAYOUT
    }

    /// In the published structure.
    fn to_json(&self) -> String {
        file::write(self)
    }

    fn python_module(&self) -> Option<PythonModule> {
        Some(STUDENTS)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("pad_vocab_size_multiple", self.pad_vocab_size_multiple),
            ("d_model", self.d_model),
            ("intermediate_size", self.intermediate_size),
        ])?;
        check_positive("layer_norm_eps", self.layer_norm_eps)?;
        for block in &self.blocks {
            check_layers("n_layers", block.n_layers)?;
            if !(0.0..=1.0).contains(&block.resid_dropout) {
                return Err(ConfigError::Invalid(format!(
                    "`resid_dropout` is {}; it must lie between 0 and 1",
                    block.resid_dropout
                )));
            }
            block.mixer.validate(self.d_model)?;
            // Its heads are written, so that their default does not matter.
            let again = file::written(&block.mixer)
                .map(|(core, input)| file::read_mixer(core, &input, file::DEFAULT_HEADS))
                .transpose()?;
            if again.as_ref() != Some(&block.mixer) {
                return Err(ConfigError::Invalid(format!(
                    "Phi-Mamba's format has no words for the options of {}",
                    block.mixer.describe(self.d_model)
                )));
            }
        }
        check_layers("n_layer", self.n_layer())
    }

    fn student_with(&self, mixers: Vec<MixerConfig>) -> Result<ModelConfig, ConfigError> {
        Ok(Self::student_with(self, mixers)?.into())
    }
}
