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

/// A stage's end has its checkpoint before it is evaluated, and an evaluation hears a request to stop.
#[test]
fn an_evaluation_can_be_interrupted() {
    let whole = folder();
    run(config(&[]), whole.path());
    let evaluated = |run: &Path| -> Vec<u64> {
        let records = metrics(run).into_iter();
        let evaluations = records.filter(|record| record["kind"] == "evaluation");
        evaluations
            .map(|record| record["stage"].as_u64().expect("a stage"))
            .collect()
    };
    assert_eq!(evaluated(whole.path()), [0, 1, 2, 3]);

    for (name, before) in [
        ("stage2-step0000005", &[0, 1][..]),
        ("stage3-step0000004", &[0, 1, 2]),
    ] {
        let rest = folder();
        killed_after(name, whole.path(), rest.path());
        // As it is while the evaluation is under way: without its result.
        let path = checkpoint(rest.path(), name).join("progress.toml");
        let text = fs::read_to_string(&path).unwrap();
        let last = text.rfind("[[finished]]").expect("a finished stage");
        fs::write(&path, format!("{}# end\n", &text[..last])).unwrap();
        for _ in 0..2 {
            assert_eq!(resume_and_stop(rest.path()), Outcome::Stopped);
            assert_eq!(checkpoints(rest.path()), [name]);
            assert_eq!(evaluated(rest.path()), before);
        }
        resume(rest.path());
        assert_same(name, rest.path(), whole.path());
    }

    // The first of all, before there is anything to keep.
    let rest = folder();
    let stopped = options(config(&[]), rest.path(), false);
    stopped.stop.store(true, Ordering::Relaxed);
    assert_eq!(
        execute(stopped).expect("a run that stops"),
        Outcome::Stopped
    );
    assert!(metrics(rest.path()).is_empty());
    resume(rest.path());
    assert_same("untrained", rest.path(), whole.path());
}

/// What several steps have measured is read at once, and recorded as if each had been waited for; so
/// it is where a checkpoint comes between two reads, and where a run goes on from there.
#[test]
fn steps_can_be_read_together() {
    let whole = folder();
    run(config(&[]), whole.path());
    for every in [3, 100] {
        let together = folder();
        let name = format!("{every} together");
        finish(reading(every, options(config(&[]), together.path(), false)));
        assert_same(&name, together.path(), whole.path());

        let rest = folder();
        killed_after("stage2-step0000002", together.path(), rest.path());
        let config = config_of(rest.path());
        finish(reading(every, options(config, rest.path(), true)));
        assert_same(&name, rest.path(), whole.path());
    }
}

/// Steps that nobody has read yet are recorded before a stop: all that the checkpoint has, and no others.
#[test]
fn a_stop_reads_what_is_unread() {
    let (whole, stopped) = (folder(), folder());
    let run = stopped.path();
    let config = config(&["checkpoint.every=1000"]);
    super::run(config.clone(), whole.path());
    let mut outcome = Outcome::Stopped;
    let mut milliseconds = 0;
    while outcome == Outcome::Stopped {
        let options = options(config.clone(), run, milliseconds > 0);
        let stop = options.stop.clone();
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(milliseconds));
            stop.store(true, Ordering::Relaxed);
        });
        outcome = execute(reading(1000, options)).expect("a run without errors");
        // Later each time, so that it ends on any machine.
        milliseconds += 20;

        if !run.join("checkpoints").exists() {
            continue;
        }
        let newest = checkpoints(run).pop().expect("a checkpoint");
        let (stage, step) = newest.split_once("-step").expect("a checkpoint's name");
        let stage: u8 = stage["stage".len()..].parse().unwrap();
        let steps = metrics(run).into_iter();
        let steps = steps.filter(|it| it["kind"] == "step" && it["stage"] == stage);
        let recorded: Vec<_> = steps.map(|it| it["step"].as_u64().unwrap()).collect();
        let done: u64 = step.parse().unwrap();
        assert_eq!(recorded, (1..=done).collect::<Vec<_>>(), "{newest}");
    }
    assert_same("stopped", run, whole.path());
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
