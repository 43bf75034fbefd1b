use std::collections::HashSet;
use std::fs::OpenOptions;
use std::thread;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::*;
use crate::fixtures::{asset, write};
use crate::shards::shard_name;
use crate::tokenizer::fixtures::{
    added_token, changed_tokenizer, like_codegen, like_llama3, phi_tiny,
};

/// Tokens in a shard: so few that the texts below fill several shards and several blocks.
const SHARD: usize = 7;

const SMALL: Sizes = Sizes {
    shard_tokens: SHARD as u64,
    block_bytes: 10,
};

/// A corpus and a cache in one temporary folder.
struct Corpus {
    folder: TempDir,
    tokenizer: Tokenizer,
}

impl Corpus {
    fn new(texts: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        for (i, text) in texts.iter().enumerate() {
            write(&folder, &format!("text/{i}.txt"), text);
        }
        Self {
            folder,
            tokenizer: phi_tiny(),
        }
    }

    fn options(&self) -> PrepareOptions<'_> {
        PrepareOptions {
            name: "test",
            sources: vec![self.folder.path().join("text")],
            split: Split::All,
            tokenizer: &self.tokenizer,
            cache: self.folder.path().join("cache"),
            skip_bad_lines: 0,
        }
    }

    fn prepare(&self) -> TokenShards {
        prepare(&self.options(), &SMALL).unwrap()
    }

    /// The names of all entries of the cache, hidden and temporary ones included, except the lock.
    fn cached(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path().join("cache"));
        let entries = entries.into_iter().flatten();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != LOCK)
            .collect()
    }
}

const TEXTS: [&str; 4] = [
    "It was the best of times,",
    "",
    "it was",
    "the worst of times.",
];

fn all(shards: &TokenShards) -> Vec<u32> {
    let mut ids = Vec::new();
    shards.read(0, shards.tokens() as usize, &mut ids).unwrap();
    ids
}

fn joined(tokenizer: &Tokenizer, texts: &[&str]) -> Vec<u32> {
    let mut ids = Vec::new();
    for text in texts {
        ids.extend(tokenizer.encode(text).unwrap());
        ids.push(tokenizer.end_of_text().unwrap());
    }
    ids
}

/// The counts behind the published perplexity of the bundled teacher.
#[test]
fn the_bundled_validation_text_has_162_566_tokens() {
    let tokenizer = phi_tiny();
    let cache = TempDir::new().unwrap();
    let shards = TokenShards::prepare(&PrepareOptions {
        name: "validation",
        sources: vec![asset("text/pd-validation.json.gz")],
        split: Split::All,
        tokenizer: &tokenizer,
        cache: cache.path().into(),
        skip_bad_lines: 0,
    })
    .unwrap();
    assert_eq!(shards.tokens(), 162_566);
    let manifest = shards.manifest();
    assert_eq!((manifest.documents, manifest.text_bytes), (26, 629_301));
    assert_eq!(manifest.token_bytes, 2);
    let ids = all(&shards);
    assert_eq!(ids.iter().filter(|&&id| id == 0).count(), 26);
    assert_eq!(ids.last(), Some(&0));
}

#[test]
fn every_document_is_followed_by_end_of_text() {
    let corpus = Corpus::new(&TEXTS);
    let shards = corpus.prepare();
    let expected = joined(&corpus.tokenizer, &TEXTS);
    assert!(expected.len() > 2 * SHARD, "too short to test shards");
    assert_eq!(all(&shards), expected);
    assert_eq!(shards.manifest().documents, 4);

    // Every range, inside a shard and across shards, into a buffer that is not empty.
    let mut ids = vec![9; 3];
    for start in 0..=expected.len() {
        for end in start..=expected.len() {
            shards.read(start as u64, end - start, &mut ids).unwrap();
            assert_eq!(ids, expected[start..end]);
        }
    }
    for (start, len) in [
        (0, expected.len() + 1),
        (expected.len() as u64, 1),
        (u64::MAX, 1),
    ] {
        let error = shards.read(start, len, &mut ids).unwrap_err();
        assert!(matches!(error, DataError::OutOfRange { .. }), "{error}");
    }
}

#[test]
fn a_text_that_fills_its_last_shard_reads_back() {
    let corpus = Corpus::new(&TEXTS);
    let expected = joined(&corpus.tokenizer, &TEXTS);
    for shard_tokens in 1..=expected.len() as u64 + 1 {
        let sizes = Sizes {
            shard_tokens,
            ..SMALL
        };
        let shards = prepare(&corpus.options(), &sizes).unwrap();
        assert_eq!(all(&shards), expected, "shards of {shard_tokens}");
    }
}

#[test]
fn a_large_vocabulary_takes_four_bytes() {
    let mut corpus = Corpus::new(&["a zebra ", "zebra"]);
    corpus.tokenizer = changed_tokenizer(|json| {
        for id in 4096..70_000 {
            json["model"]["vocab"][format!("filler {id}")] = id.into();
        }
        json["added_tokens"] = serde_json::json!([added_token(70_000, "zebra")]);
    });
    let shards = corpus.prepare();
    assert_eq!(shards.manifest().token_bytes, 4);
    let ids = all(&shards);
    assert_eq!(ids, joined(&corpus.tokenizer, &["a zebra ", "zebra"]));
    assert_eq!(ids.iter().filter(|&&id| id == 70_000).count(), 2);
}

#[test]
fn end_of_text_need_not_be_registered() {
    let mut corpus = Corpus::new(&TEXTS);
    corpus.tokenizer = like_codegen();
    let shards = corpus.prepare();
    assert_eq!(all(&shards), joined(&corpus.tokenizer, &TEXTS));

    corpus.tokenizer = changed_tokenizer(|json| {
        json["added_tokens"] = serde_json::json!([]);
        let vocab = json["model"]["vocab"].as_object_mut().unwrap();
        vocab.remove("<|endoftext|>").unwrap();
    });
    let error = prepare(&corpus.options(), &SMALL).unwrap_err();
    assert!(matches!(error, DataError::NoEndOfText { .. }), "{error}");

    // As Llama 3, and Llama 2 and Mistral, call it.
    for name in ["<|end_of_text|>", "</s>"] {
        let tokenizer = changed_tokenizer(|json| {
            json["added_tokens"] = serde_json::json!([]);
            let vocab = json["model"]["vocab"].as_object_mut().unwrap();
            let id = vocab.remove("<|endoftext|>").unwrap();
            vocab.insert(name.into(), id);
        });
        assert_eq!(tokenizer.end_of_text(), Some(0), "{name}");
    }
}

#[test]
fn a_second_call_tokenises_nothing() {
    let corpus = Corpus::new(&TEXTS);
    let first = corpus.prepare();
    // A time that tokenising again would change.
    let path = first.folder().join(shard_name(0));
    let earlier = SystemTime::now() - Duration::from_secs(1000);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_modified(earlier).unwrap();
    let second = corpus.prepare();
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    assert_eq!(modified, earlier);
    // The first still reads the file, whose time alone has changed.
    assert_eq!(all(&second), all(&first));
    assert_eq!(second.folder(), first.folder());
    assert_eq!(second.manifest(), first.manifest());
    assert_eq!(corpus.cached().len(), 1);
}

#[test]
fn a_change_to_what_the_ids_depend_on_makes_other_shards() {
    let mut corpus = Corpus::new(&TEXTS);
    let mut folders = HashSet::new();
    let mut differs = |corpus: &Corpus, options: PrepareOptions| {
        let shards = prepare(&options, &SMALL).unwrap();
        assert!(folders.insert(shards.folder().to_path_buf()));
        assert_eq!(corpus.cached().len(), folders.len());
        all(&shards)
    };
    differs(&corpus, corpus.options());
    let split = Split::Train { per_mille: 1 };
    differs(
        &corpus,
        PrepareOptions {
            split,
            ..corpus.options()
        },
    );

    // One file of the folder.
    let sources = vec![corpus.folder.path().join("text/0.txt")];
    differs(
        &corpus,
        PrepareOptions {
            sources,
            ..corpus.options()
        },
    );

    // A new file; a file of another size; one of the same size written later.
    write(&corpus.folder, "text/new.txt", "new");
    differs(&corpus, corpus.options());
    write(&corpus.folder, "text/new.txt", "newer");
    differs(&corpus, corpus.options());
    let path = write(&corpus.folder, "text/new.txt", "older");
    let later = SystemTime::now() + Duration::from_secs(5);
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_modified(later).unwrap();
    let ids = differs(&corpus, corpus.options());
    assert!(ids.ends_with(&joined(&corpus.tokenizer, &["older"])));

    corpus.tokenizer = like_codegen();
    differs(&corpus, corpus.options());
}

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

#[test]
fn several_threads_can_prepare_the_same_text_at_once() {
    let corpus = Corpus::new(&TEXTS);
    let expected = joined(&corpus.tokenizer, &TEXTS);
    // In an empty cache, and in one with a damaged folder.
    for round in 0..10 {
        let prepared: Vec<TokenShards> = thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| corpus.prepare())).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        for shards in &prepared {
            assert_eq!(all(shards), expected, "round {round}");
        }
        assert_eq!(corpus.cached().len(), 1);
        if round % 2 == 0 {
            fs::remove_dir_all(prepared[0].folder()).unwrap();
        } else {
            fs::remove_file(prepared[0].folder().join(MANIFEST)).unwrap();
        }
    }
}

#[test]
fn shards_that_another_process_has_made_meanwhile_are_opened() {
    let corpus = Corpus::new(&TEXTS);
    let theirs = corpus.prepare();
    let key = &theirs.manifest().key;
    let ours = corpus.folder.path().join("new");
    let old = corpus.folder.path().join("old");
    fs::create_dir(&ours).unwrap();
    let taken = move_into_place(&ours, theirs.folder(), key, &old).unwrap();
    assert_eq!(all(&taken), all(&theirs));
    assert!(ours.exists() && !old.exists());
}

/// All documents differ, so that the decoded text identifies them.
#[test]
fn held_out_and_training_documents_are_all_and_never_the_same() {
    let texts: Vec<String> = (0..300).map(|i| format!("number {i}")).collect();
    let corpus = Corpus::new(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    let documents = |split| -> HashSet<String> {
        let shards = prepare(
            &PrepareOptions {
                split,
                ..corpus.options()
            },
            &SMALL,
        )
        .unwrap();
        let text = corpus.tokenizer.decode(&all(&shards)).unwrap();
        text.split_terminator("<|endoftext|>")
            .map(Into::into)
            .collect()
    };
    let train = documents(Split::Train { per_mille: 100 });
    let held_out = documents(Split::HeldOut { per_mille: 100 });
    assert!(train.is_disjoint(&held_out));
    assert_eq!(train.union(&held_out).count(), 300);
    assert_eq!(
        train.union(&held_out).cloned().collect::<HashSet<_>>(),
        documents(Split::All)
    );
    // 30 expected, standard deviation 5.2.
    assert!((5..=56).contains(&held_out.len()), "{}", held_out.len());
}

/// Reading and tokenising overlap, most often when a block has a single document.
#[test]
fn blocks_keep_their_order() {
    let texts: Vec<String> = (0..200).map(|i| format!("document number {i}")).collect();
    let lines = texts
        .iter()
        .map(|text| format!("{{\"text\": \"{text}\"}}\n"));
    let corpus = Corpus::new(&[]);
    write(&corpus.folder, "text/a.jsonl", lines.collect::<String>());
    let expected: Vec<&str> = texts.iter().map(String::as_str).collect();
    let expected = joined(&corpus.tokenizer, &expected);
    for block_bytes in [1, 10, 50, 1000, 1_000_000] {
        // The block size is not part of the key, so the shards must not depend on it.
        let cache = corpus.folder.path().join(format!("cache of {block_bytes}"));
        let options = PrepareOptions {
            cache,
            ..corpus.options()
        };
        let sizes = Sizes {
            block_bytes,
            ..SMALL
        };
        assert_eq!(all(&prepare(&options, &sizes).unwrap()), expected);
    }
}

/// What another program does to the files while they are in use is an error that names the file. (Mapped
/// into memory, a file that is cut ends the process.)
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

/// The names of folders in the caches of earlier versions, and what they hold, are the same.
#[test]
fn the_identity_of_a_cache_does_not_change() {
    let corpus = Corpus::new(&TEXTS);
    let mut manifest = plan(&corpus.options(), SHARD as u64).unwrap();
    for file in &mut manifest.sources {
        file.path = Path::new("/text").join(file.path.file_name().unwrap());
        file.modified_ns = 1;
    }
    assert_eq!(
        manifest.hash(),
        "7b61bf4492cc5ab1bbb1810496502a9543811df1adbfa94c90eedf0b28b8cc92"
    );
    assert!(
        !String::from_utf8(manifest.to_json())
            .unwrap()
            .contains("skip")
    );
}

/// A long document is tokenised in parts, and is on the side of the split that it is on as a whole.
#[test]
fn a_document_in_parts_has_the_tokens_of_the_whole() {
    let word = "the naïve 漢字 times, ";
    let long: Vec<String> = (0..4)
        .map(|i| format!("number {i} {}", word.repeat((3 << 19) / word.len())))
        .collect();
    let mut corpus = Corpus::new(&[]);
    for (i, text) in long.iter().enumerate() {
        let line = serde_json::json!({ "text": text });
        let lines = format!("{{\"text\": \"before {i}\"}}\n{line}\n{{\"text\": \"after\"}}\n");
        write(&corpus.folder, &format!("text/{i}.jsonl"), lines);
    }
    write(&corpus.folder, "text/x.txt", &long[0]);
    let sizes = Sizes {
        shard_tokens: 1 << 20,
        block_bytes: 1 << 20,
    };
    let split = Split::HeldOut { per_mille: 500 };
    for tokenizer in [phi_tiny(), like_llama3()] {
        corpus.tokenizer = tokenizer;
        let mut texts: Vec<&str> = Vec::new();
        let short: Vec<String> = (0..4).map(|i| format!("before {i}")).collect();
        for (long, before) in long.iter().zip(&short) {
            texts.extend([&**before, long, "after"]);
        }
        texts.push(&long[0]);
        texts.retain(|text| split.contains(text));
        let kept = texts.iter().filter(|text| text.len() > 100).count();
        assert!((1..5).contains(&kept), "{kept} of 5 long documents");
        let options = PrepareOptions {
            split,
            ..corpus.options()
        };
        let shards = prepare(&options, &sizes).unwrap();
        assert_eq!(shards.manifest().documents, texts.len() as u64);
        assert!(all(&shards) == joined(&corpus.tokenizer, &texts));
    }
}

#[test]
fn bad_lines_are_skipped_counted_and_part_of_the_identity() {
    let corpus = Corpus::new(&[]);
    // The second line is long enough to be read in parts, some of which are tokenised before it fails.
    let long = "the times ".repeat(300_000);
    let lines = format!("{{\"text\": \"a\"}}\n{{\"text\": \"{long}\"\nbad\n{{\"text\": \"b\"}}\n");
    write(&corpus.folder, "text/a.jsonl", lines);
    let options = |skip_bad_lines| PrepareOptions {
        skip_bad_lines,
        ..corpus.options()
    };
    let sizes = Sizes {
        shard_tokens: 100_000,
        block_bytes: 1 << 20,
    };
    let error = prepare(&options(1), &sizes).unwrap_err();
    assert!(
        matches!(error, DataError::BadJson { line: 3, .. }),
        "{error}"
    );
    for skip in [2, 2, 3] {
        let shards = prepare(&options(skip), &sizes).unwrap();
        assert_eq!(all(&shards), joined(&corpus.tokenizer, &["a", "b"]));
        assert_eq!(shards.manifest().skipped, 2);
    }
    assert_eq!(corpus.cached().len(), 2);
}

/// Some network file systems have no locks.
#[test]
fn a_file_system_without_locks_is_no_error() {
    let file = tempfile::tempfile().unwrap();
    wait_for(&file, |_| Err(io::Error::from_raw_os_error(38)));
}
