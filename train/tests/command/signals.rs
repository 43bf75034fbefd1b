//! Signals: killing a process loses nothing, and signals that its parent ignores have no effect.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::Child;
use std::time::{Duration, Instant};

use walkdir::WalkDir;

use super::*;

/// Steps and checkpoints enough to be killed between them.
const LONGER: [&str; 5] = [
    "stage1.tokens=1280",
    "stage2.tokens=2560",
    "stage3.tokens=2560",
    "checkpoint.every=3",
    "evaluation.every=4",
];
/// The number of these steps by stage.
const STEPS: [(&str, u64); 3] = [("stage1", 10), ("stage2", 20), ("stage3", 20)];
/// Steps between two checkpoints.
const EVERY: u64 = 3;

fn student(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("student/model.safetensors")).expect("an exported student")
}

/// Starts the run of all stages in `run`, with `more` overrides, or resumes it.
fn start(run: &Path, more: &[&str]) -> Child {
    let mut command = if run.join("config.toml").exists() {
        let mut command = train(&["--backend", "flex", "--resume"]);
        command.arg(run);
        command
    } else {
        let overrides = [&LONGER[..], more].concat();
        let mut command = small(run, &overrides);
        command.args(["--stages", "stage1"]);
        command
    };
    let quiet = command.stdout(Stdio::null()).stderr(Stdio::piped());
    quiet.spawn().expect("a program")
}

/// The names in the folder of checkpoints.
fn names(run: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(run.join("checkpoints"));
    let entries = entries.into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// The newest whole checkpoint.
fn newest(run: &Path) -> Option<String> {
    names(run).into_iter().rfind(|name| !name.starts_with('.'))
}

/// Stage and step of each step that is recorded, in order. A last line may be torn.
fn recorded(run: &Path) -> Vec<(String, u64)> {
    let text = std::fs::read(run.join("metrics.jsonl")).unwrap_or_default();
    let lines = text.split_inclusive(|byte| *byte == b'\n');
    let whole = lines.filter(|line| line.ends_with(b"\n"));
    let records = whole.map(|line| serde_json::from_slice(line).expect("a JSON object a line"));
    let steps = records.filter(|record: &serde_json::Value| record["kind"] == "step");
    steps
        .map(|record| {
            let stage = record["stage"].as_str().expect("a stage");
            (stage.to_owned(), record["step"].as_u64().expect("a step"))
        })
        .collect()
}

/// The steps of the run before and up to `step` of `stage`.
fn done(stage: &str, step: u64) -> u64 {
    let before = STEPS.iter().take_while(|(name, _)| *name != stage);
    before.map(|(_, steps)| steps).sum::<u64>() + step
}

/// When a process is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// At any time.
    After(Duration),
    /// While it writes a checkpoint: the first, or one of the next.
    Writing { later: bool },
    /// This long after it has reported that it resumes.
    Resuming(Duration),
}

impl Moment {
    /// One of these moments, for a run that takes `whole`.
    fn number(number: u64, random: u64, whole: Duration) -> Self {
        let share = |of: Duration| Duration::from_micros(random % (of.as_micros() as u64 + 1));
        match number % 3 {
            0 => Self::Writing {
                later: random.is_multiple_of(2),
            },
            1 => Self::Resuming(share(Duration::from_millis(50))),
            _ => Self::After(share(whole)),
        }
    }

    /// Kills `child`, which works on `run`, at this moment, unless it ends before. Returns its output, and whether it
    /// was killed.
    fn kill(self, mut child: Child, run: &Path) -> (String, bool) {
        let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut said = String::new();
        let before = newest(run);
        let mut has_ended = || child.try_wait().expect("a child").is_some();
        match self {
            Self::After(time) => std::thread::sleep(time),
            Self::Writing { later } => {
                let is_writing = || names(run).iter().any(|name| name.ends_with(".partial"));
                while later && newest(run) == before && !has_ended() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                while !is_writing() && !has_ended() {
                    std::thread::sleep(Duration::from_micros(100));
                }
            }
            Self::Resuming(time) => {
                // The first process of a run resumes nothing.
                let marks = ["resuming", "no checkpoint", "untrained"];
                let begins = |said: &str| marks.iter().any(|mark| said.contains(mark));
                while !begins(&said) && stderr.read_line(&mut said).expect("lines") > 0 {}
                std::thread::sleep(time);
            }
        }
        let is_killed = !has_ended();
        child.kill().expect("a child");
        child.wait().expect("an end");
        stderr.read_to_string(&mut said).expect("UTF-8");
        (said, is_killed)
    }
}

/// The command that caches what the last stage of such a run reads of its teacher, in `folder`.
fn cache_teacher(folder: &Path) -> Command {
    let mut command = train(&["cache-teacher", "--backend", "flex", "--out"]);
    command.arg(folder).stdout(Stdio::null());
    let tokens = scratch().join("tokens");
    let tokens = format!("data.cache={}", tokens.display());
    for key_value in SMALL.iter().chain(&LONGER).chain(&[tokens.as_str()]) {
        command.args(["--set", key_value]);
    }
    command
}

/// Kills runs with `more` overrides `kills` times in all, and compares each with one that was not killed.
fn killed(kills: u64, seed: u64, more: &[&str]) {
    let parent = folder();
    let whole = parent.path().join("whole");
    let begun = Instant::now();
    assert!(start(&whole, more).wait().expect("an end").success());
    let time = begun.elapsed();
    let expected: Vec<_> = STEPS
        .iter()
        .flat_map(|(stage, steps)| (1..=*steps).map(|step| (stage.to_string(), step)))
        .collect();
    assert_eq!(recorded(&whole), expected);

    let (mut random, mut number, mut runs) = (seed, 0, 0);
    while number < kills {
        runs += 1;
        let run = parent.path().join(format!("run-{runs}"));
        while number < kills && !run.join("summary.json").exists() {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let moment = Moment::number(number, random >> 33, time);
            let what = format!("seed {seed}, kill {number}, {moment:?}");
            let before = newest(&run);
            let (said, is_killed) = moment.kill(start(&run, more), &run);
            assert!(
                !said.contains("error: ") && !said.contains("damaged"),
                "{what}: {said}"
            );
            if let (Some(line), Some(before)) = (
                said.lines().find(|line| line.contains("resuming from")),
                before,
            ) {
                assert!(line.contains(&before), "{what}: {before}, {line}");
            }
            // While one checkpoint is written, the steps up to the next are done.
            let kept = newest(&run).map_or(0, |name| {
                let (stage, step) = name.split_once("-step").expect("a name");
                done(stage, step.parse().expect("a step"))
            });
            let last = recorded(&run)
                .pop()
                .map_or(0, |(stage, step)| done(&stage, step));
            assert!(
                last <= kept + 2 * EVERY,
                "{what}: {last} steps, {kept} of them kept"
            );
            number += u64::from(is_killed);
        }
        let output = start(&run, more).wait_with_output().expect("an end");
        assert!(output.status.success(), "{}", stderr(&output));
        let what = format!("seed {seed}, run {runs}");
        assert!(student(&run) == student(&whole), "{what}");
        assert_eq!(recorded(&run), expected, "{what}");
        let left = names(&run).into_iter().find(|name| name.starts_with('.'));
        assert_eq!(left, None, "{what}");
        let summary = std::fs::read_to_string(run.join("summary.json")).expect("a summary");
        assert!(summary.contains("\"notes\": []"), "{what}: {summary}");
    }
    println!("seed {seed}: {kills} kills, {runs} runs that ended as one without");
}

/// Once while a checkpoint is written, once while the run is resumed, once at any time.
#[test]
fn a_run_that_is_killed_is_resumed_to_the_bit() {
    killed(3, 7, &[]);
}

/// The same, many times: `TRAIN_KILLS=200 TRAIN_SEED=2 cargo test ... -- --ignored`.
#[test]
#[ignore = "takes minutes"]
fn a_run_that_is_killed_many_times_is_resumed_to_the_bit() {
    killed(number("TRAIN_KILLS", 100), number("TRAIN_SEED", 1), &[]);
}

/// A number of the environment.
fn number(variable: &str, default: u64) -> u64 {
    let number = std::env::var(variable).ok();
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or(default)
}

/// All files in a folder that was made, by their paths, but for the lock.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = WalkDir::new(folder).into_iter();
    let entries = entries.map(|entry| entry.expect("a folder"));
    let files = entries.filter(|entry| entry.file_type().is_file() && entry.file_name() != ".lock");
    let file = |entry: walkdir::DirEntry| {
        let bytes = std::fs::read(entry.path()).expect("a file");
        let path = entry.path().strip_prefix(folder).expect("it is inside");
        (path.to_owned(), bytes)
    };
    files.map(file).collect()
}

/// Kills the process that makes a folder `kills` times at random moments; each time another process continues. Compares
/// the folder with one in `parent` that was made without kills, and returns the latter.
fn made_in_spite_of(
    kills: u64,
    seed: u64,
    parent: &Path,
    make: impl Fn(&Path) -> Command,
) -> PathBuf {
    let whole = parent.join("whole");
    let begun = Instant::now();
    let output = make(&whole).output().expect("a program");
    assert!(output.status.success(), "{}", stderr(&output));
    let time = begun.elapsed();
    let mut random = seed;
    for number in 0..kills {
        let folder = parent.join(format!("killed-{number}"));
        let mut child = make(&folder)
            .stderr(Stdio::null())
            .spawn()
            .expect("a program");
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        std::thread::sleep(time.mul_f64((random >> 40) as f64 / f64::from(1 << 24)));
        child.kill().expect("a child");
        child.wait().expect("an end");
        let output = make(&folder).output().expect("a program");
        let what = format!("seed {seed}, kill {number}");
        assert!(output.status.success(), "{what}: {}", stderr(&output));
        assert!(files(&folder) == files(&whole), "{what}");
        std::fs::remove_dir_all(&folder).expect("it is there");
    }
    println!("seed {seed}: {kills} kills, as many folders as one without");
    whole
}

/// The same with a last stage that reads the teacher's predictions from a cache, and for the process that makes the
/// cache.
#[test]
#[ignore = "takes minutes"]
fn a_cache_that_is_killed_many_times_is_whole() {
    let parent = folder();
    let (kills, seed) = (number("TRAIN_KILLS", 100), number("TRAIN_SEED", 1));
    let whole = made_in_spite_of(kills, seed, parent.path(), cache_teacher);
    let key = format!("stage3.teacher_cache={}", whole.display());
    killed(kills, seed + 1, &[&key]);
}

/// The command that tokenises `text` into `folder`.
fn prepare(text: &str, folder: &Path) -> Command {
    let mut command = train(&["prepare", "--set", &format!("data.train={text}")]);
    let validation = "data.validation=assets/text/pd-validation.json.gz";
    let cache = format!("data.cache={}", folder.display());
    command.args(["--set", validation, "--set", &cache]);
    command.stdout(Stdio::null());
    command
}

/// The text is tokenised in a moment, so that the test is short: killed processes have saved nothing yet.
#[test]
fn tokens_whose_maker_is_killed_are_whole() {
    let parent = folder();
    let text = "assets/text/pd-validation.json.gz";
    made_in_spite_of(3, 5, parent.path(), |folder| prepare(text, folder));
}

/// The text takes longer than the ten seconds between two saves; therefore only a fifth of the kills.
#[test]
#[ignore = "takes minutes"]
fn tokens_whose_maker_is_killed_many_times_are_whole() {
    let parent = tempfile::tempdir_in(scratch()).expect("a temporary folder");
    let kills = number("TRAIN_KILLS", 100).div_ceil(5);
    let text = "assets/text/pd-train.json.gz";
    let make = |folder: &Path| prepare(text, folder);
    made_in_spite_of(kills, number("TRAIN_SEED", 1), parent.path(), make);
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

/// A terminal that closes stops a run with a checkpoint, if nothing protects the run from the signal.
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
        // Twice, as `timeout` does: that is one request.
        for is_first in [true, false] {
            let sent = Command::new("kill")
                .args([signal, &child.id().to_string()])
                .stderr(Stdio::null())
                .status();
            assert!(sent.expect("kill").success() || !is_first);
        }
        let output = child.wait_with_output().expect("an end");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(130), "{said}");
        assert!(said.contains("stopped; continue with train"), "{said}");
        // The step that was begun is done, and in the checkpoint.
        let (stage, step) = recorded(&run).pop().expect("a step");
        let expected = format!("{stage}-step{step:07}");
        assert_eq!(newest(&run), Some(expected), "{signal}");
    }
}
