//! The results of a run: a student, a record, a report.

use model::manifest::{self, Verified};

use super::*;

/// The loss of each step of the stage called `stage`.
pub(super) fn losses(run: &Path, stage: &str) -> Vec<f64> {
    let records = metrics(run).into_iter();
    let steps = records.filter(|record| record["kind"] == "step" && record["stage"] == stage);
    steps
        .map(|record| record["loss"].as_f64().expect("a loss"))
        .collect()
}

#[test]
fn a_run_leaves_what_it_promises() {
    let folder = folder();
    let run = folder.path();
    let config = config(&["checkpoint.keep=2"]);
    let summary = super::run(config.clone(), run);

    assert_eq!(config_of(run), config.with_absolute_paths());
    assert_eq!(
        checkpoints(run),
        ["stage3-step0000002", "stage3-step0000004"]
    );

    let json: Value = serde_json::from_slice(&fs::read(run.join("summary.json")).unwrap()).unwrap();
    assert_eq!(json["tokens"], 64 * STEPS.iter().sum::<usize>());
    for key in [
        "teacher_perplexity",
        "student_perplexity",
        "ratio",
        "seconds",
        "tokens_per_second",
    ] {
        assert!(json[key].as_f64().is_some_and(|value| value > 0.0), "{key}");
    }
    let stages = json["stages"].as_array().expect("a list of stages");
    assert_eq!(stages.len(), 3);
    let kinds = ["matrices", "hidden_states", "predictions"];
    for (((number, steps), stage), kind) in (1..).zip(STEPS).zip(stages).zip(kinds) {
        let name = format!("stage{number}");
        assert_eq!(stage["stage"], name);
        assert_eq!(stage["kind"], kind);
        assert_eq!(stage["steps"], steps);
        assert_eq!(stage["tokens"], 64 * steps);
        for key in ["seconds", "loss", "perplexity"] {
            assert!(
                stage[key].as_f64().is_some_and(|value| value > 0.0),
                "{key}"
            );
        }
        assert_eq!(losses(run, &name).len(), steps);
    }
    assert_eq!(summary.stages.len(), 3);
    assert_eq!(
        summary.ratio,
        summary.student_perplexity / summary.teacher_perplexity
    );
    let report = fs::read_to_string(run.join("report.html")).expect("a report");
    assert!(report.contains("<svg") && report.contains("</html>"));

    // The student is that of the last checkpoint, it loads, and its tokenizer is the teacher's.
    let last = checkpoint(run, "stage3-step0000004").join("student/model.safetensors");
    assert!(student(run) == fs::read(last).unwrap());
    model::load_any::<Inner>(run.join("student"), &Default::default()).expect("a student");
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/phi-tiny");
    let tokenizer = |folder: &Path| fs::read(folder.join("tokenizer.json")).unwrap();
    assert_eq!(tokenizer(&run.join("student")), tokenizer(&assets));
    let names = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "modeling_mohawk.py",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    let known = manifest::verify(run.join("student")).unwrap();
    assert_eq!(known, Verified::Files(names.map(str::to_owned).to_vec()));
    // The checksums of a finished run's student are compared.
    let path = run.join("student/config.json");
    fs::write(&path, fs::read_to_string(&path).unwrap() + " ").unwrap();
    match execute(options(config_of(run), run, true)).expect_err("an error") {
        TrainError::DamagedStudent { folder, .. } => assert_eq!(folder, run),
        other => panic!("{other}"),
    }
}

#[test]
fn stages_can_be_left_out() {
    for stages in [&["stage2", "stage3"][..], &["stage3"]] {
        let folder = folder();
        let summary = super::run(config_of_stages(stages, &[]), folder.path());
        let found: Vec<_> = summary.stages.iter().map(|stage| &stage.stage).collect();
        assert_eq!(found, stages);
        for (name, planned) in ["stage1", "stage2", "stage3"].into_iter().zip(STEPS) {
            let steps = losses(folder.path(), name).len();
            let planned = if stages.contains(&name) { planned } else { 0 };
            assert_eq!(steps, planned, "{stages:?}: {name}");
        }
    }
}

/// The first two stages train the mixers and leave every other parameter as the teacher's, to the bit.
#[test]
fn what_is_frozen_stays() {
    let folder = folder();
    let run = folder.path();
    super::run(config(&["student.attention_layers=1"]), run);
    let at = |name| tensors(&checkpoint(run, name).join("student/model.safetensors"));
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/phi-tiny");
    let (_, teacher) = model::load_any::<Inner>(&assets, &Default::default()).unwrap();
    let config =
        model::PhiConfig::from_json(&fs::read_to_string(assets.join("config.json")).unwrap());
    // In f32, as a checkpoint is.
    let taught = folder.path().join("teacher");
    model::save(&config.unwrap(), &teacher, &taught).unwrap();
    let teacher = tensors(&taught.join("model.safetensors"));
    let of_teacher = |name: &str| {
        let name = match name {
            "backbone.embedding.weight" => "model.embed_tokens.weight".to_owned(),
            name => name
                .replace("backbone.", "model.")
                .replace("mixer.self_attn", "self_attn"),
        };
        let found = teacher.iter().find(|(other, _)| *other == name);
        found.map(|(_, values)| values)
    };

    let (before, after) = (at("stage1-step0000002"), at("stage1-step0000004"));
    let (last, end) = (at("stage2-step0000005"), at("stage3-step0000004"));
    let (mut frozen, mut trained) = (0, 0);
    for (i, (name, values)) in last.iter().enumerate() {
        match of_teacher(name) {
            Some(theirs) => {
                for stage in [&before, &after, &last] {
                    assert!(stage[i].1 == *theirs, "{name} is no longer the teacher's");
                }
                frozen += 1;
            }
            None => {
                assert!(name.contains(".mixer."), "{name}");
                // The transfer matrix is made before the gate and the output projection.
                let reached = !name.contains("z_bias") && !name.contains("out_proj");
                assert!((before[i].1 != after[i].1) == reached, "{name} in stage 1");
                assert!(*values != after[i].1, "{name} did not train in stage 2");
                trained += 1;
            }
        }
        assert!(*values != end[i].1, "{name} did not train in stage 3");
    }
    // Embedding, final norm, head; four blocks of norm and MLP, three of them with a mixer of six
    // tensors and one with attention of eight.
    assert_eq!((frozen, trained), (1 + 2 + 2 + 4 * 6 + 8, 3 * 6));

    let (config, _) = model::load_any::<Inner>(run.join("student"), &Default::default()).unwrap();
    let mixers = config.network().mixers;
    let runs = mixers.chunk_by(|a, b| a == b);
    let layers: Vec<_> = runs.map(|run| run.len()).collect();
    assert_eq!(layers, [1, 1, 2]);
}

/// The same four sequences a step in one pass and in four, up to the rounding of sums in another
/// order. With an epsilon of 1, AdamW's step is proportional to the gradient and not its sign, so
/// that the rounding of a small gradient stays one.
#[test]
fn gradients_accumulate() {
    let with = |micro_batch: &str| {
        let folder = folder();
        let mut overrides = vec![
            "optimizer.epsilon=1".to_owned(),
            "stage3.hard_weight=0.3".to_owned(),
        ];
        for stage in 1..=3 {
            overrides.extend([
                format!("stage{stage}.batch=4"),
                format!("stage{stage}.micro_batch={micro_batch}"),
                format!("stage{stage}.tokens={}", 3 * 4 * 32),
                format!("stage{stage}.lr=0.1"),
            ]);
        }
        let overrides: Vec<_> = overrides.iter().map(String::as_str).collect();
        super::run(config(&overrides), folder.path());
        let tensors = tensors(&folder.path().join("student/model.safetensors"));
        (metrics(folder.path()), tensors)
    };
    let (one, four) = (with("4"), with("1"));
    assert_eq!(one.0.len(), four.0.len());
    for (one, four) in one.0.iter().zip(&four.0) {
        for key in ["loss", "grad_norm", "student_perplexity"] {
            if let (Some(one), Some(four)) = (one[key].as_f64(), four[key].as_f64()) {
                assert!(
                    (one - four).abs() <= 1e-5 * one,
                    "{key}: {one} and {four} in {one:?}"
                );
            }
        }
    }
    for ((name, one), (_, four)) in one.1.into_iter().zip(four.1) {
        tests::assert_close(&name, four, one, 1e-5);
    }
}
