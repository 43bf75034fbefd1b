use super::*;

#[test]
fn names_tell_positions() {
    for (stage, step) in [
        ("stage1", 0),
        ("b", 40),
        ("a-step7", 9_999_999),
        ("a", 10_000_000),
    ] {
        let position = Position {
            stage: stage.to_owned(),
            step,
        };
        assert_eq!(position_of(&name_of(&position)), Some(position));
    }
    for name in [
        "stage1",
        "stage1-step40",
        "stage1-step0000040.bak",
        ".stage1-step0000040",
    ] {
        assert_eq!(position_of(name), None, "{name}");
    }
}

/// Checkpoints are ordered by the run's list of stages, and not alphabetically.
#[test]
fn the_newest_is_that_of_the_last_stage() {
    let folder = tempfile::tempdir().unwrap();
    let stages = ["wide", "narrow"].map(str::to_owned).to_vec();
    let checkpoints = Checkpoints::new(folder.path().to_owned(), 2, stages);
    assert_eq!(checkpoints.newest().unwrap(), None);
    let files = ["inputs.toml", "optimizer.safetensors", "progress.toml"];
    let steps = [
        ("wide", 5),
        ("narrow", 1),
        ("narrow", 10_000_000),
        ("wide", 700),
    ];
    for (stage, step) in steps {
        let path = folder.path().join(format!("{stage}-step{step:07}"));
        fs::create_dir_all(path.join("student")).unwrap();
        let names = files.into_iter().chain(["student/config.json"]);
        let names: Vec<_> = names.chain(["student/model.safetensors"]).collect();
        for name in &names {
            fs::write(path.join(name), name).unwrap();
        }
        manifest::write(&path, &names).unwrap();
    }
    let found = checkpoints.newest().unwrap().expect("a checkpoint");
    assert_eq!(found.path, folder.path().join("narrow-step10000000"));
    assert_eq!(
        (found.progress.as_str(), found.damaged),
        ("progress.toml", vec![])
    );

    // The error names the damaged checkpoint and the file, and the checkpoint is renamed at once. Checkpoints older
    // than the newest undamaged one are not read.
    fs::write(found.path.join("optimizer.safetensors"), "other").unwrap();
    fs::remove_file(folder.path().join("wide-step0000005/SHA256SUMS")).unwrap();
    let before = checkpoints.newest().unwrap().expect("a checkpoint");
    assert_eq!(before.path, folder.path().join("narrow-step0000001"));
    let damaged: Vec<_> = before.damaged.iter().map(|damaged| &damaged.path).collect();
    assert_eq!(damaged, [&found.path]);
    assert!(before.damaged[0].reason.contains("optimizer.safetensors"));
    checkpoints.set_aside(&before.damaged).unwrap();
    let again = checkpoints.newest().unwrap().expect("a checkpoint");
    assert_eq!((again.path, again.damaged), (before.path, vec![]));
    assert!(found.path.with_added_extension("damaged").exists());

    // A run goes back to one that was due, of the stage that it is in, and forgets what came after it.
    let last_due = |every, stage| {
        let stages = ["wide", "narrow"].map(str::to_owned).to_vec();
        let checkpoints = Checkpoints::new(folder.path().to_owned(), 2, stages).with_due(every);
        checkpoints.last_due(stage).map(|found| found.path)
    };
    let at = |name: &str| folder.path().join(name);
    assert_eq!(last_due(50, "wide").unwrap(), at("wide-step0000700"));
    assert_eq!(last_due(1, "narrow").unwrap(), at("narrow-step0000001"));
    assert!(last_due(50, "narrow").is_err());
    let position = Position {
        stage: "wide".into(),
        step: 700,
    };
    checkpoints.remove_after(&position).unwrap();
    assert!(at("wide-step0000700").exists() && at("wide-step0000005").exists());
    assert!(!at("narrow-step0000001").exists());

    fs::create_dir(folder.path().join("gone-step0000001")).unwrap();
    let message = checkpoints.newest().unwrap_err().to_string();
    assert!(message.contains("no stage `gone`"), "{message}");
}
