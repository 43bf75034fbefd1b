//! `config.json` of the students.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::{BlockConfig, PhiMambaConfig};
use crate::arch::phi::ATTENTION_KEYS;
use crate::arch::python::name_module;
use crate::arch::{Family, own_mixers};
use crate::config_error::ConfigError;
use crate::mixers::MixerConfig;
use crate::mixers::attention::AttentionConfig;
use crate::mixers::discrete_mamba2::{DiscreteMamba2Config, FeatureMap};

const MAMBA_CORE: &str = "modules.mixers.discrete_mamba2";
const ATTENTION_CORE: &str = "modules.mixers.phi_attention";
const BLOCK: &str = "modules.phi_block";
/// Heads of attention where neither the file nor a Mamba block says how many: Hugging Face's default.
pub(super) const DEFAULT_HEADS: usize = 32;
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

/// Checks that the string at `path` is one of `choices`, and returns that choice. An error lists the choices as
/// `supported`.
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
pub(super) fn written(mixer: &MixerConfig) -> Option<(&'static str, Map<String, Value>)> {
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
pub(super) fn read_mixer(
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
    /// Reads the text of a published `config.json`.
    ///
    /// # Errors
    /// [`ConfigError`] if it is not such a file, asks for a feature that is not implemented, or its sizes do
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

/// In the published structure.
pub(super) fn write(config: &PhiMambaConfig) -> String {
    let mut mixer_model = json!({
        "d_model": config.d_model,
        "n_layer": config.n_layer(),
        "lm_head_prenorm": "layer",
    });
    if config.layer_norm_eps != PUBLISHED_EPS {
        mixer_model["layer_norm_eps"] = json!(config.layer_norm_eps);
    }
    if config.intermediate_size != PUBLISHED_MLP * config.d_model {
        mixer_model["intermediate_size"] = json!(config.intermediate_size);
    }
    let mut root = json!({
        "LanguageModel": { "input": {
            "vocab_size": config.vocab_size,
            "pad_vocab_size_multiple": config.pad_vocab_size_multiple,
        }},
        "MixerModel": { "input": mixer_model },
    });
    for (i, block) in config.blocks.iter().enumerate() {
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
