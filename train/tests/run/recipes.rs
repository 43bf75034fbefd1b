//! Options of the stages, over whole runs.

use super::*;

/// The loss of each step.
fn losses(run: &Path) -> Vec<f64> {
    let records = metrics(run).into_iter();
    let steps = records.filter(|record| record["kind"] == "step");
    steps
        .map(|record| record["loss"].as_f64().expect("a loss"))
        .collect()
}

/// The last two of five steps read the student's own hidden states, also where the run is resumed among them.
#[test]
fn layers_read_the_students_own_at_the_end() {
    let config = |sequential: &str| config_of_stages(&["stage2"], &[sequential]);
    let [plain, whole, pieces] = [folder(), folder(), folder()];
    run(config("stage2.sequential=0"), plain.path());
    run(config("stage2.sequential=0.4"), whole.path());
    let (plain, own) = (losses(plain.path()), losses(whole.path()));
    assert_eq!(own.len(), 5);
    assert_eq!(plain[..3], own[..3]);
    // The first of these steps compares equal students that read different inputs.
    assert_ne!(plain[3], own[3]);

    // Past the evaluation of both models, two batches each, and four steps.
    let stopped = options(config("stage2.sequential=0.4"), pieces.path(), false);
    let outcome = execute(stopping(8, stopped)).expect("a stop");
    assert_eq!(outcome, Outcome::Stopped);
    let found = checkpoints(pieces.path());
    assert!(
        found.iter().any(|name| name == "stage2-step0000004"),
        "{found:?}"
    );
    resume(pieces.path());
    assert!(student(pieces.path()) == student(whole.path()));
    assert_eq!(losses(pieces.path()), own);
}

/// The guard does not compare the loss on the student's own hidden states with the losses before.
#[test]
fn the_guard_begins_anew_with_them() {
    let folder = folder();
    let set = [
        "stage2.sequential=0.4",
        "guard.action=skip",
        "guard.spike=1",
        "guard.window=1",
    ];
    run(config_of_stages(&["stage2"], &set), folder.path());
    let losses = losses(folder.path());
    assert!(losses[3] > losses[2], "{losses:?}");
    let records = metrics(folder.path()).into_iter();
    let mut fourth = records.filter(|record| record["kind"] == "step" && record["step"] == 4);
    assert_ne!(fourth.next().expect("a step")["skipped"], true);
}

/// Blocks in pairs; the second pair of a hybrid has a layer that keeps its attention.
#[test]
fn pairs_of_blocks_are_aligned() {
    let folder = folder();
    let set = [
        "stage2.target=block",
        "stage2.every=2",
        "student.attention_layers=3",
    ];
    let summary = run(config_of_stages(&["stage2"], &set), folder.path());
    // All of them learn: those that keep their attention learn with the block before.
    assert!(summary.stages[0].loss > 0.0);
    let at =
        |name: &str| tensors(&checkpoint(folder.path(), name).join("student/model.safetensors"));
    let (before, after) = (at("stage2-step0000002"), at("stage2-step0000005"));
    for ((name, before), (_, after)) in before.into_iter().zip(after) {
        assert_eq!(before != after, name.contains(".mixer."), "{name}");
    }
}

/// Each loss of the last stage trains another student. That losses fall is tested where steps have no noise, beside
/// the optimiser.
#[test]
fn predictions_are_compared_in_several_ways() {
    let mut students = vec![];
    for set in [
        &["stage3.loss=forward_kl"][..],
        &["stage3.loss=reverse_kl", "stage3.recompute=true"],
        &["stage3.top_k=20"],
        &[
            "stage3.loss=reverse_kl",
            "stage3.top_k=20",
            "stage3.hard_weight=0.2",
        ],
    ] {
        let folder = folder();
        let summary = run(config_of_stages(&["stage3"], set), folder.path());
        assert!(summary.student_perplexity.is_finite(), "{set:?}");
        let losses = losses(folder.path());
        assert!(losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
        students.push(student(folder.path()));
    }
    for (i, one) in students.iter().enumerate() {
        assert!(students[..i].iter().all(|other| other != one), "{i}");
    }
}
