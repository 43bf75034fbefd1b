//! Ten thousand damaged files for each loader. Each gives a usable model or an error, never a panic, and
//! never takes more memory than a file of that size could need.
//!
//! State files are tested in `state_file.rs`, the server's request bodies beside their parser.
#![cfg(feature = "flex")]

use std::cell::Cell;
use std::fs;
use std::path::Path;

use burn::tensor::{DType, Device};
use kernels::runtime::Flex;
use model::{
    CausalLm, DiscreteMamba2Config, Family, ModelConfig, PhiConfig, PhiMambaConfig,
    named_parameters,
};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use tempfile::TempDir;

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

/// A folder with the student.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let student = CausalLm::<Flex>::init(&tiny_student(), 0, &Device::<Flex>::default());
    model::save(&tiny_student(), &student, folder.path()).unwrap();
    folder
}

fn check<S: Strategy>(
    inputs: &S,
    test: impl Fn(S::Value) -> Result<(), proptest::test_runner::TestCaseError>,
) {
    let config = ProptestConfig {
        cases: 10_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    TestRunner::new(config).run(inputs, test).unwrap();
}

/// The largest size of this program's address space so far, in bytes.
#[cfg(target_os = "linux")]
fn asked_for() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB").parse::<u64>();
    kib.unwrap() << 10
}

#[cfg(not(target_os = "linux"))]
fn asked_for() -> u64 {
    0
}

/// What tests here may need beside threads' stacks: the modules of many small layers.
const ENOUGH: u64 = 4 << 30;

/// A value in the place of a size: a number, or something else.
fn anything() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => select(vec![0_u64, 1, 2, 3, 7, 8, 64, 1 << 24, (1 << 24) + 1, 1 << 33, u64::MAX])
            .prop_map(Value::from),
        1 => any::<u64>().prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        1 => select(vec![json!(null), json!("x"), json!([]), json!({}), json!(true), json!("silu")]),
    ]
}

/// What is done to a configuration: values replaced, keys removed, bytes changed, the end cut off.
#[derive(Clone, Debug)]
enum Damage {
    Values(Vec<(Index, Value)>),
    Removed(Index),
    Bytes(Vec<(Index, u8)>),
    Cut(Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let values = prop::collection::vec((any::<Index>(), anything()), 1..4);
    let bytes = prop::collection::vec((any::<Index>(), any::<u8>()), 1..4);
    prop_oneof![
        8 => values.prop_map(Damage::Values),
        1 => any::<Index>().prop_map(Damage::Removed),
        2 => bytes.prop_map(Damage::Bytes),
        1 => any::<Index>().prop_map(Damage::Cut),
    ]
}

/// The paths of all values that have none inside.
fn leaves(value: &Value, path: String, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                leaves(value, format!("{path}/{key}"), found);
            }
        }
        _ => found.push(path),
    }
}

fn damaged(text: &str, damage: Damage) -> Vec<u8> {
    let mut root: Value = serde_json::from_str(text).unwrap();
    let mut paths = Vec::new();
    leaves(&root, String::new(), &mut paths);
    let mut bytes = text.as_bytes().to_vec();
    match damage {
        Damage::Values(values) => {
            for (place, value) in values {
                *root.pointer_mut(&paths[place.index(paths.len())]).unwrap() = value;
            }
            return root.to_string().into_bytes();
        }
        Damage::Removed(place) => {
            let (parent, key) = place.get(&paths).rsplit_once('/').unwrap();
            let parent = root.pointer_mut(parent).unwrap();
            parent.as_object_mut().unwrap().remove(key);
            return root.to_string().into_bytes();
        }
        Damage::Bytes(changes) => {
            for (place, byte) in changes {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
        }
        Damage::Cut(place) => bytes.truncate(place.index(bytes.len())),
    }
    bytes
}

#[test]
fn ten_thousand_configurations() {
    let texts = [tiny().to_json(), tiny_student().to_json()];
    let folder = folder();
    let (good, bad) = (Cell::new(0), Cell::new(0));
    let before = asked_for();
    check(&(0..2_usize, damage()), |(which, damage)| {
        let bytes = damaged(&texts[which], damage);
        fs::write(folder.path().join("config.json"), bytes).unwrap();
        match model::describe(folder.path()) {
            Ok((config, _)) => {
                good.set(good.get() + 1);
                use_config(&config)?;
            }
            Err(error) => {
                bad.set(bad.get() + 1);
                prop_assert!(!error.to_string().is_empty());
            }
        }
        // With the student's weights, which seldom fit.
        if let Err(error) = model::load_any::<Flex>(folder.path(), &Default::default()) {
            prop_assert!(error.to_string().lines().count() < 40);
        }
        Ok(())
    });
    let (good, bad) = (good.get(), bad.get());
    assert!(good > 1000 && bad > 1000, "{good} good, {bad} bad");
    let more = asked_for() - before;
    assert!(more < ENOUGH, "{more} bytes more");
}

/// That a configuration which was accepted can be built on.
fn use_config(config: &ModelConfig) -> Result<(), proptest::test_runner::TestCaseError> {
    let device = Default::default();
    prop_assert!(ModelConfig::from_json(&config.to_json()).is_ok());
    let model = CausalLm::<Flex>::init(config, 0, &device);
    for parameter in named_parameters(&model, config.layout()) {
        let mut shape = parameter.shape.iter();
        let elements = shape.try_fold(1_usize, |product, n| product.checked_mul(*n));
        prop_assert!(elements.is_some_and(|n| n > 0), "{:?}", parameter);
    }
    Ok(())
}

#[test]
fn ten_thousand_weights() {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let place = prop_oneof![1 => 0..8_usize, 6 => 8..header, 1 => 0..whole.len()];
    let byte = prop_oneof![any::<u8>(), select(&b"0123456789[]{}\":,-eFBI"[..])];
    let changes = prop::collection::vec((place, byte), 1..4);
    let cut = prop_oneof![6 => Just(whole.len()), 1 => 0..whole.len(), 1 => 0..header];
    let refused = Cell::new(0);
    let before = asked_for();
    check(&(changes, cut), |(changes, length)| {
        let mut bytes = whole.clone();
        for (place, byte) in changes {
            bytes[place] = byte;
        }
        bytes.truncate(length);
        replace(&path, &bytes);
        let described = model::describe(folder.path()).is_ok();
        match model::load_any::<Flex>(folder.path(), &Default::default()) {
            Ok(_) => prop_assert!(described),
            Err(error) => {
                refused.set(refused.get() + 1);
                prop_assert!(!error.to_string().is_empty());
            }
        }
        Ok(())
    });
    let refused = refused.get();
    assert!((5000..10_000).contains(&refused), "{refused} refused");
    let more = asked_for() - before;
    assert!(more < ENOUGH, "{more} bytes more");
}

#[test]
fn ten_thousand_indices() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = CausalLm::<Flex>::init(&tiny(), 0, &Device::<Flex>::default());
    model::save_in_shards(&tiny(), &teacher, DType::F32, 2000, folder.path()).unwrap();
    let path = folder.path().join("model.safetensors.index.json");
    let text = fs::read_to_string(&path).unwrap();
    let refused = Cell::new(0);
    check(&damage(), |damage| {
        replace(&path, &damaged(&text, damage));
        match model::load_any::<Flex>(folder.path(), &Default::default()) {
            // What names no file changes nothing.
            Ok((_, model)) => prop_assert_eq!(model.vocab_size(), tiny().vocab_size),
            Err(error) => {
                refused.set(refused.get() + 1);
                prop_assert!(!error.to_string().is_empty());
            }
        }
        Ok(())
    });
    let refused = refused.get();
    assert!((5000..10_000).contains(&refused), "{refused} refused");
}

/// Another file under the same name: who has mapped the old one keeps it.
fn replace(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}
