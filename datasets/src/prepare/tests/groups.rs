//! Texts of several groups of files, which several workers share.

use super::*;

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
