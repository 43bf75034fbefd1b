//! Files that do not fit or are damaged give an error that says so.

use std::fs;
use std::path::Path;

use burn::tensor::DType;
use model::WeightsError;
use model::weights::TensorFault;
use safetensors::Dtype;
use tempfile::TempDir;
use tests::goldens_dir;

use super::*;

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

/// Flips one byte. Safetensors files have no checksum, so only damage to the header is detected. In an archive, damage
/// must be detected everywhere, except in the few bytes that repeat values of the directory at its end.
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

/// Every tensor with a number that is none is named, in every kind of file, as stored and as asked for.
#[test]
fn weights_are_finite() {
    type Load = fn(&Path) -> Option<WeightsError>;
    let student: Load = |folder| load_student(folder).err();
    let teacher: Load = |folder| load_teacher(folder).err();
    for (case, load, names) in [
        (
            "student-tiny",
            student,
            ["backbone.layers.0.mixer.D", "lm_head.bias"],
        ),
        (
            "teacher-tiny",
            teacher,
            ["lm_head.bias", "model.layers.0.self_attn.q_proj.weight"],
        ),
    ] {
        for (bits, as_bin) in [
            (f32::NAN.to_bits(), false),
            (f32::INFINITY.to_bits(), false),
            (f32::NEG_INFINITY.to_bits(), true),
            (0xff80_0001, true),
        ] {
            let folder = copy_of(case);
            let path = folder.path().join("model.safetensors");
            let mut all = contents(&path);
            for (name, _, _, bytes) in &mut all {
                if names.contains(&name.as_str()) {
                    let last = bytes.len() - 4;
                    bytes[last..].copy_from_slice(&bits.to_le_bytes());
                }
            }
            if as_bin {
                fs::remove_file(&path).expect("removed");
                let bin = torch_file::of_contents(&all);
                fs::write(folder.path().join("pytorch_model.bin"), bin).expect("written");
            } else {
                write(&path, &all);
            }
            let Some(WeightsError::NotFinite { tensors, .. }) = load(folder.path()) else {
                panic!("{case}: {bits:x} was accepted")
            };
            let mut found: Vec<_> = tensors.iter().map(|tensor| &*tensor.name).collect();
            found.sort_unstable();
            assert_eq!(found, names);
            assert!(tensors.iter().all(|tensor| tensor.count == 1));
        }
    }
    // A number that is finite in f32, but not in f16.
    let folder = copy_of("student-tiny");
    let path = folder.path().join("model.safetensors");
    let mut all = contents(&path);
    let bias = all.iter_mut().find(|(name, ..)| name == "lm_head.bias");
    bias.expect("a bias").3[..4].copy_from_slice(&70_000_f32.to_le_bytes());
    write(&path, &all);
    load_student(folder.path()).expect("a student");
    let half = model::load_any_as::<Fast>(folder.path(), |_| DType::F16, &Default::default());
    let error = half.expect_err("infinity").to_string();
    assert!(
        error.contains("`lm_head.bias`: 1 of") && error.contains("F16"),
        "{error}"
    );
}

/// What is in the place of a file, and no file of weights.
#[test]
fn things_that_are_no_files_of_weights() {
    for name in ["model.safetensors", "pytorch_model.bin"] {
        let note = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
        let error = load_student(folder_with(name, note).path()).expect_err("a note");
        assert!(error.to_string().contains("git lfs pull"), "{error}");
        #[cfg(unix)]
        {
            // A link without a target is named in the error, and no other model's file is read in its place.
            for target in ["gone", name] {
                let folder = folder_with("config.json.old", b"");
                let link = folder.path().join(name);
                std::os::unix::fs::symlink(target, &link).expect("a link");
                let refused = |what: &str| {
                    let error = load_student(folder.path()).expect_err(what);
                    let said = error.to_string();
                    assert!(said.contains(&format!("leads to {target}")), "{said}");
                    assert!(
                        matches!(&error, WeightsError::Io { path, .. } if *path == link),
                        "{said}"
                    );
                    assert!(model::model_files(folder.path()).is_err());
                };
                refused("a link that leads nowhere");
                if name == "model.safetensors" {
                    let other = "pytorch_model.bin";
                    let golden = goldens_dir().join("student-tiny").join(other);
                    fs::copy(golden, folder.path().join(other)).expect("a copy");
                    refused("a link before another file");
                }
            }
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
    let error = model::save(&config, &model, &occupied).expect_err("not a folder");
    assert!(matches!(error, WeightsError::Io { .. }), "{error}");
}
