//! Shards that are damaged, work that fails, and a text without documents.

use super::*;

#[test]
fn damaged_shards_are_made_again() {
    let corpus = Corpus::new(&TEXTS);
    let expected = joined(&corpus.tokenizer, &TEXTS);
    let shard = |folder: &Path| folder.join(shard_name(1));
    let manifest = |folder: &Path| folder.join(MANIFEST);
    let damages: [&dyn Fn(&Path); 10] = [
        // Sizes that fit, and other contents.
        &|folder| fs::write(shard(folder), [1, 0].repeat(SHARD)).unwrap(),
        &|folder| {
            let json = fs::read_to_string(manifest(folder)).unwrap();
            let json = json.replace("\"vocab_size\": 4096", "\"vocab_size\": 4097");
            fs::write(manifest(folder), json).unwrap();
        },
        &|folder| fs::write(shard(folder), [1, 0, 1]).unwrap(),
        &|folder| fs::write(shard(folder), [0; 2 * SHARD + 2]).unwrap(),
        &|folder| fs::write(shard(folder), []).unwrap(),
        &|folder| fs::remove_file(shard(folder)).unwrap(),
        &|folder| fs::remove_file(manifest(folder)).unwrap(),
        &|folder| fs::write(manifest(folder), "{\"format\": 1").unwrap(),
        &|folder| {
            let json = fs::read_to_string(manifest(folder)).unwrap();
            let tokens = format!("\"tokens\": {}", expected.len());
            assert!(json.contains(&tokens));
            let json = json.replace(&tokens, "\"tokens\": 9000000000000000000");
            fs::write(manifest(folder), json).unwrap();
        },
        &|folder| {
            fs::remove_dir_all(folder).unwrap();
            fs::write(folder, "a file in the way").unwrap();
        },
    ];
    for (i, damage) in damages.iter().enumerate() {
        let folder = corpus.prepare().folder().to_path_buf();
        damage(&folder);
        let shards = corpus.prepare();
        assert_eq!(all(&shards), expected, "damage {i}");
        assert_eq!(shards.folder(), folder);
        assert_eq!(corpus.cached().len(), 1, "damage {i}");
    }
}

#[test]
fn an_id_outside_the_vocabulary_is_an_error() {
    let corpus = Corpus::new(&TEXTS);
    let folder = corpus.prepare().folder().to_path_buf();
    fs::write(folder.join(shard_name(1)), [0xff; 2 * SHARD]).unwrap();
    // As earlier versions of this crate made it, without checksums.
    let path = folder.join(MANIFEST);
    let mut manifest: Manifest = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(
        manifest.sha256.len(),
        corpus.prepare().manifest().sha256.len()
    );
    fs::write(folder.join(shard_name(1)), [0xff; 2 * SHARD]).unwrap();
    manifest.sha256.clear();
    fs::write(&path, manifest.to_json()).unwrap();
    let shards = corpus.prepare();
    let mut ids = Vec::new();
    shards.read(0, SHARD, &mut ids).unwrap();
    let error = shards.read(0, SHARD + 1, &mut ids).unwrap_err();
    assert!(matches!(error, DataError::DamagedShards { .. }), "{error}");
}

#[test]
fn a_failure_leaves_nothing_behind() {
    let corpus = Corpus::new(&TEXTS);
    let path = write(&corpus.folder, "text/x.jsonl", "{\"text\": \"a\"}\nbad\n");
    let error = prepare(&corpus.options(), &SMALL).unwrap_err();
    assert!(
        matches!(error, DataError::BadJson { line: 2, .. }),
        "{error}"
    );
    assert_eq!(corpus.cached(), Vec::<String>::new());

    fs::write(path, "\n").unwrap();
    assert_eq!(all(&corpus.prepare()), joined(&corpus.tokenizer, &TEXTS));
}

#[test]
fn a_corpus_without_documents_is_an_error() {
    let corpus = Corpus::new(&[]);
    write(&corpus.folder, "text/a.jsonl", "\n\n");
    let error = prepare(&corpus.options(), &SMALL).unwrap_err();
    assert!(matches!(error, DataError::NoDocuments { .. }), "{error}");

    write(&corpus.folder, "text/a.jsonl", "{\"text\": \"a\"}\n");
    let split = Split::HeldOut { per_mille: 0 };
    let error = prepare(
        &PrepareOptions {
            split,
            ..corpus.options()
        },
        &SMALL,
    )
    .unwrap_err();
    assert!(matches!(error, DataError::NoDocuments { .. }), "{error}");
    assert_eq!(corpus.cached(), Vec::<String>::new());
}

#[test]
fn a_cache_that_cannot_be_written_is_an_error() {
    let corpus = Corpus::new(&TEXTS);
    let cache = write(&corpus.folder, "a file", "");
    let error = prepare(
        &PrepareOptions {
            cache,
            ..corpus.options()
        },
        &SMALL,
    )
    .unwrap_err();
    assert!(matches!(error, DataError::Io { .. }), "{error}");
    assert!(error.to_string().contains("a file"), "{error}");
}

/// If another program changes the files while they are in use, the result is an error that names the file. (If a file
/// were mapped into memory, its truncation would end the process.)
#[test]
fn shards_that_change_while_in_use_are_an_error() {
    let corpus = Corpus::new(&TEXTS);
    let damages: [&dyn Fn(&Path); 3] = [
        &|path| fs::write(path, [1]).unwrap(),
        &|path| fs::write(path, [1, 0].repeat(SHARD)).unwrap(),
        &|path| fs::write(path, [0; 2 * SHARD + 2]).unwrap(),
    ];
    for damage in damages {
        let shards = corpus.prepare();
        let mut ids = Vec::new();
        shards.read(0, 2 * SHARD, &mut ids).unwrap();
        let path = shards.folder().join(shard_name(1));
        damage(&path);
        let later = SystemTime::now() + Duration::from_secs(5);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_modified(later).unwrap();
        let error = shards.read(0, 2 * SHARD, &mut ids).unwrap_err();
        assert!(matches!(error, DataError::ChangedShard { .. }), "{error}");
        assert!(error.to_string().contains("00001.bin"), "{error}");
        // The others are still good.
        shards.read(0, SHARD, &mut ids).unwrap();
    }
}

/// Of a large folder, no token of a damaged shard is used, whether the other thread was there first or not.
#[test]
fn a_damaged_shard_of_a_large_folder_is_named_and_not_read() {
    let corpus = Corpus::new(&TEXTS);
    let expected = joined(&corpus.tokenizer, &TEXTS);
    let sizes = Sizes {
        verified_at_open: 0,
        ..SMALL
    };
    let shards = prepare(&corpus.options(), &sizes).unwrap();
    assert_eq!(all(&shards), expected);
    fs::write(shards.folder().join(shard_name(1)), [1, 0].repeat(SHARD)).unwrap();
    let shards = prepare(&corpus.options(), &sizes).unwrap();
    let mut ids = Vec::new();
    shards.read(0, SHARD, &mut ids).unwrap();
    assert_eq!(ids, expected[..SHARD]);
    for _ in 0..2 {
        let error = shards.read(1, SHARD, &mut ids).unwrap_err();
        assert!(matches!(error, DataError::DamagedShard { .. }), "{error}");
        assert!(error.to_string().contains("00001.bin"), "{error}");
    }
    // The next start makes it again.
    assert_eq!(all(&prepare(&corpus.options(), &sizes).unwrap()), expected);
    assert_eq!(corpus.cached().len(), 1);
}
