use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;

use tempfile::TempDir;

use super::*;
use crate::batches::Batches;
use crate::fixtures::write;
use crate::source::{Remote, Source};
use crate::tokenizer::fixtures::phi_tiny;

/// The number of remote files, each of which is 12 tokens.
const FILES: usize = 6;

/// A corpus of remote files, and how many of them were fetched.
struct Corpus {
    folder: TempDir,
    fetched: Arc<AtomicUsize>,
}

impl Corpus {
    fn new() -> Self {
        Self {
            folder: TempDir::new().unwrap(),
            fetched: Arc::default(),
        }
    }

    /// Its source, where the files from `missing` on cannot be had.
    fn source(&self, missing: usize) -> Source {
        let folder = self.folder.path().to_path_buf();
        let fetched = Arc::clone(&self.fetched);
        Source::remote(Remote {
            names: (0..FILES).map(|n| format!("hub:a@1/{n}.txt")).collect(),
            fetch: Box::new(move |name| {
                let number: usize = name["hub:a@1/".len()..][..1].parse().unwrap();
                if number >= missing {
                    return Err("the hub is gone".to_owned());
                }
                fetched.fetch_add(1, Ordering::Relaxed);
                let words = [" the", " of", " and", " to", " in", " that"];
                Ok(write(
                    &folder,
                    &format!("{number}.txt"),
                    words[number].repeat(11),
                ))
            }),
        })
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    fn windows(&self, missing: usize, context: usize) -> IncomingWindows {
        let tokenizer = Arc::new(phi_tiny());
        let options = PrepareOptions::new("test", [self.source(missing)], &tokenizer, self.cache());
        let shards = IncomingShards::start(&options, Arc::clone(&tokenizer)).unwrap();
        IncomingWindows::new(Arc::new(shards), context).unwrap()
    }
}

/// The first row of batch `step`, of one window.
fn row(windows: &IncomingWindows, step: u64) -> Vec<i32> {
    Batches::new(windows.clone(), 1, 7).batch(step).unwrap().ids
}

#[test]
fn it_is_read_before_all_of_it_is_fetched() {
    let corpus = Corpus::new();
    let windows = corpus.windows(FILES, 5);
    // 12 tokens are two windows of 5 inputs, the second of which ends before the last label.
    let first: Vec<_> = (0..2).map(|step| row(&windows, step)).collect();
    let words: std::collections::HashSet<i32> = first.concat().into_iter().collect();
    assert_eq!(words.len(), 1, "the first file is one word: {first:?}");
    // The one in use, two ahead, and one that may be in work.
    assert!(corpus.fetched.load(Ordering::Relaxed) <= 1 + AHEAD);
    assert_eq!(windows.first().unwrap().count(), 2);
    drop(windows);
}

#[test]
fn the_order_is_a_function_of_seed_and_step() {
    let corpus = Corpus::new();
    let windows = corpus.windows(FILES, 2);
    // Five windows a file, three epochs.
    let all: Vec<_> = (0..3 * 5 * FILES as u64)
        .map(|step| row(&windows, step))
        .collect();
    let again = corpus.windows(FILES, 2);
    for step in [89, 3, 29, 30, 60, 0] {
        assert_eq!(row(&again, step), all[step as usize], "step {step}");
    }
    // Each epoch has the files in their order.
    for epoch in all.chunks(5 * FILES) {
        let mut files: Vec<i32> = epoch.iter().map(|ids| ids[0]).collect();
        files.dedup();
        assert_eq!(files.len(), FILES);
    }
    // What was fetched once is not fetched again.
    assert_eq!(corpus.fetched.load(Ordering::Relaxed), FILES);
    let shards = TokenShards::prepare(&PrepareOptions::new(
        "test",
        [corpus.source(0)],
        &phi_tiny(),
        corpus.cache(),
    ));
    assert_eq!(shards.unwrap().tokens(), 12 * FILES as u64);
}

#[test]
fn what_cannot_be_fetched_is_an_error_of_who_reads_it() {
    let corpus = Corpus::new();
    let windows = corpus.windows(1, 5);
    row(&windows, 1);
    let batches = Batches::new(windows, 1, 7);
    let error = batches.batch(2).unwrap_err().to_string();
    assert!(
        error.contains("hub:a@1/1.txt") && error.contains("the hub is gone"),
        "{error}"
    );
    // Every later read gets the same error.
    assert_eq!(batches.batch(3).unwrap_err().to_string(), error);
    // Later it is there, and what was fetched before is kept.
    let windows = corpus.windows(FILES, 5);
    row(&windows, 11);
    assert_eq!(corpus.fetched.load(Ordering::Relaxed), FILES);
}

#[test]
fn a_text_without_a_window_is_an_error() {
    let corpus = Corpus::new();
    let windows = corpus.windows(FILES, 12);
    let error = windows.first().unwrap_err();
    assert!(
        matches!(error, DataError::TooShort { tokens: 72, .. }),
        "{error}"
    );
}
