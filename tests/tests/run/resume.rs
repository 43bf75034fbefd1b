//! A run that is interrupted, in whatever way, ends as one that is not.

use std::thread;
use std::time::Duration;

use super::*;

/// What a process that was killed leaves in `to`, if the newest whole checkpoint was `name`: later
/// lines in the metrics, the last of them torn, and half a checkpoint.
fn killed_after(name: &str, from: &Path, to: &Path) {
    fs::copy(from.join("config.toml"), to.join("config.toml")).unwrap();
    let metrics = fs::read_to_string(from.join("metrics.jsonl")).unwrap();
    fs::write(to.join("metrics.jsonl"), metrics + "{\"kind\":\"step\",").unwrap();
    let half = checkpoint(to, ".stage3-step0000009.partial");
    fs::create_dir_all(half.join("student")).unwrap();
    fs::write(half.join("student/model.safetensors.tmp"), b"half").unwrap();
    copy_folder(&checkpoint(from, name), &checkpoint(to, name));
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match from.is_dir() {
            true => copy_folder(&from, &to),
            false => {
                fs::copy(from, to).unwrap();
            }
        }
    }
}

/// Asserts that two runs have the same result, to the bit.
fn assert_same(name: &str, run: &Path, expected: &Path) {
    assert!(
        student(run) == student(expected),
        "{name}: the student differs"
    );
    assert_eq!(metrics(run), metrics(expected), "{name}");
    let summary = |run: &Path| timeless(Summary::read(&run.join("summary.json")).unwrap().unwrap());
    assert_eq!(summary(run), summary(expected), "{name}");
    let last = format!("stage3-step{:07}", STEPS[2]);
    let moments = |run| fs::read(checkpoint(run, &last).join("optimizer.safetensors")).unwrap();
    assert!(
        moments(run) == moments(expected),
        "{name}: the moments differ"
    );
    assert!(
        checkpoints(run).iter().all(|name| !name.starts_with('.')),
        "{name}: {:?}",
        checkpoints(run)
    );
}

#[test]
fn a_resumed_run_is_the_uninterrupted_one() {
    let whole = folder();
    run(config(&[]), whole.path());
    let expected = [
        "stage1-step0000002",
        "stage1-step0000004",
        "stage2-step0000002",
        "stage2-step0000004",
        "stage2-step0000005",
        "stage3-step0000002",
        "stage3-step0000004",
    ];
    assert_eq!(checkpoints(whole.path()), expected);

    // Within each stage, at a stage's end, and with all stages done but no report.
    for name in [
        expected[0],
        expected[1],
        expected[3],
        expected[5],
        expected[6],
    ] {
        let rest = folder();
        killed_after(name, whole.path(), rest.path());
        resume(rest.path());
        assert_same(name, rest.path(), whole.path());
    }

    // Stopped between two stages: the next one has begun, without a step.
    let rest = folder();
    killed_after(expected[1], whole.path(), rest.path());
    assert_eq!(resume_and_stop(rest.path()), Outcome::Stopped);
    assert_eq!(
        checkpoints(rest.path()),
        [expected[1], "stage2-step0000000"]
    );
    // Again, with nothing done since.
    assert_eq!(resume_and_stop(rest.path()), Outcome::Stopped);
    resume(rest.path());
    assert_same("stage2-step0000000", rest.path(), whole.path());

    // Killed before the first checkpoint.
    let rest = folder();
    config(&[]).write(&rest.path().join("config.toml")).unwrap();
    fs::write(rest.path().join("metrics.jsonl"), "{\"kind\":\"step\",").unwrap();
    resume(rest.path());
    assert_same("no checkpoint", rest.path(), whole.path());

    // A finished run is told, not touched.
    let report = whole.path().join("report.html");
    let written = || fs::metadata(&report).unwrap().modified().unwrap();
    let (before, summary) = (written(), resume(whole.path()));
    assert_eq!(before, written());
    let path = whole.path().join("summary.json");
    assert_eq!(Summary::read(&path).unwrap(), Some(summary));
}

/// Executes a run that another thread asks to stop, as Ctrl-C does, when it has recorded a few steps.
fn interrupted(options: RunOptions) -> Outcome {
    let log = options.folder.join("metrics.jsonl");
    let lines = move || fs::read(&log).map_or(0, |text| text.split(|b| *b == b'\n').count());
    let (stop, goal) = (options.stop.clone(), lines() + 2);
    let watcher = thread::spawn(move || {
        while lines() < goal && !stop.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(1));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let stop = options.stop.clone();
    let outcome = execute(options).expect("a run without errors");
    stop.store(true, Ordering::Relaxed);
    watcher.join().unwrap();
    outcome
}

#[test]
fn a_run_can_be_stopped_at_any_step() {
    let (whole, stopped) = (folder(), folder());
    let config = config(&["checkpoint.every=1000"]);
    run(config.clone(), whole.path());
    let mut outcome = interrupted(options(config.clone(), stopped.path(), false));
    let mut stops = 0;
    while outcome == Outcome::Stopped {
        stops += 1;
        assert!(stops < 50, "the run does not advance");
        outcome = interrupted(options(config.clone(), stopped.path(), true));
    }
    assert!(stops > 0, "the run was never stopped");
    assert_same("stopped", stopped.path(), whole.path());
}

#[test]
fn a_seed_decides_everything() {
    let stages = "stages=2,3";
    let students = ["seed=1", "seed=1", "seed=2"].map(|seed| {
        let folder = folder();
        run(config(&[seed, stages]), folder.path());
        (student(folder.path()), metrics(folder.path()))
    });
    let [first, again, other] = students;
    assert!(first == again, "one seed gives two results");
    assert!(first.0 != other.0, "two seeds give one student");
    // Both the untrained student and the text differ.
    let loss = |(_, metrics): &(Vec<u8>, Vec<Value>), i: usize| metrics[i].clone();
    assert_ne!(loss(&first, 0), loss(&other, 0));
    assert_ne!(loss(&first, 1), loss(&other, 1));
}
