//! Streams, files and folders around a command: closed or full ones, unsuitable places for results, and irrelevant
//! files.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;

use super::{bundled, eval, failure, infer, infer_with, json, kept, perplexity, stderr, stdout};
use crate::support::teacher_folder;

/// A stream whose other end is closed.
fn closed() -> Stdio {
    std::io::pipe().unwrap().1.into()
}

/// If progress, tables and notes cannot be written, an evaluation continues and loses no results.
#[cfg(target_os = "linux")]
#[test]
fn nothing_that_is_shown_stops_what_is_made() {
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("results.json");
    let data = bundled().join("texts.jsonl");
    let commands = [
        ("eval", vec!["--tasks", "piqa", "--limit", "4", "--data"]),
        ("perplexity", vec!["--max-length", "512"]),
    ];
    for (command, arguments) in commands {
        for (out, err, code) in [
            (Stdio::piped(), closed(), 0),
            (Stdio::piped(), full(), 0),
            (closed(), closed(), 0),
            (full(), full(), 1),
            (full(), Stdio::piped(), 1),
            (closed(), Stdio::piped(), 0),
        ] {
            let _ = fs::remove_file(&file);
            let mut infer = infer(home.path(), command);
            infer.args(&arguments);
            let data = if command == "eval" {
                bundled()
            } else {
                data.clone()
            };
            infer.arg(data).arg("--json").arg(&file);
            let output = infer.stdout(out).stderr(err).output().unwrap();
            assert_eq!(output.status.code(), Some(code), "{command}");
            assert!(json(&file).is_object(), "{command}");
            let said = stderr(&output);
            assert!(!said.contains("panicked"), "{said}");
            assert_eq!(kept(&home), 0);
        }
    }
    // Without a file for the results, scores that could not be shown are kept. The note of a resumed evaluation cannot
    // be shown either.
    for (out, code, left) in [(closed(), 0, 1), (full(), 1, 1), (Stdio::piped(), 0, 0)] {
        let mut infer = infer(home.path(), "eval");
        infer.args(["--tasks", "piqa", "--limit", "4", "--data"]);
        let output = infer.arg(bundled()).stdout(out).stderr(closed()).output();
        assert_eq!(output.unwrap().status.code(), Some(code));
        assert_eq!(kept(&home), left);
    }
}

/// Before a model or data are looked for.
#[test]
fn a_place_where_results_cannot_be_is_found_first() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [
        home.path().to_owned(),
        file.join("results.json"),
        home.path().join("new/"),
    ] {
        let arguments = ["--json", path.to_str().unwrap(), "no/such/text"];
        let said = failure(&perplexity(home.path(), &arguments));
        assert!(said.contains("cannot write"), "{said}");
        let arguments = &arguments[..2];
        let said = failure(&eval(
            home.path(),
            Path::new("no/such/data"),
            "piqa",
            arguments,
        ));
        assert!(said.contains("cannot write"), "{said}");
    }
}

/// Other files in the model's folder, and an invalid home folder, do not matter.
#[cfg(unix)]
#[test]
fn surroundings_do_not_matter() {
    let home = tempfile::tempdir().unwrap();
    let model = home.path().join("model");
    fs::create_dir(&model).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::os::unix::fs::symlink(teacher_folder().join(name), model.join(name)).unwrap();
    }
    for name in ["nowhere", "generation_config.json"] {
        std::os::unix::fs::symlink("no/such/file", model.join(name)).unwrap();
    }
    let text = home.path().join("text.txt");
    fs::write(&text, "\u{feff}It was the best of times").unwrap();
    for (kept_at, place) in [
        ("nowhere", "neither XDG_CACHE_HOME nor HOME"),
        ("/dev/null", ""),
    ] {
        let mut infer = infer_with(home.path(), "perplexity", &model);
        infer.env_remove("XDG_CACHE_HOME").env("HOME", kept_at);
        let output = infer.current_dir(home.path()).arg(&text).output().unwrap();
        let said = stderr(&output);
        assert!(output.status.success(), "{said}");
        // The mark is no token.
        assert!(stdout(&output).contains("1 documents, 6 tokens, 24 bytes"));
        assert!(
            said.contains(place) && said.contains("an interruption would lose"),
            "{said}"
        );
        assert!(!home.path().join("nowhere").exists());
    }
}
