//! The commands `infer eval`, `infer perplexity` and `infer audit`.

mod audit;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use burn::tensor::Device;
use flate2::Compression;
use flate2::write::GzEncoder;
use kernels::runtime::Flex;
use model::{CausalLm, Mixer, ModelConfig};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{copy_tokenizer, student_folder, teacher_folder};

const PIQA: &str = r#"{"goal": "g", "sol1": "one", "sol2": "two", "label": 0}"#;

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

/// All that is left in the cache.
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

/// Their documents are made here: no data is needed, and the same come again.
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

/// Its scores are not those of other weights, whatever the file's size and time say, and a file of scores that is
/// damaged is named.
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

/// A stream whose other end is closed.
fn closed() -> Stdio {
    std::io::pipe().unwrap().1.into()
}

/// Progress, tables and notes that nobody can read neither stop an evaluation nor lose its results.
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
    // Without a file, what was not seen is kept, and a resumed evaluation says so to nobody as well.
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

/// What else lies in the model's folder, and a home that is none, do not matter.
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

/// The same records as JSON lines, gzip, zstd and parquet.
#[test]
fn every_format_of_data() {
    let home = tempfile::tempdir().unwrap();
    let text = bundled().join("arc_easy-rows.jsonl");
    let text = fs::read(text).unwrap();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&text).unwrap();
    let parquet = fs::read(bundled().join("arc_easy-rows.parquet")).unwrap();
    let forms = [
        (".jsonl", text.clone()),
        (".jsonl.gz", gzip.finish().unwrap()),
        (".jsonl.zst", zstd::encode_all(&text[..], 1).unwrap()),
        (".parquet", parquet),
    ];
    let mut tables = Vec::new();
    for (ending, bytes) in forms {
        let data = tempfile::tempdir().unwrap();
        fs::write(data.path().join(format!("arc_easy{ending}")), bytes).unwrap();
        let file = home.path().join("results.json");
        let arguments = ["--json", file.to_str().unwrap()];
        let output = eval(home.path(), data.path(), "arc_easy", &arguments);
        assert!(output.status.success(), "{ending}: {}", stderr(&output));
        tables.push(json(&file)["samples"].clone());
    }
    assert_eq!(tables[0]["arc_easy"].as_array().unwrap().len(), 4);
    assert!(tables.iter().all(|table| *table == tables[0]));
}

#[test]
fn bad_data_is_a_sentence() {
    let home = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    let refused = |task: &str, ending: &str, bytes: &[u8]| {
        let file = data.path().join(format!("{task}{ending}"));
        fs::write(&file, bytes).unwrap();
        let message = failure(&eval(home.path(), data.path(), task, &[]));
        fs::remove_file(&file).unwrap();
        message
    };
    let line = |task: &str, line: &str| refused(task, ".jsonl", line.as_bytes());

    let message = failure(&eval(home.path(), data.path(), "piqa", &[]));
    assert!(message.contains("no data for piqa here"), "{message}");
    assert!(line("piqa", "\n \n").contains("no document in this file"));
    let second = line("piqa", &format!("{PIQA}\n{{\"goal\": 3}}"));
    assert!(
        second.contains("piqa.jsonl, line 2: invalid type: integer `3`"),
        "{second}"
    );
    assert!(line("piqa", r#"{"goal": "g"}"#).contains("missing field `sol1`"));
    let cut = line("piqa", &PIQA[..20]);
    assert!(
        cut.contains("line 1: no JSON, from column 20 on: EOF"),
        "{cut}"
    );
    let label = line("piqa", &PIQA.replace(": 0", ": 2"));
    assert!(label.contains("the right choice is number 2 (from 0), and there are 2"));
    let label = line("piqa", &PIQA.replace(": 0", ": -1"));
    assert!(
        label.contains("the label is -1, and not a number from 0 on"),
        "{label}"
    );
    let arc = r#"{"question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "B"}"#;
    assert!(line("arc_easy", arc).contains(r#"answerKey is "B", which is none of"#));
    let winogrande = r#"{"sentence": "a b", "option1": "a", "option2": "b", "answer": "1"}"#;
    assert!(line("winogrande", winogrande).contains("the sentence has no _"));
    let winogrande = winogrande.replace("a b", "a _").replace("\"1\"", "\"3\"");
    assert!(line("winogrande", &winogrande).contains("the answer is 3; it must be 1 or 2"));

    assert!(refused("piqa", ".jsonl", b"\xff\xfe").contains("line 1: not UTF-8"));
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(PIQA.as_bytes()).unwrap();
    let gzip = gzip.finish().unwrap();
    let cut = refused("piqa", ".jsonl.gz", &gzip[..gzip.len() - 9]);
    assert!(cut.contains("truncated or damaged"), "{cut}");
    assert!(refused("piqa", ".jsonl.zst", &gzip).contains("truncated or damaged"));
    let parquet = fs::read(bundled().join("arc_easy-rows.parquet")).unwrap();
    let cut = refused("arc_easy", ".parquet", &parquet[..parquet.len() - 9]);
    assert!(cut.contains("arc_easy.parquet, its end: "), "{cut}");
    assert!(refused("piqa", ".parquet", &parquet).contains("row 1: missing field `goal`"));
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

/// The bundled teacher, whose files hold zeros in place of the projections behind attention.
fn teacher_without_attention() -> TempDir {
    let device = Device::<Flex>::default();
    let (config, mut model): (ModelConfig, CausalLm<Flex>) =
        model::load_any(teacher_folder(), &device).unwrap();
    for layer in &mut model.backbone.layers {
        let Mixer::Attention(attention) = &mut layer.mixer else {
            panic!("a teacher's layer has attention")
        };
        let dense = &mut attention.dense;
        dense.weight = { dense.weight.clone() }.map(|weight| weight.zeros_like());
        let bias = dense.bias.take();
        dense.bias = bias.map(|bias| bias.map(|bias| bias.zeros_like()));
    }
    let folder = tempfile::tempdir().unwrap();
    model::save(&config, &model, folder.path()).unwrap();
    copy_tokenizer(folder.path());
    folder
}

/// The model scores with less attention, the results say so, and its scores are not kept for the model itself.
#[test]
fn a_model_under_a_control() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("results.json");
    let scored = |model: &Path, more: &[&str]| {
        let mut eval = infer_with(home.path(), "eval", model);
        eval.args(["--tasks", "piqa", "--limit", "8", "--json"])
            .arg(&file);
        let output = eval
            .arg("--data")
            .arg(bundled())
            .args(more)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let report = json(&file);
        let samples = report["samples"]["piqa"].as_array().unwrap().iter();
        let both = samples.flat_map(|sample| sample["log_likelihoods"].as_array().unwrap());
        let scores: Vec<f64> = both.map(|score| score.as_f64().unwrap()).collect();
        (
            scores,
            report["control"].clone(),
            stdout(&output).to_owned(),
        )
    };
    let difference = |one: &[f64], other: &[f64]| {
        assert_eq!(one.len(), 16);
        let differences = one.iter().zip(other).map(|(a, b)| (a - b).abs());
        differences.fold(0.0, f64::max)
    };
    let under = |control| scored(&teacher_folder(), &["--control", control]);

    let (plain, control, shown) = scored(&teacher_folder(), &[]);
    assert!(control.is_null() && shown.starts_with("|"), "{shown}");
    let (wide, control, shown) = under("window=2048");
    assert!(difference(&wide, &plain) < 1e-4);
    assert_eq!(control, "window=2048");
    assert!(shown.starts_with("control: window=2048\n\n|"), "{shown}");
    let (narrow, ..) = under("window=4");
    assert!(difference(&narrow, &plain) > 1.0);
    let (with_sinks, control, _) = under("sinks=1,window=4");
    assert!(difference(&with_sinks, &narrow) > 0.1);
    assert_eq!(control, "window=4,sinks=1");
    let (without, ..) = under("no-attention");
    let (expected, ..) = scored(teacher_without_attention().path(), &[]);
    assert!(difference(&without, &expected) < 1e-4);
    assert!(difference(&without, &narrow) > 1.0);

    let text = bundled().join("texts.jsonl");
    let text = text.to_str().unwrap();
    let perplexity = |more: &[&str]| {
        let arguments = [
            &[
                text,
                "--max-length",
                "256",
                "--json",
                file.to_str().unwrap(),
            ],
            more,
        ];
        let output = perplexity(home.path(), &arguments.concat());
        assert!(output.status.success(), "{}", stderr(&output));
        (json(&file), stdout(&output).to_owned())
    };
    let (plain, shown) = perplexity(&[]);
    assert!(plain["control"].is_null() && !shown.contains("control"));
    let (narrow, shown) = perplexity(&["--control", "window=8"]);
    assert!(shown.ends_with("\ncontrol          window=8\n"), "{shown}");
    assert_eq!(narrow["control"], "window=8");
    let of = |report: &Value| report["perplexity"].as_f64().unwrap();
    assert!(of(&narrow) > 1.1 * of(&plain));
    assert_eq!(kept(&home), 0);
}

/// Scores that were kept are found again under the same control only.
#[cfg(target_os = "linux")]
#[test]
fn scores_are_kept_for_their_control() {
    let home = tempfile::tempdir().unwrap();
    let with = |control: &[&str], json: &[&str]| {
        let more = [&["--limit", "4"], control, json].concat();
        let output = eval(home.path(), &bundled(), "piqa", &more);
        stderr(&output).contains("resuming")
    };
    let interrupted = ["--json", "/dev/full"];
    let window = ["--control", "window=4"];
    assert!(!with(&window, &interrupted));
    assert!(!with(&[], &[]));
    assert!(!with(&["--control", "window=4,sinks=1"], &[]));
    assert!(!with(&["--control", "no-attention"], &[]));
    assert_eq!(kept(&home), 1);
    assert!(with(&["--control", "window=4,sinks=0"], &[]));
    assert_eq!(kept(&home), 0);
}

#[test]
fn controls_without_meaning_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let student = student_folder(&[]);
    for control in ["window=4", "no-attention"] {
        let mut eval = infer_with(home.path(), "eval", student.path());
        eval.args(["--tasks", "piqa", "--limit", "1", "--control", control]);
        let said = failure(&eval.arg("--data").arg(bundled()).output().unwrap());
        assert!(said.contains(student.path().to_str().unwrap()), "{said}");
        assert!(
            said.contains("no layer of this model has attention"),
            "{said}"
        );
    }
    for control in ["no-ssm", "reset=4"] {
        let said = failure(&eval(
            home.path(),
            &bundled(),
            "piqa",
            &["--control", control],
        ));
        assert!(
            said.contains("no layer of this model has a state-space mixer"),
            "{said}"
        );
    }
    for (control, reason) in [
        ("window=0", "window is 0"),
        ("reset=0", "reset is 0"),
        ("window=4,no-attention", "not two of them"),
        ("windows=4", "window=N,sinks=M, no-attention"),
    ] {
        let output = eval(home.path(), &bundled(), "piqa", &["--control", control]);
        assert_eq!(output.status.code(), Some(2));
        let said = stderr(&output);
        assert!(
            said.contains(reason) && said.contains("--control"),
            "{said}"
        );
    }
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

    // Of a folder, what is not read is named.
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
