//! Saved scores: an interrupted evaluation resumes, and only with its own scores.

use std::fs::{self, File};
use std::path::Path;
use std::process::Output;

use serde_json::Value;
use tempfile::TempDir;

use super::{bundled, eval, infer_with, json, kept, stderr, stdout};
use crate::support::teacher_folder;

/// An evaluation of eight documents whose results cannot be written, so that the scores are kept.
#[cfg(target_os = "linux")]
fn interrupted(home: &TempDir, model: &Path) -> Output {
    let mut eval = infer_with(home.path(), "eval", model);
    eval.args(["--tasks", "piqa", "--limit", "8", "--json", "/dev/full"]);
    let output = eval.arg("--data").arg(bundled()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(kept(home), 1);
    output
}

#[cfg(target_os = "linux")]
#[test]
fn an_interrupted_evaluation_resumes() {
    let home = tempfile::tempdir().unwrap();
    let first = interrupted(&home, &teacher_folder());
    assert!(
        stderr(&first).contains("cannot write /dev/full"),
        "{}",
        stderr(&first)
    );
    // What could not be written was shown.
    assert!(stdout(&first).contains("|piqa"));

    let file = home.path().join("results.json");
    let arguments = ["--limit", "8", "--json", file.to_str().unwrap()];
    let tasks = "winogrande,piqa";
    let second = eval(home.path(), &bundled(), tasks, &arguments);
    assert!(second.status.success());
    let said = stderr(&second);
    assert!(said.contains("resuming: 16 of 32 requests"), "{said}");
    // The time is not that of all documents.
    assert!(!said.contains("documents/s"), "{said}");
    assert_eq!(kept(&home), 0);
    let gone_on = json(&file);

    let third = eval(home.path(), &bundled(), tasks, &arguments);
    assert!(!stderr(&third).contains("resuming"));
    let at_once = json(&file);
    for task in ["piqa", "winogrande"] {
        let close = |i: usize, j: usize| {
            let of = |report: &Value| {
                report["samples"][task][i]["log_likelihoods"][j]
                    .as_f64()
                    .unwrap()
            };
            (of(&gone_on) - of(&at_once)).abs() < 1e-4
        };
        assert!((0..8).all(|i| close(i, 0) && close(i, 1)));
    }
    assert_eq!(gone_on["results"], at_once["results"]);
}

#[test]
fn what_cannot_be_kept_is_said_once() {
    let home = tempfile::tempdir().unwrap();
    // A file where the cache should be.
    let cache = home.path().join("cache");
    fs::write(&cache, "").unwrap();
    let output = eval(&cache, &bundled(), "piqa", &["--limit", "4"]);
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert!(stdout(&output).contains("piqa"));
    assert_eq!(said.matches("cannot write").count(), 1, "{said}");
    assert!(!said.contains("cannot remove"), "{said}");
}

/// Saved scores are not used for other weights, even if the file has the same size and time; a damaged file of scores
/// is named.
#[cfg(target_os = "linux")]
#[test]
fn scores_that_were_kept_are_believed_with_reason() {
    let home = tempfile::tempdir().unwrap();
    let model = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(teacher_folder()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, model.path().join(path.file_name().unwrap())).unwrap();
    }
    let again = || {
        let mut eval = infer_with(home.path(), "eval", model.path());
        eval.args(["--tasks", "piqa", "--limit", "8"]);
        let output = eval.arg("--data").arg(bundled()).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output).to_owned()
    };
    interrupted(&home, model.path());
    let weights = model.path().join("model.safetensors");
    let modified = fs::metadata(&weights).unwrap().modified().unwrap();
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    let file = File::options().write(true).open(&weights).unwrap();
    file.set_modified(modified).unwrap();
    assert!(!again().contains("resuming"));
    fs::remove_dir_all(home.path().join("mohawk")).unwrap();

    interrupted(&home, model.path());
    let entry = fs::read_dir(home.path().join("mohawk/eval"))
        .unwrap()
        .next();
    let path = entry.unwrap().unwrap().path();
    let mut bytes = fs::read(&path).unwrap();
    bytes[30] ^= 4;
    fs::write(&path, bytes).unwrap();
    let said = again();
    assert!(said.contains(path.to_str().unwrap()), "{said}");
    assert!(
        said.contains("damaged; everything is scored anew"),
        "{said}"
    );
    assert!(!said.contains("resuming"), "{said}");
    assert_eq!(kept(&home), 0);
}
