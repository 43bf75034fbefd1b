//! Lists of stages other than the published three.

use super::*;

/// A list in a file, over the small configuration.
fn listed(list: &str) -> Config {
    let folder = folder();
    let path = folder.path().join("run.toml");
    let small = config(&["optimizer.clip_norm=0"]);
    let mut table: toml::Table = small.to_toml().expect("TOML").parse().expect("a table");
    let list: toml::Table = list.parse().expect("TOML");
    table.extend(list);
    fs::write(&path, table.to_string()).unwrap();
    Config::load(Source::File(&path), &[]).expect("a configuration")
}

/// Two stages of one kind: the second on longer sequences of other text, by another schedule, with different
/// rates for two parts.
fn twice() -> Config {
    listed(
        r#"
        [[stages]]
        name = "short"
        kind = "predictions"
        tokens = 256
        batch = 2
        micro_batch = 2
        lr = 1e-3
        schedule = "constant"

        [[stages]]
        name = "long"
        kind = "predictions"
        tokens = 512
        batch = 2
        micro_batch = 1
        context = 64
        data = ["assets/text/pd-validation.json.gz", "assets/text/pd-validation.json.gz"]
        lr = { mixer = 1e-3, head = 1e-5 }
        schedule = "cosine"
        warmup = 0.25
        final_lr = 1e-6
        "#,
    )
}

#[test]
fn a_kind_may_come_twice_with_other_text_and_length() {
    let folder = folder();
    let run = folder.path();
    let summary = super::run(twice(), run);
    let stages: Vec<_> = (summary.stages.iter())
        .map(|stage| {
            (
                stage.stage.as_str(),
                stage.kind.as_str(),
                stage.steps,
                stage.tokens,
            )
        })
        .collect();
    assert_eq!(
        stages,
        [
            ("short", "predictions", 4, 256),
            ("long", "predictions", 4, 512)
        ]
    );
    assert_eq!(summary.tokens, 768);
    let report = fs::read_to_string(run.join("report.html")).unwrap();
    for title in [
        "<h3>short: knowledge distillation</h3>",
        "<h3>long: knowledge distillation</h3>",
    ] {
        assert!(report.contains(title), "{title}");
    }

    // The rates recorded are those of the schedules: no whole step of warm-up, or one of four.
    let rates = |stage: &str| -> Vec<f64> {
        let records = metrics(run).into_iter();
        let steps = records.filter(|record| record["kind"] == "step" && record["stage"] == stage);
        steps.map(|record| record["lr"].as_f64().unwrap()).collect()
    };
    assert_eq!(rates("short"), [1e-3; 4]);
    let long = rates("long");
    let cosine = |x: f64| 1e-6 + (1e-3 - 1e-6) * 0.5 * (1.0 + (x * std::f64::consts::PI).cos());
    let expected = [1e-3, 1e-3, cosine(1.0 / 3.0), cosine(2.0 / 3.0)];
    assert_eq!(long.len(), expected.len());
    for (found, expected) in long.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-12, "{long:?}");
    }

    // Only what has a rate changes, and the head by less than the mixers.
    let at = |name: &str| tensors(&checkpoint(run, name).join("student/model.safetensors"));
    let (before, after) = (at("short-step0000004"), at("long-step0000004"));
    let mut largest = [0.0f64; 3];
    for ((name, before), (_, after)) in before.into_iter().zip(after) {
        let part = if name.contains(".mixer.") {
            0
        } else if name.starts_with("lm_head") {
            1
        } else {
            2
        };
        for (before, after) in before.1.iter().zip(&after.1) {
            largest[part] = largest[part].max((before - after).abs());
        }
    }
    let [mixer, head, others] = largest;
    assert_eq!(others, 0.0);
    // AdamW moves by about the rate at each step, weight decay aside.
    assert!((1e-3..5e-3).contains(&mixer), "{mixer}");
    assert!((1e-5..5e-5).contains(&head), "{head}");
}

#[test]
fn a_list_is_resumed_in_its_middle() {
    let (whole, stopped) = (folder(), folder());
    run(twice(), whole.path());
    let mut outcome = Outcome::Stopped;
    let mut stops = 0;
    while outcome == Outcome::Stopped {
        // Past the evaluation of both models and three steps, then by three steps or batches.
        let asked = if stops == 0 { 7 } else { 3 };
        let options = options(twice(), stopped.path(), stops > 0);
        outcome = execute(stopping(asked, options)).expect("a run without errors");
        stops += 1;
        assert!(stops < 20, "the run does not advance");
    }
    // Checkpoints that only a stop leaves: within the first stage, between the two, and within the second.
    let found = checkpoints(stopped.path());
    for name in ["short-step0000003", "long-step0000000", "long-step0000003"] {
        assert!(found.iter().any(|found| found == name), "{name}: {found:?}");
    }
    assert!(student(stopped.path()) == student(whole.path()));
    assert_eq!(metrics(stopped.path()), metrics(whole.path()));
}

/// Longer sequences at the end, with as many tokens a step: a separate stage with the rates and the loss of the one
/// before.
#[test]
fn sequences_are_longer_at_the_end() {
    let lengthened = || {
        listed(
            r#"
            [[stages]]
            name = "stage3"
            tokens = 256
            batch = 2
            micro_batch = 2
            schedule = "constant"

            [[stages]]
            name = "longer"
            kind = "predictions"
            tokens = 256
            batch = 1
            micro_batch = 1
            context = 64
            lr = 7e-4
            schedule = "wsd"
            warmup = 0.25
            decay = 0.75
            "#,
        )
    };
    let config = lengthened();
    let tokens = config
        .stages
        .iter()
        .map(|stage| config.tokens_per_step(stage));
    assert!(tokens.eq([64, 64]));
    let (whole, stopped) = (folder(), folder());
    run(config, whole.path());
    let records = metrics(whole.path()).into_iter();
    let steps = records.filter(|record| record["kind"] == "step");
    let tokens: Vec<_> = steps.map(|record| record["tokens"].as_u64()).collect();
    let expected: Vec<_> = (1..=8).map(|step| Some(64 * step)).collect();
    assert_eq!(tokens, expected);

    // Two batches of each model's evaluation, four steps, two batches, two steps.
    let outcome = execute(stopping(12, options(lengthened(), stopped.path(), false)));
    assert_eq!(outcome.expect("a stop"), Outcome::Stopped);
    let found = checkpoints(stopped.path());
    assert!(
        found.iter().any(|name| name == "longer-step0000002"),
        "{found:?}"
    );
    resume(stopped.path());
    assert!(student(stopped.path()) == student(whole.path()));
    assert_eq!(metrics(stopped.path()), metrics(whole.path()));
}

/// A stage that is done cannot be removed from the list, nor moved in it.
#[test]
fn a_changed_list_is_refused() {
    let folder = folder();
    let run = folder.path();
    super::run(config_of_stages(&["stage1", "stage2"], &[]), run);
    fs::remove_file(run.join("summary.json")).unwrap();
    let whole = config_of(run);
    let refused = |config: Config, words: &str| match execute(options(config, run, true))
        .expect_err("an error")
    {
        TrainError::Mismatch(message) => assert!(message.contains(words), "{message}"),
        other => panic!("{other}"),
    };
    let mut swapped = whole.clone();
    swapped.stages.reverse();
    refused(swapped, "not the first stages of the list");
    let mut renamed = whole.clone();
    renamed.stages[0].name = "other".into();
    refused(renamed, "no stage `stage1`");
    let mut shortened = whole.clone();
    shortened.stages.remove(0);
    refused(shortened, "no stage `stage1`");

    // A stage more is no change of what is done.
    let mut longer = whole.clone();
    let mut again = whole.stages[1].clone();
    again.name = "again".into();
    longer.stages.push(again);
    let summary = finish(options(longer, run, true));
    let names: Vec<_> = summary
        .stages
        .iter()
        .map(|stage| stage.stage.as_str())
        .collect();
    assert_eq!(names, ["stage1", "stage2", "again"]);
}

/// The refusal comes before anything is made, and names stage, layer and mixer.
#[test]
fn a_stage_that_no_layer_can_learn_in_is_refused() {
    let parent = folder();
    let run = parent.path().join("run");
    let refused = |overrides: &[&str]| {
        let error = execute(options(config(overrides), &run, false)).expect_err("an error");
        assert!(matches!(error, TrainError::Untrainable { .. }), "{error}");
        assert!(!run.exists());
        error.to_string()
    };
    let nothing = refused(&["student.attention_layers=0,1,2,3"]);
    assert!(
        nothing.contains("stage stage1: none of the 4 layers") && nothing.contains("attention"),
        "{nothing}"
    );
    let heads = refused(&["student.n_v_heads=6", "student.attention_layers=0"]);
    for words in [
        "stage stage1: layer 1, ",
        "it has 6 heads",
        "set student.n_v_heads to 3",
    ] {
        assert!(heads.contains(words), "{heads}");
    }
}
