//! GGUF files: their weights as another reader dequantises them, and what is refused.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Tensor};
use model::{CausalLm, ModelConfig, Taps, WeightsError};
use tempfile::TempDir;
use tests::gguf::{Gguf, Value, pieces, tiny};
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

#[test]
fn tensors_that_are_not_read() {
    for (kind, name) in [(20, "IQ4_NL"), (39, "MXFP4"), (999, "type 999")] {
        let mut file = tiny();
        file.tensors[2].kind = kind;
        let said = refused(&file.bytes());
        assert!(
            said.contains("`blk.0.attn_q.weight` is stored as "),
            "{said}"
        );
        assert!(said.contains(name) && said.contains("Q4_K"), "{said}");
    }
    let changed = |change: &dyn Fn(&mut Gguf)| {
        let mut file = tiny();
        change(&mut file);
        refused(&file.bytes())
    };
    let said = changed(&|file| file.tensors[3].sizes = vec![33, 16]);
    assert!(said.contains("rows of 33 numbers in Q8_0"), "{said}");
    let said = changed(&|file| file.tensors[3].sizes = vec![1 << 40, 1 << 40]);
    assert!(said.contains("would have the shape"), "{said}");
    let said = changed(&|file| file.tensors[3].sizes = vec![32; 5]);
    assert!(said.contains("5 dimensions"), "{said}");
    let said = changed(&|file| file.tensors[3].name = "output_norm.weight".into());
    assert!(said.contains("twice"), "{said}");
    let said = changed(&|file| file.keys.push(file.keys[1].clone()));
    assert!(said.contains("`llama.block_count` twice"), "{said}");
}

/// One error names all tensors that do not fit, as for other files.
#[test]
fn every_tensor_is_accounted_for() {
    let mut file = tiny().tensor("blk.0.attn_sinks.weight", &[2], 0, vec![0; 8]);
    file.tensors.remove(1);
    let (_folder, path) = file_of(&file.bytes());
    let error = load(&path).unwrap_err();
    let WeightsError::Tensors { faults, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(faults.len(), 2, "{error}");
    let said = error.to_string();
    assert!(
        said.contains("`model.layers.0.input_layernorm.weight` is missing"),
        "{said}"
    );
    assert!(said.contains("`blk.0.attn_sinks.weight`"), "{said}");
}

/// The file without the key.
fn without(key: &str) -> Gguf {
    let mut file = tiny();
    file.keys.retain(|(known, _)| known != key);
    file
}

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

/// A tensor without rows is no network's, however long they would be.
#[test]
fn a_tensor_without_rows() {
    let mut file = tiny();
    let query = "blk.0.attn_q.weight";
    let tensor = file.tensors.iter_mut().find(|tensor| tensor.name == query);
    let tensor = tensor.expect("a tensor");
    tensor.sizes = vec![1 << 40, 1 << 40, 0];
    tensor.bytes.clear();
    let (_folder, path) = file_of(&file.bytes());
    let said = load(&path).expect_err("refused").to_string();
    assert!(said.contains("m.gguf") && said.contains("q_proj"), "{said}");
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

/// A tokenizer that would cut texts in another way is refused, and only when it is asked for.
#[test]
fn tokenizers_that_are_not_implemented() {
    for (key, value) in [
        ("tokenizer.ggml.model", "bert"),
        ("tokenizer.ggml.pre", "chatglm-bpe"),
        ("tokenizer.ggml.pre", ""),
    ] {
        let (_folder, path) = file_of(&tiny().with(key, value).bytes());
        load(&path).expect("the network");
        let said = model::tokenizer_json(&path).unwrap_err().to_string();
        assert!(said.contains(&format!("`{key}` is \"{value}\"")), "{said}");
        assert!(said.contains("tokenizer.json"), "{said}");
    }
    let (_folder, path) = file_of(&without("tokenizer.ggml.model").bytes());
    assert_eq!(model::tokenizer_json(&path).unwrap(), None);
}

/// The `tokenizer.json` of a file, or why there is none.
fn tokenizer_of(file: &Gguf) -> Result<serde_json::Value, String> {
    let (_folder, path) = file_of(&file.bytes());
    let found = model::tokenizer_json(&path).map_err(|error| error.to_string())?;
    let bytes = found.expect("a tokenizer").bytes;
    Ok(serde_json::from_slice(&bytes).expect("JSON"))
}

/// SentencePiece's: by the scores, and by the file's merges only where the scores rank nothing.
#[test]
fn tokenizers_of_pieces() {
    let json = tokenizer_of(&pieces()).expect("a tokenizer");
    let steps = json["normalizer"]["normalizers"].as_array().map(Vec::len);
    let decoders = json["decoder"]["decoders"].as_array().map(Vec::len);
    assert_eq!((steps, decoders), (Some(2), Some(4)));
    assert_eq!(json["model"]["unk_token"], "<unk>");
    assert_eq!(json["added_tokens"].as_array().map(Vec::len), Some(3));
    // The best score is that of the first piece behind the bytes.
    let merges = json["model"]["merges"].as_array().expect("merges");
    assert_eq!(merges[0], serde_json::json!(["\u{2581}", "t"]));
    assert!(merges.len() > 200, "{}", merges.len());
    let no_blank = pieces().with("tokenizer.ggml.add_space_prefix", Value::Bool(false));
    let plain = tokenizer_of(&no_blank).expect("a tokenizer");
    assert_eq!(
        plain["normalizer"]["normalizers"].as_array().map(Vec::len),
        Some(1)
    );
    assert_eq!(
        plain["decoder"]["decoders"].as_array().map(Vec::len),
        Some(3)
    );
    let both = pieces().with("tokenizer.ggml.add_eos_token", Value::Bool(true));
    let both = tokenizer_of(&both).expect("a tokenizer");
    let special = |i: usize| both["post_processor"]["single"][i]["SpecialToken"]["id"].clone();
    assert_eq!((special(0), special(2)), ("<s>".into(), "</s>".into()));

    let tied = || pieces().with("tokenizer.ggml.scores", Value::F32s(vec![-1000.0; 512]));
    let said = tokenizer_of(&tied()).expect_err("no order");
    assert!(
        said.contains("`tokenizer.ggml.scores` is -1000 for both"),
        "{said}"
    );
    let merges = Value::Texts(vec!["h e".into()]);
    let merged = tied().with("tokenizer.ggml.merges", merges);
    let merged = tokenizer_of(&merged).expect("merges");
    assert_eq!(merged["model"]["merges"], serde_json::json!([["h", "e"]]));

    let long = |file: Gguf| {
        let tokens = (0..512).map(|i| format!("{i}{}", "x".repeat(300)));
        file.with("tokenizer.ggml.tokens", Value::Texts(tokens.collect()))
    };
    let without = |key: &str| {
        let mut file = pieces();
        file.keys.retain(|(known, _)| known != key);
        file
    };
    let nothing = || Value::Texts((0..512).map(|i| format!("t{i}")).collect());
    let known = || Value::I32s(vec![1; 512]);
    for (file, words) in [
        (
            without("tokenizer.ggml.scores"),
            "`tokenizer.ggml.scores` is missing",
        ),
        (
            without("tokenizer.ggml.bos_token_id"),
            "`tokenizer.ggml.bos_token_id` is missing",
        ),
        (
            pieces().with("tokenizer.ggml.scores", Value::F32s(vec![0.5])),
            "512 elements and",
        ),
        (
            pieces().with("tokenizer.ggml.scores", Value::I32s(vec![1])),
            "an array of f32",
        ),
        (
            pieces().with("tokenizer.ggml.scores", Value::F32s(vec![f32::NAN; 512])),
            "gives NaN",
        ),
        (long(pieces()), "at most 256 bytes"),
        (
            pieces().with("tokenizer.ggml.remove_extra_whitespaces", Value::Bool(true)),
            "`tokenizer.ggml.remove_extra_whitespaces` is true",
        ),
        (
            pieces().with("tokenizer.ggml.precompiled_charsmap", Value::I32s(vec![1])),
            "`tokenizer.ggml.precompiled_charsmap` is",
        ),
        (
            pieces().with("tokenizer.ggml.add_space_prefix", 1),
            "should be true or false",
        ),
        (
            without("tokenizer.ggml.unknown_token_id")
                .with("tokenizer.ggml.tokens", nothing())
                .with("tokenizer.ggml.token_type", known()),
            "neither a token for each byte",
        ),
    ] {
        let said = tokenizer_of(&file).expect_err(words);
        assert!(said.contains(words) && said.contains("m.gguf"), "{said}");
    }
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
