use std::collections::HashSet;
use std::fs::OpenOptions;
use std::thread;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::*;
use crate::fixtures::{asset, write};
use crate::shards::shard_name;
use crate::tokenizer::fixtures::{added_token, changed_tokenizer, like_codegen, phi_tiny};

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
}

#[test]
fn a_second_call_tokenises_nothing() {
    let corpus = Corpus::new(&TEXTS);
    let first = corpus.prepare();
    // A mark that tokenising again would overwrite.
    let path = first.folder().join(shard_name(0));
    fs::write(&path, [7, 0].repeat(SHARD)).unwrap();
    let second = corpus.prepare();
    assert_eq!(all(&second)[..SHARD], [7; SHARD]);
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
    let damages: [&dyn Fn(&Path); 8] = [
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
