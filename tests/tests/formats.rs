//! Model folders: what is read is what was written, and what does not fit or is damaged is an error
//! that says so.

mod support;

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use burn::tensor::{DType, Tensor};
use half::{bf16, f16};
use kernels::KernelBackend;
use model::weights::TensorFault;
use model::{
    CausalLm, ConfigError, DiscreteMamba2Config, Family, ModelConfig, PhiConfig, PhiMambaConfig,
    WeightsError, atomic_file, named_parameters,
};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use support::*;
use tempfile::TempDir;
use tests::{Goldens, cases, goldens_dir, name_of};

/// Every tensor of a safetensors file: name, dtype, shape, bytes.
type Contents = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;

fn contents(path: &Path) -> Contents {
    let bytes = fs::read(path).expect("a file");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let tensors = file.tensors().into_iter();
    let mut all: Contents = tensors
        .map(|(name, x)| (name, x.dtype(), x.shape().to_vec(), x.data().to_vec()))
        .collect();
    all.sort();
    all
}

fn write(path: &Path, contents: &Contents) {
    let views = contents.iter().map(|(name, dtype, shape, bytes)| {
        let view = TensorView::new(*dtype, shape.clone(), bytes).expect("a view");
        (name.clone(), view)
    });
    safetensors::serialize_to_file(views, None, path).expect("a written file");
}

/// A copy of a golden folder's model, to damage.
fn copy_of(case: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(
            goldens_dir().join(case).join(name),
            folder.path().join(name),
        )
        .expect("a copy");
    }
    folder
}

fn load_student(folder: &Path) -> Result<(PhiMambaConfig, CausalLm<Fast>), WeightsError> {
    let (config, model) = model::load_any(folder, &Default::default())?;
    let ModelConfig::PhiMamba(config) = config else {
        panic!("no student: {config:?}")
    };
    Ok((config, model))
}

fn load_teacher(folder: &Path) -> Result<(PhiConfig, CausalLm<Fast>), WeightsError> {
    let (config, model) = model::load_any(folder, &Default::default())?;
    let ModelConfig::Phi(config) = config else {
        panic!("no teacher: {config:?}")
    };
    Ok((config, model))
}

/// Every parameter's name and values.
fn parameters<B: KernelBackend>(model: &CausalLm<B>) -> HashMap<String, tests::Values> {
    struct Collected(Vec<tests::Values>);
    impl<B: KernelBackend> burn::module::ModuleVisitor<B> for Collected {
        fn visit_float<const D: usize>(&mut self, parameter: &burn::module::Param<Tensor<B, D>>) {
            self.0.push(values(parameter.val()));
        }
    }
    let mut found = Collected(Vec::new());
    burn::module::Module::visit(model, &mut found);
    let names = named_parameters(model, PhiMambaConfig::LAYOUT).into_iter();
    names.map(|p| p.name).zip(found.0).collect()
}

#[test]
fn students_are_written_as_they_were_read() {
    for case in cases("student-") {
        let (config, model) = load_student(&case).expect("a student");
        let out = tempfile::tempdir().expect("a folder");
        model::save_student(&config, &model, out.path()).expect("saved");
        let file = "model.safetensors";
        assert!(
            contents(&out.path().join(file)) == contents(&case.join(file)),
            "{}: names, dtypes, shapes or bytes differ",
            name_of(&case)
        );
        let read = fs::read(out.path().join(file)).expect("a file");
        let (_, metadata) = SafeTensors::read_metadata(&read).expect("a header");
        let format = metadata.metadata().as_ref().and_then(|m| m.get("format"));
        assert_eq!(format.map(String::as_str), Some("pt"));

        let (again, _) = load_student(out.path()).expect("the same student");
        assert_eq!(again, config);
        let json = |folder: &Path| -> serde_json::Value {
            let text = fs::read_to_string(folder.join("config.json")).expect("a file");
            serde_json::from_str(&text).expect("JSON")
        };
        if !name_of(&case).contains("hybrid") {
            assert_eq!(json(out.path()), json(&case), "{}", name_of(&case));
        }
        let left: Vec<_> = fs::read_dir(out.path()).expect("a folder").collect();
        assert_eq!(left.len(), 2, "no temporary file may be left");
    }
}

#[test]
fn teachers_are_written_as_they_were_read() {
    for case in cases("teacher-") {
        let (config, model) = load_teacher(&case).expect("a teacher");
        let out = tempfile::tempdir().expect("a folder");
        model::save_teacher(&config, &model, out.path()).expect("saved");
        let file = "model.safetensors";
        assert!(
            contents(&out.path().join(file)) == contents(&case.join(file)),
            "{}: names, dtypes, shapes or bytes differ",
            name_of(&case)
        );
        let (again, _) = load_teacher(out.path()).expect("the same teacher");
        assert_eq!(again, config);
        let loaded = model::load_any::<Fast>(out.path(), &Default::default());
        assert!(matches!(loaded, Ok((ModelConfig::Phi(_), _))));
    }
}

#[test]
fn teachers_in_shards_are_what_they_were_whole() {
    for case in cases("teacher-") {
        let (config, model) = load_teacher(&case).expect("a teacher");
        let before = parameters(&model);
        let out = tempfile::tempdir().expect("a folder");
        let files = || {
            let entries = fs::read_dir(out.path()).expect("a folder");
            let shards = entries.map(|entry| entry.expect("an entry").path());
            let mut shards: Vec<_> = shards
                .filter(|path| path.extension().is_some_and(|it| it == "safetensors"))
                .collect();
            shards.sort();
            shards
        };
        // A whole one lies there, which would be read first.
        model::save_teacher(&config, &model, out.path()).expect("saved");
        let largest = contents(&files()[0]).iter().map(|it| it.3.len()).max();
        let limit = largest.expect("tensors") + 4096;
        model::save_teacher_in_shards(&config, &model, DType::F32, limit, out.path())
            .expect("saved");
        let shards = files();
        assert!(shards.len() > 1, "{shards:?}");
        let bytes = |path: &Path| contents(path).iter().map(|it| it.3.len()).sum::<usize>();
        assert!(shards.iter().all(|path| bytes(path) <= limit));
        let (again, model) = load_teacher(out.path()).expect("the same teacher");
        assert_eq!(again, config);
        let after = parameters(&model);
        assert_eq!(before.len(), after.len());
        for (name, values) in &before {
            assert_eq!(values.1, after[name].1, "{name}");
        }

        let half = tempfile::tempdir().expect("a folder");
        model::save_teacher_in_shards(&config, &model, DType::BF16, limit, half.path())
            .expect("saved");
        let (_, rounded) = load_teacher(half.path()).expect("nearly the same teacher");
        for (name, values) in &parameters(&rounded) {
            let exact = before[name].1.iter();
            let expected = exact.map(|x| bf16::from_f32(*x as f32).to_f64());
            assert!(values.1.iter().copied().eq(expected), "{name}");
        }
    }
}

/// A model that is written over another, and broken off, is none: not some tensors of each.
#[test]
fn half_of_a_rewrite_is_no_model() {
    let (config, model) = load_teacher(&goldens_dir().join("teacher-tiny")).expect("a teacher");
    let out = tempfile::tempdir().expect("a folder");
    let shards = || model::save_teacher_in_shards(&config, &model, DType::F32, 1, out.path());
    shards().expect("saved");
    load_teacher(out.path()).expect("a teacher");
    let entries = fs::read_dir(out.path()).expect("a folder");
    let second = entries
        .map(|entry| entry.expect("an entry").path())
        .find(|path| name_of(path).starts_with("model-00002-of-"))
        .expect("a second shard");
    // A shard cannot take the place of a folder.
    fs::remove_file(&second).expect("removed");
    fs::create_dir(&second).expect("a folder");
    let assert_broken = || {
        let error = shards().expect_err("a folder in the way");
        assert!(matches!(error, WeightsError::Io { .. }), "{error}");
        let error = load_teacher(out.path()).expect_err("no model");
        assert!(matches!(error, WeightsError::NoWeights { .. }), "{error}");
    };
    assert_broken();
    model::save_teacher(&config, &model, out.path()).expect("saved");
    load_teacher(out.path()).expect("a teacher");
    assert_broken();
}

#[test]
fn files_are_replaced_whole_or_not_at_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.json");
    atomic_file::write(&path, b"a longer first version").expect("written");
    atomic_file::write(&path, b"second").expect("written");
    assert_eq!(fs::read(&path).expect("a file"), b"second");
    // One that breaks off.
    let broken = atomic_file::replace(&path, |temporary| {
        fs::write(temporary, b"thi")?;
        Err(std::io::ErrorKind::StorageFull.into())
    });
    let error = broken.expect_err("no room");
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(fs::read(&path).expect("a file"), b"second");
    // A folder cannot be replaced by a file.
    let occupied = folder.path().join("occupied");
    fs::create_dir(&occupied).expect("a folder");
    atomic_file::write(&occupied, b"x").expect_err("a folder");
    let left: Vec<_> = fs::read_dir(folder.path()).expect("a folder").collect();
    assert_eq!(left.len(), 2, "no temporary file may be left");
}

#[test]
fn random_teachers_are_read_back() {
    let config = PhiConfig {
        vocab_size: 384,
        hidden_size: 64,
        intermediate_size: 96,
        num_hidden_layers: 2,
        attention: model::AttentionConfig {
            n_heads: 4,
            n_kv_heads: 4,
            ..PhiConfig::default().attention
        },
        ..PhiConfig::default()
    };
    let [once, twice] = [(), ()].map(|()| {
        let folder = tempfile::tempdir().expect("a folder");
        model::save_random_teacher::<Fast>(&config, folder.path(), &Default::default())
            .expect("saved");
        let (read, model) = load_teacher(folder.path()).expect("a teacher");
        assert_eq!(read, config);
        parameters(&model)
    });
    for (name, values) in &once {
        let data = &values.1;
        assert_eq!(*data, twice[name].1, "{name}");
        let n = data.len() as f64;
        let mean = data.iter().sum::<f64>() / n;
        let deviation = (data.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
        let expected = match (name.contains("layernorm"), name.ends_with("bias")) {
            (_, true) => (0.0, 0.0),
            (true, false) => (1.0, 0.0),
            (false, false) => (0.0, 0.02),
        };
        // 4096 numbers or more: their mean and deviation are known to 2%.
        let near = |x: f64, expected: f64| (x - expected).abs() <= 0.1 * 0.02;
        assert!(
            near(mean, expected.0) && near(deviation, expected.1),
            "{name}"
        );
    }
}

#[test]
fn pytorch_bin_equals_safetensors() {
    let case = goldens_dir().join("student-tiny");
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["config.json", "pytorch_model.bin"] {
        fs::copy(case.join(name), folder.path().join(name)).expect("a copy");
    }
    let (_, from_bin) = load_student(folder.path()).expect("a student");
    let (_, from_safetensors) = load_student(&case).expect("a student");
    assert_eq!(parameters(&from_bin), parameters(&from_safetensors));
    let loaded = model::load_any::<Fast>(folder.path(), &Default::default());
    assert!(matches!(loaded, Ok((ModelConfig::PhiMamba(_), _))));
}

/// A model in two shards and an index, for both kinds.
#[test]
fn shards_equal_one_file() {
    for case in ["student-hybrid", "teacher-gqa"] {
        let folder = copy_of(case);
        let single = folder.path().join("model.safetensors");
        let all = contents(&single);
        fs::remove_file(&single).expect("removed");
        let (first, second) = all.split_at(all.len() / 3);
        let mut weight_map = serde_json::Map::new();
        for (file, part) in [("a.safetensors", first), ("b.safetensors", second)] {
            write(&folder.path().join(file), &part.to_vec());
            for (name, ..) in part {
                weight_map.insert(name.clone(), file.into());
            }
        }
        let index = folder.path().join("model.safetensors.index.json");
        let text = serde_json::json!({ "metadata": {}, "weight_map": weight_map }).to_string();
        fs::write(&index, &text).expect("written");
        let (_, sharded) =
            model::load_any::<Fast>(folder.path(), &Default::default()).expect("a model");
        let (_, whole) =
            model::load_any::<Fast>(goldens_dir().join(case), &Default::default()).expect("one");
        assert_eq!(parameters(&sharded), parameters(&whole));

        // An index must not lead out of its folder, and a shard that is gone is named.
        fs::write(&index, text.replace("a.safetensors", "../a.safetensors")).expect("written");
        let error = model::load_any::<Fast>(folder.path(), &Default::default());
        assert!(matches!(error, Err(WeightsError::Damaged { .. })));
        fs::write(&index, &text).expect("written");
        fs::remove_file(folder.path().join("b.safetensors")).expect("removed");
        let error = model::load_any::<Fast>(folder.path(), &Default::default());
        let message = error.expect_err("a missing shard").to_string();
        assert!(message.contains("b.safetensors"), "{message}");
    }
}

/// Half precision on disk is widened exactly, in f32 and in f64.
#[test]
fn half_precision_is_widened() {
    let narrow_f16 = |v: f32| (f16::from_f32(v).to_bits(), f16::from_f32(v).to_f64());
    let narrow_bf16 = |v: f32| (bf16::from_f32(v).to_bits(), bf16::from_f32(v).to_f64());
    check_widening(Dtype::F16, narrow_f16);
    check_widening(Dtype::BF16, narrow_bf16);
}

fn check_widening(dtype: Dtype, narrow: impl Fn(f32) -> (u16, f64)) {
    let folder = copy_of("student-tiny");
    let path = folder.path().join("model.safetensors");
    let mut all = contents(&path);
    let mut expected = HashMap::new();
    for (name, found, shape, bytes) in &mut all {
        let narrowed: Vec<(u16, f64)> = bytes
            .as_chunks()
            .0
            .iter()
            .map(|v| narrow(f32::from_le_bytes(*v)))
            .collect();
        let wide = narrowed.iter().map(|(_, wide)| *wide).collect();
        expected.insert(name.clone(), (shape.clone(), wide));
        *bytes = narrowed
            .iter()
            .flat_map(|(bits, _)| bits.to_le_bytes())
            .collect();
        *found = dtype;
    }
    write(&path, &all);
    let (_, fast) = load_student(folder.path()).expect("a student");
    assert_eq!(parameters(&fast), expected);
    let (_, exact) =
        model::load_student::<Exact>(folder.path(), &Default::default()).expect("a student");
    assert_eq!(parameters(&exact), expected);
}

/// One error names every tensor that does not fit, with both shapes.
#[test]
fn every_tensor_is_accounted_for() {
    let folder = copy_of("student-tiny");
    let path = folder.path().join("model.safetensors");
    let mut all = contents(&path);
    all.retain(|(name, ..)| name != "lm_head.bias");
    for (name, dtype, shape, _) in &mut all {
        match name.as_str() {
            "backbone.layers.0.mixer.D" => shape.push(1),
            "backbone.layers.1.mixer.D" => *dtype = Dtype::I32,
            "backbone.final_layernorm.bias" => *name = "backbone.extra".into(),
            _ => {}
        }
    }
    write(&path, &all);
    let (config, _) = load_student(&goldens_dir().join("student-tiny")).expect("a student");
    let model::MixerConfig::DiscreteMamba2(mixer) = &config.blocks[0].mixer else {
        panic!("a Mamba layer")
    };
    let (v, d, h) = (config.padded_vocab_size(), config.d_model, mixer.n_v_heads);
    let error = load_student(folder.path()).expect_err("tensors that do not fit");
    let WeightsError::Tensors { faults, .. } = &error else {
        panic!("{error}")
    };
    let missing = |name: &str, expected: &[usize]| TensorFault::Missing {
        name: name.into(),
        expected: expected.into(),
    };
    for expected in [
        missing("lm_head.bias", &[v]),
        missing("backbone.final_layernorm.bias", &[d]),
        TensorFault::Shape {
            name: "backbone.layers.0.mixer.D".into(),
            found: vec![h, 1],
            expected: vec![h],
        },
        TensorFault::Dtype {
            name: "backbone.layers.1.mixer.D".into(),
            dtype: "I32".into(),
        },
        TensorFault::Unexpected {
            name: "backbone.extra".into(),
            found: vec![d],
        },
    ] {
        assert!(faults.contains(&expected), "{expected} is not in: {error}");
        assert!(error.to_string().contains(&expected.to_string()));
    }
    assert_eq!(faults.len(), 5, "{error}");
}

#[test]
fn known_buffers_are_passed_over() {
    let folder = copy_of("teacher-tiny");
    let path = folder.path().join("model.safetensors");
    let mut all = contents(&path);
    let name = "model.layers.0.self_attn.rotary_emb.inv_freq".to_owned();
    all.push((name, Dtype::F32, vec![3], vec![0; 12]));
    write(&path, &all);
    load_teacher(folder.path()).expect("a teacher with a buffer");
}

/// Cut at every length that matters, emptied, overwritten with noise, or not a file at all: always
/// an error that names the file, never a panic and never a model.
#[test]
fn damaged_files_are_refused() {
    for name in ["model.safetensors", "pytorch_model.bin"] {
        let whole = fs::read(goldens_dir().join("student-tiny").join(name)).expect("a file");
        let n = whole.len();
        let mut damaged: Vec<Vec<u8>> = [0, 1, 7, 8, 9, 100, n / 2, n - 1]
            .into_iter()
            .map(|n| whole[..n].to_vec())
            .collect();
        damaged.push(b"not a model at all, but some text".repeat(100));
        damaged.push(vec![0xff; 4096]);
        damaged.push([u64::MAX.to_le_bytes().as_slice(), &whole[8..]].concat());
        for bytes in damaged {
            assert_refused(name, &bytes);
        }
    }
}

/// A flipped byte: safetensors has no checksum, so only its header can tell; an archive must tell
/// wherever it is, but for the few bytes that repeat what the directory at its end says.
#[test]
fn flipped_bytes_never_panic() {
    let whole = fs::read(goldens_dir().join("student-tiny/pytorch_model.bin")).expect("a file");
    let (_, original) = load_student(&goldens_dir().join("student-tiny")).expect("a student");
    let original = parameters(&original);
    for i in (0..whole.len()).step_by(whole.len() / 150) {
        let mut bytes = whole.clone();
        bytes[i] ^= 0x55;
        let folder = folder_with("pytorch_model.bin", &bytes);
        if let Ok((_, model)) = load_student(folder.path()) {
            assert_eq!(parameters(&model), original, "byte {i} changed the model");
        }
    }
    let whole = fs::read(goldens_dir().join("student-tiny/model.safetensors")).expect("a file");
    for i in 0..600 {
        let mut bytes = whole.clone();
        bytes[i] ^= 0x55;
        let folder = folder_with("model.safetensors", &bytes);
        if let Ok((_, model)) = load_student(folder.path()) {
            assert_eq!(parameters(&model), original, "byte {i} changed the model");
        }
    }
}

fn folder_with(name: &str, bytes: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let config = goldens_dir().join("student-tiny/config.json");
    fs::copy(config, folder.path().join("config.json")).expect("a copy");
    fs::write(folder.path().join(name), bytes).expect("written");
    folder
}

fn assert_refused(name: &str, bytes: &[u8]) {
    let folder = folder_with(name, bytes);
    let error = match load_student(folder.path()) {
        Ok(_) => panic!("{name} of {} bytes was accepted", bytes.len()),
        Err(error) => error.to_string(),
    };
    assert!(error.contains(name), "{error}");
}

#[test]
fn absent_files_are_named() {
    let nowhere = load_student(Path::new("/nowhere/at/all")).expect_err("no folder");
    assert!(nowhere.to_string().contains("/nowhere/at/all/config.json"));

    let folder = copy_of("student-tiny");
    fs::remove_file(folder.path().join("model.safetensors")).expect("removed");
    let empty = load_student(folder.path()).expect_err("no weights");
    assert!(matches!(empty, WeightsError::NoWeights { .. }), "{empty}");
    fs::create_dir(folder.path().join("model.safetensors")).expect("a folder");
    let not_a_file = load_student(folder.path()).expect_err("a folder in place of a file");
    assert!(not_a_file.to_string().contains("model.safetensors"));

    // A file where the output folder should be.
    let (config, model) = load_student(&goldens_dir().join("student-tiny")).expect("a student");
    let occupied = folder.path().join("config.json");
    let error = model::save_student(&config, &model, &occupied).expect_err("not a folder");
    assert!(matches!(error, WeightsError::Io { .. }), "{error}");
}

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

/// A student of a teacher whose sizes the published format cannot say: they are written and read
/// back, and the network computes with them.
#[test]
fn students_of_unusual_teachers() {
    let case = goldens_dir().join("teacher-rotary-quarter");
    let (teacher_config, teacher) = load_teacher(&case).expect("a teacher");
    let layers = teacher_config.num_hidden_layers;
    let everywhere: Vec<usize> = (0..layers).collect();
    let mixer = DiscreteMamba2Config::default();
    let config =
        PhiMambaConfig::student_of(&teacher_config, &mixer, &everywhere).expect("a student");
    let mut student = CausalLm::init(&config, 1, &Default::default());
    model::transfer_weights(&mut student, &teacher).expect("the sizes fit");
    let out = tempfile::tempdir().expect("a folder");
    model::save_student(&config, &student, out.path()).expect("saved");
    let (again, student) = load_student(out.path()).expect("the same student");
    assert_eq!(again, config);
    // With attention kept in every layer, the student is the teacher.
    let goldens = Goldens::open_path(&case.join("expected.safetensors"));
    let ids = ids::<Fast>(&goldens, "input_ids", &Default::default());
    let logits = student.logits(student.features(ids));
    assert_golden("kept everywhere", &goldens, "logits", logits, FAST);

    for wrong in [vec![layers], vec![0, 0]] {
        let error = PhiMambaConfig::student_of(&teacher_config, &mixer, &wrong);
        assert!(matches!(error, Err(ConfigError::Invalid(_))));
    }
}

/// A cast changes every parameter's dtype, and nothing else where the values fit.
#[test]
fn cast_keeps_values() {
    use burn::tensor::DType;

    let (_, model) = load_student(&goldens_dir().join("student-tiny")).expect("a student");
    let before = parameters(&model);
    let ids = named_parameters(&model, PhiMambaConfig::LAYOUT);
    let wide = model.cast(DType::F64);
    assert_eq!(wide.head().weight.val().dtype(), DType::F64);
    assert_eq!(parameters(&wide), before);
    assert_eq!(named_parameters(&wide, PhiMambaConfig::LAYOUT), ids);
}
