mod damaged;
mod documents;
mod groups;
mod stopped;

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
