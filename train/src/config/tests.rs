//! What a user may write, and what they are told when it is wrong.

use super::*;

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
    let tokens: u64 = (1..=3).map(|stage| tiny.stage(stage).tokens).sum();
    assert_eq!(tokens, 1_331_200);
    assert_eq!([1, 2, 3].map(|stage| tiny.steps(stage)), [40, 500, 760]);

    let phi = load("phi-1.5");
    let tokens = [1, 2, 3].map(|stage| phi.stage(stage).tokens);
    assert_eq!(tokens, [80_000_000, 160_000_000, 2_760_000_000]);
    assert_eq!([1, 2, 3].map(|stage| phi.steps(stage)), [305, 610, 10_529]);
    assert_eq!(phi.data.context, 2048);

    let hybrid = load("hybrid-phi-1.5");
    let tokens: u64 = (1..=3).map(|stage| hybrid.stage(stage).tokens).sum();
    assert_eq!(tokens, 5_000_000_000);
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
            "stage3.lr=2e-4".to_owned(),
            "data.validation=[]".to_owned(),
            "stage2.target=block".to_owned(),
        ];
        let config = Config::load(Source::Preset(name), &overrides).unwrap();
        let path = folder.path().join("config.toml");
        config.write(&path).unwrap();
        let read = Config::load(Source::File(&path), &[]).unwrap();
        assert_eq!(read, config, "preset {name}");
    }
}

#[test]
fn overrides_need_no_quoting() {
    assert_eq!(set("stage3.lr=2e-4").unwrap().stage3.stage.lr, 2e-4);
    assert_eq!(set("stage3.lr = 1").unwrap().stage3.stage.lr, 1.0);
    assert_eq!(set("stage1.tokens=1e6").unwrap().stage1.tokens, 1_000_000);
    assert_eq!(set("name=2024").unwrap().name, "2024");
    assert_eq!(set("name=\"quoted\"").unwrap().name, "quoted");
    assert_eq!(set("stages=2,3").unwrap().stages, [2, 3]);
    assert_eq!(set("stages=[2, 3]").unwrap().stages, [2, 3]);
    assert_eq!(set("data.validation=").unwrap().data.validation, [""; 0]);
    assert_eq!(set("data.train=a=b.txt").unwrap().data.train, ["a=b.txt"]);
    let parts = [Part::Mixer, Part::Norm];
    assert_eq!(
        set("stage2.train=mixer,norm").unwrap().stage2.stage.train,
        parts
    );
    assert_eq!(
        set("stage2.train=[mixer, norm]")
            .unwrap()
            .stage2
            .stage
            .train,
        parts
    );
    assert!(set("student.bias=true").unwrap().student.bias);
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
    assert_eq!(config.stage1.batch, 64);
    assert_eq!(config.stage1.lr, 5e-4);
    assert_eq!(config.student.n_v_heads, 32);
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
            "`stage3.lr` must be a number, not \"fast\"",
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
        (
            "stages=a",
            "`stages` must be a whole number, 0 or more, not \"a\"",
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
        ("stage3.train=mixer,heads", "`heads`; did you mean `head`?"),
        ("optimizer.decay=matrix", "did you mean `matrices`?"),
        ("student.activation=SiLU", "did you mean `silu`?"),
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
        ("stages=3,1", "stages"),
        ("stages=0,1", "stages"),
        ("stages=", "stages"),
        ("stages=300", "stages"),
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
        ("stage1.batch=0", "stage1.batch"),
        ("stage1.micro_batch=3", "stage1.micro_batch"),
        ("stage1.micro_batch=8", "stage1.micro_batch"),
        ("stage1.tokens=0", "stage1.tokens"),
        ("stage1.batch=9223372036854775804", "stage1.tokens"),
        ("stage2.lr=-1e-3", "stage2.lr"),
        ("stage2.lr=inf", "stage2.lr"),
        ("stage2.final_lr=1", "stage2.final_lr"),
        ("stage3.warmup=0.9", "stage3.decay"),
        ("stage3.warmup=1.1", "stage3.warmup"),
        ("stage3.train=", "stage3.train"),
        ("stage1.train=mlp", "stage1.train"),
        ("stage2.train=mixer,head", "stage2.train"),
        ("stage3.temperature=0", "stage3.temperature"),
        ("stage3.hard_weight=2", "stage3.hard_weight"),
        ("checkpoint.every=0", "checkpoint.every"),
        ("checkpoint.keep=0", "checkpoint.keep"),
        ("log.every=0", "log.every"),
        ("safety.max_skipped=0", "safety.max_skipped"),
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
