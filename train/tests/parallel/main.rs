//! Runs that several processes share, which MPI connects: started by `mpirun`, as a user starts them.
#![cfg(all(feature = "mpi", feature = "flex", unix))]

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long the others may continue after a rank has ended.
const GONE: Duration = Duration::from_secs(30);
/// How long anything else may take.
const PATIENCE: Duration = Duration::from_secs(300);

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// The program by `ranks` processes, or by one without MPI.
fn train(ranks: usize) -> Command {
    let program = env!("CARGO_BIN_EXE_train");
    let mut command = if ranks == 1 {
        Command::new(program)
    } else {
        let mut command = Command::new("mpirun");
        // As root, with more processes than cores; a container may forbid one process to read another's memory.
        command.args([
            "--allow-run-as-root",
            "--oversubscribe",
            "--bind-to",
            "none",
            "-n",
        ]);
        command.arg(ranks.to_string()).arg(program);
        command.env("OMPI_MCA_btl_vader_single_copy_mechanism", "none");
        command
    };
    // One core for each.
    command.env("RAYON_NUM_THREADS", "1");
    command.args(["--backend", "flex"]).stdin(Stdio::null());
    command
}

/// A run of all three stages in `run`, with steps of four passes of 32 tokens: `steps` of them in each.
fn start(ranks: usize, run: &Path, steps: usize, overrides: &[&str]) -> Command {
    let mut command = train(ranks);
    command.arg("--out").arg(run);
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tokens");
    let mut set = |key_value: &str| {
        command.args(["--set", key_value]);
    };
    set(&format!("data.cache={}", cache.display()));
    for key_value in [
        "data.train=assets/text/pd-validation.json.gz",
        "data.validation=assets/text/pd-validation.json.gz",
        "data.context=32",
        "student.chunk_size=16",
        "evaluation.context=32",
        "evaluation.windows=2",
    ] {
        set(key_value);
    }
    // AdamW's first updates are signs of gradients, even of gradients that are only rounding errors, and these differ
    // between numbers of ranks. With this epsilon such a parameter hardly moves.
    set("optimizer.epsilon=1e-3");
    for stage in 1..=3 {
        set(&format!("stage{stage}.tokens={}", steps * 4 * 32));
        set(&format!("stage{stage}.batch=4"));
        set(&format!("stage{stage}.micro_batch=1"));
    }
    overrides.iter().for_each(|key_value| set(key_value));
    command
}

fn resume(ranks: usize, run: &Path) -> Command {
    let mut command = train(ranks);
    command.arg("--resume").arg(run);
    command
}

/// What comes of `command`, which must not fail.
fn finish(mut command: Command) -> Output {
    let output = command.output().expect("mpirun, of openmpi-bin");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {words}", output.status);
    output
}

/// Starts `command`, with its stderr piped.
fn spawn(mut command: Command) -> Child {
    let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().expect("mpirun, of openmpi-bin")
}

/// Waits until `is_so`.
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The process of `rank` among the children of mpirun, by its environment.
fn process_of(mpirun: &Child, rank: usize) -> u32 {
    let own = format!("OMPI_COMM_WORLD_RANK={rank}");
    let parent = format!("PPid:\t{}", mpirun.id());
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_rank = |process: &u32| {
        let read = |file: &str| fs::read(format!("/proc/{process}/{file}")).unwrap_or_default();
        let status = String::from_utf8_lossy(&read("status")).into_owned();
        let environment = read("environ");
        status.lines().any(|line| line == parent)
            && environment
                .split(|byte| *byte == 0)
                .any(|variable| variable == own.as_bytes())
    };
    let mut found = numbers.filter(is_rank);
    found.next().expect("the process of a rank")
}

fn signal(process: u32, signal: &str) {
    let sent = Command::new("kill")
        .args([signal, &process.to_string()])
        .status();
    assert!(sent.expect("kill").success());
}

/// The exit code and the output of mpirun, which must end within `patience`.
fn words_at_end(mut mpirun: Child, patience: Duration) -> (Option<i32>, String) {
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = mpirun.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > patience {
            let _ = mpirun.kill();
            panic!("the other ranks go on after {patience:?}");
        }
        thread::sleep(Duration::from_millis(50));
    };
    let mut words = String::new();
    let stderr = mpirun.stderr.as_mut().expect("piped");
    stderr.read_to_string(&mut words).unwrap();
    (status.code(), words)
}

/// The lines of steps, without times and memory.
fn steps(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    let steps = lines.filter(|record: &Value| record["kind"] == "step");
    steps
        .map(|mut record| {
            let keys = record.as_object_mut().expect("an object");
            for key in [
                "seconds",
                "tokens_per_second",
                "operations_per_second",
                "device_share",
                "data_wait",
                "memory_bytes",
            ] {
                keys.remove(key);
            }
            record
        })
        .collect()
}

/// Asserts that the losses of two runs differ only by rounding.
fn assert_close(found: &Path, expected: &Path) {
    let (found, expected) = (steps(found), steps(expected));
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        for key in ["stage", "step", "tokens"] {
            assert_eq!(found[key], expected[key]);
        }
        let loss = |record: &Value| record["loss"].as_f64().expect("a loss");
        let error = (loss(found) / loss(expected) - 1.0).abs();
        assert!(error <= 1e-6, "{found} is not {expected}: {error:e}");
    }
}

fn student(run: &Path) -> Vec<u8> {
    fs::read(run.join("student/model.safetensors")).expect("an exported student")
}

/// The newest whole checkpoint.
fn newest(run: &Path) -> Option<String> {
    let entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten();
    let names = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.starts_with('.')).max()
}

/// All three stages are close to a run of one process, and two runs with the same number of ranks have the same bits.
#[test]
fn ranks_have_the_loss_curve_of_one() {
    let [one, two, again, four] = [folder(), folder(), folder(), folder()];
    for (ranks, run) in [(1, &one), (2, &two), (2, &again), (4, &four)] {
        finish(start(ranks, run.path(), 4, &[]));
    }
    assert_close(two.path(), one.path());
    assert_close(four.path(), one.path());
    assert_eq!(steps(two.path()), steps(again.path()));
    assert!(student(two.path()) == student(again.path()));
}

/// One rank is killed, and one is asked to stop: the others end within half a minute, and the run is resumed by one
/// rank and by four.
#[test]
fn a_run_survives_its_ranks() {
    let (run, whole) = (folder(), folder());
    let overrides = ["checkpoint.every=2", "checkpoint.keep=100"];
    finish(start(1, whole.path(), 12, &overrides));

    // A rank is killed in the first stage.
    let ranks = spawn(start(2, run.path(), 12, &overrides));
    wait_until("a first checkpoint", || newest(run.path()).is_some());
    signal(process_of(&ranks, 1), "-KILL");
    let (code, words) = words_at_end(ranks, GONE);
    assert_ne!(code, Some(0), "{words}");
    assert!(words.contains("rank 1"), "{words}");

    // One of two is told to stop, and both do, with a checkpoint.
    let ranks = spawn(resume(2, run.path()));
    let begun = steps(run.path()).len();
    wait_until("a step", || steps(run.path()).len() > begun.max(3));
    signal(process_of(&ranks, 1), "-TERM");
    let (code, words) = words_at_end(ranks, PATIENCE);
    assert_ne!(code, Some(0), "{words}");
    assert!(words.contains("stopped; continue with train"), "{words}");
    let stopped = newest(run.path()).expect("a checkpoint");
    let last = steps(run.path()).pop().expect("steps");
    let step = last["step"].as_u64().expect("a step");
    let stage = last["stage"].as_str().expect("a stage");
    assert_eq!(stopped, format!("{stage}-step{step:07}"));
    let share = run
        .path()
        .join("checkpoints")
        .join(&stopped)
        .join("optimizer-1.safetensors");
    assert!(share.exists());

    // One goes on.
    let mut one = spawn(resume(1, run.path()));
    wait_until("another checkpoint", || {
        newest(run.path()) > Some(stopped.clone())
    });
    one.kill().unwrap();
    one.wait().unwrap();

    // And four, to the end.
    finish(resume(4, run.path()));
    assert_close(run.path(), whole.path());
}
