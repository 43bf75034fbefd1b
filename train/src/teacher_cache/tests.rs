use burn::tensor::{Tensor, TensorData};
use kernels::likeliest;
use kernels::runtime::Flex;

use super::*;

/// Three tokens a row, seven ids.
const CONTEXT: usize = 3;
const VOCABULARY: usize = 7;

fn key() -> CacheKey {
    CacheKey {
        teacher: [("model.safetensors".to_owned(), "a".to_owned())].into(),
        tokenizer: "b".to_owned(),
        text: "c".to_owned(),
        context: CONTEXT,
        seed: 42,
        vocab_size: VOCABULARY,
    }
}

/// Two rows a shard, five rows from row 10 on.
fn manifest(k: usize, dtype: StoredDtype) -> Manifest {
    let mut manifest = Manifest::new(key(), (10, 5), k, dtype);
    manifest.shard_rows = 2;
    manifest
}

/// Logarithms of probabilities of the tokens of `rows`, which differ from row to row.
fn log_q(rows: std::ops::Range<u64>) -> Vec<f32> {
    let mut all = vec![];
    for token in rows.start * CONTEXT as u64..rows.end * CONTEXT as u64 {
        let logits = (0..VOCABULARY as u64).map(|id| ((token * 31 + id * 17) % 23) as f64 / 3.0);
        let logits: Vec<f64> = logits.collect();
        let log_sum = logits.iter().map(|x| x.exp()).sum::<f64>().ln();
        all.extend(logits.iter().map(|x| (x - log_sum) as f32));
    }
    all
}

/// The content of a cache of `k` ids for these rows.
fn top(rows: std::ops::Range<u64>, k: usize) -> TopK {
    let tokens = (rows.end - rows.start) as usize * CONTEXT;
    let log_q = TensorData::new(log_q(rows), [tokens, VOCABULARY]);
    TopK::read(likeliest::<Flex>(
        Tensor::from_data(log_q, &Default::default()),
        k,
    ))
}

/// Writes the shards that are missing, up to `most` of them.
fn make(folder: &Path, k: usize, dtype: StoredDtype, most: usize) {
    let mut writer = CacheWriter::open(folder, manifest(k, dtype)).unwrap();
    for index in writer.missing().into_iter().take(most) {
        writer.write(index, &top(writer.rows_of(index), k)).unwrap();
    }
}

fn reason(error: TrainError) -> String {
    match error {
        TrainError::TeacherCache { reason, .. } => reason,
        other => panic!("{other}"),
    }
}

fn opened(folder: &Path) -> std::sync::Arc<TeacherCache> {
    TeacherCache::open(folder, &key(), 10..15, 0).unwrap()
}

#[test]
fn what_is_written_is_read() {
    for dtype in [StoredDtype::F16, StoredDtype::F32] {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path(), 3, dtype, 100);
        let cache = opened(folder.path());
        assert_eq!(cache.manifest().shards.len(), 3);
        // Over the bounds of two shards.
        let found = cache.rows(11, 3).unwrap();
        let expected = top(11..14, 3);
        assert_eq!((&found.ids, found.rows()), (&expected.ids, 3));
        assert_eq!(found.log_rest, expected.log_rest);
        for (found, expected) in found.log_q.iter().zip(&expected.log_q) {
            let error = (found - expected).abs();
            match dtype {
                StoredDtype::F16 => assert!(error <= expected.abs() / 2048.0),
                StoredDtype::F32 => assert_eq!(error, 0.0),
            }
        }
        // On the disk: 2 bytes an id, as many as the dtype has a logarithm, 4 the rest.
        let bytes = 3 * (2 + dtype.bytes()) + 4;
        assert_eq!(cache.manifest().token_bytes(), bytes);
        let shard = fs::metadata(folder.path().join("00000.bin")).unwrap();
        assert_eq!(shard.len(), (2 * CONTEXT * bytes) as u64);
    }
}

/// A stage may use fewer ids than the cache has: the others are added to the rest.
#[test]
fn fewer_ids_are_those_of_a_smaller_cache() {
    let folder = tempfile::tempdir().unwrap();
    for (number, k) in [5, VOCABULARY].into_iter().enumerate() {
        let path = folder.path().join(number.to_string());
        make(&path, k, StoredDtype::F32, 100);
        let cache = TeacherCache::open(&path, &key(), 10..15, 2).unwrap();
        let found = cache.rows(10, 5).unwrap();
        let expected = top(10..15, 2);
        assert_eq!(found.log_q, expected.log_q);
        for (found, expected) in found.log_rest.iter().zip(&expected.log_rest) {
            assert!((found - expected).abs() < 1e-5, "{found}, {expected}");
        }
        // The least cross-entropy, in f64 by its equation.
        let rows = log_q(10..12);
        let entropy = rows.chunks(VOCABULARY).map(|row| {
            let mut q: Vec<f64> = row.iter().map(|&log| f64::from(log).exp()).collect();
            q.sort_by(|a, b| b.total_cmp(a));
            let rest: f64 = q.split_off(2).iter().sum();
            q.push(rest);
            q.iter().map(|q| -q * q.ln()).sum::<f64>()
        });
        let entropy = entropy.sum::<f64>() / (2 * CONTEXT) as f64;
        assert!((found.entropy(2) - entropy).abs() < 1e-5);
    }
}

/// After a kill between any two shards, and where a shard was written and not listed.
#[test]
fn what_is_missing_is_made() {
    let whole = tempfile::tempdir().unwrap();
    make(whole.path(), 3, StoredDtype::F16, 100);
    let read = |folder: &Path, name: &str| fs::read(folder.join(name)).unwrap();
    for done in 0..3 {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path(), 3, StoredDtype::F16, done);
        let refused = TeacherCache::open(folder.path(), &key(), 10..15, 0).unwrap_err();
        let expected = format!("0000{done}.bin is not made yet");
        let reason = reason(refused);
        assert!(reason.contains(&expected), "{reason}");
        fs::write(folder.path().join(shard_name(done as u64)), "a part").unwrap();
        make(folder.path(), 3, StoredDtype::F16, 100);
        for name in [MANIFEST, "00000.bin", "00001.bin", "00002.bin"] {
            assert!(
                read(folder.path(), name) == read(whole.path(), name),
                "{done}, {name}"
            );
        }
    }
    // Nothing is left to do.
    let writer = CacheWriter::open(whole.path(), manifest(3, StoredDtype::F16)).unwrap();
    assert!(writer.missing().is_empty());
    let busy = CacheWriter::open(whole.path(), manifest(3, StoredDtype::F16)).unwrap_err();
    assert!(reason(busy).contains("another process"));
    drop(writer);
    let other = CacheWriter::open(whole.path(), manifest(4, StoredDtype::F16)).unwrap_err();
    let other = reason(other);
    assert!(other.contains("a k of 3, where 4 is asked for"), "{other}");
    // A folder of something else stays as it is.
    let foreign = tempfile::tempdir().unwrap();
    fs::write(foreign.path().join("notes.txt"), "").unwrap();
    let writer = CacheWriter::open(foreign.path(), manifest(3, StoredDtype::F16));
    let message = reason(writer.unwrap_err());
    assert!(message.contains("other files"), "{message}");
    assert_eq!(fs::read_dir(foreign.path()).unwrap().count(), 1);
}

#[test]
fn a_damaged_shard_is_named() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), 3, StoredDtype::F16, 100);
    let path = folder.path().join("00001.bin");
    let whole = fs::read(&path).unwrap();
    let mut changed = whole.clone();
    changed[5] ^= 1;
    fs::write(&path, &changed).unwrap();
    let cache = opened(folder.path());
    // Whether this thread finds it or the other.
    let damaged = reason(cache.rows(12, 1).unwrap_err());
    assert!(
        damaged.contains("00001.bin is not what was written"),
        "{damaged}"
    );

    fs::write(&path, &whole[1..]).unwrap();
    let short = TeacherCache::open(folder.path(), &key(), 10..15, 0).unwrap_err();
    assert!(reason(short).contains("00001.bin has another length"));
    // Damage outside of the rows that a stage reads does not matter.
    TeacherCache::open(folder.path(), &key(), 14..15, 0).unwrap();
    fs::remove_file(&path).unwrap();
    let gone = TeacherCache::open(folder.path(), &key(), 10..13, 0).unwrap_err();
    assert!(reason(gone).contains("00001.bin is gone; the same"));
    make(folder.path(), 3, StoredDtype::F16, 100);
    assert!(fs::read(&path).unwrap() == whole);
    opened(folder.path()).rows(10, 5).unwrap();
}

#[test]
fn a_cache_of_anything_else_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), 3, StoredDtype::F16, 100);
    let refused = |change: &dyn Fn(&mut CacheKey), rows: std::ops::Range<u64>, top_k: usize| {
        let mut key = key();
        change(&mut key);
        reason(TeacherCache::open(folder.path(), &key, rows, top_k).unwrap_err())
    };
    let other = || "x".to_owned();
    type Change<'a> = &'a dyn Fn(&mut CacheKey);
    let changes: [(Change<'_>, &str); 6] = [
        (
            &|key| drop(key.teacher.insert("model.safetensors".to_owned(), other())),
            "another teacher (model.safetensors differs)",
        ),
        (&|key| key.tokenizer = other(), "another tokenizer"),
        (&|key| key.text = other(), "another text"),
        (&|key| key.context = 4, "a context of 3, where it is 4 here"),
        (&|key| key.seed = 1, "a seed of 42, where it is 1 here"),
        (&|key| key.vocab_size = 8, "a vocabulary of 7"),
    ];
    for (change, expected) in changes {
        let message = refused(change, 10..15, 0);
        assert!(message.contains(expected), "{message}");
    }
    let message = refused(&|_| {}, 9..15, 0);
    assert!(message.contains("it has sequences 10 to 15"), "{message}");
    let message = refused(&|_| {}, 10..16, 0);
    assert!(message.contains("the stage reads 10 to 16"), "{message}");
    let message = refused(&|_| {}, 10..15, 4);
    assert!(message.contains("top_k asks for 4"), "{message}");

    let path = folder.path().join(MANIFEST);
    let text = fs::read_to_string(&path).unwrap();
    for (from, to, expected) in [
        ("\"format\": 1", "\"format\": 2", "its format is 2"),
        ("\"k\": 3", "\"k\": 0", "numbers that no cache has"),
        (
            "\"rows\": 5",
            "\"rows\": 18446744073709551615",
            "numbers that no cache has",
        ),
        ("{", "", "manifest.json: "),
    ] {
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let message = refused(&|_| {}, 10..15, 0);
        assert!(message.contains(expected), "{message}");
    }
    let none = tempfile::tempdir().unwrap();
    let none = TeacherCache::open(none.path(), &key(), 10..15, 0).unwrap_err();
    assert!(reason(none).contains("there is no manifest.json"));
    fs::write(&path, "").unwrap();
    let writer = CacheWriter::open(folder.path(), manifest(3, StoredDtype::F16));
    assert!(reason(writer.unwrap_err()).contains("manifest.json: "));
}
