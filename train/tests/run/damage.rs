//! Damaged files of a run: each damage is named, and the student at the end is the same as without the damage.

use tests::mutations::Mutator;

use super::failures::error;
use super::*;

/// A run with two checkpoints, killed before its end; and the student of a run that was not.
fn killed(run: &Path) -> Vec<u8> {
    super::run(config_of_stages(&["stage2"], &["checkpoint.keep=2"]), run);
    let expected = student(run);
    fs::remove_file(run.join("summary.json")).unwrap();
    fs::remove_dir_all(run.join("student")).unwrap();
    assert_eq!(checkpoints(run), [BEFORE, NEWEST]);
    expected
}

const BEFORE: &str = "stage2-step0000004";
const NEWEST: &str = "stage2-step0000005";

/// All files of a checkpoint that has been amended, by their names.
const FILES: [&str; 7] = [
    "SHA256SUMS",
    "inputs.toml",
    "optimizer.safetensors",
    "progress.toml",
    "progress-1.toml",
    "student/config.json",
    "student/model.safetensors",
];

/// What may happen to a file.
fn damages(name: &str, whole: &[u8]) -> Vec<(String, Option<Vec<u8>>)> {
    let mut all = vec![
        (format!("{name}: removed"), None),
        (format!("{name}: empty"), Some(vec![])),
        (
            format!("{name}: half"),
            Some(whole[..whole.len() / 2].to_vec()),
        ),
    ];
    let mut add = |what: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.to_vec();
        change(&mut bytes);
        if bytes != whole {
            all.push((format!("{name}: {what}"), Some(bytes)));
        }
    };
    // In the last third, where the values are.
    let at = whole.len() * 2 / 3;
    add("one bit", &|bytes| bytes[at] ^= 4);
    add("4 KiB of zeros", &|bytes| {
        let end = bytes.len().min(at + 4096);
        bytes[at..end].fill(0);
    });
    add("a digit", &|bytes| {
        let mut digits = bytes.iter_mut().filter(|byte| byte.is_ascii_digit());
        if let Some(digit) = digits.next_back() {
            *digit = b'0' + (*digit - b'0' + 1) % 10;
        }
    });
    for seed in 0..2 {
        add(&format!("mutation {seed}"), &|bytes| {
            *bytes = Mutator::new(seed).bytes(bytes);
        });
    }
    all
}

fn put(path: &Path, bytes: &Option<Vec<u8>>) {
    match bytes {
        Some(bytes) => fs::write(path, bytes).unwrap(),
        None => fs::remove_file(path).unwrap(),
    }
}

/// If the newest checkpoint is damaged, the one before it is used, and all outputs of the run say so.
#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_taken() {
    let whole = folder();
    let expected = killed(whole.path());
    let mut resumed = vec![];
    for name in FILES {
        let bytes = fs::read(checkpoint(whole.path(), NEWEST).join(name)).unwrap();
        for (what, damaged) in damages(name, &bytes) {
            let rest = folder();
            let run = rest.path();
            copy_folder(whole.path(), run);
            put(&checkpoint(run, NEWEST).join(name), &damaged);
            let summary = resume(run);
            assert!(student(run) == expected, "{what}");
            let said = notes(&summary);
            // A list of checksums with a blank more, say, is the same list.
            if name != "SHA256SUMS" || !said.is_empty() {
                assert!(
                    said.contains(NEWEST) && said.contains(BEFORE),
                    "{what}: {said}"
                );
                assert!(said.contains(name), "{what}: {said}");
                let all = metrics(run).into_iter();
                let mut recorded = all.filter(|record| record["kind"] == "note");
                let recorded = recorded.next().expect("a note in the metrics");
                assert!(
                    recorded["text"].as_str().unwrap().contains(NEWEST),
                    "{what}"
                );
                let report = fs::read_to_string(run.join("report.html")).unwrap();
                assert!(report.contains(NEWEST), "{what}");
                assert!(
                    checkpoints(run).contains(&format!("{NEWEST}.damaged")),
                    "{what}"
                );
                resumed.push(what);
            }
        }
    }
    assert!(resumed.len() > 40, "{resumed:?}");
}

/// The run continues from the newest checkpoint.
#[test]
fn an_older_checkpoint_is_not_read() {
    let whole = folder();
    let run = whole.path();
    let expected = killed(run);
    let path = checkpoint(run, BEFORE).join("optimizer.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let summary = resume(run);
    assert_eq!(notes(&summary), "");
    assert!(student(run) == expected);
}

/// Changes a checkpoint into the form of earlier versions: without checksums, and without the inputs of the run.
fn strip(checkpoint: &Path) {
    for name in ["SHA256SUMS", "student/SHA256SUMS", "inputs.toml"] {
        fs::remove_file(checkpoint.join(name)).unwrap();
    }
    let path = checkpoint.join("progress.toml");
    let amended = checkpoint.join("progress-1.toml");
    if amended.exists() {
        fs::rename(amended, &path).unwrap();
    }
    let mut progress: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
    for key in ["log", "notes", "stage_skipped"] {
        progress.remove(key).expect(key);
    }
    fs::write(&path, toml::to_string(&progress).unwrap() + "# end\n").unwrap();
}

/// A new version of the program can continue the runs of an earlier one.
#[test]
fn a_checkpoint_of_an_earlier_version_is_taken_if_that_is_accepted() {
    let whole = folder();
    let expected = killed(whole.path());
    for newest in [NEWEST, BEFORE] {
        let rest = folder();
        let run = rest.path();
        copy_folder(whole.path(), run);
        if newest == BEFORE {
            fs::remove_dir_all(checkpoint(run, NEWEST)).unwrap();
        }
        for name in checkpoints(run) {
            strip(&checkpoint(run, &name));
        }
        let before = checkpoints(run);
        let message = match error(options(config_of(run), run, true)) {
            error @ TrainError::Unverified { .. } => error.to_string(),
            other => panic!("{other}"),
        };
        for words in [newest, "earlier version", "--accept-changes"] {
            assert!(message.contains(words), "{message}");
        }
        assert_eq!(checkpoints(run), before);

        // Changes need to be accepted once, even if nothing else is done then. `stop` is called before each batch of
        // the teacher's evaluation.
        let mut accepting = stopping(2, options(config_of(run), run, true));
        accepting.accept_changes = true;
        execute(accepting).expect("a run");
        let summary = resume(run);
        let said = notes(&summary);
        assert_eq!(said.matches("an earlier version").count(), 1, "{said}");
        assert!(!said.contains("metrics.jsonl"), "{said}");
        let noted = |record: &Value| record["kind"] == "note";
        assert!(metrics(run).iter().any(noted));
        assert!(student(run) == expected, "{newest}");
    }
}

/// Skipped steps are noted, and not only counted.
#[test]
fn a_stage_of_which_much_was_skipped_says_so() {
    let whole = folder();
    let run = whole.path();
    killed(run);
    fs::remove_dir_all(checkpoint(run, NEWEST)).unwrap();
    let file = checkpoint(run, BEFORE).join("progress.toml");
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(text.matches("skipped = 0").count(), 2, "{text}");
    fs::write(&file, text.replace("skipped = 0", "skipped = 2")).unwrap();
    model::manifest::add(checkpoint(run, BEFORE), &["progress.toml"]).unwrap();
    let summary = resume(run);
    let words = "2 of the 5 steps of stage stage2 were skipped";
    assert!(notes(&summary).contains(words), "{}", notes(&summary));
    assert!(summary.to_string().contains(words));
    let report = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(report.contains(words));
}

#[test]
fn without_a_whole_checkpoint_nothing_goes_on() {
    let whole = folder();
    let run = whole.path();
    killed(run);
    for name in [BEFORE, NEWEST] {
        fs::write(checkpoint(run, name).join("progress.toml"), "").unwrap();
    }
    let before = checkpoints(run);
    for _ in 0..2 {
        match error(options(config_of(run), run, true)) {
            error @ TrainError::NoWholeCheckpoint(_) => {
                let message = error.to_string();
                assert!(
                    message.contains(BEFORE) && message.contains(NEWEST),
                    "{message}"
                );
            }
            other => panic!("{other}"),
        }
        assert_eq!(checkpoints(run), before);
    }
}

/// A value that no run writes, in a file with the right checksum, gives an error that names it.
#[test]
fn values_out_of_range_are_named() {
    let whole = folder();
    killed(whole.path());
    for (from, to, words) in [
        ("stage = \"stage2\"", "stage = 7", "string"),
        ("stage = \"stage2\"", "stage = \"stage7\"", "`stage`"),
        ("step = 5", "step = 4", "stage2-step0000004"),
        ("step = 5", "step = 9223372036854775807", "`step`"),
        (
            "teacher_perplexity = ",
            "teacher_perplexity = -",
            "`teacher_perplexity`",
        ),
        (
            "kind = \"hidden_states\"",
            "kind = \"others\"",
            "`finished.kind`",
        ),
    ] {
        let rest = folder();
        let run = rest.path();
        copy_folder(whole.path(), run);
        let path = checkpoint(run, NEWEST);
        let file = path.join("progress-1.toml");
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{from} in {text}");
        fs::write(&file, text.replacen(from, to, 1)).unwrap();
        model::manifest::add(&path, &["progress-1.toml"]).unwrap();
        match error(options(config_of(run), run, true)) {
            TrainError::Checkpoint {
                path: found,
                reason,
            } => {
                assert_eq!(found, path);
                assert!(
                    reason.contains("progress-1.toml") && reason.contains(words),
                    "{reason}"
                );
            }
            other => panic!("{to}: {other}"),
        }
    }
}

/// The log does not affect the student: if it is damaged, the run continues, and says what is lost.
#[test]
fn a_damaged_log_is_said() {
    let whole = folder();
    let expected = killed(whole.path());
    let bytes = fs::read(whole.path().join("metrics.jsonl")).unwrap();
    for (what, damaged) in damages("metrics.jsonl", &bytes) {
        let rest = folder();
        let run = rest.path();
        copy_folder(whole.path(), run);
        put(&run.join("metrics.jsonl"), &damaged);
        let summary = resume(run);
        assert!(notes(&summary).contains("metrics.jsonl"), "{what}");
        assert!(
            metrics(run).iter().any(|record| record["kind"] == "note"),
            "{what}"
        );
        assert!(student(run) == expected, "{what}");
    }
    // The same if another program removes the log during the run.
    let rest = folder();
    let run = rest.path();
    let log = run.join("metrics.jsonl");
    let config = config_of_stages(&["stage2"], &[]);
    let removed = acting(
        6,
        move || fs::remove_file(&log).unwrap(),
        options(config, run, false),
    );
    let summary = finish(removed);
    assert!(notes(&summary).contains("metrics.jsonl"));
    assert!(student(run) == expected);
}
