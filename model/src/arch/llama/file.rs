//! `config.json` of the families of Llama's shape, in the forms of versions 4 and 5 of transformers.

use serde_json::{Map, Value, json};

use super::variants::{AttentionBias, LlamaFamily, SlidingWindow, WINDOW};
use super::{AttentionConfig, LlamaConfig, foreign};
use crate::arch::keys::Keys;
use crate::config_error::ConfigError;
use crate::mixers::RopeScaling;

/// Keys of the families themselves that are implemented with this value alone, which absent and `null` mean too.
fn only_values() -> [(&'static str, Value); 2] {
    [
        ("pretraining_tp", json!(1)),
        ("quantization_config", Value::Null),
    ]
}

/// The members of a rotary embedding that are read. All others are refused: they belong to types that are not
/// implemented, or give one embedding a type of layer.
const ROPE_KEYS: [&str; 8] = [
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
];

/// The family that a file says it is of.
pub(super) fn family(root: &Value) -> Option<LlamaFamily> {
    let name = root.get("model_type")?;
    let mut all = LlamaFamily::ALL.into_iter();
    all.find(|family| name == family.variant().model_type)
}

/// Reads a file, whose sizes are not checked yet.
pub(super) fn read(root: &Value) -> Result<LlamaConfig, ConfigError> {
    let members = serde_json::from_value(root.clone())?;
    let members = &members;
    let path = "".into();
    let file = Keys { path, members };
    let Some(family) = family(root) else {
        let value = root.get("model_type").unwrap_or(&Value::Null);
        let names = LlamaFamily::ALL.map(|family| family.variant().model_type);
        return Err(file.unsupported("model_type", value, &names.join(", ")));
    };
    for (key, accepted) in only_values() {
        file.only(key, &accepted)?;
    }
    let variant = family.variant();
    let default = family.default_config();
    let n_heads = file
        .read("num_attention_heads")?
        .unwrap_or(default.attention.n_heads);
    // A null means as many as query heads in every family; an absent key only in Llama.
    let kv_default = match members.get("num_key_value_heads") {
        None => variant.n_kv_heads.unwrap_or(n_heads),
        Some(_) => n_heads,
    };
    let by_key = variant.attention_bias == AttentionBias::ByKey;
    let bias = by_key && file.read("attention_bias")?.unwrap_or(false);
    let rms_norm_eps = file.read("rms_norm_eps")?.unwrap_or(default.rms_norm_eps);
    let (rope_theta, rope_scaling) = read_rope(&file)?;
    let size = |key, default| Ok::<_, ConfigError>(file.read(key)?.unwrap_or(default));
    let hidden_size = size("hidden_size", default.hidden_size)?;
    let head_dim = file.read("head_dim")?.or(default.attention.head_dim);
    foreign::refuse(
        &file,
        variant,
        head_dim.or(hidden_size.checked_div(n_heads)),
    )?;
    let num_hidden_layers = size("num_hidden_layers", default.num_hidden_layers)?;
    let (sliding_window, max_window_layers) =
        read_window(&file, variant.window, num_hidden_layers)?;
    Ok(LlamaConfig {
        family,
        vocab_size: size("vocab_size", default.vocab_size)?,
        hidden_size,
        intermediate_size: size("intermediate_size", default.intermediate_size)?,
        num_hidden_layers,
        attention: AttentionConfig {
            n_heads,
            n_kv_heads: size("num_key_value_heads", kv_default)?,
            head_dim,
            qkv_bias: bias || default.attention.qkv_bias,
            dense_bias: bias,
            rope_theta: rope_theta.unwrap_or(default.attention.rope_theta),
            rope_scaling,
            qk_norm: variant.qk_norm.then_some(rms_norm_eps),
            ..default.attention
        },
        mlp_bias: variant.mlp_bias && file.read("mlp_bias")?.unwrap_or(false),
        rms_norm_eps,
        tie_word_embeddings: file.read("tie_word_embeddings")?.unwrap_or(false),
        max_position_embeddings: size("max_position_embeddings", default.max_position_embeddings)?,
        sliding_window,
        max_window_layers,
    })
}

/// The window of attention, if any of the `layers` has one, and the first layer that has.
fn read_window(
    file: &Keys,
    kind: SlidingWindow,
    layers: usize,
) -> Result<(Option<usize>, usize), ConfigError> {
    let is_used = match kind {
        SlidingWindow::Never => false,
        SlidingWindow::EveryLayer => true,
        SlidingWindow::Switched => file.read("use_sliding_window")?.unwrap_or(false),
    };
    // Absent, it is transformers' default; null, there is none.
    let window = match file.members.get("sliding_window") {
        _ if !is_used => None,
        None => Some(WINDOW),
        Some(_) => file.read("sliding_window")?,
    };
    let first = match kind {
        SlidingWindow::Switched => file.read("max_window_layers")?.unwrap_or(28),
        _ => 0,
    };
    let types: Option<Vec<String>> = file.read("layer_types")?;
    let first = match &types {
        // What newer files have instead: the type of each layer.
        Some(types) => {
            let is_full = |kind: &&String| *kind == "full_attention";
            let full = types.iter().take_while(is_full).count();
            let fits = match (window, kind) {
                (None, _) => full == layers,
                (Some(_), SlidingWindow::EveryLayer) => full == 0,
                (Some(_), _) => true,
            };
            let is_known = types[full..].iter().all(|kind| kind == "sliding_attention");
            if types.len() != layers || !is_known || !fits {
                let supported =
                    "one a layer: full_attention, then sliding_attention where there is a window";
                return Err(file.unsupported("layer_types", &json!(types), supported));
            }
            full
        }
        None => first,
    };
    match window {
        Some(window) if first < layers => Ok((Some(window), first)),
        _ => Ok((None, 0)),
    }
}

/// The base of the rotation and its scaling. Version 4 has `rope_theta` beside `rope_scaling`, version 5 has both
/// in `rope_parameters`; a file without any has transformers' default base in both versions, and no scaling.
fn read_rope(file: &Keys) -> Result<(Option<f64>, Option<RopeScaling>), ConfigError> {
    let flat_theta: Option<f64> = file.read("rope_theta")?;
    let flat: Option<Map<String, Value>> = file.read("rope_scaling")?;
    let nested: Option<Map<String, Value>> = file.read("rope_parameters")?;
    let (path, members) = match (&flat, &nested) {
        (Some(flat), Some(nested)) if flat != nested => {
            return Err(ConfigError::Invalid(
                "`rope_scaling` and `rope_parameters` differ; one of them must go".into(),
            ));
        }
        (_, Some(nested)) => ("rope_parameters.", nested),
        (Some(flat), None) => ("rope_scaling.", flat),
        (None, None) => return Ok((flat_theta, None)),
    };
    let rope = Keys {
        path: path.into(),
        members,
    };
    let unknown = |(key, _): &(&String, &Value)| !ROPE_KEYS.contains(&key.as_str());
    if let Some((key, value)) = members.iter().find(unknown) {
        return Err(rope.unsupported(key, value, "linear and llama3 scaling's keys"));
    }
    rope.only("partial_rotary_factor", &json!(1.0))?;
    let kinds: [Option<String>; 2] = [rope.read("rope_type")?, rope.read("type")?];
    let kind = match &kinds {
        [Some(new), Some(old)] if new != old => {
            return Err(ConfigError::Invalid(format!(
                "`{path}rope_type` is {new}, and `{path}type` is {old}; one of them must go"
            )));
        }
        [Some(kind), _] | [None, Some(kind)] => kind,
        [None, None] if path == "rope_parameters." => "default",
        [None, None] => {
            return Err(ConfigError::Missing {
                key: format!("{path}rope_type"),
            });
        }
    };
    let scaling = match kind {
        "default" => None,
        "linear" => Some(RopeScaling::Linear {
            factor: rope.required("factor")?,
        }),
        "llama3" => Some(RopeScaling::Llama3 {
            factor: rope.required("factor")?,
            low_freq_factor: rope.required("low_freq_factor")?,
            high_freq_factor: rope.required("high_freq_factor")?,
            original_max_position_embeddings: rope.required("original_max_position_embeddings")?,
        }),
        other => {
            let key = if kinds[0].is_some() {
                "rope_type"
            } else {
                "type"
            };
            return Err(rope.unsupported(key, &json!(other), "default, linear and llama3"));
        }
    };
    Ok((rope.read("rope_theta")?.or(flat_theta), scaling))
}

/// The file of a configuration, with version 4's keys.
pub(super) fn write(config: &LlamaConfig) -> Value {
    let (variant, attention) = (config.family.variant(), &config.attention);
    let mut root = json!({
        "architectures": [variant.class],
        "model_type": variant.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": attention.rope_theta,
        "rope_scaling": attention.rope_scaling.map(RopeScaling::to_json),
        "tie_word_embeddings": config.tie_word_embeddings,
    });
    if let Some(head_dim) = attention.head_dim {
        root["head_dim"] = json!(head_dim);
    }
    if variant.attention_bias == AttentionBias::ByKey {
        root["attention_bias"] = json!(attention.dense_bias);
    }
    if variant.mlp_bias {
        root["mlp_bias"] = json!(config.mlp_bias);
    }
    if variant.window != SlidingWindow::Never {
        root["sliding_window"] = json!(config.sliding_window);
    }
    if variant.window == SlidingWindow::Switched {
        root["use_sliding_window"] = json!(config.sliding_window.is_some());
        root["max_window_layers"] = json!(config.max_window_layers);
    }
    root
}
