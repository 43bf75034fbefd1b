//! `train bench`: what it times, and the random weights that it keeps and removes.

use super::*;

#[test]
fn the_stages_are_timed() {
    const ARGUMENTS: [&str; 14] = [
        "bench",
        "--preset",
        "tiny",
        "--stage",
        "teacher,stage1,stage2,stage3",
        "--batch",
        "2",
        "--length",
        "32",
        "--steps",
        "2",
        "--backend",
        "flex",
        "--json",
    ];
    let folder = tempfile::tempdir().expect("a folder");
    let profile = folder.path().join("steps.json");
    let checkpoints = tempfile::tempdir().expect("a folder");
    let mut command = train(&ARGUMENTS);
    command.arg("--profile").arg(&profile);
    command.arg("--checkpoint").arg(checkpoints.path());
    let output = command.output().expect("a program");
    assert!(output.status.success(), "{}", stderr(&output));
    trace::check(&profile, &["teacher", "stage1", "stage2", "stage3"]);
    let left = std::fs::read_dir(checkpoints.path()).expect("a folder");
    assert_eq!(left.count(), 0);
    let json: serde_json::Value = serde_json::from_str(stdout(&output)).expect("JSON");
    assert!(json["matmul_operations_per_second"].as_f64() > Some(0.0));
    let rows = json["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 4);
    let names = ["teacher", "stage1", "stage2", "stage3"];
    for ((stage, row), name) in rows.iter().enumerate().zip(names) {
        assert_eq!(row["stage"], name);
        assert_eq!(row["batch"], 2);
        assert_eq!(row["length"], 32);
        for key in [
            "tokens_per_second",
            "queued_tokens_per_second",
            "operations_per_token",
            "share_of_matmul_rate",
        ] {
            assert!(row[key].as_f64() > Some(0.0), "stage {stage}: {key}");
        }
        assert_eq!(row["loss"].is_number(), stage > 0, "stage {stage}");
        let checkpoint = &row["checkpoint"];
        assert_eq!(checkpoint.is_object(), stage > 0, "stage {stage}");
        if stage > 0 {
            assert!(checkpoint["bytes"].as_u64() > Some(0), "{checkpoint}");
            assert!(checkpoint["steps_while_written"].as_u64() >= Some(5));
        }
        let kinds = row["milliseconds"].as_object().expect("kinds of work");
        let expected: &[&str] = match stage {
            0 => &["products", "attention", "elementwise"],
            1 => &[
                "products",
                "convolution",
                "attention",
                "losses",
                "optimizer",
            ],
            2 => &["products", "scan", "attention", "optimizer"],
            _ => &["products", "scan", "attention", "losses", "optimizer"],
        };
        for kind in expected {
            assert!(
                kinds.contains_key(*kind),
                "stage {stage}: {kind}, of {kinds:?}"
            );
        }
        assert!(kinds.contains_key("other"));
    }

    assert_eq!(json["teacher"], "assets/phi-tiny");

    // The same as a table, of one stage, with the teacher of a folder.
    let mut once = ARGUMENTS[..13].to_vec();
    once[4] = "stage2";
    once.extend(["--teacher", PHI_TINY]);
    let table = train(&once).output().expect("a program");
    assert!(stdout(&table).contains(PHI_TINY), "{}", stdout(&table));
    let lines = stdout(&table)
        .lines()
        .filter(|line| line.starts_with("| stage2 |"));
    assert_eq!(lines.count(), 1, "{}", stdout(&table));

    let preset = failure(train(&["bench", "--preset", "huge"]), 1);
    assert!(preset.contains("phi-1.5"), "{preset}");
    let stage = failure(
        train(&["bench", "--preset", "tiny", "--stage", "stage4"]),
        1,
    );
    assert!(stage.contains("did you mean `stage1`?"), "{stage}");
    let teacher = ["bench", "--preset", "tiny", "--teacher", "no/such/folder"];
    let teacher = failure(train(&teacher), 1);
    assert!(teacher.contains("no/such/folder"), "{teacher}");
    let profile = ["bench", "--preset", "tiny", "--profile", "no/such/folder/a"];
    let profile = failure(train(&profile), 1);
    assert!(profile.contains("no/such/folder/a"), "{profile}");
    let help = train(&["bench", "--help"]).output().expect("a program");
    assert!(!stdout(&help).contains('\\'), "{}", stdout(&help));
}

/// `bench` of the teacher on one short sequence, with the hub's cache in `home` and `more` arguments.
fn bench(home: &Path, more: &[&str]) -> Command {
    let mut command = train(&["bench", "--backend", "flex", "--precision", "f32"]);
    command.args([
        "--stage", "teacher", "--batch", "1", "--length", "32", "--steps", "1",
    ]);
    command.env("HF_HOME", home).env_remove("HF_HUB_CACHE");
    command.args(more);
    command
}

/// Any model that is in the cache of the hub is timed, under its name.
#[test]
fn a_cached_teacher_is_timed() {
    let home = folder();
    let model = home.path().join("hub/models--someone--tiny");
    let snapshot = model.join("snapshots/abc");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(model.join("refs")).unwrap();
    std::fs::write(model.join("refs/main"), "abc").unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(Path::new(PHI_TINY).join(file), snapshot.join(file)).unwrap();
    }
    let named = |name| ["--preset", "tiny", "--set", name];
    let output = bench(home.path(), &named("teacher.model=someone/tiny"))
        .output()
        .expect("a program");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stdout(&output).contains("someone/tiny"),
        "{}",
        stdout(&output)
    );

    let other = failure(bench(home.path(), &named("teacher.model=someone/other")), 1);
    assert!(other.contains("someone/other"), "{other}");
}

/// Random weights do not replace files that are there.
#[test]
fn weights_are_not_written_over() {
    let (home, theirs) = (folder(), folder());
    let weights = theirs.path().join("model.safetensors");
    std::fs::write(&weights, "weeks of work").unwrap();
    let path = theirs.path().to_str().expect("UTF-8");
    let refused = failure(bench(home.path(), &["--weights", path]), 1);
    assert!(refused.contains("is not written over"), "{refused}");
    assert!(refused.contains(path), "{refused}");
    assert_eq!(std::fs::read(&weights).unwrap(), b"weeks of work");
    assert_eq!(std::fs::read_dir(theirs.path()).unwrap().count(), 1);
}

#[test]
#[cfg(unix)]
fn an_interrupt_leaves_no_random_weights() {
    let (home, temporary) = (folder(), folder());
    let mut child = bench(home.path(), &[])
        .env("TMPDIR", temporary.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a program");
    let entries = |folder: &Path| -> Vec<_> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let is_writing = || {
        let folders = entries(temporary.path()).into_iter();
        folders
            .into_iter()
            .any(|folder| !entries(&folder).is_empty())
    };
    while !is_writing() && child.try_wait().expect("a child").is_none() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let interrupt = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(interrupt.expect("kill").success());
    let status = child.wait().expect("an end");
    assert_eq!(status.code(), Some(130));
    assert!(entries(temporary.path()).is_empty());
}
