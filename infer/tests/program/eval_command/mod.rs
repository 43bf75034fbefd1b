//! The commands `infer eval`, `infer perplexity` and `infer audit`.

mod audit;
mod controls;
mod data;
mod kept_scores;
mod surroundings;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::teacher_folder;

fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/eval")
}

/// The program, whose cache is in `home`.
fn infer(home: &Path, command: &str) -> Command {
    infer_with(home, command, &teacher_folder())
}

fn infer_with(home: &Path, command: &str, model: &Path) -> Command {
    let mut infer = Command::new(env!("CARGO_BIN_EXE_infer"));
    infer.args([command, "--backend", "flex", "--model"]);
    infer.arg(model);
    infer.env("XDG_CACHE_HOME", home).env("HOME", home);
    infer
}

fn eval(home: &Path, data: &Path, tasks: &str, more: &[&str]) -> Output {
    let mut eval = infer(home, "eval");
    eval.arg("--data").arg(data).args(["--tasks", tasks]);
    eval.args(more).output().unwrap()
}

fn perplexity(home: &Path, arguments: &[&str]) -> Output {
    infer(home, "perplexity").args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// The message of a program that fails, without a panic.
fn failure(output: &Output) -> String {
    let message = stderr(output).to_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.starts_with("error: "), "{message}");
    message
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The number of files that are left in the cache.
fn kept(home: &TempDir) -> usize {
    let folder = home.path().join("mohawk/eval");
    fs::read_dir(folder).map_or(0, Iterator::count)
}

#[test]
fn a_table_and_its_numbers() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("results/new.json");
    let arguments = ["--limit", "10", "--json", file.to_str().unwrap()];
    let output = eval(
        home.path(),
        &bundled(),
        "winogrande,lambada_openai",
        &arguments,
    );
    assert!(output.status.success(), "{}", stderr(&output));
    let table: Vec<&str> = stdout(&output).lines().collect();
    assert_eq!(table.len(), 5);
    assert!(table[2].starts_with("|winogrande    |      1|none  |     0|acc       |↑  |"));
    assert!(table[4].starts_with("|              |       |none  |     0|perplexity|↓  |"));
    assert!(stderr(&output).contains("20 documents in "));
    assert!(stderr(&output).contains(" documents/s"));

    let json = json(&file);
    assert_eq!(json["limit"], 10);
    assert_eq!(json["max_length"], 2048);
    assert_eq!(json["samples"]["winogrande"].as_array().unwrap().len(), 10);
    let acc = json["results"]["winogrande"]["acc"].as_f64().unwrap();
    assert!(table[2].contains(&format!("{acc:.4}|")));
    let sample = &json["samples"]["lambada_openai"][0];
    assert!(sample["log_likelihood"].as_f64().unwrap() < 0.0);
    assert_eq!(sample["is_greedy"], false);
    assert_eq!(kept(&home), 0);
}

/// Probes need no data: their documents are generated, and are the same each time.
#[test]
fn probes_need_no_data() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("results.json");
    let probed = |tasks: &str, more: &[&str]| {
        let mut eval = infer(home.path(), "eval");
        eval.args(["--limit", "3", "--max-length", "600", "--tasks", tasks]);
        eval.args(more).arg("--json").arg(&file).output().unwrap()
    };
    let output = probed("needle,copy", &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let table: Vec<&str> = stdout(&output).lines().skip(2).collect();
    let begins = [
        "|needle|", "|      |", "|copy  |", "|      |", "|      |", "|      |",
    ];
    let names = [
        "acc_256",
        "acc_512",
        "acc_256",
        "floor_256",
        "acc_512",
        "floor_512",
    ];
    assert_eq!(table.len(), begins.len());
    for (row, (begin, name)) in table.iter().zip(begins.iter().zip(names)) {
        let metric = row.split('|').nth(5).map(str::trim);
        assert!(row.starts_with(begin) && metric == Some(name), "{row}");
    }
    assert!(stderr(&output).contains("12 documents in "));
    let first = json(&file);
    let results = &first["results"];
    let floor = results["copy"]["floor_512"].as_f64().unwrap();
    assert!((0.0..1.0).contains(&floor));
    assert!(results["needle"]["acc_512_stderr"].is_number());
    let samples = first["samples"]["copy"].as_array().unwrap();
    assert_eq!(samples.len(), 6);
    let mean = |key: &str| {
        let long = samples.iter().filter(|sample| sample["length"] == 512);
        long.map(|sample| sample[key].as_f64().unwrap())
            .sum::<f64>()
            / 3.0
    };
    assert!((mean("floor") - floor).abs() < 1e-9);
    assert!((mean("greedy_share") - results["copy"]["acc_512"].as_f64().unwrap()).abs() < 1e-9);

    // Beside a task of the paper's, whose data is given.
    let data = bundled();
    let output = probed("piqa,needle", &["--data", data.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(json(&file)["samples"]["needle"], first["samples"]["needle"]);
    let short = infer(home.path(), "eval")
        .args(["--tasks", "copy", "--max-length", "255"])
        .output();
    let said = failure(&short.unwrap());
    assert!(
        said.contains("copy needs") && said.contains("256"),
        "{said}"
    );
    assert_eq!(kept(&home), 0);
}

#[test]
fn options_without_meaning_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let refused = |more: &[&str]| failure(&eval(home.path(), &bundled(), "piqa", more));
    assert!(refused(&["--limit", "0"]).contains("--limit is 0"));
    assert!(refused(&["--batch-size", "0"]).contains("--batch-size is 0"));
    assert!(refused(&["--max-length", "0"]).contains("--max-length is 0"));
    assert!(refused(&["--max-length", "2049"]).contains("from 1 to 2048"));
    let short = refused(&["--max-length", "3"]);
    assert!(short.contains("tokens, and 3 are read at once"), "{short}");
    let unknown = eval(home.path(), &bundled(), "chess", &[]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(stderr(&unknown).contains("lambada_openai"));

    let text = bundled().join("texts.jsonl");
    let text = text.to_str().unwrap();
    let refused = |more: &[&str]| failure(&perplexity(home.path(), &[&[text], more].concat()));
    assert!(refused(&["--stride", "0"]).contains("--stride is 0"));
    let wide = refused(&["--stride", "65", "--max-length", "64"]);
    assert!(
        wide.contains("--stride is 65; it must be from 1 to 64"),
        "{wide}"
    );
}

#[test]
fn perplexity_of_texts() {
    let home = tempfile::tempdir().unwrap();
    let text = bundled().join("texts.jsonl");
    let file = home.path().join("results.json");
    let arguments = [
        text.to_str().unwrap(),
        "--max-length",
        "512",
        "--json",
        file.to_str().unwrap(),
    ];
    let output = perplexity(home.path(), &arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    let json = json(&file);
    assert_eq!(json["documents"], 3);
    assert_eq!(json["stride"], 512);
    let number = |name: &str| json[name].as_f64().unwrap();
    let expected = (-number("log_likelihood") / number("tokens")).exp();
    assert!((number("perplexity") - expected).abs() < 1e-9);
    assert!(stdout(&output).contains(&format!("{:.4} per token", number("perplexity"))));
    assert!(stdout(&output).contains("3 documents, "));
    assert_eq!(kept(&home), 0);

    // Files of a folder that are not read are named.
    let folder = home.path().join("texts");
    fs::create_dir(&folder).unwrap();
    fs::copy(&text, folder.join("texts.jsonl")).unwrap();
    fs::write(folder.join("notes.docx"), "").unwrap();
    let arguments = [folder.to_str().unwrap(), "--max-length", "512"];
    let output = perplexity(home.path(), &arguments);
    let said = stderr(&output);
    assert!(stdout(&output).contains("3 documents, "), "{said}");
    assert!(
        said.contains("warning: ") && said.contains("notes.docx"),
        "{said}"
    );

    let empty = home.path().join("empty.txt");
    fs::write(&empty, "").unwrap();
    let refused = failure(&perplexity(home.path(), &[empty.to_str().unwrap()]));
    assert!(refused.contains("no token to score"), "{refused}");
    fs::write(&empty, b"\xff").unwrap();
    let refused = failure(&perplexity(home.path(), &[empty.to_str().unwrap()]));
    assert!(refused.contains("not UTF-8"), "{refused}");
    let refused = failure(&perplexity(home.path(), &["no/such.txt"]));
    assert!(refused.contains("no/such.txt"), "{refused}");
}
