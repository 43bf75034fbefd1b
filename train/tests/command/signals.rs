//! Signals: what kills a process loses nothing, and what its parent ignores does not reach it.

use std::process::Child;
use std::time::{Duration, Instant};

use super::*;

/// Steps and checkpoints enough to be killed between them.
const LONGER: [&str; 3] = [
    "stage2.tokens=2560",
    "stage3.tokens=2560",
    "checkpoint.every=3",
];

fn student(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("student/model.safetensors")).expect("an exported student")
}

/// Starts the run in `run`, or resumes it.
fn start(run: &Path) -> Child {
    let mut command = if run.join("config.toml").exists() {
        let mut command = train(&["--backend", "flex", "--resume"]);
        command.arg(run);
        command
    } else {
        small(run, &LONGER)
    };
    let quiet = command.stdout(Stdio::null()).stderr(Stdio::piped());
    quiet.spawn().expect("a program")
}

/// Kills a run `kills` times, each time after a part of the time that a whole one takes, and compares its student
/// with that of one that was not killed.
fn killed(kills: u32, seed: u64) {
    let parent = folder();
    let (whole, run) = (parent.path().join("whole"), parent.path().join("run"));
    let begun = Instant::now();
    assert!(start(&whole).wait().expect("an end").success());
    let milliseconds = begun.elapsed().as_millis() as u64;
    let mut random = seed;
    for _ in 0..kills {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let mut child = start(&run);
        std::thread::sleep(Duration::from_millis((random >> 33) % milliseconds));
        child.kill().expect("a child");
        child.wait().expect("an end");
    }
    let output = start(&run).wait_with_output().expect("an end");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(student(&run) == student(&whole), "seed {seed}");
    let summary = std::fs::read_to_string(run.join("summary.json")).expect("a summary");
    assert!(summary.contains("\"notes\": []"), "seed {seed}: {summary}");
}

#[test]
fn a_run_that_is_killed_is_resumed_to_the_bit() {
    killed(4, 7);
}

/// The same, many times: `TRAIN_KILLS=200 cargo test ... -- --ignored`.
#[test]
#[ignore = "takes minutes"]
fn a_run_that_is_killed_many_times_is_resumed_to_the_bit() {
    let count = std::env::var("TRAIN_KILLS")
        .ok()
        .and_then(|count| count.parse().ok());
    for seed in 0..count.unwrap_or(90) / 9 {
        killed(9, seed);
    }
}

/// As under `nohup`, and as a shell's background job without job control.
#[test]
fn an_ignored_signal_stays_ignored() {
    let parent = folder();
    let run = parent.path().join("run");
    let program = small(&run, &LONGER);
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP INT TERM; exec \"$@\"", "sh"]);
    command.arg(program.get_program()).args(program.get_args());
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = quiet.stderr(Stdio::piped()).spawn().expect("a shell");
    let metrics = run.join("metrics.jsonl");
    let has_steps = || std::fs::metadata(&metrics).is_ok_and(|file| file.len() > 300);
    while !has_steps() && child.try_wait().expect("a child").is_none() {
        std::thread::sleep(Duration::from_millis(5));
    }
    for signal in ["-HUP", "-INT", "-TERM"] {
        let sent = Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status();
        // It may have ended by now.
        sent.expect("kill");
    }
    let output = child.wait_with_output().expect("an end");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!stderr(&output).contains("stopping"), "{}", stderr(&output));
    student(&run);
}

/// A terminal that closes stops a run that nothing protects from it, with a checkpoint.
#[test]
fn a_signal_that_is_not_ignored_stops_a_run() {
    for signal in ["-HUP", "-TERM"] {
        let parent = folder();
        let run = parent.path().join("run");
        let mut child = small(&run, &["stage2.tokens=1_000_000_000"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a program");
        let metrics = run.join("metrics.jsonl");
        let steps = || std::fs::read_to_string(&metrics).map_or(0, |text| text.lines().count());
        while steps() < 3 && child.try_wait().expect("a child").is_none() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let sent = Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status();
        assert!(sent.expect("kill").success());
        let output = child.wait_with_output().expect("an end");
        assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
        assert!(run.join("checkpoints").exists(), "{signal}");
    }
}
