//! Students as others publish them: mohawk's own checkpoints, and Llamba.

use std::fs;
use std::path::Path;

use model::manifest::MANIFEST;
use model::{CausalLm, ConfigError, Family, LlamaMambaConfig, ModelConfig, WeightsError};
use serde_json::{Value, json};
use tests::networks::Fast;
use tests::{cases, goldens_dir, name_of};

use super::contents;

fn load(path: &Path) -> Result<(ModelConfig, CausalLm<Fast>), WeightsError> {
    model::load_any(path, &Default::default())
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).expect("a file")).expect("JSON")
}

/// `root` with another value at `pointer`, or without that member.
fn changed(root: &Value, pointer: &str, value: Option<Value>) -> Value {
    let mut root = root.clone();
    let (parent, key) = pointer.rsplit_once('/').expect("a path");
    let members = root.pointer_mut(parent).and_then(Value::as_object_mut);
    let members = members.expect("an object");
    match value {
        Some(value) => members.insert(key.into(), value),
        None => members.remove(key),
    };
    root
}

/// What mohawk's components say is what the recorded configuration says, and the weights fit.
#[test]
fn mohawk_s_checkpoints() {
    let mut students = cases("student-");
    students.retain(|folder| folder.join("mohawk.json").exists());
    assert_eq!(students.len(), 6);
    for folder in students {
        let name = name_of(&folder);
        let mut own = read(&folder.join("config.json"));
        // Which changes no result, and so is in none of them.
        for layer in own["layers"].as_array_mut().expect("layers") {
            if let Some(ssm) = layer.get_mut("ssm") {
                ssm["chunk_size"] = json!(16);
            }
        }
        let own = LlamaMambaConfig::from_json(&own.to_string()).expect("its configuration");
        let mut published = read(&folder.join("mohawk.json"));
        published["TrainConfig"] = json!({ "model_dtype": "bfloat16" });
        for root in [&published, &published["ComponentsConfig"]] {
            let config = LlamaMambaConfig::from_json(&root.to_string());
            assert_eq!(config.expect("mohawk's"), own, "{name}");
        }
        let copy = tempfile::tempdir().expect("a folder");
        fs::write(copy.path().join("config.json"), published.to_string()).expect("a file");
        let weights = "model.safetensors";
        fs::copy(folder.join(weights), copy.path().join(weights)).expect("a file");
        let (config, _) = load(copy.path()).expect("a checkpoint");
        assert_eq!(config, own.into(), "{name}");
    }
}

#[test]
fn what_of_mohawk_s_is_not_implemented_is_refused() {
    let of =
        |name: &str| read(&goldens_dir().join(name).join("mohawk.json"))["ComponentsConfig"].take();
    let llama = of("student-llama");
    let hybrid = of("student-llama-hybrid");
    let heads = of("student-llama-heads");
    let rotary = of("student-llama-rope");
    for (root, pointer, value) in [
        (&llama, "/name", json!("LlamaForCausalLM")),
        (&llama, "/MixerModel/name", json!("MixerModelRotary")),
        (&llama, "/MixerModel/Blocks/1/name", json!("MambaPhi")),
        (&llama, "/MixerModel/Blocks/1/Layer/name", json!("Mamba2")),
        (
            &llama,
            "/MixerModel/Blocks/1/input/mlp_act_fn",
            json!("gelu"),
        ),
        (
            &llama,
            "/MixerModel/Blocks/1/input/mlp_intermediate_size",
            json!(65),
        ),
        (
            &llama,
            "/MixerModel/Blocks/1/input/norm_epsilon",
            json!(1e-6),
        ),
        (
            &llama,
            "/MixerModel/Blocks/1/Layer/input/norm_cls",
            json!("rms"),
        ),
        (
            &llama,
            "/MixerModel/Blocks/1/Layer/input/activation",
            json!("gelu"),
        ),
        (
            &llama,
            "/MixerModel/Blocks/1/Layer/input/initializer/z",
            json!("zeros"),
        ),
        (
            &hybrid,
            "/MixerModel/Blocks/1/Layer/input/use_sliding_window",
            json!(true),
        ),
        (
            &rotary,
            "/MixerModel/Blocks/1/Layer/input/rope_scaling",
            json!({}),
        ),
        (
            &heads,
            "/MixerModel/Blocks/1/name",
            json!("DoubleBlockHymba"),
        ),
        (
            &heads,
            "/MixerModel/Blocks/1/ssm_layer/name",
            json!("DiscreteMamba2Rotary"),
        ),
        (&heads, "/MixerModel/input/norm_epsilon", json!(1e-6)),
    ] {
        let root = changed(root, pointer, Some(value));
        let error = LlamaMambaConfig::from_json(&root.to_string()).expect_err(pointer);
        assert!(matches!(error, ConfigError::Unsupported { .. }), "{error}");
        let key = pointer.rsplit('/').next().expect("a key");
        assert!(error.to_string().contains(key), "{error}");
    }
    for (root, pointer, value) in [
        (&llama, "/input/pad_vocab_size_multiple", json!(0)),
        (&llama, "/input/vocab_size", json!(u64::MAX)),
        (&llama, "/MixerModel/input/n_layer", json!(4)),
        (&llama, "/MixerModel/Blocks/0/n_layers", json!(u64::MAX)),
        (&llama, "/MixerModel/Blocks", json!([])),
        (&llama, "/MixerModel/Blocks", json!([3])),
        (
            &llama,
            "/MixerModel/Blocks/1/Layer/input/n_v_heads",
            json!(0),
        ),
        (
            &rotary,
            "/MixerModel/Blocks/1/Layer/input/expand",
            json!(u64::MAX),
        ),
        (&hybrid, "/MixerModel/input/head_dim", json!(8)),
        (
            &hybrid,
            "/MixerModel/Blocks/1/Layer/input/num_key_value_heads",
            json!(3),
        ),
    ] {
        let root = changed(root, pointer, Some(value));
        assert!(
            LlamaMambaConfig::from_json(&root.to_string()).is_err(),
            "{pointer}"
        );
    }
    for pointer in [
        "/MixerModel/Blocks",
        "/MixerModel/input/norm_epsilon",
        "/MixerModel/Blocks/1/input/norm_epsilon",
        "/MixerModel/Blocks/1/Layer/input/initializer",
    ] {
        let root = changed(&llama, pointer, None);
        let error = LlamaMambaConfig::from_json(&root.to_string()).expect_err(pointer);
        assert!(matches!(error, ConfigError::Missing { .. }), "{error}");
    }
    // Without the sizes of heads the published code takes a share of the width for the rotation.
    let root = changed(&hybrid, "/MixerModel/input/head_dim", None);
    let said = LlamaMambaConfig::from_json(&root.to_string())
        .expect_err("heads of 2")
        .to_string();
    assert!(said.contains("for heads of 2"), "{said}");
}

/// A small Llamba: two layers, 48 wide.
fn llamba() -> Value {
    json!({
        "model_type": "llamba",
        "vocab_size": 100,
        "tie_embeddings": true,
        "pad_vocab_size_multiple": 8,
        "lm_head_bias": false,
        "d_model": 48,
        "n_layer": 2,
        "resid_dropout": 0.0,
        "norm_epsilon": 1e-5,
        "mlp_cfg": { "intermediate_size": 64, "bias": false, "act_fn": "silu" },
        "ssm_cfg": {
            "d_state": 8,
            "n_v_heads": 4,
            "n_qk_heads": 4,
            "expand": 1,
            "chunk_size": 128,
            "activation": "identity",
            "bias": false,
        },
    })
}

/// The names and shapes are those of the published modules.
#[test]
fn llamba_s_checkpoints() {
    let config = LlamaMambaConfig::from_json(&llamba().to_string()).expect("a Llamba");
    assert_eq!((config.vocab_size, config.network.vocab_size), (100, 104));
    let model = CausalLm::<Fast>::init(&config, 0, &Default::default());
    let folder = tempfile::tempdir().expect("a folder");
    model::save(&config, &model, folder.path()).expect("a folder");
    let weights = contents(&folder.path().join("model.safetensors"));
    let first: Vec<(&str, &[usize])> = weights
        .iter()
        .filter_map(|(name, _, shape, _)| {
            Some((name.strip_prefix("backbone.layers.0.")?, &shape[..]))
        })
        .collect();
    let expected: [(&str, &[usize]); 11] = [
        ("input_layernorm.weight", &[48]),
        ("mixer.D", &[4]),
        ("mixer.conv1d.bias", &[112]),
        ("mixer.conv1d.weight", &[112, 1, 4]),
        ("mixer.in_proj.weight", &[164, 48]),
        ("mixer.out_proj.weight", &[48, 48]),
        ("mixer.z_bias", &[48]),
        ("mlp.down_proj.weight", &[48, 64]),
        ("mlp.gate_proj.weight", &[64, 48]),
        ("mlp.up_proj.weight", &[64, 48]),
        ("post_attention_layernorm.weight", &[48]),
    ];
    assert_eq!(first, expected);
    let rest: Vec<&str> = weights
        .iter()
        .map(|(name, ..)| name.as_str())
        .filter(|name| !name.starts_with("backbone.layers."))
        .collect();
    assert_eq!(
        rest,
        [
            "backbone.embedding.weight",
            "backbone.final_layernorm.weight"
        ]
    );

    fs::remove_file(folder.path().join(MANIFEST)).expect("checksums");
    fs::write(folder.path().join("config.json"), llamba().to_string()).expect("a file");
    let (found, _) = load(folder.path()).expect("a Llamba");
    assert_eq!(found, config.clone().into());
    assert_eq!(
        LlamaMambaConfig::from_json(&config.to_json()).expect("its own"),
        config
    );

    for (pointer, value) in [
        ("/norm_epsilon", json!(1e-6)),
        ("/mlp_cfg/act_fn", json!("gelu")),
        ("/ssm_cfg/activation", json!("gelu")),
    ] {
        let root = changed(&llamba(), pointer, Some(value));
        let error = LlamaMambaConfig::from_json(&root.to_string()).expect_err(pointer);
        assert!(matches!(error, ConfigError::Unsupported { .. }), "{error}");
    }
    for (pointer, value) in [
        ("/n_layer", json!(u64::MAX)),
        ("/ssm_cfg", json!(3)),
        ("/ssm_cfg/n_v_heads", json!(0)),
        ("/ssm_cfg/expand", json!(u64::MAX)),
        ("/mlp_cfg/intermediate_size", json!(0)),
    ] {
        let root = changed(&llamba(), pointer, Some(value));
        assert!(
            LlamaMambaConfig::from_json(&root.to_string()).is_err(),
            "{pointer}"
        );
    }
    // Where the projections have biases, the gate has none of its own.
    let biased = changed(&llamba(), "/ssm_cfg/bias", Some(json!(true)));
    let biased = LlamaMambaConfig::from_json(&biased.to_string()).expect("biases");
    let mixer = biased.network().mixers[0].to_json();
    assert_eq!(
        (&mixer["bias"], &mixer["z_bias"]),
        (&json!(true), &json!(false))
    );
}
