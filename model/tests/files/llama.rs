//! What the `config.json` of Llama, Mistral, Qwen2 and Qwen3 may say, what it may not, and heads that are tied.

use model::weights::TensorFault;
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

/// A head that is tied to the embedding may be stored too, if it is the embedding.
#[test]
fn tied_heads_that_are_stored() {
    let head = "lm_head.weight";
    let folder = copy_of("llama-tied");
    let path = folder.path().join("model.safetensors");
    let load = || model::load_any::<Fast>(folder.path(), &Default::default());
    let (_, alone) = load().expect("a teacher");
    let described = model::describe(folder.path()).expect("a teacher").1;
    let mut all = contents(&path);
    let embedding = all
        .iter()
        .find(|tensor| tensor.0 == "model.embed_tokens.weight");
    let (_, dtype, shape, bytes) = embedding.expect("an embedding").clone();
    all.push((head.into(), dtype, shape, bytes));
    write(&path, &all);
    let (_, same) = load().expect("the same teacher");
    assert_eq!(parameters(&same), parameters(&alone));
    assert_eq!(
        model::describe(folder.path()).expect("a teacher").1,
        described
    );

    all.last_mut().expect("the head").3[2] ^= 1;
    write(&path, &all);
    let Err(WeightsError::Tensors { faults, .. }) = load() else {
        panic!("another head was accepted")
    };
    let fault = TensorFault::Untied {
        name: head.into(),
        other: "model.embed_tokens.weight".into(),
    };
    assert_eq!(faults, [fault]);
}

/// Every tensor is accounted for.
#[test]
fn tensors_that_do_not_fit() {
    let folder = copy_of("qwen2-tiny");
    let path = folder.path().join("model.safetensors");
    let whole = contents(&path);
    for name in [
        "model.layers.1.self_attn.q_proj.bias",
        "model.layers.0.post_attention_layernorm.weight",
        "lm_head.weight",
    ] {
        let less: Contents = whole
            .iter()
            .filter(|tensor| tensor.0 != name)
            .cloned()
            .collect();
        assert_eq!(less.len() + 1, whole.len(), "{name}");
        write(&path, &less);
        let error = model::load_any::<Fast>(folder.path(), &Default::default()).expect_err(name);
        assert!(
            error.to_string().contains(&format!("`{name}` is missing")),
            "{error}"
        );
    }
    let mut more = whole.clone();
    let name = "model.layers.0.self_attn.o_proj.bias";
    more.push((name.into(), Dtype::F32, vec![48], vec![0; 4 * 48]));
    write(&path, &more);
    let error = model::load_any::<Fast>(folder.path(), &Default::default()).expect_err(name);
    assert!(error.to_string().contains(name), "{error}");
}
