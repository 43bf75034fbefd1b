use std::collections::HashSet;

use tempfile::TempDir;

use super::*;
use crate::batches::{Batches, Windows};
use crate::fixtures::{asset, write};
use crate::prepare::PrepareOptions;
use crate::source::Source;
use crate::tokenizer::fixtures::phi_tiny;

fn shards(source: impl Into<Source>) -> Arc<TokenShards> {
    let cache = TempDir::new().unwrap();
    let tokenizer = phi_tiny();
    let options = PrepareOptions::new("test", [source.into()], &tokenizer, cache.path());
    Arc::new(TokenShards::prepare(&options).unwrap())
}

/// The bundled validation text.
fn validation(context: usize) -> TokenWindows {
    TokenWindows::new(shards(asset("text/pd-validation.json.gz")), context).unwrap()
}

/// A text of exactly `tokens` tokens.
fn of_tokens(tokens: usize) -> Arc<TokenShards> {
    let folder = TempDir::new().unwrap();
    let shards = shards(write(&folder, "a.txt", " the".repeat(tokens - 1)));
    assert_eq!(shards.tokens(), tokens as u64);
    shards
}

/// The counts behind the published perplexity of the bundled teacher.
#[test]
fn the_bundled_validation_text_has_317_windows() {
    let windows = validation(512);
    assert_eq!(windows.shards().tokens(), 162_566);
    assert_eq!(windows.count(), 317);
}

#[test]
fn a_window_is_its_inputs_and_the_next_token() {
    let windows = validation(512);
    let mut all = Vec::new();
    let tokens = windows.shards().tokens() as usize;
    windows.shards().read(0, tokens, &mut all).unwrap();
    let all: Vec<i32> = all.into_iter().map(|id| id as i32).collect();
    for index in 0..windows.count() {
        let first = index as usize * 512;
        let window = windows.window(index).unwrap();
        assert_eq!(window.ids, all[first..first + 513]);
        assert_eq!(windows.get(index as usize), Some(window));
    }
    assert_eq!((windows.len(), windows.get(317)), (317, None));
    assert_eq!(Dataset::iter(&windows).count(), 317);
    for index in [317, u64::MAX] {
        let error = windows.window(index).unwrap_err();
        assert!(matches!(error, DataError::OutOfRange { .. }), "{error}");
    }
}

#[test]
fn a_window_takes_one_token_more_than_its_context() {
    for (tokens, count) in [(9, 1), (16, 1), (17, 2), (24, 2), (25, 3)] {
        let windows = TokenWindows::new(of_tokens(tokens), 8).unwrap();
        assert_eq!(windows.count(), count, "{tokens} tokens");
        assert!(windows.window(count - 1).is_ok());
        assert!(windows.window(count).is_err());
    }
    for context in [8, 9, 1000, usize::MAX] {
        let error = TokenWindows::new(of_tokens(8), context).unwrap_err();
        assert!(
            matches!(error, DataError::TooShort { tokens: 8, .. }),
            "{error}"
        );
    }
    let error = TokenWindows::new(of_tokens(8), 0).unwrap_err();
    assert!(
        matches!(error, DataError::Zero { what: "context" }),
        "{error}"
    );
}

#[test]
fn evaluation_sees_every_window_once_in_order() {
    let windows = validation(512);
    for batch_size in [1, 7, 64, 317, 1000, usize::MAX] {
        let mut index = 0;
        for batch in windows.sequential(batch_size) {
            let batch = batch.unwrap();
            assert_eq!(batch.batch, batch_size.min(317 - index as usize));
            assert_rows(&windows, &batch, index..index + batch.batch as u64);
            index += batch.batch as u64;
        }
        assert_eq!(index, 317, "batches of {batch_size}");
    }
    let none: Vec<_> = windows.sequential(0).collect();
    assert!(matches!(&none[..], [Err(DataError::Zero { .. })]));
}

/// Asserts that the rows of `batch` are the windows `indices`.
fn assert_rows(windows: &TokenWindows, batch: &Batch, indices: impl Iterator<Item = u64>) {
    let context = windows.context();
    assert_eq!(batch.context, context);
    assert_eq!(batch.ids.len(), batch.batch * context);
    assert_eq!(batch.labels.len(), batch.ids.len());
    let rows = batch.ids.chunks(context).zip(batch.labels.chunks(context));
    for ((ids, labels), index) in rows.zip(indices) {
        let window = windows.window(index).unwrap().ids;
        assert_eq!((ids, labels), (&window[..context], &window[1..]));
    }
}

/// The index of the window in each row of the batches `steps`.
fn dealt(windows: &TokenWindows, batches: &Batches, steps: std::ops::Range<u64>) -> Vec<u64> {
    let context = windows.context();
    let numbers: std::collections::HashMap<Vec<i32>, u64> = (0..windows.count())
        .map(|index| {
            (
                windows.window(index).unwrap().ids[..context].to_vec(),
                index,
            )
        })
        .collect();
    assert_eq!(
        numbers.len() as u64,
        windows.count(),
        "two windows are alike"
    );
    let mut dealt = Vec::new();
    for step in steps {
        let batch = batches.batch(step).unwrap();
        let rows: Vec<u64> = batch.ids.chunks(context).map(|ids| numbers[ids]).collect();
        assert_eq!(rows.len(), batch.batch);
        assert_rows(windows, &batch, rows.iter().copied());
        dealt.extend(rows);
    }
    dealt
}

#[test]
fn an_epoch_deals_out_every_window_once() {
    let windows = validation(512);
    let batches = Batches::new(windows.clone(), 8, 3);
    // 8 * 317 rows are eight epochs, seven of which end inside a batch.
    let dealt = dealt(&windows, &batches, 0..317);
    let epochs: Vec<&[u64]> = dealt.chunks(317).collect();
    assert_eq!(epochs.len(), 8);
    for epoch in &epochs {
        let seen: HashSet<_> = epoch.iter().collect();
        assert_eq!(seen.len(), 317);
    }
    let orders: HashSet<_> = epochs.iter().collect();
    assert_eq!(orders.len(), 8, "every epoch has its own order");
    assert!(!epochs[0].is_sorted());
}

#[test]
fn a_batch_depends_on_the_seed_and_the_step_alone() {
    let windows = validation(256);
    let batches = Batches::new(windows.clone(), 4, 11);
    let forwards: Vec<Batch> = (0..200).map(|step| batches.batch(step).unwrap()).collect();
    // In reverse order, and from a new object over a corpus that is prepared again.
    for step in (0..200).rev() {
        assert_eq!(batches.batch(step).unwrap(), forwards[step as usize]);
    }
    let fresh = Batches::new(validation(256), 4, 11);
    assert_eq!(fresh.batch(7).unwrap(), forwards[7]);
    assert_eq!(fresh.batch(163).unwrap(), forwards[163]);

    for seed in [0, 12, u64::MAX] {
        let other = Batches::new(windows.clone(), 4, seed);
        assert!((0..20).any(|step| other.batch(step).unwrap() != forwards[step as usize]));
    }
}

#[test]
fn the_order_does_not_depend_on_the_batch_size() {
    let windows = validation(512);
    let by_one = dealt(&windows, &Batches::new(windows.clone(), 1, 5), 0..1000);
    for batch_size in [2, 8, 500] {
        let batches = Batches::new(windows.clone(), batch_size, 5);
        let steps = 1000 / batch_size as u64;
        let dealt = dealt(&windows, &batches, 0..steps);
        assert_eq!(dealt, by_one, "batches of {batch_size}");
    }
}

#[test]
fn the_last_step_is_as_good_as_the_first() {
    let batches = Batches::new(validation(512), 1 << 10, 0);
    assert_eq!(batches.batch(u64::MAX).unwrap().batch, 1 << 10);
    let none = Batches::new(validation(512), 0, 0).batch(0).unwrap_err();
    assert!(
        matches!(none, DataError::Zero { what: "batch size" }),
        "{none}"
    );
}

#[test]
fn a_mixture_deals_out_each_source_as_if_it_were_alone() {
    let windows = validation(16);
    let other = TokenWindows::new(of_tokens(16 * 40 + 1), 16).unwrap();
    let sources = |weights: [f64; 2]| -> Vec<(Windows, f64)> {
        let [first, second] = weights;
        vec![
            (windows.clone().into(), first),
            (other.clone().into(), second),
        ]
    };
    let rows = |batches: &Batches, steps: std::ops::Range<u64>| -> Vec<Vec<i32>> {
        let batches = steps.map(|step| batches.batch(step).unwrap().ids);
        batches
            .flat_map(|ids| ids.chunks(16).map(<[i32]>::to_vec).collect::<Vec<_>>())
            .collect()
    };
    let mixed = rows(&Batches::mixed(sources([3.0, 1.0]), 8, 5).unwrap(), 0..250);
    let the = other.window(0).unwrap().ids[0];
    let is_other = |row: &&Vec<i32>| row[0] == the && row[1] == the;
    // Two blocks of a thousand rows.
    for block in mixed.chunks(1000) {
        assert_eq!(block.iter().filter(is_other).count(), 250);
    }
    let alone: HashSet<_> = rows(&Batches::new(windows.clone(), 8, 5), 0..1500 / 8)
        .into_iter()
        .collect();
    let own: HashSet<_> = mixed.iter().filter(|row| !is_other(row)).cloned().collect();
    assert_eq!(own.intersection(&alone).count(), alone.len());

    // The batch size plays no part, and the order is in no object.
    let by_one = Batches::mixed(sources([3.0, 1.0]), 1, 5).unwrap();
    for step in [1999, 0, 1000] {
        assert_eq!(by_one.batch(step).unwrap().ids, mixed[step as usize]);
    }
    let one = vec![(windows.clone().into(), 0.1)];
    let one = Batches::mixed(one, 8, 5).unwrap().batch(3).unwrap();
    assert_eq!(one, Batches::new(windows.clone(), 8, 5).batch(3).unwrap());

    let longer = TokenWindows::new(of_tokens(100), 32).unwrap();
    let lengths = vec![(windows.clone().into(), 1.0), (longer.into(), 1.0)];
    let error = Batches::mixed(lengths, 8, 5).unwrap_err();
    assert!(matches!(error, DataError::Contexts { .. }), "{error}");
}

/// By the ids of end-of-text, wherever a window begins; all else is as without.
#[test]
fn documents_are_told_apart() {
    let end = phi_tiny().end_of_text().unwrap();
    let folder = TempDir::new().unwrap();
    // Documents of 1 to 40 words, of one token each.
    let lines = (0..300).map(|n| {
        let words = " the".repeat(1 + 7 * n % 40);
        format!("{{\"text\": \"{words}\"}}\n")
    });
    let text = write(&folder, "a.jsonl", lines.collect::<String>());
    let windows = TokenWindows::new(shards(text), 64).unwrap();
    let plain = Batches::new(windows, 8, 5);
    let apart = plain.clone().by_documents(end);
    let mut ends = 0;
    for step in 0..10 {
        let (plain, apart) = (plain.batch(step).unwrap(), apart.batch(step).unwrap());
        assert_eq!(plain.starts, None);
        assert_eq!(plain.ids, apart.ids);
        let starts = apart.starts.unwrap();
        assert_eq!(starts.len(), apart.ids.len());
        for (at, &id) in apart.ids.iter().enumerate() {
            let place = at % 64;
            // The first place after the last end before this one, if there is any in the row.
            let before = apart.ids[at - place..at].iter();
            let last = before.clone().rposition(|id| *id == end as i32);
            let start = last.map_or(0, |last| last + 1);
            assert_eq!(starts[at], start as i32, "step {step}, token {at}");
            if id == end as i32 {
                assert_eq!(apart.labels[at], -1);
                ends += 1;
            } else {
                assert_eq!(apart.labels[at], plain.labels[at]);
            }
        }
    }
    // A document has 21 tokens and an end on average.
    assert!(ends > 150, "{ends} ends of documents in 80 windows");
    // An end as the first and as the last token of a window, and two in a row.
    let ids = [9, 1, 2, 9, 9, 3, 9, 4];
    let (mut labels, mut starts) = (vec![1, 2, 9, 9, 3, 9, 4, 5], vec![]);
    crate::batches::apart(&ids, 9, &mut labels, &mut starts);
    assert_eq!(starts, [0, 1, 1, 1, 4, 5, 5, 7]);
    assert_eq!(labels, [-1, 2, 9, -1, -1, 9, -1, 5]);
}
