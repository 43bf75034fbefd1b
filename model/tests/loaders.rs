//! Ten thousand damaged files of each kind in a model's folder. Each gives a usable model or an error, never a
//! panic, and never takes more memory than a file of that size could need.

use std::fs;
use std::path::Path;
use std::thread;

use burn::tensor::{DType, Device};
use kernels::runtime::Flex;
use model::manifest::MANIFEST;
use model::{
    CausalLm, DiscreteMamba2Config, Family, LlamaConfig, LlamaFamily, ModelConfig, PhiConfig,
    PhiMambaConfig, WeightForm, named_parameters,
};
use safetensors::SafeTensors;
use serde_json::json;
use tempfile::TempDir;
use tests::mutations::{Memory, Mutator, each};

#[path = "support/torch.rs"]
mod torch_file;

/// Damaged files of each kind.
const CASES: u64 = 10_000;

/// The memory that these tests may need, apart from the stacks of threads: it is for the modules of many small layers.
/// Some tests run at the same time, and each measures the memory of all of them.
const ENOUGH: u64 = 4 << 30;

/// A teacher so small that its file is mostly header.
fn tiny() -> PhiConfig {
    let mut config = PhiConfig {
        vocab_size: 16,
        hidden_size: 8,
        intermediate_size: 8,
        num_hidden_layers: 2,
        ..PhiConfig::default()
    };
    config.attention.n_heads = 2;
    config.attention.n_kv_heads = 2;
    config
}

/// Its student, with attention kept in one layer.
fn tiny_student() -> PhiMambaConfig {
    let mixer = DiscreteMamba2Config {
        n_v_heads: 2,
        n_qk_heads: 2,
        d_state: 4,
        ..DiscreteMamba2Config::default()
    };
    PhiMambaConfig::student_of(&tiny(), &mixer, &[1]).unwrap()
}

/// A folder with the student, without its checksums, which would find all damage.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let student = CausalLm::<Flex>::init(&tiny_student(), 0, &Device::<Flex>::default());
    model::save(&tiny_student(), &student, folder.path()).unwrap();
    fs::remove_file(folder.path().join(MANIFEST)).unwrap();
    folder
}

/// For each case, replaces the file `name` in `folder` by the result of `damage`, and loads and describes the model.
/// Returns the number of cases that were refused.
fn refused(
    folder: &Path,
    name: &str,
    mut damage: impl FnMut(&mut Mutator) -> Vec<u8>,
    usable: impl Fn(&ModelConfig, &CausalLm<Flex>),
) -> u64 {
    let path = folder.join(name);
    let mut refused = 0;
    let memory = Memory::start();
    each(CASES, |mutator| {
        // A new file under the same name, because an open reader keeps the old file.
        let _ = fs::remove_file(&path);
        fs::write(&path, damage(mutator)).unwrap();
        let described = model::describe(folder);
        match model::load_any::<Flex>(folder, &Default::default()) {
            Ok((config, model)) => {
                assert!(described.is_ok());
                usable(&config, &model);
            }
            Err(error) => {
                refused += 1;
                let said = error.to_string();
                assert!(!said.is_empty() && said.lines().count() < 40, "{said}");
            }
        }
    });
    let more = memory.more();
    assert!(more < ENOUGH, "{more} bytes more");
    refused
}

/// The number of finite weights is that of the network.
fn is_student(_: &ModelConfig, model: &CausalLm<Flex>) {
    assert_eq!(model.vocab_size(), tiny_student().padded_vocab_size());
}

/// Files of Llama's shape with all that they may hold, in both forms.
fn tiny_llamas() -> [String; 2] {
    let old = json!({
        "model_type": "qwen2",
        "vocab_size": 16,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": { "type": "linear", "factor": 2.0 },
        "use_sliding_window": true,
        "sliding_window": 4,
        "max_window_layers": 1,
        "layer_types": ["full_attention", "sliding_attention"],
        "tie_word_embeddings": true,
    });
    let new = json!({
        "model_type": "llama",
        "vocab_size": 16,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "hidden_act": "silu",
        "attention_bias": true,
        "mlp_bias": true,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "quantization_config": null,
    });
    [old, new].map(|root| root.to_string())
}

/// Students of Llama as others publish them.
fn published_students() -> [String; 2] {
    let mixer = json!({
        "d_state": 4,
        "n_v_heads": 2,
        "n_qk_heads": 2,
        "expand": 1,
        "chunk_size": 128,
        "use_ref_impl": false,
        "activation": "identity",
        "bias": false,
        "norm_cls": "none",
        "initializer": {
            "a_log": "default",
            "x": "default",
            "B": "default",
            "C": "default",
            "D": "default",
            "z": "identity",
            "out": "default",
            "convolution": "identity",
        },
    });
    let attention = json!({ "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4 });
    let block = json!({
        "resid_dropout": 0.0,
        "mlp_intermediate_size": 8,
        "mlp_act_fn": "silu",
        "norm_epsilon": 1e-5,
    });
    let layer = |name: &str, input: &serde_json::Value| {
        json!({
            "name": "LlamaBlock",
            "n_layers": 1,
            "input": block,
            "Layer": { "name": name, "input": input },
        })
    };
    let mohawk = json!({ "ComponentsConfig": {
        "name": "LayeredMambaLM",
        "input": { "vocab_size": 16, "tie_embeddings": true, "pad_vocab_size_multiple": 8 },
        "MixerModel": {
            "name": "LlamaModel",
            "input": { "d_model": 8, "n_layer": 2, "norm_epsilon": 1e-5, "head_dim": 4 },
            "Blocks": [layer("DiscreteMamba2", &mixer), layer("LlamaAttention", &attention)],
        },
    } });
    let llamba = json!({
        "model_type": "llamba",
        "vocab_size": 16,
        "tie_embeddings": false,
        "pad_vocab_size_multiple": 8,
        "lm_head_bias": true,
        "d_model": 8,
        "n_layer": 1,
        "norm_epsilon": 1e-5,
        "mlp_cfg": { "intermediate_size": 8, "bias": false, "act_fn": "silu" },
        "ssm_cfg": mixer,
    });
    [mohawk, llamba].map(|root| root.to_string())
}

#[test]
fn configurations() {
    let [old, new] = tiny_llamas();
    let [mohawk, llamba] = published_students();
    let texts = [
        tiny().to_json(),
        tiny_student().to_json(),
        old,
        new,
        mohawk,
        llamba,
    ];
    thread::scope(|scope| {
        for text in texts {
            scope.spawn(move || configuration(&text));
        }
    });
}

/// Damaged copies of one configuration.
fn configuration(text: &str) {
    let folder = folder();
    let path = folder.path().join("config.json");
    let (mut good, mut bad) = (0, 0);
    let memory = Memory::start();
    each(CASES / 2, |mutator| {
        fs::write(&path, mutator.json(text)).unwrap();
        match model::describe(folder.path()) {
            Ok((config, _)) => {
                good += 1;
                use_config(&config);
            }
            Err(error) => {
                bad += 1;
                assert!(!error.to_string().is_empty());
            }
        }
        // With the student's weights, which seldom fit.
        if let Err(error) = model::load_any::<Flex>(folder.path(), &Default::default()) {
            assert!(error.to_string().lines().count() < 40);
        }
    });
    assert!(good > 200 && bad > 500, "{good} good, {bad} bad");
    let more = memory.more();
    assert!(more < ENOUGH, "{more} bytes more");
}

/// Checks that a network can be built from a configuration that was accepted.
fn use_config(config: &ModelConfig) {
    assert!(ModelConfig::from_json(&config.to_json()).is_ok());
    let model = CausalLm::<Flex>::init(config, 0, &Default::default());
    for parameter in named_parameters(&model, config.layout()) {
        let mut shape = parameter.shape.iter();
        let elements = shape.try_fold(1_usize, |product, n| product.checked_mul(*n));
        assert!(elements.is_some_and(|n| n > 0), "{parameter:?}");
    }
}

#[test]
fn safetensors_files() {
    let folder = folder();
    let name = "model.safetensors";
    let whole = fs::read(folder.path().join(name)).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let damage = |mutator: &mut Mutator| mutator.bytes_in(&whole, 0..header);
    let refused = refused(folder.path(), name, damage, is_student);
    assert!((CASES / 2..CASES).contains(&refused), "{refused} refused");
}

/// Weights in 4 bits, read as they are and as floats.
#[test]
fn packed_files() {
    let mut config = LlamaConfig::default_of(LlamaFamily::Llama);
    config.vocab_size = 16;
    config.hidden_size = 32;
    config.intermediate_size = 32;
    config.num_hidden_layers = 1;
    config.attention.n_heads = 2;
    config.attention.n_kv_heads = 2;
    config.tie_word_embeddings = true;
    let folder = tempfile::tempdir().unwrap();
    let model = CausalLm::<Flex>::init(&config, 0, &Device::<Flex>::default());
    let model = model.to_form(WeightForm::Int4);
    let text = config.to_json();
    model::save_packed((&config, &text), &model, DType::F16, folder.path()).unwrap();
    fs::remove_file(folder.path().join(MANIFEST)).unwrap();
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let (mut good, mut bad) = (0, 0);
    let memory = Memory::start();
    each(CASES / 4, |mutator| {
        let _ = fs::remove_file(&path);
        fs::write(&path, mutator.bytes_in(&whole, 0..header)).unwrap();
        let device = Default::default();
        let packed = model::load_packed_as::<Flex>(folder.path(), |_| DType::F32, &device);
        let floats = model::load_any::<Flex>(folder.path(), &device);
        assert_eq!(packed.is_ok(), floats.is_ok());
        match packed {
            Ok((_, model)) => {
                good += 1;
                assert_eq!(model.vocab_size(), 16);
            }
            Err(error) => {
                bad += 1;
                assert!(error.to_string().lines().count() < 40, "{error}");
            }
        }
    });
    assert!(good > 0 && bad > CASES / 8, "{good} good, {bad} bad");
    assert!(memory.more() < ENOUGH);
}

#[test]
fn indices() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = CausalLm::<Flex>::init(&tiny(), 0, &Device::<Flex>::default());
    model::save_in_shards(&tiny(), &teacher, DType::F32, 2000, folder.path()).unwrap();
    fs::remove_file(folder.path().join(MANIFEST)).unwrap();
    let name = "model.safetensors.index.json";
    let text = fs::read_to_string(folder.path().join(name)).unwrap();
    // What names no file changes nothing.
    let refused = refused(
        folder.path(),
        name,
        |mutator| mutator.json(&text),
        |_, model| {
            assert_eq!(model.vocab_size(), tiny().vocab_size);
        },
    );
    assert!((CASES / 2..CASES).contains(&refused), "{refused} refused");
}

/// The student's tensors as `torch.save` writes them: the pickle, and the storages.
fn pickled(folder: &Path) -> (Vec<u8>, Vec<Vec<u8>>) {
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (mut tensors, mut storages) = (Vec::new(), Vec::new());
    for (storage, (name, tensor)) in file.tensors().into_iter().enumerate() {
        let shape = tensor.shape().to_vec();
        let view = torch_file::View {
            storage,
            class: "FloatStorage",
            offset: 0,
            strides: torch_file::row_major(&shape),
            shape,
        };
        tensors.push((name, view));
        storages.push(tensor.data().to_vec());
    }
    let named = tensors.iter().map(|(name, view)| (&**name, view));
    (torch_file::dictionary(named), storages)
}

/// Damage to the archive, which its checksums find, and to the pickle under a right checksum.
#[test]
fn torch_files() {
    let folder = folder();
    let (pickle, storages) = pickled(folder.path());
    let whole = torch_file::file(&pickle, &storages);
    let directory = whole.len() - 60 * (storages.len() + 2);
    let damage = |mutator: &mut Mutator| match mutator.below(4) {
        0 => mutator.bytes_in(&whole, directory..whole.len()),
        _ => torch_file::file(&mutator.bytes(&pickle), &storages),
    };
    let refused = refused(folder.path(), "pytorch_model.bin", damage, is_student);
    assert!((CASES / 2..CASES).contains(&refused), "{refused} refused");
}

/// Damage to the header, and to the small files that are made of it.
#[test]
fn gguf_files() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, header) = (
        tests::gguf::tiny().bytes(),
        tests::gguf::tiny().header().len(),
    );
    let damage = |mutator: &mut Mutator| mutator.bytes_in(&whole, 0..header);
    let count = refused(folder.path(), "m.gguf", damage, |config, model| {
        assert_eq!(model.vocab_size(), config.network().vocab_size);
    });
    assert!((CASES / 2..CASES).contains(&count), "{count} refused");
    let (mut read, path) = (0, folder.path().join("m.gguf"));
    let pieces = tests::gguf::pieces();
    let tokenizers = [(whole, header), (pieces.bytes(), pieces.header().len())];
    let memory = Memory::start();
    each(CASES, |mutator| {
        let (whole, header) = mutator.choose(&tokenizers);
        fs::write(&path, mutator.bytes_in(whole, 0..*header)).unwrap();
        for name in [
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
        ] {
            match model::small_file(&path, name) {
                Ok(_) => read += 1,
                Err(error) => assert!(error.to_string().contains("m.gguf"), "{error}"),
            }
        }
    });
    assert!((CASES / 10..2 * CASES).contains(&read), "{read} read");
    assert!(memory.more() < ENOUGH);
}

/// Damaged checksums: what they find was damaged before, or is no longer listed.
#[test]
fn checksums() {
    let folder = tempfile::tempdir().unwrap();
    let student = CausalLm::<Flex>::init(&tiny_student(), 0, &Device::<Flex>::default());
    model::save(&tiny_student(), &student, folder.path()).unwrap();
    // Those of the files that a loader reads, and so compares.
    let text = fs::read_to_string(folder.path().join(MANIFEST)).unwrap();
    let lines = text.lines().filter(|line| !line.ends_with(".py"));
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    let refused = refused(
        folder.path(),
        MANIFEST,
        |mutator| mutator.text(&text),
        is_student,
    );
    assert!((CASES / 2..CASES).contains(&refused), "{refused} refused");
}
