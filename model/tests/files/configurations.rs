//! What `config.json` may say, and what it may not.

use std::fs;

use model::{
    ConfigError, DiscreteMamba2Config, Family, LlamaConfig, LlamaFamily, LlamaMambaConfig,
    LowRankConfig, MixerConfig, MixerRotary, ModelConfig, PhiConfig, PhiMambaConfig,
    ToeplitzConfig, Turned,
};
use tests::goldens_dir;

fn phi(text: &str) -> Result<PhiConfig, ConfigError> {
    PhiConfig::from_json(text)
}

/// Version 4's flat keys and version 5's nested ones mean the same.
#[test]
fn both_forms_of_phi_configuration() {
    let sizes = r#""model_type": "phi", "vocab_size": 10, "hidden_size": 64, "intermediate_size": 80,
        "num_hidden_layers": 2, "num_attention_heads": 4"#;
    let flat = phi(&format!(
        r#"{{{sizes}, "partial_rotary_factor": 0.25, "rope_theta": 500, "rope_scaling": null}}"#
    ))
    .expect("version 4");
    let nested = phi(&format!(
        r#"{{{sizes}, "rope_parameters":
            {{"partial_rotary_factor": 0.25, "rope_theta": 500.0, "rope_type": "default"}}}}"#
    ))
    .expect("version 5");
    assert_eq!(flat, nested);
    assert_eq!(flat.attention.n_kv_heads, 4);
    assert_eq!(flat.attention.rotary_dim(64), 4);
    assert_eq!(phi(&flat.to_json()).expect("its own"), flat);
}

#[test]
fn what_is_not_implemented_is_refused() {
    for (key, member) in [
        ("qk_layernorm", r#""qk_layernorm": true"#),
        ("tie_word_embeddings", r#""tie_word_embeddings": true"#),
        ("hidden_act", r#""hidden_act": "gelu""#),
        ("model_type", r#""model_type": "llama""#),
        (
            "rope_scaling",
            r#""rope_scaling": {"type": "linear", "factor": 2.0}"#,
        ),
        (
            "rope_parameters",
            r#""rope_parameters": {"rope_type": "yarn"}"#,
        ),
    ] {
        let error = phi(&format!("{{{member}}}")).expect_err(key);
        assert!(matches!(error, ConfigError::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains(key), "{error}");
    }
    for member in [
        r#""hidden_size": 0"#,
        r#""hidden_size": 100"#,
        r#""num_key_value_heads": 5"#,
        r#""num_hidden_layers": 1000000000000"#,
        r#""partial_rotary_factor": 0.0"#,
        r#""partial_rotary_factor": -3"#,
        r#""partial_rotary_factor": 2.0"#,
        r#""layer_norm_eps": -1"#,
    ] {
        let error = phi(&format!("{{{member}}}")).expect_err(member);
        assert!(
            matches!(error, ConfigError::Invalid(_)),
            "{member}: {error}"
        );
    }
    for text in ["", "[]", "null", "3", "{", r#"{"hidden_size": "many"}"#] {
        assert!(matches!(phi(text), Err(ConfigError::Json(_))), "{text}");
    }
}

/// Published configurations with one thing changed.
#[test]
fn broken_student_configurations_are_refused() {
    let path = goldens_dir().join("student-hybrid/config.json");
    let whole: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(path).expect("a file")).expect("JSON");
    let with = |pointer: &str, value: serde_json::Value| {
        let mut changed = whole.clone();
        *changed.pointer_mut(pointer).expect("a member") = value;
        PhiMambaConfig::from_json(&changed.to_string())
    };
    for (pointer, value) in [
        ("/MixerModel/input/n_layer", 1000.into()),
        ("/MixerModel/input/d_model", 0.into()),
        ("/MixerModel/input/d_model", "wide".into()),
        ("/MixerModel/input/lm_head_prenorm", "rms".into()),
        ("/LanguageModel/input/pad_vocab_size_multiple", 0.into()),
        ("/LanguageModel/input", 3.into()),
        ("/Block1/CoreType", "modules.mixers.hyena".into()),
        ("/Block1/BlockType", serde_json::Value::Null),
        ("/Block1/n_layers", u64::MAX.into()),
        ("/Block1/core_input/n_v_heads", 1_000_003.into()),
        ("/Block1/core_input/n_qk_heads", 1_000_003.into()),
        ("/Block1/core_input/expand", u64::MAX.into()),
        ("/Block1/core_input/activation", "relu".into()),
        ("/Block2/core_input", "attention".into()),
    ] {
        let error = with(pointer, value);
        assert!(error.is_err(), "{pointer} was accepted");
    }
    for text in ["{}", "[]", "", r#"{"LanguageModel": {}}"#] {
        assert!(PhiMambaConfig::from_json(text).is_err(), "{text}");
    }
}

/// The same of students of Llama.
#[test]
fn broken_configurations_of_llamas_students_are_refused() {
    let read = |name: &str| -> serde_json::Value {
        let path = goldens_dir().join(name).join("config.json");
        serde_json::from_str(&fs::read_to_string(path).expect("a file")).expect("JSON")
    };
    let rope = "student-llama-rope";
    let heads = "student-llama-heads";
    for (name, pointer, value) in [
        (heads, "/n_layers", 1000.into()),
        (heads, "/d_model", 0.into()),
        (heads, "/d_model", "wide".into()),
        (heads, "/block", "parallel".into()),
        (heads, "/norm", "layer".into()),
        (heads, "/norm_epsilon", (-1.0).into()),
        (heads, "/mlp/activation", "gelu".into()),
        (heads, "/mlp", 3.into()),
        (heads, "/rope/theta", 0.into()),
        (heads, "/rope/scaling/rope_type", "yarn".into()),
        (heads, "/rope/scaling/low_freq_factor", 9.into()),
        (heads, "/layers", 3.into()),
        (heads, "/layers/0", 3.into()),
        (heads, "/layers/0/kind", "hyena".into()),
        (heads, "/layers/0/norm_epsilon", 1e-6.into()),
        (heads, "/layers/0/attention/n_heads", 1_000_003.into()),
        (heads, "/layers/0/attention/head_dim", u64::MAX.into()),
        (heads, "/layers/0/attention/n_kv_heads", 0.into()),
        (heads, "/layers/0/ssm/head_dim", u64::MAX.into()),
        (heads, "/layers/0/ssm/head_dim", 0.into()),
        (heads, "/layers/0/ssm/n_v_heads", 1_000_003.into()),
        (heads, "/layers/0/ssm/norm", "rms".into()),
        (heads, "/layers/0/ssm/activation", "relu".into()),
        (heads, "/padded_vocab_size", 99.into()),
        (rope, "/layers/0/ssm/rotary/head_dim", 13.into()),
        (rope, "/layers/0/ssm/rotary/head_dim", 14.into()),
        (rope, "/layers/0/ssm/rotary/theta", (-1.0).into()),
        (
            rope,
            "/layers/0/ssm/rotary/applied_to",
            serde_json::json!(["x", "C"]),
        ),
        ("student-llama", "/lm_head_bias", true.into()),
    ] {
        let mut changed = read(name);
        *changed.pointer_mut(pointer).expect("a member") = value;
        let read = LlamaMambaConfig::from_json(&changed.to_string());
        assert!(read.is_err(), "{pointer} was accepted");
    }
    for text in ["{}", "[]", "", r#"{"family": "llama", "layers": []}"#] {
        assert!(LlamaMambaConfig::from_json(text).is_err(), "{text}");
    }
}

/// Options that the published mixer lacks are written only where they are in use, and read back.
#[test]
fn a_phi_mamba_with_own_options() {
    let published =
        PhiMambaConfig::student_of(&PhiConfig::default(), &DiscreteMamba2Config::default(), &[]);
    let text = published.expect("a student").to_json();
    for key in [
        "z_bias",
        "rotary",
        "bc_norm",
        "a_log_bias",
        "b_gate",
        "head_dim",
    ] {
        assert!(!text.contains(key), "{key}");
    }
    let mixer = DiscreteMamba2Config {
        a_log_bias: true,
        bc_norm: Some(1e-6),
        b_gate: true,
        rotary: Some(MixerRotary {
            theta: 10000.0,
            scaling: None,
            dim: 32,
            turned: Turned::BAndC,
        }),
        ..DiscreteMamba2Config::default()
    };
    let config =
        PhiMambaConfig::student_of(&PhiConfig::default(), &mixer, &[4]).expect("a student");
    let again = PhiMambaConfig::from_json(&config.to_json()).expect("its own");
    assert_eq!(again, config);
    assert!(
        again
            .blocks
            .iter()
            .any(|block| block.mixer == mixer.clone().into())
    );
}

/// Mixers that no published format knows are written by their kind in both, and read back.
#[test]
fn mixers_of_no_published_format() {
    let (n_heads, head_dim) = (4, 16);
    let mixers: [MixerConfig; 2] = [
        ToeplitzConfig {
            n_heads,
            head_dim,
            length: 100,
        }
        .into(),
        LowRankConfig {
            n_heads,
            head_dim,
            d_state: 8,
            d_conv: 4,
            chunk_size: 32,
        }
        .into(),
    ];
    let phi: ModelConfig = PhiConfig::default().into();
    let llama: ModelConfig = LlamaConfig::default_of(LlamaFamily::Llama).into();
    for (teacher, hybrid) in [(phi, "hybrid Phi-Mamba"), (llama, "hybrid Llama-Mamba")] {
        for mixer in &mixers {
            let config = teacher.student(mixer, &[]).expect("a student");
            assert!(!config.name().contains("hybrid"), "{}", config.name());
            let config = teacher.student(mixer, &[1]).expect("a student");
            assert_eq!(config.name(), hybrid);
            let text = config.to_json();
            let kind = mixer.kind();
            assert!(text.contains(&format!("\"{kind}\"")), "{text}");
            assert_eq!(ModelConfig::from_json(&text).expect("its own"), config);
            for wrong in ["\"heads\"", "\"n_heads\": 0, \"heads\""] {
                let wrong = text.replacen("\"n_heads\"", wrong, 1);
                assert!(ModelConfig::from_json(&wrong).is_err(), "{wrong}");
            }
            let other = text.replace(&format!("\"{kind}\""), "\"circulant\"");
            let error = ModelConfig::from_json(&other).expect_err("there is none");
            assert!(error.to_string().contains("circulant"), "{error}");
        }
    }
}

/// Keys that may be left out have the published defaults, and blocks keep the file's order.
#[test]
fn published_defaults() {
    let text = r#"{
        "LanguageModel": {"input": {"vocab_size": 50295, "pad_vocab_size_multiple": 8}},
        "MixerModel": {"input": {"d_model": 2048, "n_layer": 3, "lm_head_prenorm": "layer"}},
        "Block2": {"n_layers": 1, "BlockType": "modules.phi_block", "block_input": {"resid_dropout": 0.0},
                   "CoreType": "modules.mixers.phi_attention", "core_input": {}},
        "Block1": {"n_layers": 2, "BlockType": "modules.phi_block", "block_input": {"resid_dropout": 0.0},
                   "CoreType": "modules.mixers.discrete_mamba2", "core_input": {"unknown": 1}}
    }"#;
    let config = PhiMambaConfig::from_json(text).expect("a student");
    assert_eq!(config.padded_vocab_size(), 50296);
    assert_eq!(
        (config.layer_norm_eps, config.intermediate_size),
        (1e-5, 8192)
    );
    let model::MixerConfig::Attention(attention) = &config.blocks[0].mixer else {
        panic!("the file's order was lost")
    };
    assert_eq!(attention, &PhiConfig::default().attention);
    let mamba = model::MixerConfig::DiscreteMamba2(DiscreteMamba2Config::default());
    assert_eq!(config.blocks[1].mixer, mamba);
}
