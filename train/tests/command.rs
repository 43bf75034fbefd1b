//! The program as its user meets it: what goes where, and how it ends.
#![cfg(feature = "flex")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// Text that is tokenised in a moment, and steps of 2 x 32 tokens.
const SMALL: [&str; 8] = [
    "data.train=assets/text/pd-validation.json.gz",
    "data.validation=assets/text/pd-validation.json.gz",
    "data.context=32",
    "evaluation.context=32",
    "evaluation.windows=2",
    "stage2.tokens=256",
    "stage3.tokens=256",
    "checkpoint.every=2",
];

fn train(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// A run in `folder` of stages 2 and 3 with little to do, and `overrides`.
fn small(folder: &Path, overrides: &[&str]) -> Command {
    let mut command = train(&["--backend", "flex", "--stages", "2,3", "--out"]);
    command.arg(folder);
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tokens");
    command
        .arg("--set")
        .arg(format!("data.cache={}", cache.display()));
    for key_value in SMALL.iter().chain(overrides) {
        command.args(["--set", key_value]);
    }
    command
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("UTF-8")
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("UTF-8")
}

/// What the program says last when it fails with `code`: a sentence, and no panic.
fn failure(mut command: Command, code: i32) -> String {
    let output = command.output().expect("a program");
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert_eq!(stdout(&output), "");
    assert!(!message.contains("panicked"), "{message}");
    let begin = message
        .rfind("error: ")
        .unwrap_or_else(|| panic!("{message}"));
    message[begin..].to_owned()
}

#[test]
fn a_run_from_its_start_to_its_result() {
    let parent = folder();
    let run = parent.path().join("run");
    let output = small(&run, &["stage3.micro_batch=1"])
        .output()
        .expect("a program");
    let (result, progress) = (stdout(&output), stderr(&output));
    assert!(output.status.success(), "{progress}");
    assert!(result.starts_with("stage "), "{result}");
    for line in [
        "2 hidden-state alignment ",
        "3 knowledge distillation ",
        "report   ",
        "student  ",
    ] {
        assert!(result.lines().any(|it| it.starts_with(line)), "{result}");
    }
    for line in [
        "untrained: perplexity ",
        "stage 2 done: 2 steps",
        "stage 3 done: 2 steps",
    ] {
        assert!(
            progress.lines().any(|it| it.starts_with(line)),
            "{progress}"
        );
    }

    // Finished stays finished, and another run is not written over it.
    let mut again = train(&["--resume"]);
    let again = again.arg(&run).output().expect("a program");
    assert!(again.status.success());
    assert_eq!(stdout(&again), result);
    let over = failure(small(&run, &[]), 1);
    assert!(
        over.contains("holds a run already") && over.contains("--resume"),
        "{over}"
    );
}

#[test]
#[cfg(unix)]
fn an_interrupt_ends_it_with_a_checkpoint() {
    let parent = folder();
    let run = parent.path().join("run");
    // Hours of work, if nobody interrupts it.
    let mut child = small(&run, &["stage2.tokens=1_000_000_000"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a program");
    let metrics = run.join("metrics.jsonl");
    let steps = || std::fs::read_to_string(&metrics).map_or(0, |text| text.lines().count());
    while steps() < 4 && child.try_wait().expect("a child").is_none() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let interrupt = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(interrupt.expect("kill").success());
    let output = child.wait_with_output().expect("an end");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("stopped; go on with --resume"), "{said}");
    let checkpoints = std::fs::read_dir(run.join("checkpoints"))
        .expect("checkpoints")
        .count();
    assert!(checkpoints > 0);
}

#[test]
fn the_stages_are_timed() {
    const ARGUMENTS: [&str; 14] = [
        "bench",
        "--preset",
        "tiny",
        "--stage",
        "0,1,2,3",
        "--batch",
        "2",
        "--length",
        "32",
        "--steps",
        "2",
        "--backend",
        "flex",
        "--json",
    ];
    let output = train(&ARGUMENTS).output().expect("a program");
    assert!(output.status.success(), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_str(stdout(&output)).expect("JSON");
    assert!(json["matmul_operations_per_second"].as_f64() > Some(0.0));
    let rows = json["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 4);
    for (stage, row) in rows.iter().enumerate() {
        assert_eq!(row["stage"], stage);
        assert_eq!(row["batch"], 2);
        assert_eq!(row["length"], 32);
        for key in [
            "tokens_per_second",
            "queued_tokens_per_second",
            "operations_per_token",
            "share_of_matmul_rate",
        ] {
            assert!(row[key].as_f64() > Some(0.0), "stage {stage}: {key}");
        }
        assert_eq!(row["loss"].is_number(), stage > 0, "stage {stage}");
        let kinds = row["milliseconds"].as_object().expect("kinds of work");
        let expected: &[&str] = match stage {
            0 => &["products", "attention", "elementwise"],
            1 => &[
                "products",
                "convolution",
                "attention",
                "losses",
                "optimizer",
            ],
            2 => &["products", "scan", "attention", "optimizer"],
            _ => &["products", "scan", "attention", "losses", "optimizer"],
        };
        for kind in expected {
            assert!(
                kinds.contains_key(*kind),
                "stage {stage}: {kind}, of {kinds:?}"
            );
        }
        assert!(kinds.contains_key("other"));
    }

    // The same as a table, of one stage.
    let mut once = ARGUMENTS[..13].to_vec();
    once[4] = "2";
    let table = train(&once).output().expect("a program");
    let lines = stdout(&table)
        .lines()
        .filter(|line| line.starts_with("|     2 |"));
    assert_eq!(lines.count(), 1, "{}", stdout(&table));

    let preset = failure(train(&["bench", "--preset", "huge"]), 1);
    assert!(preset.contains("phi-1.5"), "{preset}");
    let stage = failure(train(&["bench", "--stage", "4"]), 2);
    assert!(stage.contains("--stage"), "{stage}");
    let teacher = ["bench", "--preset", "tiny", "--teacher", "no/such/folder"];
    let teacher = failure(train(&teacher), 1);
    assert!(teacher.contains("no/such/folder"), "{teacher}");
}

#[test]
fn failures_are_sentences() {
    let parent = folder();
    let run = parent.path().join("run");
    let preset = failure(train(&["--preset", "huge"]), 1);
    assert!(
        preset.contains("huge") && preset.contains("phi-1.5"),
        "{preset}"
    );
    let key = failure(small(&run, &["stage3.lrr=1"]), 1);
    assert!(key.contains("did you mean `stage3.lr`?"), "{key}");
    let nowhere = failure(train(&["--resume", "no/such/run"]), 1);
    assert!(
        nowhere.contains("no/such/run") && nowhere.contains("no run"),
        "{nowhere}"
    );
    assert!(failure(train(&["--resume", "a", "--out", "b"]), 2).contains("--out"));
    assert!(failure(train(&["--backend", "abacus"]), 2).contains("this build holds "));
    assert!(failure(train(&["ablate", "--plan", "middling"]), 2).contains("middling"));
    // A path with a slip of the pen is no model of the hub's.
    let teacher = failure(small(&run, &["teacher.model=assets/phi-tinyy"]), 1);
    assert!(teacher.contains("assets/phi-tinyy"), "{teacher}");
    assert!(!teacher.contains("http"), "{teacher}");
    assert!(!run.exists(), "nothing is left of a run that did not start");
}
