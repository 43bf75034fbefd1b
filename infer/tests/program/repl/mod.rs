//! `infer repl`: sessions on a terminal and through a pipe.

mod chat;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};

use burn::tensor::Device;
use datasets::Tokenizer;
use infer::end_tokens::EndTokens;
use infer::{GenerateOptions, Generation, SamplingSettings};
use kernels::runtime::Flex;
use tempfile::TempDir;

use crate::support::{chat_folder, student_folder, teacher_folder};

const LINE: &str = "It was the best of times";

fn repl(model: &Path, arguments: &[&str]) -> Command {
    let mut infer = Command::new(env!("CARGO_BIN_EXE_infer"));
    infer.args(["repl", "--backend", "flex", "--model"]);
    infer.arg(model).args(arguments);
    infer.stdin(Stdio::piped()).stdout(Stdio::piped());
    infer.stderr(Stdio::piped());
    infer
}

fn start(mut repl: Command) -> (Child, ChildStdin) {
    let mut child = repl.spawn().unwrap();
    let stdin = child.stdin.take().unwrap();
    (child, stdin)
}

/// The output of a session with some lines.
fn session(model: &Path, arguments: &[&str], lines: &[&str]) -> Output {
    let (child, mut stdin) = start(repl(model, arguments));
    stdin
        .write_all((lines.join("\n") + "\n").as_bytes())
        .unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    output
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn generated(model: &Path, arguments: &[&str], prompt: &str) -> String {
    let mut infer = Command::new(env!("CARGO_BIN_EXE_infer"));
    infer.args(["generate", "--backend", "flex", "--model"]);
    infer.arg(model).args(arguments).arg(prompt);
    stdout(&infer.output().unwrap())
}

/// A folder for what is saved, and a file in it.
fn file() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session.txt");
    (folder, path)
}

#[test]
fn a_session_is_one_text() {
    let few = ["--max-tokens", "9"];
    let student = student_folder(&[]);
    for model in [&teacher_folder(), student.path()] {
        let (_folder, path) = file();
        let save = format!("/save {}", path.display());
        let output = session(model, &few, &[LINE, "", "He said", &save]);
        let text = fs::read_to_string(&path).unwrap();
        // The first turn continues what was typed, the second the first.
        let first = generated(model, &few, &format!("{LINE}\n"));
        let both = generated(model, &["--max-tokens", "18"], &format!("{LINE}\n"));
        let first = first.strip_suffix('\n').unwrap();
        let both = both.strip_suffix('\n').unwrap();
        let begin = format!("{LINE}\n{both}");
        assert!(text.starts_with(&begin), "{text:?}, {both:?}");
        let rest = text[begin.len()..].trim_start_matches('\n');
        let last = rest.strip_prefix("He said\n").unwrap();
        // On the screen each turn ends with its line.
        let line = |text: &str| format!("{}\n", text.strip_suffix('\n').unwrap_or(text));
        let shown = [first, &both[first.len()..], last].map(line).concat();
        assert_eq!(stdout(&output), shown);
        let said = stderr(&output);
        assert_eq!(said.matches("9 tokens, ").count(), 3, "{said}");
        assert_eq!(said.matches(" tokens/s; --max-tokens were made").count(), 3);
    }
}

/// As in a file that some editors write, and that comes through a pipe.
#[test]
fn a_byte_order_mark_is_no_text() {
    let few = ["--max-tokens", "5"];
    let marked = format!("\u{feff}{LINE}");
    let [marked, plain] = [&marked, LINE].map(|line| session(&teacher_folder(), &few, &[line]));
    assert_eq!(stdout(&marked), stdout(&plain));
}

#[test]
fn seeds_and_settings_count() {
    let model = teacher_folder();
    let text = |settings: &[&str]| {
        let (_folder, path) = file();
        let save = format!("/save {}", path.display());
        let lines = [settings, &[LINE, "", &save]].concat();
        let drawn = ["--max-tokens", "12", "--temperature", "1"];
        let said = stderr(&session(&model, &drawn, &lines));
        for command in settings.iter().filter_map(|line| line.strip_prefix('/')) {
            let confirmed = command.replace("reset", "a new text begins");
            assert!(said.lines().any(|line| line == confirmed), "{said}");
        }
        fs::read_to_string(path).unwrap()
    };
    let drawn = text(&["/seed 5"]);
    assert_eq!(drawn, text(&["/seed 5"]));
    // As if there had been no earlier turns.
    assert_eq!(drawn, text(&["something else", "/reset", "/seed 5"]));
    assert_ne!(drawn, text(&["/seed 6"]));
    let greedy = text(&["/temperature 0"]);
    assert_ne!(drawn, greedy);
    assert_eq!(greedy, text(&["/top-p 0"]));
}

#[test]
fn what_is_no_command_is_explained() {
    let (folder, path) = file();
    let nowhere = format!("/save {}", folder.path().display());
    let lines = [
        "/help",
        "/rest",
        "/seed x",
        "/temperature -1",
        "/top-p 2",
        &nowhere,
        "/quit",
        "never read",
    ];
    let output = session(&teacher_folder(), &[], &lines);
    let said = stderr(&output);
    for part in [
        "/save FILE",
        "there is no command /rest",
        "/seed takes a whole number",
        "temperature is -1",
        "top-p is 2",
        "cannot write",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    assert_eq!(stdout(&output), "");
    assert!(!path.exists());
}

#[test]
fn a_context_that_is_full_can_be_left() {
    let long = "a ".repeat(2100);
    let lines = [LINE, "", "more", "/reset", &long, "/reset", LINE];
    let output = session(&teacher_folder(), &["--max-tokens", "2030"], &lines);
    let said = stderr(&output);
    let full = "the model has no position left; /reset begins a new text";
    assert_eq!(said.matches(full).count(), 1, "{said}");
    assert_eq!(
        said.matches("positions for 2048; /reset").count(),
        2,
        "{said}"
    );
    assert_eq!(said.matches("--max-tokens were made").count(), 2, "{said}");
}

/// The first line of a text begins with a begin-of-text; later lines do not.
#[test]
fn a_text_begins_once() {
    let folder = chat_folder(&teacher_folder());
    let config = r#"{"bos_token": "!", "add_bos_token": true}"#;
    fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    let begin = tokenizer.id_of("!").unwrap();
    let device = Device::<Flex>::default();
    let (config, model) = model::load_any::<Flex>(folder.path(), &device).unwrap();
    let options = GenerateOptions {
        sampling: SamplingSettings::default(),
        max_tokens: 9,
        vocab_size: tokenizer.vocab_size(),
        end_tokens: EndTokens::of(folder.path(), &tokenizer, model.vocab_size()).unwrap(),
        end_of_text: tokenizer.end_of_text(),
        max_positions: config.max_positions(),
    };
    let continued = |text: &[u32]| -> Vec<u32> {
        let made = Generation::new(&model, &device, text, options.clone()).unwrap();
        made.map(|token| token.unwrap()).collect()
    };
    let line = tokenizer.encode(&format!("{LINE}\n")).unwrap();
    let mut text = [&[begin][..], &line[..]].concat();
    let first = continued(&text);
    text.extend(&first);
    let said = tokenizer.decode(&first).unwrap();
    let next = if format!("{LINE}\n{said}").ends_with('\n') {
        "He said\n"
    } else {
        "\nHe said\n"
    };
    text.extend(tokenizer.encode(next).unwrap());
    let second = tokenizer.decode(&continued(&text)).unwrap();

    let few = ["--max-tokens", "9"];
    let again = session(folder.path(), &few, &[LINE, "He said", "/reset", LINE]);
    let ended = |text: &str| format!("{}\n", text.strip_suffix('\n').unwrap_or(text));
    let expected = [&said, &second, &said].map(|text| ended(text)).concat();
    assert_eq!(stdout(&again), expected);
}

/// Without an end-of-text token, a text cannot begin with an empty line.
#[test]
fn an_empty_beginning_does_not_end_it() {
    let teacher = teacher_folder();
    let (folder, _) = file();
    let own = folder.path().join("tokenizer.json");
    let text = fs::read_to_string(teacher.join("tokenizer.json")).unwrap();
    fs::write(&own, text.replace("<|endoftext|>", "<|no more|>")).unwrap();
    let arguments = ["--max-tokens", "3", "--tokenizer", own.to_str().unwrap()];
    let said = stderr(&session(&teacher, &arguments, &["", LINE]));
    assert!(said.contains("no text to continue"), "{said}");
    assert!(said.contains("3 tokens, "), "{said}");
}

/// Sends Ctrl-C to a process, as a terminal does.
#[cfg(unix)]
fn interrupt(child: &Child) {
    let pid = child.id().to_string();
    let sent = Command::new("kill").args(["-INT", &pid]).status();
    assert!(sent.unwrap().success());
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_the_answer_and_not_the_program() {
    let student = student_folder(&[]);
    let (_folder, path) = file();
    let (mut child, mut stdin) = start(repl(student.path(), &["--max-tokens", "100000000"]));
    writeln!(stdin, "{LINE}").unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 5]).unwrap();
    interrupt(&child);
    // The output is still read, so that a full pipe does not block the program.
    let rest = std::thread::spawn(move || out.read_to_end(&mut Vec::new()));
    let mut err = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    err.read_line(&mut line).unwrap();
    assert!(line.ends_with("; interrupted\n"), "{line}");
    writeln!(stdin, "/save {}", path.display()).unwrap();
    line.clear();
    err.read_line(&mut line).unwrap();
    assert!(line.contains("bytes of text"), "{line}");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with(LINE) && text.len() > LINE.len() + 5);

    // If the model is not working, Ctrl-C ends the program.
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    rest.join().unwrap().unwrap();
}

#[test]
fn a_reader_that_leaves_ends_it_quietly() {
    let (mut child, mut stdin) = start(repl(&teacher_folder(), &["--max-tokens", "2000"]));
    writeln!(stdin, "{LINE}").unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 5]).unwrap();
    drop(out);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(stderr(&output), "");
}

/// On a terminal: the prompt, an edited line, an answer that Ctrl-C stops, and Ctrl-D.
#[cfg(target_os = "linux")]
#[test]
fn on_a_terminal() {
    let student = student_folder(&[]);
    let home = tempfile::tempdir().unwrap();
    let infer = repl(student.path(), &["--max-tokens", "100000000"]);
    let arguments = infer.get_args().map(|argument| argument.to_str().unwrap());
    // `exec`, because a shell that waited would receive Ctrl-C too, and end.
    let mut command = vec!["exec", env!("CARGO_BIN_EXE_infer")];
    command.extend(arguments);
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--flush", "--return", "--command"]);
    terminal.args([&command.join(" "), "/dev/null"]);
    terminal
        .env("TERM", "xterm")
        .env("XDG_STATE_HOME", home.path());
    let piped = terminal.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    let (mut keys, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut seen = String::new();
    let mut wait_for = |what: &str| {
        while !seen.contains(what) {
            let mut bytes = [0; 4096];
            let n = screen.read(&mut bytes).unwrap();
            assert!(n > 0, "no {what:?} in {seen:?}");
            seen.push_str(&String::from_utf8_lossy(&bytes[..n]));
        }
        seen = seen.split_once(what).unwrap().1.to_owned();
    };
    wait_for("> ");
    // A letter too many, taken back.
    keys.write_all(b"Once upon a timex\x7f\r").unwrap();
    wait_for("Once upon a time");
    // The speed, while it streams.
    wait_for(" tokens/s\x1b");
    keys.write_all(b"\x03").unwrap();
    wait_for("; interrupted");
    wait_for("> ");
    keys.write_all(b"\x04").unwrap();
    assert!(child.wait().unwrap().success());
    let history = fs::read_to_string(home.path().join("mohawk/repl-history")).unwrap();
    assert!(history.contains("Once upon a time\n"), "{history}");
}
