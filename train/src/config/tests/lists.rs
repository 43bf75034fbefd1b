//! Lists of stages, and the choice among them.

use super::*;

/// Longer sequences at the end, as the README has them: the same tokens in all, and in each step.
#[test]
fn the_documented_longer_sequences_are_a_stage() {
    let readme = include_str!("../../../README.md");
    let blocks = readme.split("```toml").skip(1);
    let mut blocks = blocks.filter_map(|text| text.split("```").next());
    let text = blocks
        .find(|text| text.contains("stage4"))
        .expect("a recipe");
    let config = load_text(text).unwrap();
    let preset = Config::load(Source::Preset("smollm2-135m"), &[]).unwrap();
    let [before, short, long] = &config.stages[..] else {
        panic!("three stages");
    };
    let whole = preset.stage("stage3").expect("a stage");
    assert_eq!(Some(before), preset.stage("stage2"));
    assert_eq!(short.tokens + long.tokens, whole.tokens);
    assert_eq!(config.tokens_per_step(short), config.tokens_per_step(long));
    assert_eq!(config.context(long), 2 * config.context(short));
    assert_eq!((&long.kind, &long.lr), (&whole.kind, &whole.lr));
}

/// A list in a file is the run's: stages of the preset by name, new ones by kind, one kind twice.
#[test]
fn a_file_can_list_its_own_stages() {
    let config = load_text(
        r#"
        [[stages]]
        name = "stage2"
        tokens = 65_536

        [[stages]]
        name = "short"
        kind = "predictions"
        tokens = 1e6
        lr = { mixer = 1e-3, head = 1e-4 }
        schedule = "cosine"
        final_lr = 1e-6

        [[stages]]
        name = "long"
        kind = "predictions"
        tokens = 1e6
        batch = 8
        context = 2048
        data = ["long.txt"]

        [long]
        micro_batch = 2
        "#,
    )
    .unwrap();
    let names: Vec<_> = config
        .stages
        .iter()
        .map(|stage| stage.name.as_str())
        .collect();
    assert_eq!(names, ["stage2", "short", "long"]);
    let tiny = Config::load(Source::Preset("tiny"), &[]).unwrap();
    let stage2 = StageConfig {
        tokens: 65_536,
        ..tiny.stage("stage2").unwrap().clone()
    };
    assert_eq!(config.stages[0], stage2);

    let predictions = Kind::named("predictions").unwrap();
    let cosine = Schedule::Cosine {
        warmup: 0.1,
        final_lr: 1e-6,
    };
    let short = StageConfig {
        name: "short".into(),
        tokens: 1_000_000,
        lr: Rates([(Part::Mixer, 1e-3), (Part::Head, 1e-4)].into()),
        ..StageConfig::new(predictions.clone(), cosine)
    };
    assert_eq!(config.stages[1], short);
    let long = StageConfig {
        name: "long".into(),
        tokens: 1_000_000,
        batch: 8,
        micro_batch: 2,
        context: 2048,
        data: vec!["long.txt".into()],
        ..StageConfig::new(predictions, Schedule::ALL[0])
    };
    assert_eq!(config.stages[2], long);
    assert_eq!((config.context(&short), config.context(&long)), (256, 2048));
    assert_eq!(config.text(&short), tiny.data.train);
    assert_eq!(config.text(&long), ["long.txt".into()]);
    assert_eq!((config.steps(&short), config.steps(&long)), (977, 61));
    assert_eq!(config.tokens_per_step(&long), 8 * 2048);
}

#[test]
fn lists_are_checked() {
    let stage = "[[stages]]\ntokens = 65_536\n";
    for (text, expected) in [
        (stage.to_owned(), "stage 1 of the list has no `name`"),
        (
            format!("{stage}name = \"a\""),
            "has no `kind`, which is one of matrices, ",
        ),
        (
            format!("{stage}name = \"a\"\nkind = \"matrixes\""),
            "`a.kind`: no such choice `matrixes`; did you mean `matrices`?",
        ),
        (
            format!("{stage}name = \"a\"\nkind = \"matrices\"\ntarget = \"block\""),
            "unknown key `a.target`",
        ),
        (
            format!("{stage}name = \"a\"\nkind = \"matrices\"\ndata = [1]"),
            "`a.data` must be a string, or a table",
        ),
        (
            "[[stages]]\nname = \"a\"\nkind = \"matrices\"".to_owned(),
            "`a.tokens` is 0",
        ),
        (
            format!("{stage}name = \"stage1\"\n{stage}name = \"stage1\""),
            "`stages.name` is \"stage1\"",
        ),
        (
            format!("{stage}name = \"data\"\nkind = \"matrices\""),
            "`stages.name` is \"data\"",
        ),
        (
            format!("{stage}name = \"a.b\"\nkind = \"matrices\""),
            "`stages.name` is \"a.b\"",
        ),
        (
            format!("{stage}name = \"{}\"\nkind = \"matrices\"", "a".repeat(101)),
            "of 100 bytes at most",
        ),
        ("stages = []".to_owned(), "`stages` is []"),
        (
            "stages = [1, 2]".to_owned(),
            "`stages` must be a list of tables",
        ),
        (
            "[stages]\nname = \"a\"".to_owned(),
            "`stages` must be a list of tables",
        ),
        (
            "stage1 = 5".to_owned(),
            "`stage1` must be a table of keys, not 5",
        ),
    ] {
        let message = load_text(&text).expect_err(&text).to_string();
        assert!(message.contains(expected), "{text}: {message}");
    }
    assert!(complaint("stages=2,3").contains("--stages chooses among them"));
    let message = complaint("stage1.kind=predictions");
    assert!(
        message.contains("list another stage in a file"),
        "{message}"
    );
}

#[test]
fn stages_are_chosen_by_name() {
    let choose = |names: &[&str]| {
        let mut config = Config::load(Source::Preset("tiny"), &[]).unwrap();
        let names: Vec<_> = names.iter().map(|name| name.to_string()).collect();
        config.choose_stages(&names).map(|()| {
            let stages = config.stages.into_iter();
            stages.map(|stage| stage.name).collect::<Vec<_>>()
        })
    };
    assert_eq!(choose(&["stage2"]).unwrap(), ["stage2"]);
    // In the order of the list.
    assert_eq!(choose(&["stage3", "stage2"]).unwrap(), ["stage2", "stage3"]);
    let message = choose(&["stage2", "stag3"]).unwrap_err().to_string();
    assert!(
        message.contains(
            "no stage `stag3` in this run; did you mean `stage3`? (stages: stage1, stage2, stage3)"
        ),
        "{message}"
    );
    assert!(choose(&[]).is_err());
}
