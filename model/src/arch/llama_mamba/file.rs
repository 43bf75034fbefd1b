//! `config.json` of the students.

use kernels::Window;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use super::{LlamaMambaConfig, Rope, llamas_network};
use crate::arch::{HeadConfig, own_mixers};
use crate::config_error::ConfigError;
use crate::mixers::attention::AttentionConfig;
use crate::mixers::beside_attention::{BesideAttentionConfig, Joined};
use crate::mixers::discrete_mamba2::DiscreteMamba2Config;
use crate::mixers::{MixerConfig, MixerOptions, RopeScaling};

/// The kinds of a layer with two mixers.
const ADAPTER: &str = "ssm_and_heads_adapter";
const SUM: &str = "ssm_and_heads_sum";

/// The file, but for its layers.
#[derive(Deserialize)]
struct File {
    family: String,
    vocab_size: usize,
    padded_vocab_size: Option<usize>,
    d_model: usize,
    n_layers: usize,
    block: String,
    norm: String,
    norm_epsilon: f64,
    tie_embeddings: bool,
    #[serde(default)]
    lm_head_bias: bool,
    mlp: MlpFile,
    rope: RopeFile,
    layers: Vec<Map<String, Value>>,
}

#[derive(Deserialize)]
struct MlpFile {
    kind: String,
    hidden: usize,
    activation: String,
    #[serde(default)]
    bias: bool,
}

#[derive(Deserialize)]
struct RopeFile {
    theta: f64,
    head_dim: usize,
    scaling: Option<RopeScaling>,
}

#[derive(Deserialize)]
struct AttentionFile {
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    qkv_bias: bool,
    o_bias: bool,
    qk_norm: Option<f64>,
    window: Option<usize>,
    #[serde(default)]
    sinks: usize,
    #[serde(default)]
    heads: Vec<usize>,
}

/// Checks that `value`, the value of `key`, is the one that is implemented.
fn only(key: &str, value: &str, supported: &str) -> Result<(), ConfigError> {
    if value == supported {
        return Ok(());
    }
    Err(ConfigError::Unsupported {
        key: key.into(),
        value: value.into(),
        supported: supported.into(),
    })
}

/// The member `key` of layer `i`.
fn member<T: DeserializeOwned>(
    layer: &Map<String, Value>,
    i: usize,
    key: &str,
) -> Result<T, ConfigError> {
    let path = format!("layers[{i}].{key}");
    let Some(value) = layer.get(key) else {
        return Err(ConfigError::Missing { key: path });
    };
    let read = serde_json::from_value(value.clone());
    read.map_err(|error| ConfigError::Invalid(format!("`{path}`: {error}")))
}

/// The state-space mixer of layer `i`.
fn read_ssm(layer: &Map<String, Value>, i: usize) -> Result<DiscreteMamba2Config, ConfigError> {
    let mut ssm: Map<String, Value> = member(layer, i, "ssm")?;
    // That of the gated output, which Mamba-2 has and no student.
    if let Some(norm) = ssm.remove("norm") {
        let norm = norm
            .as_str()
            .map_or_else(|| norm.to_string(), str::to_owned);
        only(&format!("layers[{i}].ssm.norm"), &norm, "none")?;
    }
    let invalid = |error| ConfigError::Invalid(format!("`layers[{i}].ssm`: {error}"));
    serde_json::from_value(Value::Object(ssm)).map_err(invalid)
}

/// The attention of layer `i`.
fn read_attention(
    layer: &Map<String, Value>,
    i: usize,
    rope: Rope,
) -> Result<AttentionConfig, ConfigError> {
    let file: AttentionFile = member(layer, i, "attention")?;
    Ok(AttentionConfig {
        n_kv_heads: file.n_kv_heads,
        head_dim: Some(file.head_dim),
        qkv_bias: file.qkv_bias,
        dense_bias: file.o_bias,
        partial_rotary_factor: 1.0,
        rope_theta: rope.theta,
        rope_scaling: rope.scaling,
        qk_norm: file.qk_norm,
        window: file.window.map(|window| Window {
            window,
            sinks: file.sinks,
        }),
        ..AttentionConfig::with_heads(file.n_heads)
    })
}

/// The two mixers of layer `i`.
fn read_both(
    layer: &Map<String, Value>,
    i: usize,
    rope: Rope,
    joined: Joined,
) -> Result<BesideAttentionConfig, ConfigError> {
    // Published files say by the number of heads that a layer keeps none.
    let file: AttentionFile = member(layer, i, "attention")?;
    let attention = if file.n_heads > 0 {
        Some(read_attention(layer, i, rope)?)
    } else {
        None
    };
    Ok(BesideAttentionConfig {
        ssm: read_ssm(layer, i)?,
        attention,
        heads: file.heads,
        joined,
    })
}

/// The mixer of layer `i`.
pub(super) fn read_layer(
    layer: &Map<String, Value>,
    i: usize,
    rope: Rope,
) -> Result<MixerConfig, ConfigError> {
    let kind: String = member(layer, i, "kind")?;
    match kind.as_str() {
        "ssm" => Ok(read_ssm(layer, i)?.into()),
        "attention" => Ok(read_attention(layer, i, rope)?.into()),
        ADAPTER => Ok(read_both(layer, i, rope, Joined::Adapter)?.into()),
        SUM => Ok(read_both(layer, i, rope, Joined::Sum)?.into()),
        other => {
            let options = layer.get(other).unwrap_or(&Value::Null);
            let own = own_mixers::read(other, options).ok_or_else(|| ConfigError::Unsupported {
                key: format!("layers[{i}].kind"),
                value: other.into(),
                supported: format!(
                    "ssm, attention, {ADAPTER}, {SUM}, {}",
                    own_mixers::KINDS.join(", ")
                ),
            })?;
            let invalid = |error| ConfigError::Invalid(format!("`layers[{i}].{other}`: {error}"));
            own.map_err(invalid)
        }
    }
}

/// The members of a state-space mixer; those that published mixers lack only where they are there.
fn write_ssm(mixer: &DiscreteMamba2Config, d_model: usize) -> Value {
    let mut ssm = mixer.to_json();
    ssm["head_dim"] = json!(mixer.head_dim(d_model));
    ssm["norm"] = json!("none");
    if let Value::Object(members) = &mut ssm {
        members.remove("expand");
        if !mixer.a_log_bias {
            members.remove("a_log_bias");
        }
        if mixer.bc_norm.is_none() {
            members.remove("bc_norm");
        }
    }
    ssm
}

fn write_attention(attention: &AttentionConfig, d_model: usize) -> Value {
    let mut members = json!({
        "n_heads": attention.n_heads,
        "n_kv_heads": attention.n_kv_heads,
        "head_dim": attention.head_dim(d_model),
        "qkv_bias": attention.qkv_bias,
        "o_bias": attention.dense_bias,
    });
    if let Some(epsilon) = attention.qk_norm {
        members["qk_norm"] = json!(epsilon);
    }
    if let Some(Window { window, sinks }) = attention.window {
        members["window"] = json!(window);
        members["sinks"] = json!(sinks);
    }
    members
}

/// The members of a layer with this mixer, in a network that is `d_model` wide and has this `rope`.
pub(super) fn write_layer(mixer: &MixerConfig, d_model: usize, rope: Rope) -> Value {
    match mixer {
        MixerConfig::DiscreteMamba2(mixer) => json!({
            "kind": "ssm",
            "ssm": write_ssm(mixer, d_model),
        }),
        MixerConfig::Attention(attention) => json!({
            "kind": "attention",
            "attention": write_attention(attention, d_model),
        }),
        MixerConfig::BesideAttention(both) => {
            let mut attention = match &both.attention {
                Some(attention) => write_attention(attention, d_model),
                None => json!({
                    "n_heads": 0,
                    "n_kv_heads": 0,
                    "head_dim": rope.head_dim,
                    "qkv_bias": false,
                    "o_bias": false,
                }),
            };
            if !both.heads.is_empty() {
                attention["heads"] = json!(both.heads);
            }
            let kind = match both.joined {
                Joined::Adapter => ADAPTER,
                Joined::Sum => SUM,
            };
            json!({
                "kind": kind,
                "ssm": write_ssm(&both.ssm, d_model),
                "attention": attention,
            })
        }
        other => json!({
            "kind": other.kind(),
            (other.kind()): other.to_json(),
        }),
    }
}

/// Reads a file, whose sizes are not checked yet.
pub(super) fn read(root: &Value) -> Result<LlamaMambaConfig, ConfigError> {
    let file: File = serde_json::from_value(root.clone())?;
    only("block", &file.block, "sequential")?;
    only("norm", &file.norm, "rms")?;
    only("mlp.kind", &file.mlp.kind, "gated")?;
    only("mlp.activation", &file.mlp.activation, "silu")?;
    let rope = Rope {
        theta: file.rope.theta,
        head_dim: file.rope.head_dim,
        scaling: file.rope.scaling,
    };
    let epsilon = file.norm_epsilon;
    let mut mixers = Vec::with_capacity(file.layers.len());
    for (i, layer) in file.layers.iter().enumerate() {
        let own = layer.get("norm_epsilon").and_then(Value::as_f64);
        if own.is_some_and(|own| own != epsilon) {
            return Err(ConfigError::Unsupported {
                key: format!("layers[{i}].norm_epsilon"),
                value: own.unwrap_or_default().to_string(),
                supported: format!("{epsilon}, as everywhere"),
            });
        }
        mixers.push(read_layer(layer, i, rope)?);
    }
    if file.n_layers != mixers.len() {
        return Err(ConfigError::Invalid(format!(
            "`n_layers` is {}, but `layers` has {}",
            file.n_layers,
            mixers.len()
        )));
    }
    let head = match (file.tie_embeddings, file.lm_head_bias) {
        (true, false) => HeadConfig::Tied,
        (false, bias) => HeadConfig::Own { bias },
        (true, true) => {
            return Err(ConfigError::Invalid(
                "`lm_head_bias` is true, but a head with the embedding's weight has no bias".into(),
            ));
        }
    };
    Ok(LlamaMambaConfig {
        family: file.family,
        vocab_size: file.vocab_size,
        rope,
        network: llamas_network(
            file.padded_vocab_size.unwrap_or(file.vocab_size),
            file.d_model,
            epsilon,
            (file.mlp.hidden, file.mlp.bias),
            head,
            mixers,
        ),
    })
}

/// The file of a configuration.
pub(super) fn write(config: &LlamaMambaConfig) -> Value {
    let network = &config.network;
    let epsilon = network.norm.epsilon;
    let layer = |mixer: &MixerConfig| {
        let mut layer = write_layer(mixer, network.d_model, config.rope);
        layer["norm_epsilon"] = json!(epsilon);
        layer
    };
    json!({
        "family": config.family,
        "vocab_size": config.vocab_size,
        "padded_vocab_size": network.vocab_size,
        "d_model": network.d_model,
        "n_layers": network.mixers.len(),
        "block": "sequential",
        "norm": "rms",
        "norm_epsilon": epsilon,
        "tie_embeddings": network.head == HeadConfig::Tied,
        "lm_head_bias": network.head == HeadConfig::Own { bias: true },
        "mlp": {
            "kind": "gated",
            "hidden": network.mlp.intermediate_size,
            "activation": "silu",
            "bias": network.mlp.bias,
        },
        "rope": {
            "theta": config.rope.theta,
            "head_dim": config.rope.head_dim,
            "scaling": config.rope.scaling.map(RopeScaling::to_json),
        },
        "layers": network.mixers.iter().map(layer).collect::<Vec<_>>(),
    })
}
