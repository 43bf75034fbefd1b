//! The published Phi-Mamba, pure or hybrid. Its configuration is nested, with runs of equal layers as
//! `Block1`, `Block2`, ...

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::own_mixers;
use super::phi::ATTENTION_KEYS;
use super::python::{PythonModule, STUDENTS, name_module};
use super::student_layers::student_mixers;
use super::{
    BlockOrder, Family, FamilyFile, HeadConfig, Layout, MlpConfig, MlpKind, ModelConfig,
    NetworkConfig, NormConfig, NormKind,
};
use crate::config_error::{ConfigError, check_layers, check_positive, check_sizes};
use crate::mixers::MixerConfig;
use crate::mixers::attention::AttentionConfig;
use crate::mixers::discrete_mamba2::{DiscreteMamba2Config, FeatureMap};

const MAMBA_CORE: &str = "modules.mixers.discrete_mamba2";
const ATTENTION_CORE: &str = "modules.mixers.phi_attention";
const BLOCK: &str = "modules.phi_block";
/// Heads of attention where neither the file nor a Mamba block says how many: Hugging Face's default.
const DEFAULT_HEADS: usize = 32;
/// Options of a mixer that published ones lack.
const OWN_KEYS: [&str; 7] = [
    "z_bias",
    "head_dim",
    "a_log_bias",
    "bc_norm",
    "feature_map",
    "b_gate",
    "rotary",
];
/// What the published code has fixed in its text.
const PUBLISHED_EPS: f64 = 1e-5;
/// The published MLP is this many times as wide as the model.
const PUBLISHED_MLP: usize = 4;
/// The multiple that published vocabularies are padded to.
const VOCAB_MULTIPLE: usize = 8;

/// A student's configuration, pure or hybrid.
///
/// # What the published format cannot say
///
/// Its attention blocks have an empty `core_input`. The sizes are then taken from the model: as many
/// heads as the Mamba blocks have value heads (Hugging Face's 32 where there are none), half of each
/// rotated, base 10000. They are written out as explicit keys, which the published code absorbs and
/// ignores, and read back when present.
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
/// Mixers that it does not know have their kind as `CoreType` and their options as `core_input`.
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

/// The value at `path`, read as a `T`.
fn read<T: DeserializeOwned>(root: &Value, path: &[&str]) -> Result<Option<T>, ConfigError> {
    let value = path.iter().try_fold(root, |value, key| value.get(key));
    Ok(value.cloned().map(serde_json::from_value).transpose()?)
}

fn required<T: DeserializeOwned>(
    root: &Value,
    within: &str,
    path: &[&str],
) -> Result<T, ConfigError> {
    read(root, path)?.ok_or_else(|| ConfigError::Missing {
        key: format!("{within}{}", path.join(".")),
    })
}

/// That the string at `path` is one of `supported`, which it returns.
fn one_of(
    root: &Value,
    within: &str,
    path: &[&str],
    choices: &[&'static str],
    supported: &str,
) -> Result<&'static str, ConfigError> {
    let value: String = required(root, within, path)?;
    let choice = choices.iter().find(|choice| **choice == value);
    choice.copied().ok_or_else(|| ConfigError::Unsupported {
        key: format!("{within}{}", path.join(".")),
        value,
        supported: supported.into(),
    })
}

/// The members of `core_input` that are read here; the published code ignores any other too.
fn known(core_input: &Map<String, Value>, keys: &[&str]) -> Map<String, Value> {
    let known = core_input
        .iter()
        .filter(|(key, _)| keys.contains(&key.as_str()));
    known.map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// The `CoreType` and the `core_input` of a mixer, if the format has such mixers.
fn written(mixer: &MixerConfig) -> Option<(&'static str, Map<String, Value>)> {
    let all = mixer.to_json();
    let all = all.as_object()?;
    match mixer {
        MixerConfig::DiscreteMamba2(mamba) => {
            let mut input = known(all, &DiscreteMamba2Config::KEYS);
            let published = json!(published_options(mamba));
            let own = known(all, &OWN_KEYS).into_iter();
            input.extend(own.filter(|(key, value)| published[key] != *value));
            Some((MAMBA_CORE, input))
        }
        MixerConfig::Attention(_) => Some((ATTENTION_CORE, known(all, &ATTENTION_KEYS))),
        other => Some((own_mixers::kind(other)?, all.clone())),
    }
}

/// `mixer` with those options of published mixers for which their format has no keys: no rotary positions, and a
/// bias of the gate where the projections have none.
fn published_options(mixer: &DiscreteMamba2Config) -> DiscreteMamba2Config {
    DiscreteMamba2Config {
        z_bias: !mixer.bias,
        head_dim: None,
        a_log_bias: false,
        bc_norm: None,
        feature_map: FeatureMap::Identity,
        b_gate: false,
        rotary: None,
        ..mixer.clone()
    }
}

/// The mixer that [`written`] gives these; attention has `n_heads` where they do not say it.
fn read_mixer(
    core: &str,
    core_input: &Map<String, Value>,
    n_heads: usize,
) -> Result<MixerConfig, ConfigError> {
    if core == MAMBA_CORE {
        return Ok(read_mamba(core_input)?.into());
    }
    let input = Value::Object(core_input.clone());
    if let Some(own) = own_mixers::read(core, &input) {
        return Ok(own?);
    }
    let n_heads = read(&input, &["num_attention_heads"])?.unwrap_or(n_heads);
    let default = AttentionConfig::with_heads(n_heads);
    let attention = AttentionConfig {
        n_kv_heads: read(&input, &["num_key_value_heads"])?.unwrap_or(n_heads),
        partial_rotary_factor: read(&input, &["partial_rotary_factor"])?
            .unwrap_or(default.partial_rotary_factor),
        rope_theta: read(&input, &["rope_theta"])?.unwrap_or(default.rope_theta),
        ..default
    };
    Ok(attention.into())
}

fn read_mamba(core_input: &Map<String, Value>) -> Result<DiscreteMamba2Config, ConfigError> {
    let own = known(core_input, &OWN_KEYS);
    let known = known(core_input, &DiscreteMamba2Config::KEYS);
    let published = published_options(&serde_json::from_value(Value::Object(known))?);
    if own.is_empty() {
        return Ok(published);
    }
    let mut all = json!(published);
    if let Value::Object(all) = &mut all {
        all.extend(own);
    }
    Ok(serde_json::from_value(all)?)
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

    /// Reads the text of a published `config.json`.
    ///
    /// # Errors
    /// [`ConfigError`] if it is not such a file, asks for what is not implemented, or its sizes do
    /// not fit together.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let root: Value = serde_json::from_str(text)?;
        one_of(
            &root,
            "",
            &["MixerModel", "input", "lm_head_prenorm"],
            &["layer"],
            "layer",
        )?;
        let d_model = required(&root, "", &["MixerModel", "input", "d_model"])?;
        let blocks = read_blocks(&root, d_model)?;
        let config = Self {
            vocab_size: required(&root, "", &["LanguageModel", "input", "vocab_size"])?,
            pad_vocab_size_multiple: required(
                &root,
                "",
                &["LanguageModel", "input", "pad_vocab_size_multiple"],
            )?,
            d_model,
            intermediate_size: read(&root, &["MixerModel", "input", "intermediate_size"])?
                .unwrap_or(PUBLISHED_MLP.saturating_mul(d_model)),
            layer_norm_eps: read(&root, &["MixerModel", "input", "layer_norm_eps"])?
                .unwrap_or(PUBLISHED_EPS),
            blocks,
        };
        config.validate()?;
        let n_layer: usize = required(&root, "", &["MixerModel", "input", "n_layer"])?;
        if n_layer != config.n_layer() {
            return Err(ConfigError::Invalid(format!(
                "`MixerModel.input.n_layer` is {n_layer}, but the blocks have {} layers",
                config.n_layer()
            )));
        }
        Ok(config)
    }

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

/// Every member whose name starts with `Block`, in the file's order, as the published code does.
fn read_blocks(root: &Value, d_model: usize) -> Result<Vec<BlockConfig>, ConfigError> {
    let members = root.as_object().into_iter().flatten();
    let blocks: Vec<_> = members
        .filter(|(name, _)| name.starts_with("Block"))
        .collect();
    let cores = [&[MAMBA_CORE, ATTENTION_CORE][..], own_mixers::KINDS].concat();
    let mut read_so_far = Vec::with_capacity(blocks.len());
    for (name, block) in &blocks {
        let within = format!("{name}.");
        one_of(block, &within, &["BlockType"], &[BLOCK], BLOCK)?;
        let core = one_of(block, &within, &["CoreType"], &cores, &cores.join(", "))?;
        let core_input: Map<String, Value> = read(block, &["core_input"])?.unwrap_or_default();
        read_so_far.push((
            required(block, &within, &["n_layers"])?,
            read(block, &["block_input", "resid_dropout"])?.unwrap_or(0.0),
            core,
            core_input,
        ));
    }
    let first_mamba = read_so_far
        .iter()
        .find(|(_, _, core, _)| *core == MAMBA_CORE);
    let n_heads = match first_mamba {
        Some((_, _, _, core_input)) => read_mamba(core_input)?.n_v_heads,
        None => DEFAULT_HEADS,
    };
    let mut blocks = Vec::with_capacity(read_so_far.len());
    for (n_layers, resid_dropout, core, core_input) in &read_so_far {
        let mixer = read_mixer(core, core_input, n_heads)?;
        mixer.validate(d_model)?;
        blocks.push(BlockConfig {
            n_layers: *n_layers,
            resid_dropout: *resid_dropout,
            mixer,
        });
    }
    Ok(blocks)
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
        let mut mixer_model = json!({
            "d_model": self.d_model,
            "n_layer": self.n_layer(),
            "lm_head_prenorm": "layer",
        });
        if self.layer_norm_eps != PUBLISHED_EPS {
            mixer_model["layer_norm_eps"] = json!(self.layer_norm_eps);
        }
        if self.intermediate_size != PUBLISHED_MLP * self.d_model {
            mixer_model["intermediate_size"] = json!(self.intermediate_size);
        }
        let mut root = json!({
            "LanguageModel": { "input": {
                "vocab_size": self.vocab_size,
                "pad_vocab_size_multiple": self.pad_vocab_size_multiple,
            }},
            "MixerModel": { "input": mixer_model },
        });
        for (i, block) in self.blocks.iter().enumerate() {
            // What `validate` accepts has one.
            let (core, input) = written(&block.mixer).unwrap_or_default();
            root[format!("Block{}", i + 1)] = json!({
                "n_layers": block.n_layers,
                "BlockType": BLOCK,
                "block_input": { "resid_dropout": block.resid_dropout },
                "CoreType": core,
                "core_input": input,
            });
        }
        name_module(&mut root);
        format!("{root:#}")
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
            let again = written(&block.mixer)
                .map(|(core, input)| read_mixer(core, &input, DEFAULT_HEADS))
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
