//! Work that is stopped, and work that several do at once.

use super::*;

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

/// Some network file systems have no locks.
#[test]
fn a_file_system_without_locks_is_no_error() {
    let file = tempfile::tempfile().unwrap();
    wait_for(&file, |_| Err(io::Error::from_raw_os_error(38)));
}

/// A process may end at any moment. A later process continues, makes the same shards as an uninterrupted one, and does
/// not repeat the saved work.
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
