//! Every failure has its own message, and no existing file is lost.

use std::fs::File;

use model::manifest;

use super::*;

pub(super) fn error(options: RunOptions) -> TrainError {
    execute(options).expect_err("an error")
}

/// Moments that are not those of the student's parameters.
#[test]
fn foreign_moments_are_named() {
    let folder = folder();
    let run = folder.path();
    super::run(config_of_stages(&["stage2"], &["stage2.tokens=64"]), run);
    fs::remove_file(run.join("summary.json")).unwrap();
    let path = checkpoint(run, "stage2-step0000001").join("optimizer.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let name = b"m.backbone.layers.0.mixer.D";
    let at = bytes
        .windows(name.len())
        .position(|found| found == name)
        .expect("a moment");
    bytes[at] = b'w';
    fs::write(&path, bytes).unwrap();
    // With the right checksum.
    manifest::add(path.parent().unwrap(), &["optimizer.safetensors"]).unwrap();
    let message = error(options(config_of(run), run, true)).to_string();
    assert!(
        message.contains("`m.backbone.layers.0.mixer.D` is missing"),
        "{message}"
    );
}

/// A student of another shape than the one in the checkpoint.
#[test]
fn a_changed_student_is_refused() {
    let folder = folder();
    let run = folder.path();
    super::run(config_of_stages(&["stage2"], &["stage2.tokens=64"]), run);
    fs::remove_file(run.join("summary.json")).unwrap();
    let mut config = config_of(run);
    if let model::StudentMixer::Mamba2(mixer) = &mut config.student.mixer {
        mixer.d_state = 32;
    }
    match error(options(config, run, true)) {
        TrainError::Mismatch(message) => assert!(message.contains("config.toml"), "{message}"),
        other => panic!("{other}"),
    }
}

#[test]
fn a_run_is_not_written_over() {
    let folder = folder();
    let run = folder.path();
    super::run(config_of_stages(&["stage2"], &["stage2.tokens=64"]), run);
    let before = student(run);
    match error(options(config(&[]), run, false)) {
        TrainError::Exists(path) => assert_eq!(path, run),
        other => panic!("{other}"),
    }
    assert!(student(run) == before);

    // Nor worked on by two processes, while it is not finished.
    fs::remove_file(run.join("summary.json")).unwrap();
    let other = File::open(run).unwrap();
    other.try_lock().unwrap();
    match error(options(config_of(run), run, true)) {
        TrainError::InUse(path) => assert_eq!(path, run),
        other => panic!("{other}"),
    }
}

/// Other steps read other text, so they are refused; settings that only save memory are not refused.
#[test]
fn changed_steps_are_refused() {
    let folder = folder();
    let run = folder.path();
    super::run(config_of_stages(&["stage2"], &["stage2.tokens=192"]), run);
    fs::remove_file(run.join("summary.json")).unwrap();
    let config = config_of(run);
    let assert_refused = || {
        let mut of_other_length = config.clone();
        of_other_length.data.context = 16;
        let mut of_more = config.clone();
        of_more.stages[0].batch = 4;
        let mut of_its_own_length = config.clone();
        of_its_own_length.stages[0].context = 16;
        for config in [of_other_length, of_more, of_its_own_length] {
            match error(options(config, run, true)) {
                TrainError::Mismatch(message) => {
                    assert!(message.contains("data.context"), "{message}");
                }
                other => panic!("{other}"),
            }
        }
    };
    // At the stage's end, and within it.
    assert_refused();
    fs::remove_dir_all(checkpoint(run, "stage2-step0000003")).unwrap();
    assert_refused();

    let mut smaller = config.clone();
    smaller.stages[0].micro_batch = 1;
    smaller.evaluation.batch = 1;
    finish(options(smaller, run, true));
}

/// The CPUs compute in f32 only.
#[test]
fn a_precision_that_is_not_there_is_refused() {
    let folder = folder();
    let config = || config(&["precision=bf16"]);
    let new = error(options(config(), folder.path(), false));
    assert!(matches!(new, TrainError::Precision { .. }), "{new}");
    assert!(new.to_string().contains("--precision f32"), "{new}");
    // Which cannot be said together with --resume.
    let resumed = error(options(config(), folder.path(), true)).to_string();
    assert!(
        resumed.contains("config.toml") && !resumed.contains("--"),
        "{resumed}"
    );
}

#[test]
fn a_run_that_diverges_stops_and_can_be_resumed() {
    diverges_and_is_resumed(1);
}

/// The losses are read only when the whole stage is done.
#[test]
fn a_run_that_diverges_unread_stops_and_can_be_resumed() {
    diverges_and_is_resumed(100);
}

/// A learning rate that makes the student diverge at its first step.
fn diverges_and_is_resumed(read_every: usize) {
    let (diverged, sane) = (folder(), folder());
    let run = diverged.path();
    let common = [
        "stage3.warmup=0",
        "safety.max_skipped=2",
        "checkpoint.every=100",
    ];
    let with_lr =
        |lr| config_of_stages(&["stage2", "stage3"], &[common.as_slice(), &[lr]].concat());
    let hopeless = options(with_lr("stage3.lr=1e30"), run, false);
    match error(reading(read_every, hopeless)) {
        TrainError::NotFinite {
            stage,
            step: 3,
            skipped: 2,
            folder,
        } => assert_eq!((stage.as_str(), folder.as_path()), ("stage3", run)),
        other => panic!("{other}"),
    }
    // Recorded: the step with that rate was finite, those after it were not.
    let steps: Vec<_> = metrics(run)
        .into_iter()
        .filter(|record| record["stage"] == "stage3")
        .map(|record| (record["skipped"].clone(), record["loss"].is_number()))
        .collect();
    let skipped = (Value::Bool(true), false);
    assert_eq!(
        steps,
        [(Value::Bool(false), true), skipped.clone(), skipped]
    );
    assert!(!run.join("summary.json").exists());

    // The checkpoint before is whole; as the message says, a lower rate can continue from there.
    assert_eq!(checkpoints(run), ["stage2-step0000005"]);
    with_lr("stage3.lr=1e-3")
        .write(&run.join("config.toml"))
        .unwrap();
    let said = notes(&resume(run));
    assert!(said.contains("stage3.lr.mixer, from "), "{said}");
    super::run(with_lr("stage3.lr=1e-3"), sane.path());
    assert!(student(run) == student(sane.path()));
}

/// A failure before there is anything to keep leaves no folder behind.
#[test]
fn a_run_that_cannot_start_leaves_nothing() {
    let folder = folder();
    let run = folder.path().join("runs/new");
    let config = config(&["teacher.model=no/such/teacher"]);
    let message = error(options(config.clone(), &run, false)).to_string();
    assert!(message.contains("no/such/teacher"), "{message}");
    let mut weights = config;
    weights.teacher.model = "assets/phi-tiny/model.safetensors".to_owned();
    let message = error(options(weights, &run, false)).to_string();
    assert!(message.contains("no GGUF file"), "{message}");
    assert!(!run.exists());
    let from = super::config(&["student.from=no/such/student"]);
    let message = error(options(from, &run, false)).to_string();
    assert!(message.starts_with("student.from is"), "{message}");
    let more = super::config(&["stage3.top_k=5000"]);
    let message = error(options(more, &run, false)).to_string();
    assert!(message.starts_with("stage3.top_k is 5000"), "{message}");
    assert!(!run.exists());
}

/// A configuration that was made in code is checked too.
#[test]
fn a_configuration_is_checked_before_anything_is_made() {
    let folder = folder();
    let run = folder.path().join("run");
    let mut config = config(&[]);
    config.stages.clear();
    let message = error(options(config, &run, false)).to_string();
    assert!(message.contains("`stages`"), "{message}");
    assert!(!run.exists());
}

/// The stage has fewer steps than may be skipped in a row, and no finite step.
#[test]
fn a_stage_that_trains_nothing_is_an_error() {
    let folder = folder();
    let run = folder.path();
    let config = config_of_stages(&["stage2", "stage3"], &["stage3.temperature=1e-40"]);
    match error(options(config, run, false)) {
        TrainError::AllSkipped { stage, steps, .. } => {
            assert_eq!((stage.as_str(), steps), ("stage3", STEPS[2]));
        }
        other => panic!("{other}"),
    }
    assert_eq!(checkpoints(run).pop().unwrap(), "stage2-step0000005");
    assert!(!run.join("student").exists() && !run.join("summary.json").exists());
}

/// The last step diverges, and there is no later loss that would show it.
#[test]
fn a_student_that_is_not_finite_is_not_kept() {
    let folder = folder();
    let run = folder.path();
    let one = ["stage3.tokens=64", "stage3.lr=1e39", "stage3.warmup=0"];
    match error(options(config_of_stages(&["stage3"], &one), run, false)) {
        TrainError::StudentNotFinite {
            stage, step, what, ..
        } => {
            assert_eq!((stage.as_str(), step), ("stage3", 1));
            assert!(what.contains("parameter "), "{what}");
        }
        other => panic!("{other}"),
    }
    assert!(!run.join("checkpoints").exists() && !run.join("student").exists());
}

/// The run folder was moved, or removed and made again by another program: nothing is written under the old name.
#[test]
#[cfg(unix)]
fn a_run_whose_folder_is_gone_ends() {
    for at in [6, 14] {
        let parent = folder();
        let (run, elsewhere) = (parent.path().join("run"), parent.path().join("elsewhere"));
        let config = config_of_stages(&["stage2", "stage3"], &[]);
        let names = (run.clone(), elsewhere.clone());
        let renamed = acting(
            at,
            move || fs::rename(&names.0, &names.1).unwrap(),
            options(config, &run, false),
        );
        match error(renamed) {
            TrainError::FolderGone(path) => assert_eq!(path, run),
            other => panic!("{other}"),
        }
        assert!(!run.exists());
        // In its new place, the run can continue.
        resume(&elsewhere);
    }
}
