//! The sources of a run's text: mixtures, patterns, columns, and prepared tokens.

use train::config::TextSource;
use train::run::prepare;

use super::failures::error;
use super::*;

/// Two texts, of which the second has another column, in `folder`.
fn write_texts(folder: &Path) {
    let write = |name: &str, column: &str, text: &str| {
        let line = |n| format!("{{\"{column}\": \"{n}: {text}\"}}\n");
        let lines: String = (0..60).map(line).collect();
        fs::write(folder.join(name), lines).unwrap();
    };
    write(
        "a.jsonl",
        "text",
        "It was the best of times, it was the worst of times.",
    );
    write(
        "b-1.jsonl",
        "body",
        "Call me Ishmael. Some years ago, never mind how long.",
    );
    write(
        "b-2.jsonl",
        "body",
        "Having little or no money in my purse.",
    );
}

/// The last stage on three rows of the first text to `weight` of the second.
fn mixture(folder: &Path, weight: f64) -> Config {
    let path = |name: &str| folder.join(name).display().to_string();
    let mut config = config_of_stages(
        &["stage3"],
        &[
            &format!("data.cache={}", path("cache")),
            &format!("data.validation={}", path("a.jsonl")),
        ],
    );
    config.data.train = vec![
        TextSource {
            weight: Some(3.0),
            ..path("a.jsonl").into()
        },
        TextSource {
            weight: Some(weight),
            column: Some("body".to_owned()),
            ..path("b-*.jsonl").into()
        },
    ];
    config
}

/// A run of the mixture that was stopped before its third step.
fn stopped(texts: &Path) -> TempDir {
    let run = folder();
    // Asked before each batch of the evaluations of both models, then before each step.
    let options = stopping(2 * 2 + 2, options(mixture(texts, 1.0), run.path(), false));
    assert_eq!(execute(options).expect("a stop"), Outcome::Stopped);
    run
}

#[test]
fn a_mixture_is_resumed_to_the_same_bits() {
    let texts = folder();
    write_texts(texts.path());
    let whole = folder();
    run(mixture(texts.path(), 1.0), whole.path());
    let stopped = stopped(texts.path());
    resume(stopped.path());
    assert!(student(stopped.path()) == student(whole.path()));

    let of_one = folder();
    let mut config = mixture(texts.path(), 1.0);
    config.data.train.truncate(1);
    run(config, of_one.path());
    assert!(student(of_one.path()) != student(whole.path()));
}

#[test]
fn other_weights_are_another_text() {
    let texts = folder();
    write_texts(texts.path());
    let stopped = stopped(texts.path());
    let options = options(mixture(texts.path(), 2.0), stopped.path(), true);
    let message = error(options).to_string();
    assert!(message.contains("the text of data.train"), "{message}");
}

/// The folders of tokens in a cache.
fn tokens(cache: &Path) -> Vec<String> {
    let entries = fs::read_dir(cache).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}

#[test]
fn a_run_finds_what_was_prepared() {
    let texts = folder();
    write_texts(texts.path());
    let cache = texts.path().join("cache");
    let config = mixture(texts.path(), 1.0);
    // Two workers: the second has nothing to do, since each text is one group of files.
    for share in ["1/2", "0/2"] {
        let prepared = prepare(config.clone(), Some(share.parse().unwrap())).unwrap();
        let said: Vec<_> = prepared.iter().map(ToString::to_string).collect();
        let idle = said
            .iter()
            .filter(|line| line.contains("no file is for this worker"));
        assert_eq!(idle.count(), if share == "1/2" { 3 } else { 0 }, "{said:?}");
    }
    let made = tokens(&cache);
    assert_eq!(made.len(), 3, "{made:?}");
    let prepared = prepare(config.clone(), None).unwrap();
    let keys: Vec<_> = prepared.iter().map(|text| text.to_string()).collect();
    assert!(
        keys[0].starts_with("data.train: 60 documents, "),
        "{keys:?}"
    );
    assert!(
        keys[1].starts_with("data.train: 120 documents, "),
        "{keys:?}"
    );
    assert!(
        keys[2].starts_with("data.validation: 60 documents, "),
        "{keys:?}"
    );
    run(config, folder().path());
    assert_eq!(tokens(&cache), made);
}

#[test]
fn a_column_that_is_missing_is_named_with_those_that_there_are() {
    let texts = folder();
    write_texts(texts.path());
    let mut config = mixture(texts.path(), 1.0);
    config.data.train[1].column = None;
    let message = error(options(config, folder().path(), false)).to_string();
    for words in ["b-1.jsonl", "no text in \"text\"", "\"body\""] {
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn a_text_that_is_too_short_is_named() {
    let texts = folder();
    write_texts(texts.path());
    let short = texts.path().join("short.txt");
    fs::write(&short, "It was.").unwrap();
    let list = || vec![TextSource::from(short.display().to_string())];
    let (mut train, mut held_out) = (mixture(texts.path(), 1.0), mixture(texts.path(), 1.0));
    train.data.train = list();
    held_out.data.validation = list();
    for (config, words) in [(train, "the text of stage3"), (held_out, "data.validation")] {
        let message = error(options(config, folder().path(), false)).to_string();
        assert!(message.contains(words), "{message}");
    }
}

/// All stages on the first text, whose documents are shorter than a sequence.
fn packed(folder: &Path, packing: &str) -> Config {
    let path = |name: &str| folder.join(name).display().to_string();
    config(&[
        &format!("data.cache={}", path("cache")),
        &format!("data.train={}", path("a.jsonl")),
        &format!("data.validation={}", path("a.jsonl")),
        &format!("data.packing={packing}"),
        "stage3.hard_weight=0.2",
    ])
}

/// The loss of each step, and what was measured of perplexity before the first.
fn losses_and_start(run: &Path) -> (Vec<f64>, Value) {
    let records = metrics(run);
    let steps = records.iter().filter(|record| record["kind"] == "step");
    let losses = steps.map(|record| record["loss"].as_f64().expect("a loss"));
    let mut evaluations = (records.iter()).filter(|record| record["kind"] == "evaluation");
    let start = evaluations.next().expect("an evaluation").clone();
    (losses.collect(), start)
}

#[test]
fn documents_are_apart_and_resumed_to_the_same_bits() {
    let texts = folder();
    write_texts(texts.path());
    let [one_text, whole, rest] = [folder(), folder(), folder()];
    run(packed(texts.path(), "concatenate"), one_text.path());
    run(packed(texts.path(), "documents"), whole.path());
    let (plain, start) = losses_and_start(one_text.path());
    let (apart, same_start) = losses_and_start(whole.path());
    assert_eq!(apart.len(), STEPS.iter().sum::<usize>());
    assert!(apart.iter().all(|loss| loss.is_finite()), "{apart:?}");
    // The same tokens in the same order, and in the first step the same networks, but not the same matrices.
    assert_eq!(start, same_start);
    assert_ne!(apart[0], plain[0]);

    // In the second stage: past the evaluations of both models and of the first stage, two batches each.
    let stopped = options(packed(texts.path(), "documents"), rest.path(), false);
    let outcome = execute(stopping(3 * 2 + STEPS[0] + 2, stopped)).expect("a stop");
    assert_eq!(outcome, Outcome::Stopped);
    let found = checkpoints(rest.path());
    let last = found.last().expect("a checkpoint");
    assert!(last.starts_with("stage2"), "{found:?}");
    // Other packing would be another run.
    let options = options(packed(texts.path(), "concatenate"), rest.path(), true);
    let message = error(options).to_string();
    let change = "data.packing, from \"documents\" to \"concatenate\"";
    assert!(message.contains(change), "{message}");
    resume(rest.path());
    assert!(student(rest.path()) == student(whole.path()));
    assert_eq!(metrics(rest.path()), metrics(whole.path()));
}
