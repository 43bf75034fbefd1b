//! Controls: scores of a model with a part of it switched off.

use std::path::Path;

use burn::tensor::Device;
use kernels::runtime::Flex;
use model::{CausalLm, Mixer, ModelConfig};
use serde_json::Value;
use tempfile::TempDir;

use super::{bundled, eval, failure, infer_with, json, kept, perplexity, stderr, stdout};
use crate::support::{copy_tokenizer, student_folder, teacher_folder};

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

/// The model is scored with less attention, the results say so, and its scores are not saved as those of the model
/// itself.
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

/// Saved scores are found again only under the same control.
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
