//! Keys that would change what the network computes: those that are refused, and those of rotary frequencies.

use model::ModelConfig;
use tests::gguf::{Value, tiny};

use super::{file_of, load, refused, without};

/// A value that would change what the network computes is refused by its key.
#[test]
fn keys_that_are_not_implemented() {
    for (key, value) in [
        ("general.architecture", Value::from("mamba")),
        ("general.type", "adapter".into()),
        ("split.count", Value::U16(2)),
        ("llama.expert_count", 8.into()),
        ("llama.attention.sliding_window", 512.into()),
        ("llama.attention.causal", Value::Bool(false)),
        ("llama.attention.value_length", 8.into()),
        ("llama.rope.dimension_count", 8.into()),
        ("llama.rope.scaling.type", "yarn".into()),
        ("llama.attention.head_count", Value::I32s(vec![2])),
        ("llama.logit_scale", 0.5_f32.into()),
    ] {
        let said = refused(&tiny().with(key, value).bytes());
        assert!(said.contains(&format!("`{key}` is ")), "{said}");
        assert!(said.contains("not implemented"), "{said}");
    }
    let missing = "llama.attention.layer_norm_rms_epsilon";
    let said = refused(&without(missing).bytes());
    assert!(said.contains(&format!("`{missing}` is missing")), "{said}");
    // What says that there is none.
    let file = tiny()
        .with("llama.expert_count", 0)
        .with("llama.attention.causal", Value::Bool(true))
        .with("llama.rope.dimension_count", 16)
        .with("llama.rope.scaling.type", "none");
    let (_folder, path) = file_of(&file.bytes());
    load(&path).expect("nothing but defaults");
}

/// Of Llama 3's scaling a file has the divisors only, which say it all or are refused.
#[test]
fn llama_3_s_frequencies() {
    let scaled = model::RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let theta = 500_000.0;
    let plain = model::rotary_frequencies(16, theta, None);
    let mut divisors: Vec<f32> = plain
        .iter()
        .map(|f| (f / scaled.apply(*f)) as f32)
        .collect();
    let file = |divisors: &[f32]| {
        let bytes = divisors.iter().flat_map(|n| n.to_le_bytes()).collect();
        let file = tiny().with("llama.rope.freq_base", theta as f32);
        file.tensor("rope_freqs.weight", &[divisors.len() as u64], 0, bytes)
    };
    let (_folder, path) = file_of(&file(&divisors).bytes());
    let (ModelConfig::Llama(config), _) = load(&path).expect("Llama 3's") else {
        panic!("no Llama")
    };
    assert_eq!(config.attention.rope_scaling, Some(scaled));
    // As in llama.cpp, these count whatever the type; a factor beside them is not implemented.
    let none = file(&divisors).with("llama.rope.scaling.type", "none");
    let (_folder, path) = file_of(&none.bytes());
    let (ModelConfig::Llama(config), _) = load(&path).expect("Llama 3's") else {
        panic!("no Llama")
    };
    assert_eq!(config.attention.rope_scaling, Some(scaled));
    let both = file(&divisors).with("llama.rope.scaling.factor", 4_f32);
    assert!(refused(&both.bytes()).contains("beside `rope_freqs.weight`"));
    divisors[3] *= 1.5;
    let said = refused(&file(&divisors).bytes());
    assert!(said.contains("`rope_freqs.weight`"), "{said}");
    assert!(refused(&file(&divisors[..3]).bytes()).contains("`rope_freqs.weight`"));
}

/// As in llama.cpp, a factor without a type is that of linear scaling.
#[test]
fn linear_frequencies() {
    let linear = Some(model::RopeScaling::Linear { factor: 4.0 });
    for (kind, factor, expected) in [
        (Some("linear"), 4_f32, linear),
        (None, 4.0, linear),
        (Some("none"), 4.0, None),
        (None, 1.0, None),
        (None, 0.0, None),
    ] {
        let mut file = tiny().with("llama.rope.scaling.factor", factor);
        if let Some(kind) = kind {
            file = file.with("llama.rope.scaling.type", kind);
        }
        let (_folder, path) = file_of(&file.bytes());
        let (ModelConfig::Llama(config), _) = load(&path).expect("linear scaling") else {
            panic!("no Llama")
        };
        assert_eq!(config.attention.rope_scaling, expected, "{kind:?} {factor}");
    }
}
