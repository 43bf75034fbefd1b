//! A model that is read equals the model that was written.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use burn::tensor::DType;
use half::{bf16, f16};
use model::{
    CausalLm, ConfigError, DiscreteMamba2Config, ModelConfig, PhiConfig, PhiMambaConfig,
    WeightsError, named_parameters,
};
use safetensors::{Dtype, SafeTensors};
use tests::networks::*;
use tests::{Goldens, cases, goldens_dir, name_of, teachers};

use super::*;

/// Whether `all` has every member of `some`, with the same values; numbers may be whole or not.
fn holds(all: &serde_json::Value, some: &serde_json::Value) -> bool {
    use serde_json::Value;
    match (all, some) {
        (Value::Object(all), Value::Object(some)) => {
            let holds = |(key, value)| all.get(key).is_some_and(|own| holds(own, value));
            some.iter().all(holds)
        }
        (Value::Array(all), Value::Array(some)) => {
            all.len() == some.len() && all.iter().zip(some).all(|(a, b)| holds(a, b))
        }
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (a, b) => a == b,
    }
}

#[test]
fn students_are_written_as_they_were_read() {
    for case in cases("student-") {
        let load = |folder: &Path| model::load_any::<Fast>(folder, &Default::default());
        let (config, model) = load(&case).expect("a student");
        let out = tempfile::tempdir().expect("a folder");
        model::save(&config, &model, out.path()).expect("saved");
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

        let (again, _) = load(out.path()).expect("the same student");
        assert_eq!(again, config);
        let json = |folder: &Path| -> serde_json::Value {
            let text = fs::read_to_string(folder.join("config.json")).expect("a file");
            serde_json::from_str(&text).expect("JSON")
        };
        if !name_of(&case).contains("hybrid") {
            // All that was read is written; what is written besides is for other programs, or a default.
            let (written, read) = (json(out.path()), json(&case));
            assert!(holds(&written, &read), "{}: {written}", name_of(&case));
        }
        let left: Vec<_> = fs::read_dir(out.path()).expect("a folder").collect();
        let is_temporary = |name: &str| name.starts_with('.') || name.ends_with(".tmp");
        let names = left
            .into_iter()
            .map(|entry| entry.expect("an entry").file_name());
        let names: Vec<_> = names
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        assert!(!names.iter().any(|name| is_temporary(name)), "{names:?}");
    }
}

#[test]
fn teachers_are_written_as_they_were_read() {
    for case in teachers() {
        let name = name_of(&case);
        let load = |folder: &Path| model::load_any::<Fast>(folder, &Default::default());
        let (config, model) = load(&case).expect("a teacher");
        let out = tempfile::tempdir().expect("a folder");
        model::save(&config, &model, out.path()).expect("saved");
        let file = "model.safetensors";
        let mut expected = contents(&case.join(file));
        for (_, dtype, _, bytes) in &mut expected {
            // Models are written in f32.
            if *dtype == Dtype::BF16 {
                let halves = bytes.as_chunks().0.iter();
                let wide = halves.map(|half| bf16::from_le_bytes(*half).to_f32().to_le_bytes());
                (*dtype, *bytes) = (Dtype::F32, wide.flatten().collect());
            }
        }
        assert!(
            contents(&out.path().join(file)) == expected,
            "{name}: names, dtypes, shapes or bytes differ"
        );
        let (again, _) = load(out.path()).expect("the same teacher");
        assert_eq!(again, config, "{name}");
    }
}

#[test]
fn teachers_in_shards_are_what_they_were_whole() {
    for case in teachers() {
        let load = |folder: &Path| model::load_any::<Fast>(folder, &Default::default());
        let (config, model) = load(&case).expect("a teacher");
        let before = parameters(&model);
        let out = tempfile::tempdir().expect("a folder");
        let files = || {
            let entries = fs::read_dir(out.path()).expect("a folder");
            let shards = entries.map(|entry| entry.expect("an entry").path());
            let mut shards: Vec<_> = shards
                .filter(|path| {
                    path.extension()
                        .is_some_and(|extension| extension == "safetensors")
                })
                .collect();
            shards.sort();
            shards
        };
        // A whole one lies there, which would be read first.
        model::save(&config, &model, out.path()).expect("saved");
        let largest = contents(&files()[0])
            .iter()
            .map(|tensor| tensor.3.len())
            .max();
        let limit = largest.expect("tensors") + 4096;
        model::save_in_shards(&config, &model, DType::F32, limit, out.path()).expect("saved");
        let shards = files();
        assert!(shards.len() > 1, "{shards:?}");
        let bytes = |path: &Path| {
            contents(path)
                .iter()
                .map(|tensor| tensor.3.len())
                .sum::<usize>()
        };
        assert!(shards.iter().all(|path| bytes(path) <= limit));
        let (again, model) = load(out.path()).expect("the same teacher");
        assert_eq!(again, config);
        let after = parameters(&model);
        assert_eq!(before.len(), after.len());
        for (name, values) in &before {
            assert_eq!(values.1, after[name].1, "{name}");
        }

        let half = tempfile::tempdir().expect("a folder");
        model::save_in_shards(&config, &model, DType::BF16, limit, half.path()).expect("saved");
        let (_, rounded) = load(half.path()).expect("nearly the same teacher");
        for (name, values) in &parameters(&rounded) {
            let exact = before[name].1.iter();
            let expected = exact.map(|x| bf16::from_f32(*x as f32).to_f64());
            assert!(values.1.iter().copied().eq(expected), "{name}");
        }
    }
}

/// If a model is written over another one and the write is interrupted, the folder contains no readable model, and not
/// a mixture of both.
#[test]
fn half_of_a_rewrite_is_no_model() {
    let (config, model) = load_teacher(&goldens_dir().join("teacher-tiny")).expect("a teacher");
    let out = tempfile::tempdir().expect("a folder");
    let shards = || model::save_in_shards(&config, &model, DType::F32, 1, out.path());
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
    model::save(&config, &model, out.path()).expect("saved");
    load_teacher(out.path()).expect("a teacher");
    assert_broken();
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
        model::load_any::<Exact>(folder.path(), &Default::default()).expect("a student");
    assert_eq!(parameters(&exact), expected);
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
    model::save(&config, &student, out.path()).expect("saved");
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
