//! `infer info`: its report on models and devices.

use std::path::Path;
use std::process::Command;

use burn::tensor::Device;
use infer::{GenerateOptions, Generation, SamplingSettings};
use kernels::runtime::Flex;
use serde_json::Value;

use crate::support::{llama_like_folders, student_folder, teacher_folder};

fn info(arguments: &[&str], model: Option<&Path>) -> String {
    let mut infer = Command::new(env!("CARGO_BIN_EXE_infer"));
    infer.arg("info").args(arguments);
    if let Some(model) = model {
        infer.arg("--model").arg(model);
    }
    let output = infer.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(model: &Path) -> Value {
    serde_json::from_str(&info(&["--json"], Some(model))).unwrap()
}

/// The bytes that a text of so many tokens really takes.
fn state_bytes(folder: &Path, tokens: usize) -> u64 {
    let device = Device::<Flex>::default();
    let (_, model) = model::load_any::<Flex>(folder, &device).unwrap();
    let options = GenerateOptions {
        sampling: SamplingSettings::default(),
        max_tokens: 0,
        vocab_size: 4096,
        end_tokens: [].into(),
        end_of_text: None,
        max_positions: None,
    };
    let generation = Generation::new(&model, &device, &vec![1; tokens], options);
    generation.unwrap().state_bytes() as u64
}

#[test]
fn a_model_is_what_it_is() {
    let (student, hybrid) = (student_folder(&[]), student_folder(&[1, 2]));
    for (folder, architecture, name, runs) in [
        (&*teacher_folder(), "teacher", "Phi", 1),
        (student.path(), "student", "Phi-Mamba", 1),
        (hybrid.path(), "hybrid", "hybrid Phi-Mamba", 3),
    ] {
        let model = &json(folder)["model"];
        assert_eq!(model["architecture"], architecture);
        assert_eq!(model["layers"], 4);
        let (ends, end_tokens) = match architecture {
            "teacher" => ("0 by generation_config.json", serde_json::json!([0])),
            _ => ("the tokenizer's end of text", Value::Null),
        };
        assert_eq!(model["end_tokens"], end_tokens);
        assert_eq!(model["mixers"].as_array().unwrap().len(), runs);
        // The weights' file is its parameters and a header.
        let size = std::fs::metadata(folder.join("model.safetensors"))
            .unwrap()
            .len();
        let bytes = model["bytes"].as_object().unwrap().values();
        let bytes: u64 = bytes.map(|bytes| bytes.as_u64().unwrap()).sum();
        assert!((bytes..bytes + 10_000).contains(&size), "{bytes} of {size}");
        let width = if architecture == "teacher" { 2 } else { 4 };
        assert_eq!(model["total_parameters"], bytes / width);
        let kinds = model["parameters"].as_object().unwrap();
        assert!(
            kinds.values().all(|count| count.as_u64().unwrap() > 0),
            "{kinds:?}"
        );
        assert_eq!(kinds["embedding"], 4096 * 192);
        assert_eq!(kinds["norms"], (4 + 1) * 2 * 192);
        for tokens in [1, 50] {
            let state = &model["state"];
            let of = |key: &str| state[key].as_u64().unwrap();
            let expected = of("fixed") + of("per_token") * tokens as u64;
            assert_eq!(expected, state_bytes(folder, tokens), "{architecture}");
        }
        let text = info(&[], Some(folder));
        assert!(text.contains(&format!("architecture {name}\n")), "{text}");
        assert!(text.contains(&format!("end tokens   {ends}\n")), "{text}");
        let is_constant = text.contains("whatever its length");
        assert_eq!(is_constant, architecture == "student", "{text}");
    }
}

/// A tied head is no second parameter, and a window bounds the state.
#[test]
fn families_of_llamas_shape() {
    for (name, folder) in llama_like_folders() {
        let folder = folder.path();
        let model = &json(folder)["model"];
        assert_eq!(model["architecture"], "teacher", "{name}");
        assert_eq!(model["positions"], 256);
        let parameters = &model["parameters"];
        assert_eq!(parameters["embedding"], 4096 * 48);
        let head = if name == "Mistral" { 4096 * 48 } else { 0 };
        assert_eq!(parameters["head"], head, "{name}");
        assert_eq!(parameters["norms"], 5 * 48);
        assert_eq!(parameters["MLPs"], 2 * 3 * 48 * 64);
        // Projections of 4 heads of 16 and twice 2 of them, and back.
        let extra = match name {
            "Qwen2" => 64 + 32 + 32,
            "Qwen3" => 16 + 16,
            _ => 0,
        };
        assert_eq!(parameters["mixers"], 2 * (48 * (64 + 32 + 32 + 64) + extra));
        let state = &model["state"];
        let of = |key: &str| state[key].as_u64().unwrap();
        // Keys and values of 2 heads of 16 in 2 layers, f32.
        let token = 2 * 2 * 2 * 16 * 4;
        for tokens in [1, 16, 50] {
            let found = state_bytes(folder, tokens);
            if name == "Mistral" {
                assert_eq!((of("fixed"), of("per_token")), (16 * token, 0));
                assert_eq!(found, token * tokens.min(16) as u64);
            } else {
                assert_eq!((of("fixed"), of("per_token")), (0, token));
                assert_eq!(found, token * tokens as u64);
            }
        }
        let text = info(&[], Some(folder));
        assert!(text.contains(&format!("architecture {name}\n")), "{text}");
        assert_eq!(text.contains("window of 16"), name == "Mistral", "{text}");
    }
}

#[test]
fn a_gguf_file_is_what_it_is() {
    let file = tests::goldens_dir().join("gguf-llama/model.gguf");
    let model = &json(&file)["model"];
    assert_eq!(model["end_tokens"], serde_json::json!([2]));
    let bytes = model["bytes"].as_object().unwrap();
    for kind in ["f32", "f16", "q4_0", "q4_1", "q5_1", "q8_0"] {
        assert!(bytes.contains_key(kind), "{kind} in {bytes:?}");
    }
    let of_tensors: u64 = bytes.values().map(|bytes| bytes.as_u64().unwrap()).sum();
    let size = std::fs::metadata(&file).unwrap().len();
    assert!(
        (size / 2..size).contains(&of_tensors),
        "{of_tensors} of {size}"
    );
    let text = info(&[], Some(&file));
    assert!(text.contains("2 by model.gguf"), "{text}");
    assert!(text.contains(" in q4_1"), "{text}");
}

#[test]
fn every_backend_is_named() {
    let text = info(&[], None);
    let json: Value = serde_json::from_str(&info(&["--json"], None)).unwrap();
    assert_eq!(json["model"], Value::Null);
    for (i, name) in ["cuda", "wgpu", "flex", "ndarray"].into_iter().enumerate() {
        assert!(text.lines().any(|line| line.starts_with(name)), "{text}");
        let backend = &json["backends"][i];
        assert_eq!(backend["backend"], name);
        let found = !backend["devices"].as_array().unwrap().is_empty();
        assert_ne!(found, backend["unusable"].is_string(), "{backend}");
    }
    assert!(text.contains("the CPU, on "), "{text}");
}
