//! What a user may write, and the messages about what is wrong.

use model::Part;

use super::*;
use crate::schedule::Schedule;
use crate::stages::{Kind, Rates};

fn set(text: &str) -> Result<Config, ConfigError> {
    Config::load(Source::Preset("tiny"), &[text.to_owned()])
}

fn complaint(text: &str) -> String {
    set(text).expect_err(text).to_string()
}

fn load_text(text: &str) -> Result<Config, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(Source::File(&path), &[])
}

#[test]
fn presets_are_valid_and_published() {
    let load = |name| Config::load(Source::Preset(name), &[]).unwrap();

    let tiny = load("tiny");
    let names: Vec<_> = tiny
        .stages
        .iter()
        .map(|stage| stage.name.as_str())
        .collect();
    assert_eq!(names, ["stage1", "stage2", "stage3"]);
    let tokens =
        |config: &Config| -> Vec<u64> { config.stages.iter().map(|stage| stage.tokens).collect() };
    let steps = |config: &Config| -> Vec<usize> {
        config
            .stages
            .iter()
            .map(|stage| config.steps(stage))
            .collect()
    };
    assert_eq!(tokens(&tiny).iter().sum::<u64>(), 1_331_200);
    assert_eq!(steps(&tiny), [40, 500, 760]);

    let phi = load("phi-1.5");
    assert_eq!(tokens(&phi), [80_000_000, 160_000_000, 2_760_000_000]);
    assert_eq!(steps(&phi), [305, 610, 10_529]);
    assert_eq!(phi.data.context, 2048);

    let hybrid = load("hybrid-phi-1.5");
    assert_eq!(tokens(&hybrid).iter().sum::<u64>(), 5_000_000_000);
    assert_eq!(hybrid.student.attention_layers, [4, 10, 16, 22]);

    for (name, _) in PRESETS {
        assert_eq!(load(name).name, name);
    }
}

#[test]
fn resolved_text_reads_back_to_the_same_value() {
    let folder = tempfile::tempdir().unwrap();
    for (name, _) in PRESETS {
        let overrides = [
            "stage3.lr=2e-4",
            "stage2.lr.norm=1e-5",
            "data.validation=[]",
            "stage2.target=block",
            "stage2.schedule=cosine",
            "stage2.context=128",
            "stage2.data=a.txt",
        ]
        .map(str::to_owned);
        let config = Config::load(Source::Preset(name), &overrides).unwrap();
        let path = folder.path().join("config.toml");
        config.write(&path).unwrap();
        let read = Config::load(Source::File(&path), &[]).unwrap();
        assert_eq!(read, config, "preset {name}");
    }
}

/// A stage that an override has changed.
fn stage(text: &str, name: &str) -> StageConfig {
    let config = set(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    config.stage(name).expect("a stage").clone()
}

#[test]
fn overrides_need_no_quoting() {
    assert_eq!(stage("stage1.tokens=1e6", "stage1").tokens, 1_000_000);
    assert_eq!(set("name=2024").unwrap().name, "2024");
    assert_eq!(set("name=\"quoted\"").unwrap().name, "quoted");
    assert!(set("data.validation=").unwrap().data.validation.is_empty());
    assert_eq!(
        set("data.train=a=b.txt").unwrap().data.train,
        ["a=b.txt".into()]
    );
    let texts = ["a.txt", "b.txt"].map(TextSource::from);
    assert_eq!(stage("stage2.data=a.txt,b.txt", "stage2").data, texts);
    assert_eq!(stage("stage2.data=[a.txt, b.txt]", "stage2").data, texts);
    let config = set("student.bias=true").unwrap();
    assert!(config.student.mixer.mamba().unwrap().bias);
}

#[test]
fn rates_are_one_number_or_one_for_each_part() {
    let rates = |text: &str, name: &str| stage(text, name).lr;
    // A number is the rate of what trains, which it does not change.
    assert_eq!(
        rates("stage3.lr=2e-4", "stage3"),
        Rates::new(&Part::ALL, 2e-4)
    );
    assert_eq!(
        rates("stage3.lr = 1", "stage3"),
        Rates::new(&Part::ALL, 1.0)
    );
    let mixer = |lr| Rates::new(&[Part::Mixer], lr);
    assert_eq!(rates("stage2.lr=1e-3", "stage2"), mixer(1e-3));
    // A table says what trains.
    assert_eq!(rates("stage3.lr={ mixer = 1e-3 }", "stage3"), mixer(1e-3));
    let two = Rates([(Part::Mixer, 5e-3), (Part::Norm, 1e-4)].into());
    assert_eq!(
        rates("stage2.lr={norm = 1e-4, mixer = 5e-3}", "stage2"),
        two
    );
    // One part alone.
    assert_eq!(rates("stage2.lr.norm=1e-4", "stage2"), two);
    let found = rates("stage3.lr.head=0.5", "stage3");
    let mut expected = set("seed=1").unwrap().stage("stage3").unwrap().lr.clone();
    expected.0.insert(Part::Head, 0.5);
    assert_eq!(found, expected);

    for (wrong, expected) in [
        ("stage2.lr={}", "`stage2.lr` is without a rate"),
        ("stage2.lr={ head = 1 }", "`stage2.lr.head` is 1"),
        ("stage2.lr.mlp=1", "has a gradient for mixer, norm only"),
        ("stage2.lr={ mixr = 1 }", "did you mean `stage2.lr.mixer`?"),
        ("stage2.lr.mixr=1", "did you mean `stage2.lr.mixer`?"),
        (
            "stage2.lr={ mixer = fast }",
            "`stage2.lr` must be a number, or a table",
        ),
        (
            "stage2.lr={ mixer = true }",
            "`stage2.lr.mixer` must be a number",
        ),
        ("stage2.lr.mixer=0", "`stage2.lr.mixer` is 0"),
        // Below the rate of one part, above that of another.
        ("stage3.lr={ mixer = 1e-3, head = 0.0 }", "`stage3.lr.head`"),
    ] {
        let message = complaint(wrong);
        assert!(message.contains(expected), "{wrong}: {message}");
    }
}

#[test]
fn a_schedule_brings_its_own_keys() {
    let cosine = stage("stage3.schedule=cosine", "stage3").schedule;
    let expected = Schedule::Cosine {
        warmup: 0.1,
        final_lr: 0.0,
    };
    assert_eq!(cosine, expected);
    let constant = stage("stage3.schedule=constant", "stage3").schedule;
    assert_eq!(constant, Schedule::Constant { warmup: 0.1 });

    let load = |overrides: &[&str]| {
        let overrides: Vec<_> = overrides.iter().map(|text| text.to_string()).collect();
        Config::load(Source::Preset("tiny"), &overrides)
    };
    let both = ["stage3.schedule=constant", "stage3.decay=0.5"];
    let message = load(&both).unwrap_err().to_string();
    assert!(message.contains("unknown key `stage3.decay`"), "{message}");
    // Back again with defaults.
    let config = load(&["stage3.schedule=constant", "stage3.schedule=wsd"]).unwrap();
    let expected = Schedule::Wsd {
        warmup: 0.1,
        decay: 0.1,
        final_lr: 0.0,
    };
    assert_eq!(config.stage("stage3").unwrap().schedule, expected);
    let message = complaint("stage3.schedule=cosin");
    assert!(message.contains("did you mean `cosine`?"), "{message}");
}

#[test]
fn later_layers_win() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my.toml");
    std::fs::write(
        &path,
        "preset = \"phi-1.5\"\nseed = 7\n[stage1]\nbatch = 64\nlr = 1e-3\n",
    )
    .unwrap();
    let config = Config::load(Source::File(&path), &["stage1.lr=5e-4".to_owned()]).unwrap();
    assert_eq!(config.seed, 7);
    let stage = config.stage("stage1").unwrap();
    assert_eq!(stage.batch, 64);
    assert_eq!(stage.lr, Rates::new(&[Part::Mixer], 5e-4));
    assert_eq!(config.student.mixer.mamba().unwrap().n_v_heads, 32);
}

#[test]
fn losses_and_what_is_compared_are_options() {
    use crate::stages::hidden_states::{HiddenStates, Target};
    use crate::stages::predictions::{Loss, Predictions};
    let kind = |text: &str, name: &str| stage(text, name).kind;
    let published = Predictions::default();
    assert_eq!((published.loss, published.top_k), (Loss::ForwardKl, 0));
    assert_eq!(
        kind("stage3.loss=reverse_kl", "stage3"),
        Kind::Predictions(Predictions {
            loss: Loss::ReverseKl,
            ..published.clone()
        })
    );
    assert_eq!(
        kind("stage3.top_k=50", "stage3"),
        Kind::Predictions(Predictions {
            top_k: 50,
            ..published
        })
    );
    let with = |overrides: &[&str]| {
        let overrides: Vec<_> = overrides.iter().map(|text| text.to_string()).collect();
        Config::load(Source::Preset("tiny"), &overrides)
    };
    let pairs = with(&[
        "stage2.target=block",
        "stage2.every=2",
        "stage2.sequential=0.25",
    ]);
    assert_eq!(
        pairs.unwrap().stage("stage2").expect("a stage").kind,
        Kind::HiddenStates(HiddenStates {
            target: Target::Block,
            every: 2,
            sequential: 0.25,
            ..HiddenStates::default()
        })
    );
    for (wrong, expected) in [
        ("stage3.loss=reverse", "did you mean `reverse_kl`?"),
        (
            "stage3.top_k=-1",
            "`stage3.top_k` must be a whole number, 0 or more",
        ),
        ("stage3.hard_weight=1.5", "`stage3.hard_weight` is 1.5"),
        ("stage2.loss=reverse_kl", "unknown key `stage2.loss`"),
        (
            "stage2.sequential=1.5",
            "`stage2.sequential` is 1.5; allowed: from 0 to 1",
        ),
        ("stage2.every=0", "`stage2.every` is 0"),
        (
            "stage3.window_dropout=0.5",
            "`stage3.window_dropout` is 0.5; allowed: 0 unless student.kind is mamba2_window",
        ),
        ("stage2.every=2", "1 with target = \"mixer\""),
    ] {
        let message = complaint(wrong);
        assert!(message.contains(expected), "{wrong}: {message}");
    }
}

/// Longer sequences at the end, as the README has them: the same tokens in all, and in each step.
#[test]
fn the_documented_longer_sequences_are_a_stage() {
    let readme = include_str!("../../README.md");
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

#[test]
fn a_file_without_a_preset_starts_from_tiny() {
    let mut expected = Config::load(Source::Preset("tiny"), &[]).unwrap();
    expected.seed = 1;
    assert_eq!(load_text("seed = 1").unwrap(), expected);
}

#[test]
fn unknown_keys_are_told_the_nearest() {
    for (wrong, nearest) in [
        ("sead", "seed"),
        ("stage3.lrr", "stage3.lr"),
        ("lr", "stage1.lr"),
        ("stage4.lr", "stage1.lr"),
        ("stag3.temprature", "stage3.temperature"),
        ("student.dstate", "student.d_state"),
        ("stage1.target", "stage2.target"),
        ("checkpoint.evry", "checkpoint.every"),
        ("seed.x", "seed"),
    ] {
        let message = complaint(&format!("{wrong}=1"));
        let expected = format!("unknown key `{wrong}`; did you mean `{nearest}`?");
        assert!(message.contains(&expected), "{message}");
    }
    assert!(complaint("=1").contains("unknown key ``"));
    let message = load_text("[stage3]\nlrr = 1").unwrap_err().to_string();
    assert!(
        message.contains("my.toml: unknown key `stage3.lrr`; did you mean `stage3.lr`?"),
        "{message}"
    );
    let message = load_text("[chekpoint]\nevery = 1").unwrap_err().to_string();
    assert!(
        message.contains("unknown key `chekpoint`; did you mean `checkpoint`?"),
        "{message}"
    );
    let message = load_text("preset = \"phi1.5\"").unwrap_err().to_string();
    assert!(message.contains("did you mean `phi-1.5`?"), "{message}");
}

#[test]
fn wrong_types_name_the_key_and_the_type() {
    for (wrong, expected) in [
        (
            "stage3.lr=fast",
            "`stage3.lr` must be a number, or a table of numbers by part, not \"fast\"",
        ),
        (
            "stage3.batch=-1",
            "`stage3.batch` must be a whole number, 0 or more, not -1",
        ),
        (
            "stage3.batch=1.5",
            "`stage3.batch` must be a whole number, 0 or more, not 1.5",
        ),
        ("stage3=5", "`stage3` must be a table of keys, not 5"),
        (
            "student.bias=1",
            "`student.bias` must be true or false, not 1",
        ),
        ("seed", "write key=value"),
    ] {
        let message = complaint(wrong);
        assert!(message.contains(expected), "{message}");
    }
    let message = load_text("stage3 = 1").unwrap_err().to_string();
    assert!(
        message.contains("`stage3` must be a table of keys"),
        "{message}"
    );
    let message = load_text("[data]\ntrain = \"a.txt\"")
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("`data.train` must be a list, not \"a.txt\""),
        "{message}"
    );
    // A list that is empty in the schema has no type to compare with: serde's words, and the key.
    let message = complaint("student.attention_layers=a");
    assert!(message.contains("student.attention_layers"), "{message}");
    // Not TOML at all: the line is shown.
    let message = load_text("seed = 1\nname = \"open")
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("my.toml") && message.contains("line 2"),
        "{message}"
    );
}

#[test]
fn wrong_choices_list_the_right_ones() {
    for (wrong, expected) in [
        (
            "stage2.target=mixr",
            "`mixr`; did you mean `mixer`? (choices: mixer, block)",
        ),
        ("optimizer.decay=matrix", "did you mean `matrices`?"),
        ("student.activation=SiLU", "did you mean `silu`?"),
        ("guard.action=stop", "(choices: log, skip, roll_back)"),
        ("data.packing=docs", "(choices: concatenate, documents)"),
        ("precision=bf15", "`bf15`; did you mean `bf16`?"),
    ] {
        let message = complaint(wrong);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn values_out_of_range_name_the_key_and_the_range() {
    for (wrong, key) in [
        ("name=a/b", "name"),
        ("name=..", "name"),
        ("teacher.model=", "teacher.model"),
        ("data.train=", "data.train"),
        ("data.context=1", "data.context"),
        ("student.n_qk_heads=2", "student.n_v_heads"),
        ("student.chunk_size=0", "student.chunk_size"),
        ("student.attention_layers=2,1", "student.attention_layers"),
        ("optimizer.beta1=1", "optimizer.beta1"),
        ("optimizer.epsilon=0", "optimizer.epsilon"),
        ("optimizer.weight_decay=-0.1", "optimizer.weight_decay"),
        ("optimizer.clip_norm=nan", "optimizer.clip_norm"),
        ("optimizer.clip_part=-1", "optimizer.clip_part"),
        ("optimizer.clip_layer=inf", "optimizer.clip_layer"),
        ("stage1.batch=0", "stage1.batch"),
        ("stage1.micro_batch=3", "stage1.micro_batch"),
        ("stage1.micro_batch=8", "stage1.micro_batch"),
        ("stage1.tokens=0", "stage1.tokens"),
        ("stage1.batch=9223372036854775804", "stage1.tokens"),
        ("stage2.lr=-1e-3", "stage2.lr.mixer"),
        ("stage2.lr=inf", "stage2.lr.mixer"),
        ("stage2.context=1", "stage2.context"),
        ("stage2.context=1_000_000", "stage2.tokens"),
        ("stage2.final_lr=1", "stage2.final_lr"),
        ("stage3.warmup=0.9", "stage3.decay"),
        ("stage3.warmup=1.1", "stage3.warmup"),
        ("stage3.temperature=0", "stage3.temperature"),
        ("stage3.hard_weight=2", "stage3.hard_weight"),
        ("checkpoint.every=0", "checkpoint.every"),
        ("checkpoint.keep=0", "checkpoint.keep"),
        ("log.every=0", "log.every"),
        ("safety.max_skipped=0", "safety.max_skipped"),
        ("guard.spike=0.5", "guard.spike"),
        ("guard.window=0", "guard.window"),
        ("evaluation.context=0", "evaluation.context"),
        ("evaluation.batch=0", "evaluation.batch"),
    ] {
        let message = complaint(wrong);
        assert!(
            message.contains(&format!("`{key}`")),
            "--set {wrong}: {message}"
        );
    }
    let all_of_it = ["stage3.warmup=0.8", "stage3.decay=0.2"].map(str::to_owned);
    assert!(Config::load(Source::Preset("tiny"), &all_of_it).is_ok());
}

#[test]
fn paths_are_looked_up_in_two_places() {
    // This crate's manifest is beside no current folder a test runs in but its own.
    assert!(resolve_path("train/presets/tiny.toml").unwrap().is_file());
    assert!(resolve_path("presets/tiny.toml").unwrap().is_file());
    let message = resolve_path("no/such/file").unwrap_err().to_string();
    let here = std::env::current_dir().unwrap().join("no/such/file");
    assert!(message.contains(&here.display().to_string()), "{message}");
    assert_eq!(message.matches("no/such/file").count(), 3, "{message}");
    assert!(resolve_path("").is_err());
    assert!(resolve_path("/no/such/file").is_err());
}
