//! GGUF files: their weights as another reader dequantises them, and what is refused.

mod keys;
mod tensors;
mod tokenizers;

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Tensor};
use model::{CausalLm, ModelConfig, Taps, WeightsError};
use tempfile::TempDir;
use tests::gguf::{Gguf, tiny};
use tests::networks::{Fast, ids, values};
use tests::{Goldens, assert_close, cases, name_of};

/// The folders with a GGUF file and with the same weights as Hugging Face has them.
fn folders() -> Vec<PathBuf> {
    let mut folders = cases("gguf-");
    folders.retain(|folder| folder.join("model.gguf").exists());
    assert!(!folders.is_empty());
    folders
}

fn load(path: &Path) -> Result<(ModelConfig, CausalLm<Fast>), WeightsError> {
    model::load_any(path, &Default::default())
}

/// Every parameter's bits.
fn bits(model: &CausalLm<Fast>) -> Vec<Vec<u32>> {
    struct Collected(Vec<Vec<u32>>);
    impl burn::module::ModuleVisitor<Fast> for Collected {
        fn visit_float<const D: usize>(
            &mut self,
            parameter: &burn::module::Param<Tensor<Fast, D>>,
        ) {
            let values = parameter.val().into_data().to_vec::<f32>().expect("f32");
            self.0
                .push(values.iter().map(|value| value.to_bits()).collect());
        }
    }
    let mut found = Collected(Vec::new());
    burn::module::Module::visit(model, &mut found);
    found.0
}

/// Bit for bit those of the `gguf` package, in the order and under the names of transformers; and so are the logits.
#[test]
fn a_file_is_the_folder_that_transformers_makes_of_it() {
    for folder in folders() {
        let case = name_of(&folder);
        let (expected_config, expected) = load(&folder).expect("the folder");
        let (config, model) = load(&folder.join("model.gguf")).expect("the file");
        assert_eq!(config, expected_config, "{case}");
        let (found, expected) = (bits(&model), bits(&expected));
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!(found == expected, "{case}: parameter {i}");
        }
        assert_eq!(found.len(), expected.len());

        let goldens = Goldens::open_path(&folder.join("expected.safetensors"));
        let ids = ids::<Fast>(&goldens, "input_ids", &Default::default());
        let taps = Taps {
            logits: true,
            ..Taps::default()
        };
        let logits = model.forward(ids, taps).logits.expect("asked for");
        assert_close(&case, values(logits), goldens.f64("logits"), 2e-5);
    }
}

/// `bytes` as the only file of a folder, and its path.
fn file_of(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.gguf");
    fs::write(&path, bytes).expect("a file");
    (folder, path)
}

/// The error of a file, which names the file and is one sentence.
fn refused(bytes: &[u8]) -> String {
    let (_folder, path) = file_of(bytes);
    let said = load(&path).expect_err("refused").to_string();
    assert!(said.contains("m.gguf"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

/// A folder without a configuration is the file in it, its checksums and its hash included.
#[test]
fn a_folder_may_hold_a_file() {
    let (folder, path) = file_of(&tiny().bytes());
    let config = load(folder.path()).expect("a folder").0;
    assert_eq!(config, load(&path).expect("a file").0);
    assert_eq!(
        model::model_files(folder.path()).unwrap(),
        std::slice::from_ref(&path)
    );
    let hash = |path: &Path| model::ModelHash::of(path).unwrap();
    assert_eq!(hash(folder.path()), hash(&path));
    assert_eq!(model::locate(&path).unwrap(), path);

    // Whatever it is called.
    let other = folder.path().join("weights");
    fs::copy(&path, &other).unwrap();
    load(&other).expect("a file by its first bytes");

    model::manifest::write(folder.path(), &["m.gguf"]).unwrap();
    load(folder.path()).expect("the listed file");
    assert!(model::ModelHash::listed(&path).unwrap().is_some());
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    for place in [folder.path(), &path] {
        assert!(matches!(load(place), Err(WeightsError::Manifest(_))));
    }

    fs::copy(&other, folder.path().join("n.GGUF")).unwrap();
    let said = load(folder.path()).unwrap_err().to_string();
    assert!(said.contains("2 GGUF files"), "{said}");
    // With a configuration, the folder is an ordinary one.
    fs::write(folder.path().join("config.json"), config.to_json()).unwrap();
    assert!(matches!(
        load(folder.path()),
        Err(WeightsError::NoWeights { .. })
    ));
}

/// What the small files of a folder would say.
#[test]
fn small_files() {
    let (folder, path) = file_of(&tiny().bytes());
    let json = |name: &str| {
        let file = model::small_file(&path, name).expect("readable")?;
        assert_eq!(file.path, path);
        Some(serde_json::from_slice::<serde_json::Value>(&file.bytes).expect("JSON"))
    };
    let generation = json("generation_config.json").expect("both ends");
    let expected = serde_json::json!({"bos_token_id": 22, "eos_token_id": 22});
    assert_eq!(generation, expected);
    let tokenizer = json("tokenizer_config.json").expect("a template");
    assert_eq!(tokenizer["chat_template"], "{{ messages }}");
    assert_eq!(tokenizer["eos_token"], "<|im_end|>");
    assert_eq!(
        json("tokenizer.json").expect("tokens")["added_tokens"][1]["id"],
        23
    );
    assert_eq!(json("config.json").expect("keys")["rms_norm_eps"], 1e-5);
    assert_eq!(json("vocab.json"), None);

    // What lies beside the file in a folder comes first.
    fs::write(folder.path().join("generation_config.json"), "{}").unwrap();
    let found = |place: &Path| {
        model::small_file(place, "generation_config.json")
            .unwrap()
            .unwrap()
    };
    assert_eq!(found(folder.path()).bytes, b"{}");
    assert_ne!(found(&path).bytes, b"{}");
}

/// Cut anywhere, a file gives one sentence, and never a model.
#[test]
fn files_that_are_cut() {
    let whole = tiny().bytes();
    let header = tiny().header().len();
    for n in (0..header).chain((header..whole.len()).step_by(97)) {
        let said = refused(&whole[..n]);
        assert!(
            [
                "not a GGUF file",
                "not a whole GGUF file",
                "is cut short",
                "is empty"
            ]
            .iter()
            .any(|words| said.contains(words)),
            "{n} bytes: {said}"
        );
    }
    let (_folder, path) = file_of(&whole);
    load(&path).expect("the whole file");
}

#[test]
fn other_formats() {
    let mut file = tiny().bytes();
    file[4] = 1;
    assert!(refused(&file).contains("version 1 of GGUF"));
    file[4..8].copy_from_slice(&[0, 0, 0, 3]);
    assert!(refused(&file).contains("big-endian"));
    file[..4].copy_from_slice(b"ggjt");
    assert!(refused(&file).contains("not a GGUF file"));
    // Version 2 is 3 for these machines.
    let mut file = tiny().bytes();
    file[4] = 2;
    let (_folder, path) = file_of(&file);
    load(&path).expect("version 2");
}

/// The file without the key.
fn without(key: &str) -> Gguf {
    let mut file = tiny();
    file.keys.retain(|(known, _)| known != key);
    file
}

/// In the dtype that is asked for, from the values in f32.
#[test]
fn in_half_precision() {
    let (_folder, path) = file_of(&tiny().bytes());
    let stored = std::cell::Cell::new(None);
    let choose = |found| {
        stored.set(found);
        DType::BF16
    };
    let model = model::load_any_as::<Fast>(&path, choose, &Default::default());
    let weight = model.expect("a model").1.backbone.embedding.weight.val();
    assert_eq!(
        (weight.dtype(), stored.get()),
        (DType::BF16, Some(DType::F32))
    );
    let described = model::describe(&path).expect("tensors").1;
    let types: std::collections::BTreeSet<_> = described
        .iter()
        .map(|tensor| tensor.stored_as.as_str())
        .collect();
    assert_eq!(types.into_iter().collect::<Vec<_>>(), ["f32", "q8_0"]);
    let embedding = described
        .iter()
        .find(|tensor| tensor.name == "model.embed_tokens.weight");
    assert_eq!(embedding.map(|tensor| tensor.bytes), Some(24 * 34));
}
