//! Keys of other families whose networks are nearly the same as Llama's: Gemma, Granite, Cohere, OLMo, StableLM,
//! SmolLM3, Llama 4, MiniCPM and others. Each key changes the computation, but not the names and shapes of the tensors.
//! So a file with such a key must be refused; otherwise it would silently be read as another network.

use serde_json::{Value, json};

use super::variants::Variant;
use crate::arch::keys::Keys;
use crate::config_error::ConfigError;

/// Keys with the value that changes nothing. With `null` every value changes something: the key must be absent or null.
fn neutral_values(qk_norm: bool) -> [(&'static str, Value); 28] {
    [
        // The activation, and the order of the block.
        ("hidden_act", json!("silu")),
        ("hidden_activation", json!("silu")),
        ("use_parallel_residual", json!(false)),
        ("parallel_residual", json!(false)),
        ("swiglu_limit", Value::Null),
        // Factors of the embedding, of what a block adds, and of the logits.
        ("embedding_multiplier", json!(1)),
        ("scale_emb", json!(1)),
        ("residual_multiplier", json!(1)),
        ("scale_depth", Value::Null),
        ("logits_scaling", json!(1)),
        ("logit_scale", json!(1)),
        ("dim_model_base", Value::Null),
        ("final_logit_softcapping", Value::Null),
        // What happens to queries, keys and their products.
        ("attn_logit_softcapping", Value::Null),
        ("clip_qkv", Value::Null),
        ("use_qk_norm", json!(qk_norm)),
        ("qk_layernorm", json!(qk_norm)),
        ("attn_temperature_tuning", json!(false)),
        // Which tokens a token attends to.
        ("attention_chunk_size", Value::Null),
        ("sliding_window_pattern", Value::Null),
        ("use_bidirectional_attention", json!(false)),
        ("is_causal", json!(true)),
        // Positions.
        ("partial_rotary_factor", json!(1)),
        ("rotary_pct", json!(1)),
        ("rope_interleaved", json!(false)),
        ("no_rope_layer_interval", Value::Null),
        ("use_alibi", json!(false)),
        ("alibi", json!(false)),
    ]
}

/// Checks that no such key has a value that changes the computation. `head_dim` is the size of a head, if the sizes in
/// the file fit together.
///
/// # Errors
/// [`ConfigError::Unsupported`] of the first that has, [`ConfigError::Invalid`] if it is no number where it should be.
pub(super) fn refuse(
    file: &Keys,
    variant: &Variant,
    head_dim: Option<usize>,
) -> Result<(), ConfigError> {
    for (key, neutral) in neutral_values(variant.qk_norm) {
        file.only(key, &neutral)?;
    }
    // Attention's scale, which some have as a factor, and some as the number whose root divides.
    let scalar = head_dim.map_or(Value::Null, |p| json!(p));
    file.only("query_pre_attn_scalar", &scalar)?;
    let multiplier: Option<f64> = file.read("attention_multiplier")?;
    let is_scale =
        |factor: f64| head_dim.is_some_and(|p| (factor * (p as f64).sqrt() - 1.0).abs() < 1e-6);
    if let Some(factor) = multiplier.filter(|factor| !is_scale(*factor)) {
        let supported = "the inverse root of a head's numbers";
        return Err(file.unsupported("attention_multiplier", &json!(factor), supported));
    }
    // One number a layer, 0 where it has no rotary positions; without any, some layers have none.
    let is_rotated = |layer: &Value| *layer == json!(true) || layer.as_f64() == Some(1.0);
    let layers = file.members.get("no_rope_layers");
    let Some(layers) = layers.filter(|value| !value.is_null()) else {
        return Ok(());
    };
    match layers.as_array() {
        Some(all) if !all.is_empty() && all.iter().all(is_rotated) => Ok(()),
        _ => Err(file.unsupported("no_rope_layers", layers, "1 for each layer")),
    }
}
