//! A run that is interrupted in any way ends with the same result as one that is not.

use model::manifest;

use super::*;

/// Makes in `to` what a killed process leaves if the newest complete checkpoint is `name`: later lines in the metrics,
/// the last of them incomplete, and an incomplete checkpoint.
pub(super) fn killed_after(name: &str, from: &Path, to: &Path) {
    fs::copy(from.join("config.toml"), to.join("config.toml")).unwrap();
    let metrics = fs::read(from.join("metrics.jsonl")).unwrap();
    let torn = [&metrics, &b"{\"kind\":\"step\",\"stage\":\"\xc3"[..]].concat();
    fs::write(to.join("metrics.jsonl"), torn).unwrap();
    let half = checkpoint(to, ".stage3-step0000009.partial");
    fs::create_dir_all(half.join("student")).unwrap();
    fs::write(half.join("student/model.safetensors.tmp"), b"half").unwrap();
    copy_folder(&checkpoint(from, name), &checkpoint(to, name));
}

/// Asserts that two runs have the same result, to the bit.
pub(super) fn assert_same(name: &str, run: &Path, expected: &Path) {
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

    // A finished run is left as it is.
    let report = whole.path().join("report.html");
    let written = || fs::metadata(&report).unwrap().modified().unwrap();
    let (before, summary) = (written(), resume(whole.path()));
    assert_eq!(before, written());
    let path = whole.path().join("summary.json");
    assert_eq!(Summary::read(&path).unwrap(), Some(summary));
}

/// A stage's end has its checkpoint before it is evaluated, and a request to stop ends an evaluation.
#[test]
fn an_evaluation_can_be_interrupted() {
    let whole = folder();
    run(config(&[]), whole.path());
    let evaluated = |run: &Path| -> Vec<String> {
        let records = metrics(run).into_iter();
        let evaluations = records.filter(|record| record["kind"] == "evaluation");
        evaluations
            .map(|record| record["stage"].as_str().unwrap_or("none").to_owned())
            .collect()
    };
    assert_eq!(
        evaluated(whole.path()),
        ["none", "stage1", "stage2", "stage3"]
    );

    for (name, before) in [
        ("stage2-step0000005", &["none", "stage1"][..]),
        ("stage3-step0000004", &["none", "stage1", "stage2"]),
    ] {
        let rest = folder();
        killed_after(name, whole.path(), rest.path());
        // As it is while the evaluation is under way: without its result.
        let path = checkpoint(rest.path(), name);
        fs::remove_file(path.join("progress-1.toml")).expect("a progress with the evaluation");
        manifest::add(&path, &["progress.toml"]).unwrap();
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
    let stopped = stopping(0, options(config(&[]), rest.path(), false));
    assert_eq!(
        execute(stopped).expect("a run that stops"),
        Outcome::Stopped
    );
    assert!(metrics(rest.path()).is_empty());
    resume(rest.path());
    assert_same("untrained", rest.path(), whole.path());
}

/// The losses of several steps are read at once, and recorded as if each had been waited for; the same where a
/// checkpoint comes between two reads, and where a run is resumed from there.
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

/// Steps whose losses were not read yet are recorded before a stop: exactly those that the checkpoint has.
#[test]
fn a_stop_reads_what_is_pending() {
    let (whole, stopped) = (folder(), folder());
    let run = stopped.path();
    let config = config(&["checkpoint.every=1000"]);
    super::run(config.clone(), whole.path());
    let mut outcome = Outcome::Stopped;
    let (mut resume, mut stops) = (false, vec![]);
    while outcome == Outcome::Stopped {
        // Past the evaluation of both models and two steps, then by two steps or batches.
        let asked = if resume { 2 } else { 6 };
        let options = stopping(asked, options(config.clone(), run, resume));
        outcome = execute(reading(1000, options)).expect("a run without errors");
        resume = true;
        let newest = checkpoints(run).pop().expect("a checkpoint");
        let (stage, step) = newest.split_once("-step").expect("a checkpoint's name");
        let steps = metrics(run).into_iter();
        let steps = steps.filter(|record| record["kind"] == "step" && record["stage"] == stage);
        let recorded: Vec<_> = steps
            .map(|record| record["step"].as_u64().unwrap())
            .collect();
        let done: u64 = step.parse().unwrap();
        assert_eq!(recorded, (1..=done).collect::<Vec<_>>(), "{newest}");
        stops.push((stage.to_owned(), done));
        assert!(stops.len() < 100, "the run does not advance: {stops:?}");
    }
    // The assertion has been made within every stage, with steps that were pending.
    for stage in ["stage1", "stage2", "stage3"] {
        assert!(stops.contains(&(stage.to_owned(), 2)), "{stops:?}");
    }
    assert_same("stopped", run, whole.path());
}

/// The run is stopped at every place where it can be stopped, each time one step later.
#[test]
fn a_run_can_be_stopped_at_any_step() {
    let (whole, stopped) = (folder(), folder());
    let config = config(&["checkpoint.every=1000"]);
    run(config.clone(), whole.path());
    let mut outcome = Outcome::Stopped;
    let mut stops = 0;
    // Enough for the evaluations, which begin anew, and one step.
    while outcome == Outcome::Stopped {
        let options = options(config.clone(), stopped.path(), stops > 0);
        let asked = if stops == 0 { 5 } else { 1 + stops % 3 };
        outcome = execute(stopping(asked, options)).expect("a run without errors");
        stops += 1;
        assert!(stops < 100, "the run does not advance");
    }
    assert!(stops > STEPS.iter().sum::<usize>() / 3, "{stops} stops");
    assert_same("stopped", stopped.path(), whole.path());
}

#[test]
fn a_seed_decides_everything() {
    let students = ["seed=1", "seed=1", "seed=2"].map(|seed| {
        let folder = folder();
        run(
            config_of_stages(&["stage2", "stage3"], &[seed]),
            folder.path(),
        );
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
