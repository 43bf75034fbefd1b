use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::SystemTime;

use tempfile::TempDir;

use super::scratch::{LOCK, wait_for};
use super::*;
use crate::fixtures::{asset, write};
use crate::shards::{MANIFEST, shard_name};
use crate::tokenizer::fixtures::{
    added_token, changed_tokenizer, like_codegen, like_llama3, phi_tiny,
};

/// Tokens in a shard: so few that the texts below fill several shards and several blocks.
const SHARD: usize = 7;

const SMALL: Sizes = Sizes {
    shard_tokens: SHARD as u64,
    block_bytes: 10,
    group_bytes: GROUP_BYTES,
    save_every: Duration::ZERO,
    verified_at_open: VERIFIED_AT_OPEN,
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
        let (text, cache) = (
            self.folder.path().join("text"),
            self.folder.path().join("cache"),
        );
        PrepareOptions::new("test", [text], &self.tokenizer, cache)
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
    let text = asset("text/pd-validation.json.gz");
    let options = PrepareOptions::new("validation", [text], &tokenizer, cache.path());
    let shards = TokenShards::prepare(&options).unwrap();
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
    let sources = vec![corpus.folder.path().join("text/0.txt").into()];
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
    let options = corpus.options();
    let mut manifest = Plan::new(&options, &SMALL)
        .unwrap()
        .groups
        .remove(0)
        .manifest;
    for file in &mut manifest.sources {
        file.path = Path::new("/text").join(file.path.file_name().unwrap());
        file.modified_ns = 1;
    }
    assert_eq!(
        manifest.hash(),
        "7b61bf4492cc5ab1bbb1810496502a9543811df1adbfa94c90eedf0b28b8cc92"
    );
    let json = String::from_utf8(manifest.to_json()).unwrap();
    for later in ["skip", "column", "distinct", "duplicates"] {
        assert!(!json.contains(later), "{json}");
    }
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
        ..SMALL
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
        ..SMALL
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

/// The names and contents of all files in the folders of a cache.
fn files(cache: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in walkdir::WalkDir::new(cache).sort_by_file_name() {
        let entry = entry.unwrap();
        if entry.file_type().is_file() && entry.file_name() != LOCK {
            let name = entry.path().strip_prefix(cache).unwrap();
            files.push((name.display().to_string(), fs::read(entry.path()).unwrap()));
        }
    }
    files
}

/// Files of lines of different lengths, one longer than a part, one without a text.
fn several_files() -> Corpus {
    let corpus = Corpus::new(&[]);
    for file in 0..4 {
        let lines = (0..20).map(|line| {
            let times = if (file, line) == (1, 10) {
                300_000
            } else {
                line % 5
            };
            let text = format!("file {file}, line {line}, {}", "the times ".repeat(times));
            serde_json::json!({ "text": text }).to_string() + "\n"
        });
        let lines = lines.collect::<String>() + if file == 2 { "bad\n" } else { "" };
        write(&corpus.folder, &format!("text/{file}.jsonl"), lines);
    }
    corpus
}

/// A process may end at any moment: the shards are those of one that does not, and what was kept is not done again.
#[test]
fn work_that_was_stopped_goes_on_to_the_same_shards() {
    let corpus = several_files();
    let sizes = Sizes {
        shard_tokens: 1000,
        block_bytes: 200,
        ..SMALL
    };
    let options = |cache: &str| PrepareOptions {
        cache: corpus.folder.path().join(cache),
        skip_bad_lines: 1,
        drop_duplicates: cache.contains("distinct"),
        ..corpus.options()
    };
    for (whole, stopped) in [("whole", "stopped"), ("distinct", "stopped distinct")] {
        let undisturbed = prepare(&options(whole), &sizes).unwrap();
        assert_eq!(undisturbed.manifest().skipped, 1);
        let mut kept = 0;
        let mut stops = 0;
        loop {
            // Asked before each piece that is tokenised, and for each part that is passed over.
            let asked = AtomicUsize::new(0);
            let is_stopped = || asked.fetch_add(1, Ordering::Relaxed) >= 30 + 20 * stops;
            let options = PrepareOptions {
                stopped: &is_stopped,
                ..options(stopped)
            };
            match prepare(&options, &sizes) {
                Ok(shards) => {
                    assert_eq!(shards.manifest(), undisturbed.manifest());
                    break;
                }
                Err(error) => assert!(matches!(error, DataError::Stopped), "{error}"),
            }
            let names = fs::read_dir(&options.cache).unwrap();
            let part = names
                .map(|entry| entry.unwrap().path())
                .find(|path| path.is_dir());
            let part = part.expect("a folder of unfinished work");
            // What a killed process has written after its last state.
            for shard in 0..100 {
                let path = part.join("new").join(shard_name(shard));
                if path.exists() && !part.join("new").join(shard_name(shard + 1)).exists() {
                    let mut file = OpenOptions::new().append(true).open(path).unwrap();
                    std::io::Write::write_all(&mut file, &[7; 4001]).unwrap();
                    break;
                }
            }
            let state = fs::read(part.join("state.json")).unwrap_or_default();
            let state: serde_json::Value = serde_json::from_slice(&state).unwrap_or_default();
            let now = state["tokens"].as_u64().unwrap_or(0);
            assert!(now >= kept, "{now} tokens after {kept}");
            kept = now;
            stops += 1;
            assert!(stops < 200, "no progress");
        }
        assert!(stops >= 3, "stopped {stops} times only");
        let cache = |name: &str| corpus.folder.path().join(name);
        assert!(files(&cache(stopped)) == files(&cache(whole)));
    }
}

/// A state that does not fit its shards is no reason to fail.
#[test]
fn a_damaged_state_begins_anew() {
    let corpus = Corpus::new(&TEXTS);
    let expected = joined(&corpus.tokenizer, &TEXTS);
    let name = corpus.prepare().folder().file_name().unwrap().to_owned();
    let good = r#"{"position": {"files": 0, "records": 1}, "documents": 1, "text_bytes": 26, "tokens": 8,
                   "skipped": 0, "duplicates": 0}"#;
    for state in [good, "{\"tokens\": 5", ""] {
        let cache = corpus.folder.path().join("cache");
        fs::remove_dir_all(&cache).unwrap();
        let part = format!(".{}.part", name.display());
        write(&cache, &format!("{part}/state.json"), state);
        write(&cache, &format!("{part}/new/{}", shard_name(0)), [1, 0, 1]);
        assert_eq!(all(&corpus.prepare()), expected, "{state}");
        assert_eq!(corpus.cached().len(), 1, "{state}");
    }
}

#[test]
fn a_group_for_each_large_file_gives_the_same_tokens() {
    let corpus = several_files();
    let options = |cache: &str| PrepareOptions {
        cache: corpus.folder.path().join(cache),
        skip_bad_lines: 1,
        ..corpus.options()
    };
    let one = prepare(
        &options("one"),
        &Sizes {
            shard_tokens: 1000,
            ..SMALL
        },
    )
    .unwrap();
    let sizes = Sizes {
        shard_tokens: 1000,
        group_bytes: 1,
        ..SMALL
    };
    let several = prepare(&options("several"), &sizes).unwrap();
    assert_eq!((one.folders().len(), several.folders().len()), (1, 4));
    assert_eq!(all(&several), all(&one));
    let counts = |shards: &TokenShards| {
        let manifest = shards.manifest().clone();
        (
            manifest.sources,
            manifest.documents,
            manifest.text_bytes,
            manifest.skipped,
        )
    };
    assert_eq!(counts(&several), counts(&one));
    // Across the ends of groups.
    let mut ids = Vec::new();
    let (tokens, expected) = (one.tokens(), all(&one));
    for start in (0..tokens - 700).step_by(97) {
        several.read(start, 700, &mut ids).unwrap();
        assert_eq!(ids, expected[start as usize..][..700]);
    }
}

#[test]
fn the_shards_of_several_workers_are_those_of_one() {
    let corpus = several_files();
    for drop_duplicates in [false, true] {
        let options = |cache: &str| PrepareOptions {
            cache: corpus
                .folder
                .path()
                .join(format!("{cache} {drop_duplicates}")),
            skip_bad_lines: 1,
            drop_duplicates,
            ..corpus.options()
        };
        let sizes = |block_bytes| Sizes {
            shard_tokens: 1000,
            group_bytes: 1,
            block_bytes,
            ..SMALL
        };
        let one = options("one");
        let whole = prepare(&one, &sizes(2000)).unwrap();
        // Three workers, the last first, with other numbers of threads; a fifth group is nobody's.
        let several = options("several");
        for index in [2, 0, 1] {
            let share = Share { index, of: 3 };
            let mut plan = Plan::new(&several, &sizes(500 * (index + 1))).unwrap();
            assert!(plan.share(share).unwrap().is_some());
        }
        let mut idle = Plan::new(&several, &SMALL).unwrap();
        assert!(idle.share(Share { index: 1, of: 2 }).unwrap().is_none());
        assert!(
            files(&several.cache) == files(&one.cache),
            "{drop_duplicates}"
        );
        assert_eq!(
            prepare(&several, &sizes(10)).unwrap().manifest(),
            whole.manifest()
        );
    }
}

#[test]
fn documents_that_came_before_are_dropped() {
    let long = "the times ".repeat(300_000);
    let corpus = Corpus::new(&["a", "b", "a", "c", &long, "b", &long, "d"]);
    let options = PrepareOptions {
        drop_duplicates: true,
        ..corpus.options()
    };
    let sizes = |group_bytes| Sizes {
        shard_tokens: 1 << 20,
        block_bytes: 1 << 20,
        group_bytes,
        ..SMALL
    };
    let expected = joined(&corpus.tokenizer, &["a", "b", "c", &long, "d"]);
    for group_bytes in [GROUP_BYTES, 1] {
        let shards = prepare(&options, &sizes(group_bytes)).unwrap();
        assert!(all(&shards) == expected);
        let manifest = shards.manifest();
        assert_eq!((manifest.documents, manifest.duplicates), (5, 3));
        // A group whose folder is gone is made again as it was, though those before it are not tokenised.
        let folders: Vec<_> = shards.folders().map(Path::to_path_buf).collect();
        drop(shards);
        fs::remove_dir_all(&folders[folders.len() / 2]).unwrap();
        assert!(all(&prepare(&options, &sizes(group_bytes)).unwrap()) == expected);
    }
    assert_ne!(
        all(&prepare(&corpus.options(), &sizes(1)).unwrap()),
        expected
    );
}

#[test]
fn too_many_bad_lines_over_all_groups_are_an_error() {
    let corpus = Corpus::new(&[]);
    for file in 0..3 {
        write(
            &corpus.folder,
            &format!("text/{file}.jsonl"),
            "{\"text\": \"a\"}\nbad\n",
        );
    }
    let sizes = Sizes {
        group_bytes: 1,
        ..SMALL
    };
    let options = |skip_bad_lines| PrepareOptions {
        skip_bad_lines,
        ..corpus.options()
    };
    let error = prepare(&options(2), &sizes).unwrap_err();
    assert!(error.to_string().contains("2.jsonl"), "{error}");
    assert_eq!(prepare(&options(3), &sizes).unwrap().manifest().skipped, 3);
    // Each of two workers has less than there may be, and both together more.
    let two = options(2);
    for index in 0..2 {
        let mut plan = Plan::new(&two, &sizes).unwrap();
        plan.share(Share { index, of: 2 }).unwrap();
    }
    let error = prepare(&two, &sizes).unwrap_err();
    assert!(
        matches!(
            error,
            DataError::TooManyBadLines {
                skipped: 3,
                allowed: 2,
                ..
            }
        ),
        "{error}"
    );
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
