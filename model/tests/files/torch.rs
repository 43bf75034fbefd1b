//! Files that `torch.save` wrote: every view of a storage, and what is refused.

use std::collections::HashMap;
use std::fs;

use half::{bf16, f16};
use model::WeightsError;
use tempfile::TempDir;
use tests::{Values, goldens_dir};

use super::torch_file::{Pickle, View, archive, dictionary, file, row_major};
use super::*;

/// Tensors of a golden student in f32, by their names.
fn student() -> Contents {
    contents(&goldens_dir().join("student-tiny/model.safetensors"))
}

/// A folder with the student's configuration and a `pytorch_model.bin`.
fn folder_of(bin: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let config = goldens_dir().join("student-tiny/config.json");
    fs::copy(config, folder.path().join("config.json")).expect("a copy");
    fs::write(folder.path().join("pytorch_model.bin"), bin).expect("written");
    folder
}

fn loaded(bin: &[u8]) -> HashMap<String, Values> {
    let (_, model) = load_student(folder_of(bin).path()).expect("a student");
    parameters(&model)
}

fn refusal(bin: &[u8]) -> String {
    let error = load_student(folder_of(bin).path()).expect_err("no student");
    assert!(matches!(error, WeightsError::Damaged { .. }), "{error}");
    error.to_string()
}

/// Each tensor with a storage of its own, numbers as they are in `student`.
fn plain() -> (Vec<(String, View)>, Vec<Vec<u8>>) {
    let all = student().into_iter().enumerate();
    all.map(|(storage, (name, _, shape, bytes))| {
        let view = View {
            storage,
            class: "FloatStorage",
            offset: 0,
            strides: row_major(&shape),
            shape,
        };
        ((name, view), bytes)
    })
    .unzip()
}

fn named(tensors: &[(String, View)]) -> impl Iterator<Item = (&str, &View)> {
    tensors.iter().map(|(name, view)| (name.as_str(), view))
}

fn golden() -> HashMap<String, Values> {
    let (_, model) = load_student(&goldens_dir().join("student-tiny")).expect("a student");
    parameters(&model)
}

/// All tensors on one storage, with gaps between them, and each matrix transposed, or with every other number of
/// its storage, in turn.
#[test]
fn any_view_of_a_storage() {
    let mut storage: Vec<u8> = vec![0xff; 12];
    let mut tensors = Vec::new();
    for (i, (name, _, shape, bytes)) in student().into_iter().enumerate() {
        let offset = storage.len() / 4;
        let numbers = bytes.as_chunks::<4>().0;
        let mut strides = row_major(&shape);
        match (&shape[..], i % 3) {
            (&[rows, columns], 0) => {
                strides = vec![1, rows];
                for column in 0..columns {
                    storage.extend((0..rows).flat_map(|row| numbers[row * columns + column]));
                }
            }
            (_, 1) => {
                strides.iter_mut().for_each(|stride| *stride *= 2);
                storage.extend(
                    numbers
                        .iter()
                        .flat_map(|number| [*number, [0xff; 4]].concat()),
                );
            }
            _ => storage.extend(&bytes),
        }
        storage.extend([0xff; 8]);
        let view = View {
            storage: 0,
            class: "FloatStorage",
            offset,
            shape,
            strides,
        };
        tensors.push((name, view));
    }
    let bin = file(&dictionary(named(&tensors)), &[storage]);
    assert_eq!(loaded(&bin), golden());
}

/// A head that is the embedding, one row for all rows, and a parameter without a number.
#[test]
fn shared_storages() {
    let (mut tensors, storages) = plain();
    let at = |name: &str| {
        tensors
            .iter()
            .position(|(known, _)| known == name)
            .expect("a name")
    };
    let (head, embedding) = (at("lm_head.weight"), at("backbone.embedding.weight"));
    let bias = at("lm_head.bias");
    tensors[head].1 = tensors[embedding].1.clone();
    tensors[bias].1.strides = vec![0];
    let bin = file(&dictionary(named(&tensors)), &storages);
    let mut expected = golden();
    expected.insert(
        "lm_head.weight".into(),
        expected["backbone.embedding.weight"].clone(),
    );
    let first = expected["lm_head.bias"].1[0];
    expected
        .get_mut("lm_head.bias")
        .expect("a bias")
        .1
        .fill(first);
    assert_eq!(loaded(&bin), expected);
}

#[test]
fn every_kind_of_float() {
    type Narrow = fn(f32) -> (Vec<u8>, f64);
    let kinds: [(&str, Narrow); 3] = [
        ("DoubleStorage", |x| {
            (f64::from(x).to_le_bytes().to_vec(), x.into())
        }),
        ("HalfStorage", |x| {
            (
                f16::from_f32(x).to_le_bytes().to_vec(),
                f16::from_f32(x).into(),
            )
        }),
        ("BFloat16Storage", |x| {
            (
                bf16::from_f32(x).to_le_bytes().to_vec(),
                bf16::from_f32(x).into(),
            )
        }),
    ];
    for (class, narrow) in kinds {
        let (mut tensors, mut storages) = plain();
        for ((_, view), storage) in tensors.iter_mut().zip(&mut storages) {
            view.class = class;
            let numbers = storage.as_chunks::<4>().0.iter();
            *storage = numbers
                .flat_map(|x| narrow(f32::from_le_bytes(*x)).0)
                .collect();
        }
        let mut expected = golden();
        for (_, numbers) in expected.values_mut() {
            numbers.iter_mut().for_each(|x| *x = narrow(*x as f32).1);
        }
        let bin = file(&dictionary(named(&tensors)), &storages);
        assert_eq!(loaded(&bin), expected, "{class}");
    }
}

/// What else `torch.save` writes around tensors: an ordered dictionary with attributes, parameters, tensors of
/// classes of their own, the memo, other protocols, things that are no tensors.
#[test]
fn other_forms_of_a_state_dictionary() {
    let (tensors, storages) = plain();
    let mut ordered = Pickle::default();
    ordered
        .put(b"\x80\x02")
        .global("collections", "OrderedDict")
        .put(b")Rq\x00(");
    for (i, (name, view)) in tensors.iter().enumerate() {
        ordered.text(name);
        match i % 3 {
            0 => ordered.tensor(view),
            1 => {
                ordered
                    .global("torch._utils", "_rebuild_parameter")
                    .put(b"(");
                ordered
                    .tensor(view)
                    .put(b"\x88")
                    .global("collections", "OrderedDict")
                    .put(b")RtR")
            }
            _ => {
                ordered
                    .global("torch._tensor", "_rebuild_from_type_v2")
                    .put(b"(");
                ordered.global("torch._utils", "_rebuild_tensor_v2");
                ordered.global("torch.nn.parameter", "Parameter");
                ordered.arguments(view).put(b"t}tR")
            }
        };
    }
    ordered
        .text("epoch")
        .int(7)
        .text("note")
        .put(b"N")
        .text("loss")
        .put(b"G\0\0\0\0\0\0\0\0");
    ordered.put(b"u}").text("_metadata").put(b"h\x00sb.");

    // As Python 2 writes an ordered dictionary, with texts of bytes.
    let mut pairs = Pickle::default();
    pairs.global("collections", "OrderedDict").put(b"((l(");
    for (name, view) in &tensors {
        pairs
            .put(b"]")
            .put(&[b'U', name.len() as u8])
            .put(name.as_bytes());
        pairs.put(b"a").tensor(view).put(b"a");
    }
    pairs.put(b"etR.");

    // Protocol 4: a frame, short texts, a memo without numbers, classes from the stack.
    let mut fourth = Pickle::default();
    fourth.put(b"\x80\x04\x95").put(&[0; 8]).put(b"}\x94");
    for (name, view) in &tensors {
        fourth
            .put(&[0x8c, name.len() as u8])
            .put(name.as_bytes())
            .put(b"\x94");
        fourth.put(b"\x8c\x0ctorch._utils\x94\x8c\x12_rebuild_tensor_v2\x94\x93\x94");
        fourth.arguments(view).put(b"tR\x94s");
    }
    fourth.put(b".");
    for pickle in [ordered, pairs, fourth] {
        assert_eq!(loaded(&file(&pickle.0, &storages)), golden());
    }
}

#[test]
fn shards_of_pickles() {
    let (tensors, storages) = plain();
    let folder = folder_of(b"");
    fs::remove_file(folder.path().join("pytorch_model.bin")).expect("removed");
    let mut map = serde_json::Map::new();
    for (i, part) in tensors.chunks(tensors.len().div_ceil(2)).enumerate() {
        let shard = format!("pytorch_model-0000{}-of-00002.bin", i + 1);
        let bin = file(&dictionary(named(part)), &storages);
        fs::write(folder.path().join(&shard), bin).expect("written");
        map.extend(
            part.iter()
                .map(|(name, _)| (name.clone(), shard.clone().into())),
        );
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
    fs::write(folder.path().join("pytorch_model.bin.index.json"), index).expect("written");
    let (_, model) = load_student(folder.path()).expect("a student");
    assert_eq!(parameters(&model), golden());
    assert_eq!(model::model_files(folder.path()).expect("files").len(), 3);
}

/// A tensor that would be read wrongly is refused, and the error names it.
#[test]
fn what_cannot_be_read_is_named() {
    let (tensors, storages) = plain();
    let name = "backbone.layers.0.mixer.D";
    let view = &tensors
        .iter()
        .find(|(known, _)| known == name)
        .expect("a name")
        .1;
    let with = |change: &dyn Fn(&mut View)| {
        let mut changed = view.clone();
        change(&mut changed);
        let mut pickle = Pickle::default();
        pickle.put(b"}").text(name).tensor(&changed).put(b"s.");
        refusal(&file(&pickle.0, &storages))
    };
    let n = view.shape[0];
    for (message, expected) in [
        (
            with(&|view| view.offset = 1),
            "reaches beyond archive/data/",
        ),
        (
            with(&|view| view.strides[0] = 2),
            "reaches beyond archive/data/",
        ),
        (
            with(&|view| view.shape[0] = n + 1),
            "reaches beyond archive/data/",
        ),
        (
            with(&|view| view.shape = vec![usize::MAX, 2]),
            "sizes are not numbers",
        ),
        (with(&|view| view.shape = vec![1 << 62, 16]), "the strides"),
        (
            with(&|view| view.class = "ComplexFloatStorage"),
            "holds ComplexFloatStorage",
        ),
        (
            with(&|view| view.storage = 1000),
            "archive/data/1000, which is not there",
        ),
        (
            with(&|view| (view.shape, view.strides) = (vec![1; 65], vec![1; 65])),
            "more than 64 dimensions",
        ),
    ] {
        assert!(
            message.contains(name) && message.contains(expected),
            "{message}"
        );
    }
    // One number for many: as many as would not fit into memory.
    let message = with(&|view| (view.shape, view.strides) = (vec![1 << 40], vec![0]));
    assert!(message.contains("its tensors need"), "{message}");

    let refuse = |build: &dyn Fn(&mut Pickle)| {
        let mut pickle = Pickle::default();
        build(&mut pickle);
        refusal(&file(&pickle.0, &storages))
    };
    let sparse = refuse(&|pickle| {
        pickle
            .put(b"}")
            .text(name)
            .global("torch._utils", "_rebuild_sparse_tensor");
        pickle.put(b")Rs.");
    });
    assert!(
        sparse.contains(name) && sparse.contains("_rebuild_sparse_tensor"),
        "{sparse}"
    );
    let negated = refuse(&|pickle| {
        pickle
            .put(b"}")
            .text(name)
            .global("torch._utils", "_rebuild_tensor_v2");
        pickle
            .arguments(view)
            .put(b"}")
            .text("neg")
            .put(b"\x88stRs.");
    });
    assert!(
        negated.contains(name) && negated.contains("clone()"),
        "{negated}"
    );
    let module = refuse(&|pickle| {
        pickle.global("modeling", "Student").put(b")\x81}b.");
    });
    assert!(module.contains("state_dict()"), "{module}");
    let order = archive(&[("data.pkl".into(), b"}."), ("byteorder".into(), b"big")]);
    assert!(refusal(&order).contains("big-endian"));
    let old = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.";
    assert!(refusal(old).contains("before version 1.6"));
}

/// Pickles that would take a reader's stack, memory or time: nested ones, and small ones of large things.
#[test]
fn pickles_that_grow() {
    let deep = |begin: &[u8], end: &[u8]| {
        let mut pickle = begin.repeat(100_000);
        pickle.extend(end.repeat(100_000));
        pickle.push(b'.');
        pickle
    };
    let mut all = vec![
        deep(b"]", b"a"),
        deep(b"(", b"t"),
        deep(b"}K\x00", b"s"),
        deep(b"", b"]\x85"),
        // A text of 4 GiB, and of 2^63 bytes.
        b"X\xff\xff\xff\xffa.".to_vec(),
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fa.".to_vec(),
        // A dictionary that holds itself.
        b"}q\x00K\x00h\x00s.".to_vec(),
    ];
    // Dictionaries that each hold the next a hundred times.
    let mut wide = Pickle::default();
    wide.put(b"}q\x00");
    for level in 1..12 {
        wide.put(b"}(");
        for key in 0..100 {
            wide.put(&[b'K', key, b'h', level - 1]);
        }
        wide.put(&[b'u', b'q', level]);
    }
    wide.put(b".");
    all.push(wide.0);
    // Long names of classes, put together again and again.
    let mut classes = Pickle::default();
    classes.text(&"x".repeat(100_000)).put(b"q\x00");
    classes.put(&b"h\x00h\x00\x93".repeat(30_000)).put(b".");
    all.push(classes.0);
    // One tensor of many dimensions under many names.
    let (tensors, storages) = plain();
    let mut view = tensors[0].1.clone();
    (view.shape, view.strides) = (vec![1; 64], vec![1; 64]);
    let mut tensor = Pickle::default();
    tensor.put(b"}(K\x00").tensor(&view).put(b"q\x00");
    for key in 1..200 {
        tensor.put(&[b'K', key, b'h', 0]);
    }
    tensor.put(b"u.");
    let message = refusal(&file(&tensor.0, &storages));
    assert!(message.contains("under many names"), "{message}");
    for pickle in all {
        refusal(&file(&pickle, &[]));
    }
    // A directory of many entries, none of which is there.
    let mut bin = file(b"}.", &[]);
    let count = bin.len() - 12;
    bin[count..count + 2].fill(0xff);
    assert!(refusal(&bin).contains("number of entries"));
}
