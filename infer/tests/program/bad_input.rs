//! Mistakes of users, and failures of disks: each gives one clear sentence and an exit code, and leaves no
//! file.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{student_folder, teacher_folder};

fn infer(command: &str, arguments: &[&str]) -> Command {
    let mut infer = Command::new(env!("CARGO_BIN_EXE_infer"));
    infer.arg(command).args(arguments).stdin(Stdio::null());
    infer
}

fn generate(model: &Path, arguments: &[&str]) -> Command {
    let mut infer = infer("generate", &["--backend", "flex", "--max-tokens", "2"]);
    infer.arg("--model").arg(model).args(arguments);
    infer
}

fn fed(mut command: Command, input: &[u8]) -> Output {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = piped.stderr(Stdio::piped()).spawn().unwrap();
    // A program that fails early may not read all of its input.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// The message of a command that fails with `code`: no panic, and no result beside it.
fn refused(output: &Output, code: i32) -> String {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(output.stdout.is_empty(), "{said}");
    assert!(said.starts_with("error: "), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// The one sentence that it fails with.
fn sentence(mut command: Command) -> String {
    let said = refused(&command.output().unwrap(), 1);
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

#[track_caller]
fn says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
}

fn copy_of(folder: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    // The manifest would detect the damage before the check under test does.
    let _ = fs::remove_file(copy.path().join("SHA256SUMS"));
    copy
}

#[test]
fn weights_that_are_cut_short_or_lie() {
    let model = copy_of(&teacher_folder());
    let path = model.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap());
    let with_length = |length: u64| [&length.to_le_bytes(), &whole[8..]].concat();
    let text = String::from_utf8(whole[8..8 + header as usize].to_vec()).unwrap();
    let data = &whole[8 + header as usize..];
    let with_header = |text: &str| {
        let length = (text.len() as u64).to_le_bytes();
        [&length[..], text.as_bytes(), data].concat()
    };
    // The first tensor claims to be a byte longer.
    let start = text.find("\"data_offsets\":[").unwrap() + 16;
    let end = start + text[start..].find(']').unwrap();
    let (from, to) = text[start..end].split_once(',').unwrap();
    let longer = format!("{from},{}", to.parse::<u64>().unwrap() + 1);
    let longer = with_header(&text.replacen(&text[start..end], &longer, 1));
    let infinite = text.replacen("\"shape\":[", "\"shape\":[18446744073709551615,", 1);
    for bytes in [
        Vec::new(),
        whole[..4].to_vec(),
        whole[..1000].to_vec(),
        whole[..whole.len() / 2].to_vec(),
        whole[..whole.len() - 1].to_vec(),
        with_length(header - 1),
        with_length(header + 1),
        with_length(0),
        with_length(u64::MAX),
        with_length(1 << 40),
        longer,
        with_header(&infinite),
        with_header("{}"),
    ] {
        fs::write(&path, bytes).unwrap();
        for command in ["generate", "repl", "serve"] {
            let mut infer = infer(command, &["--backend", "flex", "--model"]);
            infer.arg(model.path());
            match command {
                "generate" => infer.arg("x"),
                "serve" => infer.args(["--port", "0"]),
                _ => &mut infer,
            };
            let said = refused(&infer.output().unwrap(), 1);
            let folder = model.path().to_str().unwrap();
            says(said.lines().next().unwrap(), &[folder]);
        }
    }
}

#[test]
fn configurations_with_impossible_sizes() {
    let student = student_folder(&[1]);
    let sizes = [
        json!(0),
        json!(-1),
        json!(u64::MAX),
        json!(1_u64 << 40),
        json!("many"),
    ];
    let keys: [(&Path, &[&str]); 2] = [
        (
            &teacher_folder(),
            &[
                "/hidden_size",
                "/num_hidden_layers",
                "/num_attention_heads",
                "/vocab_size",
                "/intermediate_size",
            ],
        ),
        (
            student.path(),
            &[
                "/LanguageModel/input/vocab_size",
                "/LanguageModel/input/pad_vocab_size_multiple",
                "/MixerModel/input/d_model",
                "/MixerModel/input/n_layer",
                "/Block1/n_layers",
                "/Block1/core_input/d_state",
                "/Block1/core_input/n_v_heads",
                "/Block1/core_input/n_qk_heads",
                "/Block1/core_input/d_conv",
                "/Block1/core_input/expand",
                "/Block1/core_input/chunk_size",
            ],
        ),
    ];
    for (folder, keys) in keys {
        let model = copy_of(folder);
        let path = model.path().join("config.json");
        let whole: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for key in keys {
            for size in &sizes {
                let mut config = whole.clone();
                *config.pointer_mut(key).unwrap() = size.clone();
                fs::write(&path, config.to_string()).unwrap();
                let said = sentence(generate(model.path(), &["x"]));
                says(&said, &["config.json"]);
            }
        }
        let mut info = infer("info", &["--model"]);
        info.arg(model.path());
        says(&sentence(info), &["config.json"]);
        for text in [
            "",
            "{",
            "[]",
            "\"x\"",
            "{\"model_type\": \"gpt2\"}",
            "\u{feff}{}",
        ] {
            fs::write(&path, text).unwrap();
            says(&sentence(generate(model.path(), &["x"])), &["config.json"]);
        }
        fs::write(&path, b"\xff\xfe{}").unwrap();
        says(&sentence(generate(model.path(), &["x"])), &["config.json"]);
        fs::remove_file(&path).unwrap();
        says(&sentence(generate(model.path(), &["x"])), &["config.json"]);
    }
}

#[test]
fn tokenizers_that_do_not_fit() {
    let model = copy_of(&teacher_folder());
    let path = model.path().join("tokenizer.json");
    let whole: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let mut larger = whole.clone();
    larger["added_tokens"].as_array_mut().unwrap().push(json!({
        "id": 4096, "content": "<extra>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true,
    }));
    larger["model"]["vocab"]["<extra>"] = json!(4096);
    fs::write(&path, larger.to_string()).unwrap();
    let mut serve = infer("serve", &["--backend", "flex", "--port", "0", "--model"]);
    serve.arg(model.path());
    let mut repl = infer("repl", &["--backend", "flex", "--model"]);
    repl.arg(model.path());
    for command in [generate(model.path(), &["x"]), repl, serve] {
        says(&sentence(command), &["tokenizer.json", "4097", "4096"]);
    }
    for text in [
        "",
        "{}",
        "[1, 2]",
        "{\"model\": {\"type\": \"BPE\", \"vocab\": 3}}",
        "{\"model\": {\"type\": \"BPE\", \"vocab\": {}, \"merges\": []}}",
    ] {
        fs::write(&path, text).unwrap();
        let said = sentence(generate(model.path(), &["x"]));
        says(&said, &["tokenizer.json"]);
    }
    // Without an end-of-text token, an empty prompt has no first token.
    let mut endless = whole.clone();
    let text = endless.to_string().replace("<|endoftext|>", "<|no more|>");
    endless = serde_json::from_str(&text).unwrap();
    fs::write(&path, endless.to_string()).unwrap();
    says(
        &sentence(generate(model.path(), &[""])),
        &["prompt is empty"],
    );
    fs::remove_file(&path).unwrap();
    says(&sentence(generate(model.path(), &["x"])), &["--tokenizer"]);
    let nowhere = ["--tokenizer", "no-such-file.json", "x"];
    says(
        &sentence(generate(model.path(), &nowhere)),
        &["no-such-file.json"],
    );
}

#[test]
fn prompts_without_end_or_sense() {
    let model = teacher_folder();
    let million = "a b ".repeat(500_000);
    let said = refused(&fed(generate(&model, &["-"]), million.as_bytes()), 1);
    says(
        &said,
        &["the prompt has 1", "2048", "max_position_embeddings"],
    );
    for bytes in [
        &b"\xff\xfe"[..],
        b"a good beginning, and then \xc3",
        b"\xed\xa0\x80",
    ] {
        let said = refused(&fed(generate(&model, &["-"]), bytes), 1);
        says(&said, &["UTF-8"]);
        let mut repl = infer("repl", &["--backend", "flex", "--model"]);
        repl.arg(&model);
        says(&refused(&fed(repl, bytes), 1), &["UTF-8"]);
    }
}

#[cfg(unix)]
#[test]
fn arguments_that_are_no_text() {
    use std::os::unix::ffi::OsStrExt;

    let mut command = generate(&teacher_folder(), &[]);
    command.arg(OsStr::from_bytes(b"\xff\xfe"));
    says(&refused(&command.output().unwrap(), 2), &["UTF-8"]);
    // The name of a folder may be anything.
    let mut info = infer("info", &["--model"]);
    info.arg(OsStr::from_bytes(b"no/such/\xff"));
    says(&sentence(info), &["no/such/"]);
}

#[test]
fn models_that_are_none() {
    let empty = tempfile::tempdir().unwrap();
    says(&sentence(generate(empty.path(), &["x"])), &["config.json"]);
    // The folder of a run is no model, and says where its student is.
    let student = empty.path().join("student");
    fs::create_dir(&student).unwrap();
    fs::write(student.join("config.json"), "{}").unwrap();
    let student = student.to_str().unwrap();
    says(&sentence(generate(empty.path(), &["x"])), &[student]);
    fs::remove_dir_all(student).unwrap();
    let mut info = infer("info", &["--model"]);
    info.arg(empty.path());
    says(&sentence(info), &["config.json"]);
    for command in ["generate", "info", "repl", "serve"] {
        let mut infer = infer(command, &["--model", "no such model"]);
        match command {
            "generate" => infer.arg("x"),
            "serve" => infer.args(["--port", "0"]),
            _ => &mut infer,
        };
        says(&sentence(infer), &["no such model", "OWNER/NAME"]);
    }
    let file = teacher_folder().join("model.safetensors");
    says(&sentence(generate(&file, &["x"])), &["no GGUF file"]);
    let no_weights = copy_of(&teacher_folder());
    fs::remove_file(no_weights.path().join("model.safetensors")).unwrap();
    let said = sentence(generate(no_weights.path(), &["x"]));
    says(&said, &["model.safetensors", "pytorch_model.bin"]);
}

#[test]
fn a_port_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut serve = infer("serve", &["--backend", "flex", "--port", &port, "--model"]);
    serve.arg(teacher_folder());
    says(&sentence(serve), &["cannot listen", &port, "--port"]);
}

#[test]
fn numbers_out_of_all_proportion() {
    let student = student_folder(&[]);
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/eval");
    for length in [0, usize::MAX] {
        let mut eval = infer("eval", &["--backend", "flex", "--tasks", "piqa", "--data"]);
        eval.arg(&data).arg("--model").arg(student.path());
        eval.args(["--max-length", &length.to_string()]);
        let given = format!("--max-length is {length}; it must be from 1 to 4194304, ");
        says(&sentence(eval), &[&given]);
    }
    for (count, most) in [
        ("--batches", "1024"),
        ("--prompts", "4194304"),
        ("--tokens", "1000000"),
    ] {
        for given in ["0", "2305843009213693952"] {
            let mut bench = infer("bench", &["--backend", "flex", count, given, "--model"]);
            let output = bench.arg(student.path()).output().unwrap();
            says(&refused(&output, 2), &[count, &format!("1..={most}")]);
        }
    }
}

#[test]
fn states_that_cannot_be_loaded() {
    let (student, teacher) = (student_folder(&[2]), teacher_folder());
    let path = student.path().join("state");
    let file = path.to_str().unwrap();
    let saved = generate(student.path(), &["--save-state", file, "Once upon"]).output();
    assert!(saved.unwrap().status.success());
    let load = |model: &Path| sentence(generate(model, &["--load-state", file]));
    says(&load(&teacher), &[file, "another model", "SHA-256"]);
    let whole = fs::read(&path).unwrap();
    for length in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        says(&load(student.path()), &[file, "not a whole state file"]);
    }
    let text = String::from_utf8_lossy(&whole[8..2000]).into_owned();
    let at = 8 + text.find("\"version\":\"2\"").unwrap() + 11;
    let mut newer = whole.clone();
    newer[at] = b'7';
    fs::write(&path, newer).unwrap();
    says(&load(student.path()), &[file, "version \"7\""]);
    fs::copy(teacher.join("model.safetensors"), &path).unwrap();
    says(&load(student.path()), &[file, "not a state file"]);
    fs::remove_file(&path).unwrap();
    says(&load(student.path()), &[file, "cannot be read"]);
}

#[test]
fn states_that_cannot_be_saved() {
    let model = teacher_folder();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "not a folder").unwrap();
    for path in [&file.join("state"), folder.path()] {
        let path = path.to_str().unwrap();
        let said = sentence(generate(&model, &["--save-state", path, "x"]));
        says(&said, &[path, "cannot be saved"]);
    }
    let names = fs::read_dir(folder.path()).unwrap();
    assert_eq!(names.count(), 1, "nothing is left behind");
}

/// As on a full disk: no file can grow beyond a few blocks.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_is_full() {
    let model = teacher_folder();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    fs::write(&path, "an older state").unwrap();
    let file = path.to_str().unwrap();
    let infer = generate(
        &model,
        &["--save-state", file, "Once upon a time there was"],
    );
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$0\" \"$@\""]);
    limited.arg(infer.get_program()).args(infer.get_args());
    says(&sentence(limited), &[file, "cannot be saved", "large"]);
    assert_eq!(fs::read(&path).unwrap(), b"an older state");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
