//! A task's data from a hub on this machine.

use std::path::Path;
use std::process::{Command, Output};

use super::server::{Hub, Site};
use crate::support::teacher_folder;

const DATASET: &str = "datasets/allenai/ai2_arc";

/// A hub that holds four documents of ARC in each of two files, and another split.
fn hub() -> Hub {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/eval");
    let rows = std::fs::read(data.join("arc_easy-rows.parquet")).unwrap();
    let files = ["test/0000", "test/0001", "train/0000"];
    let files = files.map(|file| (format!("ARC-Easy/{file}.parquet"), rows.clone()));
    let mut site = Site::default();
    site.models.insert(DATASET.into(), files.into());
    site.open()
}

fn eval(home: &Path, endpoint: &str, task: &str, offline: bool) -> Output {
    let mut infer = Command::new(env!("CARGO_BIN_EXE_infer"));
    infer.args(["eval", "--backend", "flex", "--tasks", task, "--model"]);
    infer.arg(teacher_folder());
    infer.env("XDG_CACHE_HOME", home).env("HF_HOME", home);
    infer.env("HF_ENDPOINT", endpoint).env_remove("HF_TOKEN");
    infer.env("HF_HUB_OFFLINE", if offline { "1" } else { "0" });
    infer.env_remove("HF_HUB_CACHE");
    infer.output().unwrap()
}

fn said(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn a_task_comes_from_the_hub_and_then_from_the_cache() {
    let home = tempfile::tempdir().unwrap();
    let endpoint = hub().endpoint;
    let nothing_yet = eval(home.path(), &endpoint, "arc_easy", true);
    assert_eq!(nothing_yet.status.code(), Some(1));
    assert!(said(&nothing_yet).contains("HF_HUB_OFFLINE forbids to fetch it"));

    let fetched = eval(home.path(), &endpoint, "arc_easy", false);
    assert!(fetched.status.success(), "{}", said(&fetched));
    // Four documents a file, in both files of the split.
    assert!(
        said(&fetched).contains("8 documents in "),
        "{}",
        said(&fetched)
    );
    for (endpoint, offline) in [("http://127.0.0.1:9", false), (endpoint.as_str(), true)] {
        let cached = eval(home.path(), endpoint, "arc_easy", offline);
        assert!(cached.status.success(), "{}", said(&cached));
        assert_eq!(cached.stdout, fetched.stdout);
    }
}

#[test]
fn what_the_hub_has_not_is_a_sentence() {
    let home = tempfile::tempdir().unwrap();
    let endpoint = hub().endpoint;
    let refused = |endpoint: &str, task: &str| {
        let output = eval(home.path(), endpoint, task, false);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(said(&output).lines().count(), 1, "{}", said(&output));
        said(&output).to_owned()
    };
    let unknown = refused(&endpoint, "piqa");
    assert!(unknown.contains("the data set baber/piqa"), "{unknown}");
    assert!(unknown.contains("--data takes a folder"), "{unknown}");
    let split = refused(&endpoint, "arc_challenge");
    assert!(
        split.contains("it has no ARC-Challenge/test in parquet"),
        "{split}"
    );
    let unreachable = refused("http://127.0.0.1:9", "hellaswag");
    assert!(
        unreachable.contains("hellaswag: fetching the data set"),
        "{unreachable}"
    );
}
