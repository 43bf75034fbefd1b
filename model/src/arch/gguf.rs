//! Translates GGUF files to the conventions of Hugging Face: the keys of a file to a `config.json`, and the names of
//! its tensors.
//!
//! The keys are those of ggml's `docs/gguf.md`, the names those of the Python package `gguf`
//! (`constants.py`, `tensor_mapping.py`).

use serde_json::{Map, Value, json};

use super::Layout;
use crate::config_error::ConfigError;
use crate::mixers::{RopeScaling, rotary_frequencies};

/// What a file calls its architecture.
const ARCHITECTURE: &str = "general.architecture";

/// The names of tensors: those of the file, and Hugging Face's.
const NAMES: Layout = Layout::new(&[
    ("token_embd.", "model.embed_tokens."),
    ("output_norm.", "model.norm."),
    ("output.", "lm_head."),
    ("blk.#.attn_norm.", "model.layers.#.input_layernorm."),
    ("blk.#.attn_q.", "model.layers.#.self_attn.q_proj."),
    ("blk.#.attn_k.", "model.layers.#.self_attn.k_proj."),
    ("blk.#.attn_v.", "model.layers.#.self_attn.v_proj."),
    ("blk.#.attn_output.", "model.layers.#.self_attn.o_proj."),
    ("blk.#.attn_q_norm.", "model.layers.#.self_attn.q_norm."),
    ("blk.#.attn_k_norm.", "model.layers.#.self_attn.k_norm."),
    (
        "blk.#.ffn_norm.",
        "model.layers.#.post_attention_layernorm.",
    ),
    ("blk.#.ffn_gate.", "model.layers.#.mlp.gate_proj."),
    ("blk.#.ffn_up.", "model.layers.#.mlp.up_proj."),
    ("blk.#.ffn_down.", "model.layers.#.mlp.down_proj."),
]);

/// Keys that become one of `config.json` as they are, and whether a file must have them.
const KEYS: [(&str, &str, bool); 10] = [
    ("block_count", "num_hidden_layers", true),
    ("embedding_length", "hidden_size", true),
    ("feed_forward_length", "intermediate_size", true),
    ("context_length", "max_position_embeddings", true),
    ("attention.head_count", "num_attention_heads", true),
    ("attention.head_count_kv", "num_key_value_heads", false),
    ("attention.key_length", "head_dim", false),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps", true),
    ("rope.freq_base", "rope_theta", false),
    ("vocab_size", "vocab_size", false),
];

/// Keys that need more: how the rotation is scaled, and sizes that must be others.
const ROPE_TYPE: &str = "rope.scaling.type";
const ROPE_FACTOR: &str = "rope.scaling.factor";
const ROTATED: &str = "rope.dimension_count";
const VALUE_LENGTH: &str = "attention.value_length";
const CAUSAL: &str = "attention.causal";
/// Keys that describe only the origin of values, and are ignored.
const IDLE: [&str; 2] = [
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
];

/// The tensor of numbers by which Llama 3's rotation divides its frequencies.
pub(crate) const ROPE_FREQS: &str = "rope_freqs.weight";

/// An architecture that is read.
struct Architecture {
    /// Its name in a file, which is the `model_type` of `config.json` too.
    name: &'static str,
    class: &'static str,
    /// Whether the rows of queries and keys lie as in Meta's files: the two numbers that are turned together
    /// beside each other, and not half a head apart.
    is_interleaved: bool,
}

const ARCHITECTURES: [Architecture; 3] = [
    Architecture {
        name: "llama",
        class: "LlamaForCausalLM",
        is_interleaved: true,
    },
    Architecture {
        name: "qwen2",
        class: "Qwen2ForCausalLM",
        is_interleaved: false,
    },
    Architecture {
        name: "qwen3",
        class: "Qwen3ForCausalLM",
        is_interleaved: false,
    },
];

/// Hugging Face's name of the tensor that a file calls `name`; `name` itself, if it is none of a model's.
pub(crate) fn tensor_name(name: &str) -> String {
    NAMES.name(name)
}

/// The size of the heads whose rows must change places in the tensor `name`: row `s d / 2 + i` of a head of `d`
/// rows, for `i < d / 2`, is the file's row `2 i + s`. `None` if they lie as they should.
pub(crate) fn interleaved_heads(keys: &Map<String, Value>, name: &str) -> Option<usize> {
    let architecture = architecture(keys).ok()?;
    let is_rotated = [".attn_q.", ".attn_k."]
        .iter()
        .any(|part| name.contains(part));
    if !architecture.is_interleaved || !is_rotated {
        return None;
    }
    let head_dim = head_dim(keys, architecture)?;
    (head_dim.is_multiple_of(2) && head_dim > 0).then_some(head_dim)
}

/// The rows of a head.
fn head_dim(keys: &Map<String, Value>, architecture: &Architecture) -> Option<usize> {
    let size = |key: &str| Some(keys.get(&key_of(architecture, key))?.as_u64()? as usize);
    let by_width = || size("embedding_length")?.checked_div(size("attention.head_count")?);
    size("attention.key_length").or_else(by_width)
}

fn key_of(architecture: &Architecture, key: &str) -> String {
    format!("{}.{key}", architecture.name)
}

fn architecture(keys: &Map<String, Value>) -> Result<&'static Architecture, ConfigError> {
    let name = keys.get(ARCHITECTURE).ok_or_else(|| ConfigError::Missing {
        key: ARCHITECTURE.into(),
    })?;
    let mut all = ARCHITECTURES.iter();
    all.find(|architecture| name == architecture.name)
        .ok_or_else(|| {
            let names = ARCHITECTURES.map(|architecture| architecture.name);
            unsupported(ARCHITECTURE, name, &names.join(", "))
        })
}

fn unsupported(key: &str, value: &Value, supported: &str) -> ConfigError {
    ConfigError::Unsupported {
        key: key.into(),
        value: value.to_string(),
        supported: supported.into(),
    }
}

/// The `config.json` of a file with these `keys` and with tensors of the shapes that `shape` gives by their names
/// in the file. `rope_freqs` are the values of [`ROPE_FREQS`], if there is such a tensor.
///
/// # Errors
/// [`ConfigError`], by the file's key, if one is missing or has a value that is not implemented. Every key of the
/// architecture is one that is known here, or has the value 0 or false.
pub(crate) fn config_json(
    keys: &Map<String, Value>,
    shape: impl Fn(&str) -> Option<Vec<usize>>,
    rope_freqs: Option<&[f32]>,
) -> Result<Value, ConfigError> {
    for (key, only, advice) in [
        ("general.type", "model", ""),
        (
            "split.count",
            "1",
            "; `llama-gguf-split --merge` joins the files of a model",
        ),
    ] {
        // Other files have weights to add to a model's, and the others of several have the rest of its weights.
        match keys.get(key) {
            Some(value) if value != only && value.as_u64().is_none_or(|count| count > 1) => {
                return Err(unsupported(key, value, &format!("{only}{advice}")));
            }
            _ => {}
        }
    }
    let architecture = architecture(keys)?;
    let prefix = key_of(architecture, "");
    let own = keys
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?, value)));
    let own: Map<String, Value> = own
        .map(|(key, value)| (key.to_owned(), value.clone()))
        .collect();
    let named = |key: &str| format!("{prefix}{key}");

    let mut root = Map::new();
    root.insert("architectures".into(), json!([architecture.class]));
    root.insert("model_type".into(), architecture.name.into());
    for (key, theirs, is_needed) in KEYS {
        match own.get(key) {
            Some(value) if !value.is_number() => {
                return Err(unsupported(&named(key), value, "a number"));
            }
            Some(value) => {
                root.insert(theirs.into(), value.clone());
            }
            None if is_needed => return Err(ConfigError::Missing { key: named(key) }),
            None => {}
        }
    }
    let defaults = [
        ("num_key_value_heads", root["num_attention_heads"].clone()),
        ("rope_theta", json!(10000.0)),
    ];
    for (key, value) in defaults {
        root.entry(key).or_insert(value);
    }
    if let (None, Some(embedding)) = (own.get("vocab_size"), shape("token_embd.weight")) {
        root.insert("vocab_size".into(), embedding[0].into());
    }
    let head_dim = head_dim(keys, architecture);
    for (key, value) in &own {
        let key = key.as_str();
        let must_be = match key {
            ROTATED | VALUE_LENGTH => head_dim.map(|n| json!(n)),
            CAUSAL => Some(json!(true)),
            ROPE_TYPE | ROPE_FACTOR => continue,
            _ if IDLE.contains(&key) || KEYS.iter().any(|(known, ..)| *known == key) => continue,
            // That is how a file says that it has none.
            _ if *value == json!(false) || value.as_f64() == Some(0.0) => continue,
            _ => None,
        };
        if must_be.as_ref() != Some(value) {
            let supported = must_be.map_or("files without it".to_owned(), |only| only.to_string());
            return Err(unsupported(&named(key), value, &supported));
        }
    }
    // As in llama.cpp, a factor without a type is that of linear scaling, and 0 and 1 scale nothing.
    let factor = own.get(ROPE_FACTOR);
    let linear = json!("linear");
    let kind = own.get(ROPE_TYPE).or_else(|| {
        let scales = factor.filter(|factor| ![Some(0.0), Some(1.0)].contains(&factor.as_f64()));
        scales.map(|_| &linear)
    });
    let scaling = match (kind.filter(|kind| *kind != "none"), rope_freqs) {
        (None, None) => Value::Null,
        (None, Some(divisors)) => llama3(&root, head_dim, divisors)?,
        (Some(kind), None) if kind == "linear" => {
            let factor = factor.ok_or_else(|| ConfigError::Missing {
                key: named(ROPE_FACTOR),
            })?;
            json!({"rope_type": "linear", "factor": factor})
        }
        (Some(kind), None) => return Err(unsupported(&named(ROPE_TYPE), kind, "none, linear")),
        (Some(kind), Some(_)) => {
            let supported = format!("none beside `{ROPE_FREQS}`");
            return Err(unsupported(&named(ROPE_TYPE), kind, &supported));
        }
    };
    root.insert("rope_scaling".into(), scaling);
    root.insert(
        "tie_word_embeddings".into(),
        shape("output.weight").is_none().into(),
    );
    // The other families have their biases by their class.
    if architecture.name == "llama" {
        let has = |name: &str| shape(name).is_some();
        root.insert("attention_bias".into(), has("blk.0.attn_q.bias").into());
        root.insert("mlp_bias".into(), has("blk.0.ffn_up.bias").into());
    }
    Ok(Value::Object(root))
}

/// Llama 3's scaling, of which a file has only the numbers by which frequencies are divided: `divisors`. All
/// published models have the same options but for the factor, which is the largest divisor.
fn llama3(
    root: &Map<String, Value>,
    head_dim: Option<usize>,
    divisors: &[f32],
) -> Result<Value, ConfigError> {
    let factor = divisors.iter().fold(1.0, |max: f32, n| max.max(*n)).into();
    let scaling = RopeScaling::Llama3 {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let theta = root["rope_theta"].as_f64().unwrap_or_default();
    let head_dim = head_dim.unwrap_or_default();
    let plain = rotary_frequencies(head_dim, theta, None);
    let scaled = plain
        .iter()
        .map(|frequency| frequency / scaling.apply(*frequency));
    let is_same =
        |(expected, found): (f64, &f32)| (expected / f64::from(*found) - 1.0).abs() < 1e-4;
    if divisors.len() == plain.len() && scaled.zip(divisors).all(is_same) {
        return Ok(scaling.to_json());
    }
    Err(ConfigError::Invalid(format!(
        "`{ROPE_FREQS}` changes the frequencies of positions in a way that is not implemented (only Llama 3's, \
         for 8192 original positions)"
    )))
}
