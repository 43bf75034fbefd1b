//! Measurements within a stage.

use super::resume::{assert_same, killed_after};
use super::*;

/// Stage and step of each measurement within a stage.
fn measured(run: &Path) -> Vec<(String, u64)> {
    let records = metrics(run).into_iter();
    let within = records.filter(|record| record["kind"] == "evaluation");
    let place = |record: Value| {
        Some((
            record["stage"].as_str()?.to_owned(),
            record["step"].as_u64()?,
        ))
    };
    within.filter_map(place).collect()
}

/// Measurements change no bit of the student, are in the metrics once each, and are the same in an interrupted run.
#[test]
fn measuring_changes_nothing_else() {
    let (plain, whole) = (folder(), folder());
    run(config(&[]), plain.path());
    let measuring = || config(&["evaluation.every=2"]);
    run(measuring(), whole.path());
    assert!(
        student(whole.path()) == student(plain.path()),
        "the student differs"
    );
    let expected = [("stage1", 2), ("stage2", 2), ("stage2", 4), ("stage3", 2)];
    let expected = expected.map(|(stage, step)| (stage.to_owned(), step));
    assert_eq!(measured(whole.path()), expected);
    let mut others = metrics(whole.path());
    others.retain(|record| record["kind"] != "evaluation" || record.get("step").is_none());
    assert_eq!(others, metrics(plain.path()));
    let report = fs::read_to_string(whole.path().join("report.html")).unwrap();
    assert!(report.contains("after stage3") && report.contains("</html>"));

    // Killed after the checkpoint that a measurement follows, and where measurements lie behind.
    for name in [
        "stage2-step0000002",
        "stage3-step0000002",
        "stage2-step0000005",
    ] {
        let rest = folder();
        killed_after(name, whole.path(), rest.path());
        resume(rest.path());
        assert_same(name, rest.path(), whole.path());
    }
    // Steps that are read together are recorded before the measurement after them.
    let together = folder();
    finish(reading(3, options(measuring(), together.path(), false)));
    assert_same("together", together.path(), whole.path());

    // Stopped again and again, also while it measures.
    let rest = folder();
    let (mut outcome, mut begun) = (Outcome::Stopped, false);
    while outcome == Outcome::Stopped {
        let options = stopping(5, options(measuring(), rest.path(), begun));
        outcome = execute(options).expect("a run without errors");
        begun = true;
    }
    assert_same("stopped", rest.path(), whole.path());
}

/// Tasks are scored by another program, which a script replaces here: it checks that there is a student with its
/// tokenizer, and returns numbers. If it fails, this is noted, and the run continues.
#[cfg(unix)]
#[test]
fn tasks_are_scored_by_a_program() {
    use std::os::unix::fs::PermissionsExt;

    const SCRIPT: &str = r#"#!/bin/sh
test "$1" = eval || exit 1
for argument in "$@"; do
    case "$before" in
        --model) model=$argument ;;
        --json) json=$argument ;;
        --tasks) tasks=$argument ;;
        --limit) limit=$argument ;;
    esac
    before=$argument
done
test -f "$model/model.safetensors" && test -f "$model/tokenizer.json" || exit 2
if [ "$tasks" = mqar ]; then echo "there is no task mqar" >&2; exit 3; fi
printf '{"results": {"%s": {"acc": 0.%s, "acc_stderr": 0.1}}}' "$tasks" "$limit" > "$json"
"#;
    let (plain, scored, failed) = (folder(), folder(), folder());
    let script = scored.path().join("infer");
    fs::write(&script, SCRIPT).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let program = format!("evaluation.infer={}", script.display());
    run(config(&[]), plain.path());
    let scores = scored.path().join("run");
    let set = ["evaluation.every=2", "evaluation.task_limit=625", &program];
    let of_task = |task: &'static str| config(&[&set[..], &[task]].concat());
    run(of_task("evaluation.tasks=piqa"), &scores);
    assert!(
        student(&scores) == student(plain.path()),
        "the student differs"
    );
    let found: Vec<Value> = metrics(&scores)
        .into_iter()
        .filter(|record| record["kind"] == "evaluation" && !record["stage"].is_null())
        .map(|record| record["tasks"]["piqa/acc"].clone())
        .collect();
    // Four within stages, three at their ends.
    assert_eq!(found, vec![Value::from(0.625); 7]);
    let report = fs::read_to_string(scores.join("report.html")).unwrap();
    assert!(report.contains("piqa/acc") && report.contains("0.6250"));
    assert!(!scores.join("scored").exists());

    let summary = run(of_task("evaluation.tasks=mqar"), failed.path());
    assert!(student(failed.path()) == student(plain.path()));
    let noted = notes(&summary);
    assert!(noted.contains("there is no task mqar"), "{noted}");
}
