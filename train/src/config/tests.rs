//! What a user may write in a configuration, and the messages about errors.

mod lists;
mod refused;

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

/// The numbers of ranks in docs/scaling.md and in the README.
#[test]
fn the_documented_ranks_share_the_passes() {
    for (preset, overrides, ranks) in [
        ("tiny", &[][..], 2),
        ("phi-1.5", &[], 8),
        ("phi-1.5", &["stage2.micro_batch=8".to_owned()], 16),
    ] {
        let config = Config::load(Source::Preset(preset), overrides).unwrap();
        for stage in &config.stages {
            let passes = stage.accumulation();
            assert!(passes.is_multiple_of(ranks), "{preset}: {}", stage.name);
        }
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

#[test]
fn a_file_without_a_preset_starts_from_tiny() {
    let mut expected = Config::load(Source::Preset("tiny"), &[]).unwrap();
    expected.seed = 1;
    assert_eq!(load_text("seed = 1").unwrap(), expected);
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
