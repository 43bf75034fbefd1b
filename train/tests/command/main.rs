//! The program from its user's point of view: its outputs, and how it ends.
#![cfg(feature = "flex")]

mod benches;
mod hub;
#[cfg(target_os = "linux")]
mod large_text;
#[cfg(unix)]
mod signals;
mod starts;
mod trace;

use std::path::{Path, PathBuf};
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

/// The bundled teacher.
const PHI_TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/phi-tiny");

/// The program: the one that was built with the tests, or the one in TRAIN if the tests run on another machine.
fn program() -> PathBuf {
    std::env::var_os("TRAIN").map_or_else(|| env!("CARGO_BIN_EXE_train").into(), PathBuf::from)
}

/// A folder on a disk, which outlasts the tests: that of Cargo, or TRAIN_SCRATCH.
fn scratch() -> PathBuf {
    let own = std::env::var_os("TRAIN_SCRATCH");
    own.map_or_else(|| env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from)
}

fn train(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).stdin(Stdio::null());
    command
}

/// A run in `folder` of the last two stages with little to do, and `overrides`.
fn small(folder: &Path, overrides: &[&str]) -> Command {
    let mut command = train(&["--backend", "flex", "--stages", "stage2,stage3", "--out"]);
    command.arg(folder);
    let cache = scratch().join("tokens");
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
    let output = small(&run, &["stage3.micro_batch=1", "log.tensorboard=true"])
        .output()
        .expect("a program");
    let (result, progress) = (stdout(&output), stderr(&output));
    assert!(output.status.success(), "{progress}");
    assert!(result.starts_with("stage "), "{result}");
    for line in [
        "stage2: hidden-state alignment ",
        "stage3: knowledge distillation ",
        "report   ",
        "student  ",
    ] {
        assert!(
            result.lines().any(|found| found.starts_with(line)),
            "{result}"
        );
    }
    for line in [
        "untrained: perplexity ",
        "stage2 done: 2 steps",
        "stage3 done: 2 steps",
    ] {
        assert!(
            progress.lines().any(|found| found.starts_with(line)),
            "{progress}"
        );
    }

    // The lowest loss that each stage can reach: 0, and the entropy of the teacher.
    let least: Vec<(f64, f64)> = progress
        .lines()
        .filter_map(|line| {
            let (_, numbers) = line.split_once("its loss is ")?;
            let (loss, rest) = numbers.split_once(" before the first step, and ")?;
            let (floor, _) = rest.split_once(" with the teacher")?;
            Some((loss.parse().ok()?, floor.parse().ok()?))
        })
        .collect();
    assert_eq!(least.len(), 2, "{progress}");
    assert_eq!(least[0].1, 0.0);
    assert!(least[1].1 > 1.0 && least[1].0 > least[1].1, "{progress}");

    let events: Vec<_> = std::fs::read_dir(run.join("tensorboard"))
        .expect("events")
        .collect();
    assert_eq!(events.len(), 1);
    let page = parent.path().join("compare.html");
    let mut compare = train(&["compare"]);
    let compared = compare.args([&run, &run]).arg("--out").arg(&page).output();
    let compared = compared.expect("a program");
    assert!(compared.status.success(), "{}", stderr(&compared));
    assert_eq!(stdout(&compared).matches("stage3").count(), 2);
    assert!(page.exists());
    let none = parent.path().join("none").display().to_string();
    let refused = failure(train(&["compare", &none, &none]), 1);
    assert!(refused.contains(&none), "{refused}");

    // A finished run stays as it is, and another run does not overwrite it.
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
    // A step that takes hours without a stop, on one core: waiting for a checkpoint must not block the only thread,
    // which is needed to write it.
    let mut child = small(&run, &["stage2.tokens=1_000_000_000"])
        .env("RAYON_NUM_THREADS", "1")
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
    let command = format!("train --backend flex --resume {}", run.display());
    assert!(
        said.contains(&format!("stopped; continue with {command}")),
        "{said}"
    );
    let checkpoints = std::fs::read_dir(run.join("checkpoints"))
        .expect("checkpoints")
        .count();
    assert!(checkpoints > 0);
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
    let precision = failure(small(&run, &["precision=bf16"]), 1);
    assert!(precision.contains("--precision f32"), "{precision}");
    let nowhere = failure(train(&["--resume", "no/such/run"]), 1);
    assert!(
        nowhere.contains("no/such/run") && nowhere.contains("no run"),
        "{nowhere}"
    );
    let lost = parent.path().join("lost");
    std::fs::create_dir_all(lost.join("checkpoints")).expect("a folder");
    let lost = failure(train(&["--resume", lost.to_str().expect("UTF-8")]), 1);
    assert!(lost.contains("inputs.toml"), "{lost}");
    assert!(failure(train(&["--resume", "a", "--out", "b"]), 2).contains("--out"));
    assert!(failure(train(&["--backend", "abacus"]), 2).contains("this build holds "));
    assert!(failure(train(&["ablate", "--plan", "middling"]), 2).contains("middling"));
    let both = ["ablate", "--plan", "small", "--vary", "stage3.lr=1"];
    assert!(failure(train(&both), 2).contains("--vary"));
    for (arguments, words) in [
        (&["--set", "stage3.lr=1"][..], "give two variants or more"),
        (&["--vary", "stage3.lrr=1"], "variant stage3.lrr-1: "),
        (
            &["--vary", "stage3.lr"],
            "variant `stage3.lr`: write KEY=VALUE",
        ),
        (
            &["--vary", "name=a", "--seeds", "1,1"],
            "seed 1 stands twice",
        ),
        (&["--variants", "no/such/file"], "no/such/file"),
    ] {
        let arguments = [&["ablate"][..], arguments].concat();
        let message = failure(train(&arguments), 1);
        assert!(message.contains(words), "{arguments:?}: {message}");
    }
    // A path with a slip of the pen is no model of the hub's.
    let teacher = failure(small(&run, &["teacher.model=assets/phi-tinyy"]), 1);
    assert!(teacher.contains("assets/phi-tinyy"), "{teacher}");
    assert!(!teacher.contains("http"), "{teacher}");
    assert!(!run.exists(), "nothing is left of a run that did not start");
}

/// Several processes would write into one folder.
#[test]
fn some_commands_are_work_of_one_process() {
    let parent = folder();
    let out = parent.path().join("out");
    let out = out.to_str().expect("UTF-8");
    let commands: [&[&str]; 6] = [
        &["ablate"],
        &["cache-teacher"],
        &["study", "matrices"],
        &["study", "budgets", "--tokens", "1000"],
        &["heads"],
        &["sample-teacher", "--tokens", "1000"],
    ];
    for command in commands {
        for (rank, world) in [
            ("RANK", "WORLD_SIZE"),
            ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        ] {
            let mut started = train(&[command, &["--out", out][..]].concat());
            started.env(rank, "1").env(world, "2");
            let message = failure(started, 1);
            assert!(message.contains("one of 2"), "{command:?}: {message}");
        }
    }
    assert!(!Path::new(out).exists());
}
