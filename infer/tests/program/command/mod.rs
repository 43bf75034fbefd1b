//! `infer generate`: its output, its options, and its exit codes.

mod families;
mod model_files;

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::{student_folder, teacher_folder};

fn generate(model: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_infer"));
    command.arg("generate").arg("--model").arg(model);
    command.args(["--backend", "flex"]).args(arguments);
    command
}

fn output(model: &Path, arguments: &[&str]) -> Output {
    generate(model, arguments).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// The message of a program that fails with `code`, without text and without a panic.
fn failure(output: &Output, code: i32) -> String {
    let message = stderr(output).to_owned();
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert_eq!(stdout(output), "");
    assert!(message.starts_with("error: "), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    message
}

#[test]
fn text_goes_to_stdout_and_speed_to_stderr() {
    let arguments = ["--max-tokens", "8", "It was the best of times"];
    let output = output(&teacher_folder(), &arguments);
    assert!(output.status.success());
    assert_eq!(stdout(&output), " the past year, and the most important\n");
    let report = stderr(&output);
    assert_eq!(report.lines().count(), 1, "{report}");
    assert!(report.contains("prefill 6 tokens, "), "{report}");
    assert!(report.contains("decode 7 tokens, "), "{report}");
}

#[test]
fn a_prompt_comes_from_stdin_too() {
    // As some editors write a file.
    let marked = "\u{feff}It was the best of times";
    let as_argument = output(&teacher_folder(), &["--max-tokens", "8", marked]);
    assert_eq!(
        stdout(&as_argument),
        " the past year, and the most important\n"
    );
    for prompt in [
        "It was the best of times",
        "It was the best of times\n",
        "It was the best of times\r\n",
        marked,
    ] {
        let mut child = generate(&teacher_folder(), &["--max-tokens", "8", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(prompt.as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        assert_eq!(stdout(&output), " the past year, and the most important\n");
    }
}

#[test]
fn an_exported_student_generates() {
    let folder = student_folder(&[]);
    let arguments = [
        "--max-tokens",
        "20",
        "--temperature",
        "1",
        "Once upon a time",
    ];
    let text = output(folder.path(), &arguments);
    assert!(text.status.success(), "{}", stderr(&text));
    assert!(stdout(&text).len() > 1);
    assert_eq!(stdout(&text), stdout(&output(folder.path(), &arguments)));
}

#[test]
fn options_without_meaning_are_refused() {
    let model = teacher_folder();
    let refused = |arguments: &[&str], code| failure(&output(&model, arguments), code);
    assert!(refused(&["--temperature", "-1", "x"], 1).contains("temperature is -1"));
    assert!(refused(&["--top-p", "1.5", "x"], 1).contains("top-p is 1.5"));
    assert!(refused(&["--repetition-penalty", "0", "x"], 1).contains("repetition-penalty is 0"));
    assert!(refused(&["--top-k", "-1", "x"], 2).contains("--top-k"));
    assert!(refused(&[], 2).contains("<PROMPT>"));
    let no_such_backend = Command::new(env!("CARGO_BIN_EXE_infer"))
        .args(["generate", "--model", "x", "--backend", "abacus", "x"])
        .output()
        .unwrap();
    assert!(failure(&no_such_backend, 2).contains("this build holds "));
}

/// The precision that a state was read in is stored with it, and another one is noted.
#[test]
fn a_state_of_another_precision_is_noted() {
    let folder = tempfile::tempdir().unwrap();
    let files = ["a", "b"].map(|name| folder.path().join(name));
    let [a, b] = [0, 1].map(|i| files[i].to_str().unwrap());
    let said = |arguments: &[&str]| {
        let few = ["--max-tokens", "2"];
        let output = output(&teacher_folder(), &[&few[..], arguments].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output).to_owned()
    };
    said(&["--save-state", a, "It was"]);
    assert!(!said(&["--load-state", a, "--dtype", "f32"]).contains("was read in"));
    let other = said(&["--load-state", a, "--save-state", b, "--dtype", "int8"]);
    let note = "the text was read in f32, and is continued in int8";
    assert!(other.contains(note), "{other}");
    let again = said(&["--load-state", b, "--dtype", "int8"]);
    assert!(again.contains("read in f32, then int8"), "{again}");
}

#[test]
fn failures_are_sentences() {
    let missing = output(Path::new("no/such/folder"), &["x"]);
    assert!(failure(&missing, 1).contains("no/such/folder"));

    let long = output(&teacher_folder(), &[&"a ".repeat(4000)]);
    assert!(failure(&long, 1).contains("max_position_embeddings"));

    let mut not_text = generate(&teacher_folder(), &["-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    not_text
        .stdin
        .take()
        .unwrap()
        .write_all(b"\xff\xfeO\0n\0c\0e\0")
        .unwrap();
    let said = failure(&not_text.wait_with_output().unwrap(), 1);
    assert!(
        said.contains("standard input is not UTF-8") && said.contains("UTF-16"),
        "{said}"
    );
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = generate(&teacher_folder(), &["--max-tokens", "2", "x"])
        .stdout(full)
        .output()
        .unwrap();
    assert!(failure(&output, 1).contains("cannot be written to standard output"));
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut help = Command::new(env!("CARGO_BIN_EXE_infer"));
    let output = help.arg("--help").stdout(full).output().unwrap();
    assert!(failure(&output, 1).contains("the help cannot be written"));
}

/// As with `infer generate ... | head -c 5`.
#[test]
fn a_reader_that_leaves_ends_it_quietly() {
    let mut child = generate(&teacher_folder(), &["--max-tokens", "2000", "x"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 5]).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(stderr(&output), "");
}
