//! The command `infer audit` on small models: its rows, what fails, and what it refuses.

mod false_students;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use burn::tensor::Device;
use kernels::runtime::Flex;
use model::{CausalLm, LlamaConfig, LlamaFamily};
use serde_json::Value;
use tempfile::TempDir;

use super::{bundled, json, stderr, stdout};
use crate::support::{copy_tokenizer, student, student_folder, teacher_folder};

const HIDDEN: usize = 64;

/// The program, for these students of `teacher`.
fn audit(teacher: &Path, students: &[&Path], more: &[&str]) -> Output {
    let mut infer = Command::new(env!("CARGO_BIN_EXE_infer"));
    infer.args(["audit", "--backend", "flex", "--teacher"]);
    infer.arg(teacher).args(students).args(more);
    infer.output().unwrap()
}

/// Twelve windows of 512 tokens of the bundled text, and a probe that none of these models passes.
fn of_text(teacher: &Path, students: &[&Path], out: &Path) -> Output {
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/text/pd-validation.json.gz");
    let fixed = ["--tasks", "needle", "--lengths", "256", "--limit", "12"];
    let more = ["--max-length", "512", "--text", text.to_str().unwrap()];
    let out = ["--out", out.to_str().unwrap()];
    audit(teacher, students, &[&fixed[..], &more, &out].concat())
}

fn row<'j>(report: &'j Value, name: &str) -> &'j Value {
    let rows = report["rows"].as_array().unwrap();
    let found = rows.iter().find(|row| row["name"] == name);
    found.unwrap_or_else(|| panic!("no row {name} in {rows:?}"))
}

fn words<'j>(report: &'j Value, name: &str, model: &str) -> &'j str {
    row(report, name)["verdicts"][model]["words"]
        .as_str()
        .unwrap()
}

/// A student of the bundled teacher whose every output projection is `value`.
fn with_outputs_of(value: f32) -> TempDir {
    let (config, mut student) = student(&[]);
    for layer in &mut student.backbone.layers {
        let mamba = layer.mixer.mamba_mut().unwrap();
        let weight = mamba.out_proj.weight.clone();
        mamba.out_proj.weight = weight.map(|weight| weight.full_like(value));
    }
    let folder = tempfile::tempdir().unwrap();
    model::save(&config, &student, folder.path()).unwrap();
    copy_tokenizer(folder.path());
    folder
}

/// Every task and probe has its rows, with the values of `infer eval`; measures that cannot be made are named.
#[test]
fn tasks_answers_and_probes_are_rows() {
    let hybrid = student_folder(&[1]);
    let out = tempfile::tempdir().unwrap();
    let data = bundled();
    let teacher = teacher_folder();
    let fixed = ["--lengths", "256,4096", "--limit", "9", "--seed", "7"];
    let more = [
        "--reset",
        "2048",
        "--data",
        data.to_str().unwrap(),
        "--out",
        out.path().to_str().unwrap(),
    ];
    let output = audit(&teacher, &[hybrid.path()], &[&fixed[..], &more].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(
        said.contains("perplexity is left out: --text names no text"),
        "{said}"
    );
    assert!(
        said.contains("needle at 4096 is left out: at most 2048 tokens"),
        "{said}"
    );
    assert!(
        said.contains("reset=2048 is left out: no text is longer"),
        "{said}"
    );

    let report = json(&out.path().join("audit.json"));
    let names = report["rows"].as_array().unwrap().iter();
    let names: Vec<&str> = names.map(|row| row["name"].as_str().unwrap()).collect();
    let expected = [
        "lambada_openai",
        "hellaswag",
        "piqa",
        "arc_easy",
        "arc_challenge",
        "winogrande",
        "mean of 6 tasks",
        "lambada_openai, made",
        "arc_easy, made",
        "needle at 256",
        "needles at 256",
        "copy at 256",
        "mqar at 256",
    ];
    assert_eq!(names, expected);
    assert_eq!(report["models"].as_array().unwrap().len(), 6);
    for (name, chance) in [("lambada_openai", 0.0), ("piqa", 0.5), ("winogrande", 0.5)] {
        assert_eq!(row(&report, name)["chance"], chance, "{name}");
        assert_eq!(row(&report, name)["documents"], 9, "{name}");
    }
    let of = |model: &str, name: &str, key: &str| {
        let value = &row(&report, name)["models"][model][key]["value"];
        value
            .as_f64()
            .unwrap_or_else(|| panic!("{name}, {key} of {model}"))
    };
    let [teacher, hybrid] = [teacher.as_path(), hybrid.path()].map(|path| path.to_str().unwrap());
    let tasks: f64 = expected[..6]
        .iter()
        .map(|task| of(hybrid, task, "value"))
        .sum();
    assert!((of(hybrid, "mean of 6 tasks", "value") - tasks / 6.0).abs() < 1e-12);
    // In a probe, the teacher gets all items right that count.
    let copy = row(&report, "copy at 256");
    let (counted, all) = (
        copy["items"].as_f64().unwrap(),
        copy["of_items"].as_f64().unwrap(),
    );
    let share = of(teacher, "copy at 256", "of_all_items");
    assert!((counted / all - share).abs() < 1e-12);
    assert!(counted == 0.0 || of(teacher, "copy at 256", "value") == 1.0);
    assert!(row(&report, "mqar at 256")["of_items"] == 72);
    assert!(row(&report, "needles at 256")["of_items"] == 36);

    let file = out.path().join("eval.json");
    let mut eval = super::infer_with(out.path(), "eval", Path::new(hybrid));
    eval.args([
        "--tasks",
        "piqa,hellaswag",
        "--limit",
        "9",
        "--max-length",
        "2048",
        "--data",
    ]);
    let output = eval.arg(&data).arg("--json").arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let results = json(&file);
    assert_eq!(
        of(hybrid, "piqa", "value"),
        results["results"]["piqa"]["acc"]
    );
    let normalised = &results["results"]["hellaswag"]["acc_norm"];
    assert_eq!(of(hybrid, "hellaswag", "value"), *normalised);
}

/// If a model gives NaN, its measures fail and are named; the results of the other models are kept.
#[test]
fn a_measure_that_fails_is_named() {
    let broken = with_outputs_of(f32::MAX);
    let out = tempfile::tempdir().unwrap();
    let output = of_text(&teacher_folder(), &[broken.path()], out.path());
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let name = broken.path().to_str().unwrap();
    let failed = format!("perplexity at 512, {name}: the model gives a text no probability");
    assert!(said.contains(&failed), "{said}");
    assert!(
        said.lines().last().unwrap().starts_with("error: "),
        "{said}"
    );
    let report = json(&out.path().join("audit.json"));
    assert!(
        report["failed"][0]
            .as_str()
            .unwrap()
            .starts_with("perplexity at 512")
    );
    assert_eq!(words(&report, "perplexity at 512", name), "not measured");
    let perplexity = row(&report, "perplexity at 512");
    let teacher = teacher_folder();
    assert!(perplexity["models"][teacher.to_str().unwrap()]["value"]["value"].is_number());
}

/// A student that cannot be loaded is named, and the others are measured. One that is named twice is measured once.
#[test]
fn a_student_that_cannot_be_loaded_is_named() {
    let (broken, sound) = (with_outputs_of(f32::NAN), student_folder(&[]));
    let students = [broken.path(), sound.path(), sound.path()];
    let copy = ["--tasks", "copy", "--lengths", "64,64", "--limit", "8"];
    let output = audit(&teacher_folder(), &students, &copy);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let named = format!("{} is left out: ", broken.path().display());
    assert!(said.contains(&named), "{said}");
    let last = said.lines().rfind(|line| line.starts_with("error: "));
    assert!(last.unwrap().contains("needs finite weights"), "{said}");
    let table = stdout(&output);
    assert_eq!(table.matches("copy at 64").count(), 1, "{table}");
    let summary = format!("{}: ", sound.path().display());
    assert!(table.contains(&summary), "{table}");
}

#[test]
fn what_cannot_be_audited_is_refused() {
    let student = student_folder(&[]);
    let teacher = teacher_folder();
    let refused = |teacher: &Path, student: &Path, more: &[&str], reason: &str| {
        let output = audit(teacher, &[student], more);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.lines().last().unwrap().starts_with("error: "),
            "{said}"
        );
        assert!(said.contains(reason), "{said}");
        assert!(output.stdout.is_empty(), "{}", stdout(&output));
    };
    let needle = ["--tasks", "needle", "--lengths", "256", "--limit", "1"];
    refused(
        &teacher,
        student.path(),
        &["--tasks", "piqa"],
        "nothing is left to measure",
    );
    refused(
        &teacher,
        student.path(),
        &["--tasks", "needle", "--lengths", "4096"],
        "needle at 4096",
    );
    refused(
        &teacher,
        student.path(),
        &["--max-length", "2049"],
        "--max-length is 2049",
    );
    refused(
        student.path(),
        &teacher,
        &needle,
        "no layer of this model has attention",
    );
    refused(
        &teacher,
        student.path(),
        &["--out", "/dev/null/x"],
        "/dev/null/x/audit.json",
    );

    let other = student_folder(&[]);
    let tokenizer: PathBuf = other.path().join("tokenizer.json");
    let text = fs::read_to_string(&tokenizer).unwrap();
    // Two tokens change places.
    let mut json: Value = serde_json::from_str(&text).unwrap();
    let vocabulary = json["model"]["vocab"].as_object_mut().unwrap();
    let (e, t) = (vocabulary["e"].clone(), vocabulary["t"].clone());
    (vocabulary["e"], vocabulary["t"]) = (t, e);
    fs::write(&tokenizer, json.to_string()).unwrap();
    refused(
        &teacher,
        other.path(),
        &needle,
        "its tokenizer is not the teacher's",
    );

    // The model whose vocabulary is too small is named, before any model is measured.
    let small = tempfile::tempdir().unwrap();
    let mut config = LlamaConfig {
        vocab_size: 100,
        hidden_size: HIDDEN,
        intermediate_size: 16,
        num_hidden_layers: 1,
        ..LlamaConfig::default_of(LlamaFamily::Llama)
    };
    config.attention.n_heads = 1;
    config.attention.n_kv_heads = 1;
    let model = CausalLm::<Flex>::init(&config, 3, &Device::<Flex>::default());
    model::save(&config, &model, small.path()).unwrap();
    let named = format!("the vocabulary of {} ends at 100", small.path().display());
    refused(&teacher, small.path(), &needle, &named);
}
