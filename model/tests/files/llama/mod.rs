//! What the `config.json` of Llama, Mistral, Qwen2 and Qwen3 may say, what it may not, and heads that are tied.

mod refused;
mod tensors;

use model::{ConfigError, Family, HeadConfig, LlamaConfig, LlamaFamily, RopeScaling};
use serde_json::{Value, json};
use tests::teachers;

use super::*;

fn read(root: &Value) -> Result<LlamaConfig, ConfigError> {
    LlamaConfig::from_json(&root.to_string())
}

/// A small file of a family, with some more members.
fn file(model_type: &str, more: Value) -> Value {
    let mut root = json!({
        "model_type": model_type,
        "vocab_size": 10,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    });
    let (Some(root_members), Value::Object(more)) = (root.as_object_mut(), more) else {
        panic!("objects")
    };
    root_members.extend(more);
    root
}

const ALL: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

/// What a file leaves out is transformers' default of the family.
#[test]
fn defaults() {
    for (model_type, family, kv_heads, head_dim, intermediate, vocabulary, positions) in [
        ("llama", LlamaFamily::Llama, 32, 128, 11008, 32000, 2048),
        (
            "mistral",
            LlamaFamily::Mistral,
            8,
            128,
            14336,
            32000,
            131072,
        ),
        ("qwen2", LlamaFamily::Qwen2, 32, 128, 22016, 151936, 32768),
        ("qwen3", LlamaFamily::Qwen3, 32, 128, 22016, 151936, 32768),
    ] {
        let config = read(&json!({ "model_type": model_type })).expect(model_type);
        assert_eq!(config, LlamaConfig::default_of(family));
        assert_eq!(config.attention.n_kv_heads, kv_heads, "{model_type}");
        assert_eq!(config.attention.head_dim(config.hidden_size), head_dim);
        let sizes = (
            config.intermediate_size,
            config.vocab_size,
            config.max_position_embeddings,
        );
        assert_eq!(sizes, (intermediate, vocabulary, positions), "{model_type}");
        assert_eq!(config.attention.rope_theta, 10000.0);
        assert_eq!(config.attention.rope_scaling, None);
        assert_eq!(config.rms_norm_eps, 1e-6);
        assert_eq!(config.network().head, HeadConfig::Own { bias: false });
    }
    // Without the key, Llama has as many key heads as query heads, and Mistral eight; null means the former.
    let heads = |model_type: &str, more: Value| {
        let mut root = file(model_type, more);
        let members = root.as_object_mut().expect("an object");
        if members["num_key_value_heads"] == 2 {
            members.remove("num_key_value_heads");
        }
        read(&root)
    };
    let llama = heads("llama", json!({})).expect("four heads");
    assert_eq!(llama.attention.n_kv_heads, 4);
    let null = heads("mistral", json!({ "num_key_value_heads": null })).expect("four heads");
    assert_eq!(null.attention.n_kv_heads, 4);
    let error = heads("mistral", json!({}))
        .expect_err("eight of four")
        .to_string();
    assert_eq!(
        error,
        "`num_key_value_heads` is 8, which does not divide `num_attention_heads`, 4"
    );
}

/// Version 4's flat keys and version 5's nested ones mean the same.
#[test]
fn both_forms() {
    let scalings = [
        (json!({ "rope_type": "default" }), None),
        (
            json!({ "rope_type": "linear", "factor": 4.0 }),
            Some(RopeScaling::Linear { factor: 4.0 }),
        ),
        (
            json!({
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }),
            Some(RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 64,
            }),
        ),
    ];
    for (members, scaling) in scalings {
        let mut old = members.clone();
        let old_members = old.as_object_mut().expect("an object");
        let kind = old_members.remove("rope_type").expect("a type");
        old_members.insert("type".into(), kind);
        let mut new = members.clone();
        new["rope_theta"] = json!(500.0);
        for more in [
            json!({ "rope_theta": 500, "rope_scaling": members, "torch_dtype": "float32" }),
            json!({ "rope_theta": 500.0, "rope_scaling": old }),
            json!({ "rope_parameters": new, "dtype": "bfloat16" }),
            json!({ "rope_theta": 500.0, "rope_parameters": members }),
        ] {
            let config = read(&file("llama", more.clone())).expect("a file");
            assert_eq!(config.attention.rope_theta, 500.0, "{more}");
            assert_eq!(config.attention.rope_scaling, scaling, "{more}");
            let written = LlamaConfig::from_json(&config.to_json()).expect("its own");
            assert_eq!(written, config);
        }
    }
}

/// What each family has by its class and what by its file is written and read back.
#[test]
fn options_of_families() {
    for model_type in ALL {
        for more in [
            json!({}),
            json!({ "attention_bias": true, "mlp_bias": true }),
            json!({ "tie_word_embeddings": true, "head_dim": 16, "rms_norm_eps": 1e-3 }),
        ] {
            let config = read(&file(model_type, more.clone())).expect(model_type);
            let again = LlamaConfig::from_json(&config.to_json()).expect("its own");
            assert_eq!(again, config, "{model_type}: {more}");
            let asked = more.get("attention_bias").is_some();
            let expected = match model_type {
                "llama" | "qwen3" => (asked, asked),
                "qwen2" => (true, false),
                _ => (false, false),
            };
            let attention = &config.attention;
            assert_eq!((attention.qkv_bias, attention.dense_bias), expected);
            assert_eq!(config.mlp_bias, asked && model_type == "llama");
            let epsilon = (model_type == "qwen3").then_some(config.rms_norm_eps);
            assert_eq!(attention.qk_norm, epsilon);
            assert_eq!(attention.partial_rotary_factor, 1.0);
        }
    }
    for case in teachers() {
        let text = fs::read_to_string(case.join("config.json")).expect("a file");
        let config = ModelConfig::from_json(&text).expect("a configuration");
        let again = ModelConfig::from_json(&config.to_json()).expect("its own");
        assert_eq!(again, config, "{}", case.display());
    }
    // Options that no file of the family can say.
    let config = read(&file("mistral", json!({}))).expect("a file");
    let mut biased = config.clone();
    biased.attention.qkv_bias = true;
    let mut normed = config;
    normed.attention.qk_norm = Some(1e-6);
    for config in [biased, normed] {
        let error = config.validate().expect_err("no words");
        assert!(error.to_string().contains("Mistral"), "{error}");
    }
}

/// The window of attention: always, by a switch, or never.
#[test]
fn windows() {
    let window = |model_type: &str, more: Value| {
        let config = read(&file(model_type, more)).expect(model_type);
        let again = LlamaConfig::from_json(&config.to_json()).expect("its own");
        assert_eq!(again, config);
        let network = config.network();
        let windows = network.mixers.iter().map(|mixer| match mixer {
            model::MixerConfig::Attention(attention) => {
                attention.window.map_or(0, |window| window.window)
            }
            _ => panic!("a teacher has attention"),
        });
        windows.collect::<Vec<_>>()
    };
    assert_eq!(window("mistral", json!({})), [4096; 4]);
    assert_eq!(window("mistral", json!({ "sliding_window": null })), [0; 4]);
    assert_eq!(window("mistral", json!({ "sliding_window": 8 })), [8; 4]);
    let on = |n: usize| json!({ "use_sliding_window": true, "sliding_window": 8, "max_window_layers": n });
    let off = json!({ "use_sliding_window": false, "sliding_window": 8, "max_window_layers": 0 });
    let types = json!({
        "use_sliding_window": true,
        "sliding_window": 8,
        "max_window_layers": 28,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"],
    });
    for model_type in ["qwen2", "qwen3"] {
        assert_eq!(window(model_type, json!({})), [0; 4]);
        assert_eq!(window(model_type, off.clone()), [0; 4]);
        assert_eq!(window(model_type, on(0)), [8; 4]);
        assert_eq!(window(model_type, on(3)), [0, 0, 0, 8]);
        assert_eq!(window(model_type, on(4)), [0; 4]);
        assert_eq!(window(model_type, types.clone()), [0, 8, 8, 8]);
    }
    let full = json!({ "layer_types": vec!["full_attention"; 4] });
    assert_eq!(window("llama", full), [0; 4]);
}
