//! Documents that are held out, cut into parts, or bad.

use super::*;

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
