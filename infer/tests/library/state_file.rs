//! State files: a text continues as it would without a state file, and all other files are refused.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use infer::state_file::{self, StateFile, StateFileError};
use infer::{GenerateOptions, Generation, ModelHash, Reading, SamplingSettings};
use kernels::runtime::Flex;
use model::{CausalLm, StateError};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tests::mutations::each;

use crate::support::{student, teacher_folder};

fn device() -> Device<Flex> {
    Device::<Flex>::default()
}

/// The teacher, a student, and a hybrid.
fn models() -> [CausalLm<Flex>; 3] {
    let teacher = model::load_any(teacher_folder(), &device()).unwrap().1;
    [teacher, student(&[]).1, student(&[1, 3]).1]
}

fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions {
        sampling: SamplingSettings {
            temperature: 1.0,
            repetition_penalty: 1.2,
            seed: 3,
            ..SamplingSettings::default()
        },
        max_tokens,
        vocab_size: 4096,
        end_tokens: [0].into(),
        end_of_text: Some(0),
        max_positions: Some(512),
    }
}

/// The hash of any model, as long as it is always the same.
fn hash() -> ModelHash {
    ModelHash::of(teacher_folder()).unwrap()
}

fn text(start: u32, length: u32) -> Vec<u32> {
    (start..start + length)
        .map(|i| i * 7919 % 4095 + 1)
        .collect()
}

/// A file with a model's state after `prompt`.
fn saved(model: &CausalLm<Flex>, prompt: &[u32]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let generation = Generation::new(model, &device(), prompt, options(0)).unwrap();
    state_file::save(&path, &hash(), "f32", &generation.reading()).unwrap();
    (folder, path)
}

fn load(model: &CausalLm<Flex>, path: &Path) -> Result<Reading<Flex>, StateFileError> {
    StateFile::open(path, &hash())?.restore(model, &device())
}

fn continued(model: &CausalLm<Flex>, reading: Reading<Flex>, prompt: &[u32]) -> Vec<u32> {
    let generation = Generation::resume(model, &device(), reading, prompt, options(30)).unwrap();
    generation.collect::<Result<_, _>>().unwrap()
}

#[test]
fn a_state_continues_as_the_text_itself_would() {
    let prompt = text(0, 100);
    for model in models() {
        let fresh = || Reading::begin(&model, &device());
        let at_once = continued(&model, fresh(), &prompt);
        let (_folder, path) = saved(&model, &prompt);
        assert_eq!(
            continued(&model, load(&model, &path).unwrap(), &[]),
            at_once
        );
        // A state file can be restored several times.
        assert_eq!(
            continued(&model, load(&model, &path).unwrap(), &[]),
            at_once
        );

        // A part of the prompt is saved, and the rest is read after it.
        for cut in [1, 37, 99] {
            let (_folder, path) = saved(&model, &prompt[..cut]);
            let reading = load(&model, &path).unwrap();
            assert_eq!(reading.ids, prompt[..cut]);
            assert_eq!(continued(&model, reading, &prompt[cut..]), at_once, "{cut}");
        }
    }
}

/// As in a session: a text whose last token was made and not read yet continues.
#[test]
fn what_was_made_is_a_part_of_the_text() {
    let (prompt, more) = (text(0, 20), text(50, 5));
    for model in models() {
        let mut first = Generation::new(&model, &device(), &prompt, options(7)).unwrap();
        let made: Vec<u32> = first.by_ref().map(Result::unwrap).collect();
        let reading = first.into_reading();
        assert_eq!(reading.ids, [&prompt[..], &made].concat());
        assert!(matches!(
            state_file::save(Path::new("unused"), &hash(), "f32", &reading),
            Err(StateFileError::Unread)
        ));
        let whole = [&prompt[..], &made, &more].concat();
        let at_once = continued(&model, Reading::begin(&model, &device()), &whole);
        assert_eq!(continued(&model, reading, &more), at_once);
    }
}

#[test]
fn a_text_that_its_model_has_ended_continues() {
    let [model, ..] = models();
    let prompt = text(0, 20);
    let first = Generation::new(&model, &device(), &prompt, options(1)).unwrap();
    let first: Vec<u32> = first.map(Result::unwrap).collect();
    let ending = GenerateOptions {
        end_tokens: [first[0]].into(),
        ..options(5)
    };
    let mut ended = Generation::new(&model, &device(), &prompt, ending).unwrap();
    assert!(ended.next().is_none());
    let reading = ended.into_reading();
    assert_eq!(reading.ids, prompt);
    let at_once = continued(&model, Reading::begin(&model, &device()), &prompt);
    assert_eq!(continued(&model, reading, &[]), at_once);
}

#[test]
fn positions_count_from_the_beginning_of_the_text() {
    let [teacher, ..] = models();
    let (_folder, path) = saved(&teacher, &text(0, 500));
    let resume = |more: &[u32]| {
        let reading = load(&teacher, &path).unwrap();
        Generation::resume(&teacher, &device(), reading, more, options(100))
    };
    // 12 positions are left, and one more token is predicted from the last.
    assert_eq!(resume(&[]).unwrap().count(), 13);
    assert_eq!(resume(&text(0, 5)).unwrap().count(), 8);
    assert!(resume(&text(0, 13)).is_err());
}

/// A tensor of a state file.
struct Part {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

type Metadata = HashMap<String, String>;

/// A state file after a change, in a file beside it, with the checksum that it should have then.
fn changed(path: &Path, change: impl FnOnce(&mut Metadata, &mut Vec<Part>)) -> PathBuf {
    let bytes = fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut metadata = header.metadata().clone().unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let parts = tensors.iter().map(|(name, view)| Part {
        name: name.into(),
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        data: view.data().to_vec(),
    });
    let mut parts: Vec<Part> = parts.collect();
    change(&mut metadata, &mut parts);
    parts.sort_by(|a, b| a.name.cmp(&b.name));
    let mut digest = Sha256::new();
    for part in &parts {
        let line = format!("{} {:?} {:?}\n", part.name, part.dtype, part.shape);
        digest.update(line);
        digest.update(&part.data);
    }
    metadata.insert("sha256".into(), format!("{:x}", digest.finalize()));
    let views = parts.iter().map(|part| {
        let view = TensorView::new(part.dtype, part.shape.clone(), &part.data);
        (&part.name, view.unwrap())
    });
    let bytes = safetensors::serialize(views, Some(metadata)).unwrap();
    let path = path.with_extension("changed");
    fs::write(&path, bytes).unwrap();
    path
}

/// Version 1 is version 2 without the checksum.
#[test]
fn a_file_from_before_the_checksum_is_read() {
    let prompt = text(0, 30);
    let [_, _, hybrid] = models();
    let (_folder, path) = saved(&hybrid, &prompt);
    assert!(StateFile::open(&path, &hash()).unwrap().has_checksum());
    let bytes = fs::read(&path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut metadata = header.metadata().clone().unwrap();
    let write = |metadata: &Metadata| {
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let old = safetensors::serialize(tensors.iter(), Some(metadata.clone())).unwrap();
        fs::write(&path, old).unwrap();
    };
    metadata.insert("version".into(), "1".into());
    let sum = metadata.remove("sha256").unwrap();
    write(&metadata);
    assert!(!StateFile::open(&path, &hash()).unwrap().has_checksum());
    let fresh = Reading::begin(&hybrid, &device());
    assert_eq!(
        continued(&hybrid, load(&hybrid, &path).unwrap(), &[]),
        continued(&hybrid, fresh, &prompt)
    );
    // One with a checksum is of version 2, and without one it is not.
    metadata.insert("sha256".into(), sum.replace(&sum[..1], "x"));
    write(&metadata);
    assert!(load(&hybrid, &path).is_err());
    metadata.insert("version".into(), "2".into());
    metadata.remove("sha256");
    write(&metadata);
    assert!(load(&hybrid, &path).is_err());
}

#[test]
fn what_is_not_this_model_s_state_is_refused() {
    let [teacher, student, hybrid] = models();
    let (_folder, path) = saved(&hybrid, &text(0, 10));
    let error = |path: &Path| load(&hybrid, path).unwrap_err();
    let metadata = |key: &str, value: &str| {
        let changed = changed(&path, |metadata, _| {
            metadata.insert(key.into(), value.into());
        });
        error(&changed)
    };
    assert!(load(&hybrid, &changed(&path, |_, _| {})).is_ok());
    let version = metadata("version", "3");
    assert!(matches!(&version, StateFileError::Version { found, .. } if found == "3"));
    assert!(matches!(
        metadata("model", "0"),
        StateFileError::OtherModel { .. }
    ));
    assert!(matches!(
        metadata("format", "pt"),
        StateFileError::NotAState { .. }
    ));
    let weights = teacher_folder().join("model.safetensors");
    assert!(matches!(error(&weights), StateFileError::NotAState { .. }));
    assert!(matches!(
        error(Path::new("no/such/file")),
        StateFileError::Read { .. }
    ));
    assert!(matches!(
        error(&teacher_folder()),
        StateFileError::Read { .. }
    ));

    // Tensors of another network, in case two models have the same hash.
    for other in [&teacher, &student] {
        let error = load(other, &path).unwrap_err();
        assert!(matches!(error, StateFileError::State { .. }), "{error}");
    }
    let part = |name: &str, change: &dyn Fn(&mut Part)| {
        let changed = changed(&path, |_, parts| {
            change(parts.iter_mut().find(|part| part.name == name).unwrap());
        });
        error(&changed)
    };
    let renamed = changed(&path, |_, parts| {
        let part = parts.iter_mut().find(|part| part.name == "layers.0.ssm");
        part.unwrap().name = "layers.9.ssm".into();
    });
    let state = |error: StateFileError| match error {
        StateFileError::State { reason, .. } => reason,
        other => panic!("{other}"),
    };
    assert!(matches!(
        state(error(&renamed)),
        StateError::Missing { name } if name == "layers.0.ssm"
    ));
    let shape = part("layers.0.conv", &|part| part.shape.swap(1, 2));
    assert!(matches!(state(shape), StateError::Shape { .. }));
    let keys = part("layers.1.keys", &|part| {
        part.shape[1] = 9;
        part.data.truncate(part.data.len() / 10 * 9);
    });
    assert!(matches!(state(keys), StateError::Shape { .. }));
    let whole = part("layers.2.ssm", &|part| part.dtype = Dtype::U32);
    assert!(matches!(state(whole), StateError::Dtype { .. }));

    let damaged = |error: StateFileError, word: &str| {
        assert!(matches!(error, StateFileError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    };
    let foreign = part("token_ids", &|part| part.data[1] = 16);
    damaged(foreign, "vocabulary");
    let none = part("token_ids", &|part| {
        part.shape[0] = 0;
        part.data.clear();
    });
    damaged(none, "no token");
    let signed = part("token_ids", &|part| part.dtype = Dtype::I32);
    damaged(signed, "token_ids");
    let short = part("logits", &|part| {
        part.shape[0] -= 1;
        part.data.truncate(part.data.len() - 4);
    });
    damaged(short, "logits");
    let more = changed(&path, |_, parts| {
        parts.push(Part {
            name: "extra".into(),
            dtype: Dtype::U8,
            shape: vec![1],
            data: vec![0],
        });
    });
    damaged(error(&more), "extra");
}

/// A damaged file is refused, or gives the same result.
#[test]
fn ten_thousand_files() {
    let [_, _, hybrid] = models();
    let (folder, path) = saved(&hybrid, &text(0, 2));
    let whole = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let path = folder.path().join("damaged");
    let (model, device) = (hash(), device());
    let load = || -> Result<Reading<Flex>, StateFileError> {
        StateFile::open(&path, &model)?.restore(&hybrid, &device)
    };
    fs::write(&path, &whole).unwrap();
    let reading = load().unwrap();
    let logits = reading.logits.unwrap().into_data();
    let (mut same, mut refused) = (0, 0);
    each(10_000, |mutator| {
        let part = *mutator.choose(&[0, 0, 8 + header]);
        fs::write(&path, mutator.bytes_in(&whole, part..part + 8 + header)).unwrap();
        match load() {
            Ok(found) => {
                same += 1;
                assert_eq!(found.ids, reading.ids);
                assert_eq!(found.logits.unwrap().into_data(), logits);
            }
            Err(error) => {
                refused += 1;
                assert!(!error.to_string().is_empty());
            }
        }
    });
    assert!(
        same < 1000 && refused > 9000,
        "{same} same, {refused} refused"
    );
    // A bit of each tensor.
    let tensors = SafeTensors::deserialize(&whole).unwrap();
    for (name, view) in tensors.iter() {
        let start = view.data().as_ptr() as usize - whole.as_ptr() as usize;
        let mut bytes = whole.clone();
        bytes[start + view.data().len() / 2] ^= 1;
        fs::write(&path, bytes).unwrap();
        let error = load().unwrap_err();
        let said = error.to_string();
        assert!(said.contains("checksum"), "{name}: {said}");
    }
}
