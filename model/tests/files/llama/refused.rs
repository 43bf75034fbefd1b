//! What the `config.json` may not say.

use model::{ConfigError, LlamaConfig, ModelConfig};
use serde_json::{Value, json};

use super::{ALL, file, read};

/// Each by its key and its value.
#[test]
fn what_is_not_implemented_is_refused_by_key_and_value() {
    for model_type in ALL {
        for (key, value, more) in [
            ("hidden_act", "\"gelu\"", json!({ "hidden_act": "gelu" })),
            ("pretraining_tp", "2", json!({ "pretraining_tp": 2 })),
            (
                "partial_rotary_factor",
                "0.5",
                json!({ "partial_rotary_factor": 0.5 }),
            ),
            (
                "rope_interleaved",
                "true",
                json!({ "rope_interleaved": true }),
            ),
            (
                "quantization_config",
                "gptq",
                json!({ "quantization_config": { "quant_method": "gptq" } }),
            ),
            (
                "rope_scaling.rope_type",
                "\"yarn\"",
                json!({ "rope_scaling": { "rope_type": "yarn" } }),
            ),
            (
                "rope_scaling.type",
                "\"dynamic\"",
                json!({ "rope_scaling": { "type": "dynamic", "factor": 2.0 } }),
            ),
            (
                "rope_parameters.partial_rotary_factor",
                "0.25",
                json!({ "rope_parameters": { "partial_rotary_factor": 0.25 } }),
            ),
            (
                "rope_parameters.full_attention",
                "10.0",
                json!({ "rope_parameters": { "full_attention": { "rope_theta": 10.0 } } }),
            ),
            (
                "rope_parameters.attention_factor",
                "0.7",
                json!({ "rope_parameters": { "rope_type": "linear", "factor": 2.0, "attention_factor": 0.7 } }),
            ),
            (
                "layer_types",
                "chunked_attention",
                json!({ "layer_types": vec!["chunked_attention"; 4] }),
            ),
            (
                "layer_types",
                "sliding_attention",
                json!({ "layer_types": vec!["sliding_attention"; 3] }),
            ),
        ] {
            let error = read(&file(model_type, more)).expect_err(key);
            assert!(matches!(error, ConfigError::Unsupported { .. }), "{error}");
            let said = error.to_string();
            assert!(said.contains(&format!("`{key}`")), "{said}");
            assert!(said.contains(value), "{said}");
        }
        for (key, more) in [
            ("factor", json!({ "rope_scaling": { "type": "linear" } })),
            ("rope_type", json!({ "rope_scaling": { "factor": 2.0 } })),
            (
                "low_freq_factor",
                json!({ "rope_parameters": { "rope_type": "llama3", "factor": 2.0 } }),
            ),
        ] {
            let error = read(&file(model_type, more)).expect_err(key);
            assert!(matches!(error, ConfigError::Missing { .. }), "{error}");
            assert!(error.to_string().contains(key), "{error}");
        }
        for (said, more) in [
            ("hidden_size", json!({ "hidden_size": 0 })),
            ("hidden_size", json!({ "hidden_size": "wide" })),
            ("vocab_size", json!({ "vocab_size": -1 })),
            (
                "`num_key_value_heads` is 3, which does not divide `num_attention_heads`, 4",
                json!({ "num_key_value_heads": 3 }),
            ),
            ("num_key_value_heads", json!({ "num_key_value_heads": 0 })),
            (
                "num_hidden_layers",
                json!({ "num_hidden_layers": 1000000000000_u64 }),
            ),
            ("rms_norm_eps", json!({ "rms_norm_eps": -1.0 })),
            ("rope_theta", json!({ "rope_theta": 0.0 })),
            ("head_dim", json!({ "head_dim": 0 })),
            ("13", json!({ "head_dim": 13 })),
            ("rope_scaling", json!({ "rope_scaling": 3 })),
            (
                "factor",
                json!({ "rope_scaling": { "type": "linear", "factor": 0.0 } }),
            ),
            (
                "low_freq_factor",
                json!({ "rope_scaling": {
                    "type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64 } }),
            ),
            (
                "rope_scaling.rope_type",
                json!({ "rope_scaling": { "type": "linear", "rope_type": "llama3" } }),
            ),
            (
                "rope_scaling",
                json!({
                    "rope_scaling": { "type": "linear", "factor": 2.0 },
                    "rope_parameters": { "rope_type": "default" } }),
            ),
        ] {
            let error = read(&file(model_type, more)).expect_err(said);
            assert!(matches!(error, ConfigError::Invalid(_)), "{error}");
            assert!(error.to_string().contains(said), "{error}");
        }
    }
    let error = read(&file(
        "llama",
        json!({ "num_attention_heads": 5, "num_key_value_heads": 5 }),
    ));
    let error = error.expect_err("five heads").to_string();
    assert!(
        error.starts_with("`num_attention_heads` is 5, which does not divide the hidden size 48"),
        "{error}"
    );
    let error = read(&file("mistral", json!({ "sliding_window": 0 }))).expect_err("no window");
    assert!(error.to_string().contains("sliding_window"), "{error}");
    for text in ["", "[]", "null", "3", "{"] {
        let error = LlamaConfig::from_json(text).expect_err(text);
        assert!(!error.to_string().is_empty());
    }
    let error = ModelConfig::from_json(r#"{"model_type": "gemma"}"#).expect_err("another");
    let said = error.to_string();
    assert!(said.contains("gemma") && said.contains("qwen2"), "{said}");
}

/// What makes another network of one with these tensors is refused, and is not in the way where it changes nothing. A
/// head of these files has 12 numbers.
#[test]
fn keys_of_other_families_are_refused_by_key_and_value() {
    for (key, refused, accepted) in [
        (
            "hidden_activation",
            json!("gelu_pytorch_tanh"),
            json!("silu"),
        ),
        ("use_parallel_residual", json!(true), json!(false)),
        ("parallel_residual", json!(true), json!(false)),
        ("swiglu_limit", json!(7.0), json!(null)),
        ("embedding_multiplier", json!(12.0), json!(1.0)),
        ("scale_emb", json!(12), json!(1)),
        ("residual_multiplier", json!(0.22), json!(1)),
        ("scale_depth", json!(1.4), json!(null)),
        ("logits_scaling", json!(8.0), json!(1.0)),
        ("logit_scale", json!(0.0625), json!(1.0)),
        ("dim_model_base", json!(256), json!(null)),
        ("final_logit_softcapping", json!(30.0), json!(null)),
        ("attn_logit_softcapping", json!(50.0), json!(null)),
        ("clip_qkv", json!(8.0), json!(null)),
        ("attn_temperature_tuning", json!(true), json!(false)),
        ("attention_chunk_size", json!(8192), json!(null)),
        ("sliding_window_pattern", json!(4), json!(null)),
        ("use_bidirectional_attention", json!(true), json!(false)),
        ("is_causal", json!(false), json!(true)),
        ("rotary_pct", json!(0.25), json!(1.0)),
        ("no_rope_layer_interval", json!(4), json!(null)),
        ("no_rope_layers", json!([1, 1, 1, 0]), json!([1, 1, 1, 1])),
        ("no_rope_layers", json!([]), json!([true, true, true, true])),
        ("use_alibi", json!(true), json!(false)),
        ("alibi", json!(true), json!(false)),
        ("query_pre_attn_scalar", json!(256), json!(12)),
        ("attention_multiplier", json!(0.015625), json!(0.288675135)),
    ] {
        for model_type in ALL {
            let plain = read(&file(model_type, json!({ "head_dim": 12 }))).expect(model_type);
            let with =
                |value: &Value| read(&file(model_type, json!({ "head_dim": 12, key: value })));
            let error = with(&refused).expect_err(key);
            let ConfigError::Unsupported {
                key: named, value, ..
            } = &error
            else {
                panic!("{error}")
            };
            assert_eq!((named.as_str(), value), (key, &refused.to_string()));
            assert_eq!(with(&accepted).expect(key), plain, "{model_type}: {key}");
            assert_eq!(with(&json!(null)).expect(key), plain, "{model_type}: {key}");
        }
    }
    // Qwen3 has norms of queries and keys, and the others have none.
    for model_type in ALL {
        for key in ["use_qk_norm", "qk_layernorm"] {
            let is_normed = model_type == "qwen3";
            read(&file(model_type, json!({ key: is_normed }))).expect(key);
            let error = read(&file(model_type, json!({ key: !is_normed }))).expect_err(key);
            assert!(error.to_string().contains(key), "{error}");
        }
    }
    // Where the file does not say how large a head is, it is the width divided by the heads; 48 by 0 is none.
    read(&file("llama", json!({ "query_pre_attn_scalar": 12 }))).expect("the width by the heads");
    let none = json!({ "num_attention_heads": 0, "query_pre_attn_scalar": 12 });
    read(&file("llama", none)).expect_err("no heads");
}
