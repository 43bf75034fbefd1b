//! Runs with a Llama as the teacher, and with mixers that start from its attention.

use burn::module::Module;
use datasets::probes::Probe;
use model::{CausalLm, Family, LlamaConfig, LlamaFamily, Mixer};
use train::heads::{By, HYBRID, HeadStudy, Settings, UnitKind};

use super::*;

/// A Llama with random weights and the bundled tokenizer.
pub(super) fn teacher(folder: &Path) {
    teacher_of(LlamaFamily::Llama, None, folder);
}

/// The same of any family, with this window of attention in every layer.
fn teacher_of(family: LlamaFamily, window: Option<usize>, folder: &Path) {
    let default = LlamaConfig::default_of(family);
    let mut config = LlamaConfig {
        vocab_size: 4096,
        hidden_size: 48,
        intermediate_size: 64,
        num_hidden_layers: 2,
        tie_word_embeddings: true,
        sliding_window: window,
        ..default
    };
    config.attention.n_heads = 4;
    config.attention.n_kv_heads = 2;
    config.attention.head_dim = Some(12);
    let network = CausalLm::<Inner>::init(&config, 3, &Default::default());
    model::save(&config, &network, folder).expect("a teacher");
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/phi-tiny");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(assets.join(file), folder.join(file)).expect("a tokenizer");
    }
}

/// A run of the teacher in `folder`, with these overrides.
pub(super) fn config_with(folder: &Path, overrides: &[&str]) -> Config {
    let model = format!("teacher.model={}", folder.display());
    let own = [
        &model,
        "student.d_state=12",
        "student.n_v_heads=4",
        "student.n_qk_heads=4",
    ];
    config(&[&own, overrides].concat())
}

/// The mixers are calibrated before the first stage, and the run says so. A run in several pieces gives the same
/// student as one in one piece, and the student can be loaded.
#[test]
fn a_calibrated_student_of_a_llama() {
    let (folder, whole, pieces) = (folder(), super::folder(), super::folder());
    teacher(folder.path());
    let set = [
        "student.kind=mamba2_window",
        "student.window=8",
        "student.sinks=2",
        "student.init=calibrated",
    ];
    let config = || config_with(folder.path(), &set);
    let summary = run(config(), whole.path());
    let note = &summary.notes[0].text;
    assert!(note.starts_with("the mixers start calibrated"), "{note}");
    assert!(summary.student_perplexity.is_finite());

    // While the mixers are fitted, past the two batches that measure the teacher; then in the first stage.
    let stopped = stopping(3, options(config(), pieces.path(), false));
    assert_eq!(execute(stopped).expect("a stop"), Outcome::Stopped);
    assert!(!pieces.path().join("checkpoints").exists());
    let mut stopped = options(config_of(pieces.path()), pieces.path(), true);
    let begun = checkpoint(pieces.path(), "stage1-step0000002");
    stopped.stop = StopRequest::when(move || begun.exists());
    assert_eq!(execute(stopped).expect("a stop"), Outcome::Stopped);
    // A checkpoint is there some time after its step.
    let found = checkpoints(pieces.path());
    assert!(
        !found.is_empty() && found.iter().all(|name| name.starts_with("stage1-")),
        "{found:?}"
    );
    let resumed = resume(pieces.path());
    assert_eq!(resumed.notes[0].text, *note);
    assert!(student(whole.path()) == student(pieces.path()));

    let (config, network) =
        model::load_any::<Inner>(whole.path().join("student"), &Default::default()).expect("one");
    assert_eq!(config.name(), "hybrid Llama-Mamba");
    assert!(network.num_params() > 0);
    let mixers = network.backbone.layers.iter();
    let windows = mixers.filter(|layer| matches!(layer.mixer, Mixer::BesideAttention(_)));
    assert_eq!(windows.count(), 2);
}

/// A start that takes nothing over, and a layer that keeps its attention.
#[test]
fn a_hybrid_student_of_a_llama() {
    let (folder, run_folder) = (folder(), super::folder());
    teacher(folder.path());
    let config = config_with(folder.path(), &["student.attention_layers=1"]);
    let summary = run(config, run_folder.path());
    assert!(summary.notes.is_empty());
    let student = run_folder.path().join("student");
    let (config, _) = model::load_any::<Inner>(student, &Default::default()).expect("one");
    assert_eq!(config.name(), "hybrid Llama-Mamba");
}

/// Qwen2 has biases of queries, keys and values, Qwen3 norms of queries and keys, and this Mistral a window that is
/// shorter than a sequence. The students begin with all that their attention has.
#[test]
fn students_of_the_other_families() {
    for (family, model_type, window, bc_norm) in [
        (LlamaFamily::Qwen2, "qwen2", None, false),
        (LlamaFamily::Qwen3, "qwen3", None, true),
        (LlamaFamily::Mistral, "mistral", Some(8), false),
    ] {
        let (folder, run_folder) = (folder(), super::folder());
        teacher_of(family, window, folder.path());
        let norm = format!("student.bc_norm={bc_norm}");
        let set = ["student.init=calibrated", &norm];
        let summary = run(config_with(folder.path(), &set), run_folder.path());
        let note = &summary.notes[0].text;
        assert!(note.starts_with("the mixers start calibrated"), "{note}");
        for perplexity in [summary.student_perplexity, summary.teacher_perplexity] {
            assert!(perplexity.is_finite(), "{model_type}: {perplexity}");
        }
        let student = run_folder.path().join("student");
        let text = fs::read_to_string(student.join("config.json")).expect("a file");
        let file: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(file["family"], model_type);
        let (_, network) = model::load_any::<Inner>(student, &Default::default()).expect("one");
        for layer in &network.backbone.layers {
            let Mixer::DiscreteMamba2(mixer) = &layer.mixer else {
                panic!("{model_type}: another mixer");
            };
            assert_eq!(mixer.b_norm.is_some(), bc_norm, "{model_type}");
        }

        // Without the norms that it has, and with norms that it lacks.
        let norm = format!("student.bc_norm={}", !bc_norm);
        let config = config_with(folder.path(), &["student.init=calibrated", &norm]);
        let refused = execute(options(config, super::folder().path(), false));
        let message = refused.expect_err("norms differ").to_string();
        let needed = format!("student.bc_norm = {bc_norm}");
        assert!(message.contains(&needed), "{message}");
    }
}

/// With some heads kept beside the mixer: in layer 0 two of them, in layer 1 none.
#[test]
fn a_student_with_heads_of_a_llama() {
    let (folder, run_folder) = (folder(), super::folder());
    teacher(folder.path());
    let set = [
        "student.kind=mamba2_heads",
        "student.heads=0/1,0/3",
        "student.joined=adapter",
        "student.init=copy",
    ];
    run(config_with(folder.path(), &set), run_folder.path());
    let student = run_folder.path().join("student");
    let (_, network) = model::load_any::<Inner>(student, &Default::default()).expect("one");
    let kept = network
        .backbone
        .layers
        .iter()
        .map(|layer| match &layer.mixer {
            Mixer::BesideAttention(both) => (both.config().heads.clone(), both.adapter.is_some()),
            _ => panic!("another mixer"),
        });
    assert!(kept.eq([(vec![1, 3], true), (vec![], false)]));

    for (kept, set) in [
        ("0/4", "student.heads=0/4"),
        ("2/1", "student.heads=0/1,2/1"),
        ("1/0", "student.heads=0/1,1/0"),
    ] {
        let kind = "student.kind=mamba2_heads";
        let set = [kind, set, "student.attention_layers=1"];
        let config = config_with(folder.path(), &set);
        let refused = execute(options(config, super::folder().path(), false));
        let message = refused.expect_err("there is no such head").to_string();
        assert!(message.contains(kept), "{message}");
    }
}

/// Heads are ranked, and the configuration that is written makes a student with the best of them.
#[test]
fn heads_that_recall_make_a_hybrid() {
    let (folder, found, run_folder) = (folder(), super::folder(), super::folder());
    teacher(folder.path());
    let study = |window| HeadStudy {
        settings: Settings {
            probes: vec![Probe::Needle],
            lengths: vec![256],
            documents: 2,
            seed: 1,
            by: By::Restoration,
            unit: UnitKind::Head,
            rounds: 2,
            keep: 2,
            window,
            sinks: 4,
            curve: vec![0, 2],
            curve_lengths: vec![256],
            curve_documents: 1,
        },
        config: config_with(folder.path(), &[]),
        folder: found.path().to_owned(),
        backend: "flex".to_owned(),
        stop: StopRequest::default(),
    };
    let refused = study(256).execute::<Inner>(&Default::default());
    let refused = refused.expect_err("all heads see all").to_string();
    assert!(refused.contains("--window"), "{refused}");
    // The teacher has eight heads; two share keys and values.
    for (keep, unit, rounds, named) in [
        (
            9,
            UnitKind::Head,
            1,
            "--keep is 9, and the teacher has 8 heads",
        ),
        (3, UnitKind::Group, 1, "a multiple of 2"),
        (2, UnitKind::Group, 2, "--rounds is 2"),
    ] {
        let mut wrong = study(64);
        (wrong.settings.keep, wrong.settings.unit) = (keep, unit);
        wrong.settings.rounds = rounds;
        let refused = wrong.execute::<Inner>(&Default::default());
        let refused = refused.expect_err("heads that cannot be kept").to_string();
        assert!(refused.contains(named), "{refused}");
    }
    // A folder that can never be written is found before anything else, a teacher that is not there among it.
    let mut nowhere = study(64);
    nowhere.folder = folder.path().join("config.json/heads");
    nowhere.config.teacher.model = "no such teacher".to_owned();
    let refused = nowhere.execute::<Inner>(&Default::default());
    let refused = refused.expect_err("below a file").to_string();
    assert!(refused.contains("config.json"), "{refused}");
    let table = study(64).execute::<Inner>(&Default::default());
    assert!(table.expect("a study").is_some());

    let json = fs::read(found.path().join("heads.json")).expect("findings");
    let json: Value = serde_json::from_slice(&json).expect("JSON");
    let heads = |value: &Value| value.as_array().expect("a list").len();
    // Two layers of four heads.
    assert_eq!(heads(&json["ranked"]), 8);
    let [whole, none, two] = &json["curve"].as_array().expect("a curve")[..] else {
        panic!("{}", json["curve"]);
    };
    assert!(whole["heads"].is_null());
    assert_eq!((heads(&none["heads"]), heads(&two["heads"])), (0, 2));
    let bytes = |row: &Value| row["state_bytes"].as_u64().expect("bytes");
    assert!(bytes(none) < bytes(two));
    assert_eq!(two["heads"], json["kept"]);

    let hybrid = Config::load(Source::File(&found.path().join(HYBRID)), &small(&[]));
    let mut hybrid = hybrid.expect("a configuration");
    assert_eq!(hybrid.student.init, "fitted");
    hybrid
        .choose_stages(&["stage2".to_owned()])
        .expect("a stage of the preset");
    let summary = run(hybrid, run_folder.path());
    let said = notes(&summary);
    assert!(said.contains("the mixers start fitted"), "{said}");
    let student = run_folder.path().join("student");
    let (_, network) = model::load_any::<Inner>(student, &Default::default()).expect("one");
    let mut kept = vec![];
    for (layer, block) in network.backbone.layers.iter().enumerate() {
        let Mixer::BesideAttention(both) = &block.mixer else {
            panic!("another mixer");
        };
        let heads = both.config().heads.iter();
        kept.extend(heads.map(|head| Value::from(format!("{layer}/{head}"))));
    }
    assert_eq!(Value::from(kept), json["kept"]);
}

/// Sequences without the window, generated text, and clipping by layers depend only on seed and step: a run that was
/// stopped during them ends in the same bytes as one that was not.
#[test]
fn what_is_left_out_of_a_step_is_the_same_after_a_stop() {
    let (folder, whole, pieces) = (folder(), super::folder(), super::folder());
    teacher(folder.path());
    let set = [
        "student.kind=mamba2_window",
        "student.window=8",
        "student.sinks=2",
        "student.init=copy",
        "student.feature_map=softmax",
        "optimizer.clip_layer=0.5",
        "stage2.window_dropout=0.5",
        "stage3.window_dropout=0.5",
        "stage3.micro_batch=1",
        r#"stage3.data=[{path = "assets/text/pd-validation.json.gz", weight = 3}, {path = "probes:needle,copy"}]"#,
    ];
    let config = || {
        let mut config = config_with(folder.path(), &set);
        let stages = ["stage2", "stage3"].map(str::to_owned);
        config.choose_stages(&stages).expect("stages of the preset");
        config
    };
    let summary = run(config(), whole.path());
    assert!(summary.student_perplexity.is_finite());
    let mut stopped = options(config(), pieces.path(), false);
    let begun = checkpoint(pieces.path(), "stage3-step0000002");
    stopped.stop = StopRequest::when(move || begun.exists());
    assert_eq!(execute(stopped).expect("a stop"), Outcome::Stopped);
    resume(pieces.path());
    assert!(student(whole.path()) == student(pieces.path()));
}

/// A start that does not fit is refused before anything is written, with the key that would fit.
#[test]
fn a_start_that_does_not_fit_is_refused() {
    let (folder, run_folder) = (folder(), super::folder());
    teacher(folder.path());
    for (how, set, fits) in [
        ("copy", "student.d_state=8", "student.d_state = 12"),
        (
            "ridge",
            "student.conv_bias=false",
            "student.conv_bias = true",
        ),
    ] {
        let how = format!("student.init={how}");
        let config = config_with(folder.path(), &[how.as_str(), set]);
        let refused = execute(options(config, run_folder.path(), false));
        let message = refused.expect_err("it does not fit").to_string();
        assert!(message.contains(fits), "{message}");
        assert!(!run_folder.path().join("config.toml").exists());
    }
}
