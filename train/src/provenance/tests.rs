use super::*;
use crate::config::Source;

fn text(key: &str, sha256: &str) -> Text {
    Text {
        key: key.into(),
        tokens: "/nowhere".into(),
        sha256: sha256.into(),
    }
}

fn made_from(set: &[&str]) -> Provenance {
    let set: Vec<_> = set.iter().map(|text| text.to_string()).collect();
    let config = Config::load(Source::Preset("tiny"), &set).unwrap();
    let stages = config.stages.iter();
    Provenance {
        config: config.to_table().unwrap(),
        backend: "flex".into(),
        tokenizer: "a".into(),
        teacher_folder: "/teacher".into(),
        teacher: [("config.json", "b"), ("model.safetensors", "c")]
            .map(|(name, hash)| (name.to_owned(), hash.to_owned()))
            .into(),
        held_out: Some(text("data.validation", "d")),
        texts: stages
            .map(|stage| (stage.name.clone(), text("data.train", "e")))
            .collect(),
        caches: [("stage3".to_owned(), "f".to_owned())].into(),
    }
}

/// Exactly the inputs that have been used are compared.
#[test]
fn changes_are_named() {
    let then = made_from(&[]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("inputs.toml");
    then.write(&path).unwrap();
    assert_eq!(Provenance::read(&path).unwrap(), then);

    // In the second stage of three.
    let position = Position {
        stage: "stage2".into(),
        step: 3,
    };
    let changes = |now: &Provenance| then.changes(now, &position, ["stage1"].into_iter());
    let mut now = then.clone();
    now.teacher_folder = "/elsewhere".into();
    assert!(changes(&now).is_empty());
    now.teacher.insert("model.safetensors".into(), "x".into());
    now.tokenizer = "x".into();
    now.held_out = Some(text("data.validation", "x"));
    for text in now.texts.values_mut() {
        text.sha256 = "x".into();
    }
    assert_eq!(
        changes(&now),
        [
            "the teacher's model.safetensors",
            "the tokenizer.json",
            "the text of data.validation",
            "the text of data.train",
        ]
    );
    // Texts that are not known yet.
    (now.held_out, now.texts) = (None, BTreeMap::new());
    assert_eq!(
        changes(&now),
        ["the teacher's model.safetensors", "the tokenizer.json"]
    );
    // The teacher's predictions that a stage has read, and those of one that has not begun.
    let mut read = then.clone();
    read.caches.insert("stage2".into(), "f".into());
    let mut other = read.clone();
    other
        .caches
        .values_mut()
        .for_each(|cache| *cache = "x".into());
    assert_eq!(
        read.changes(&other, &position, ["stage1"].into_iter()),
        ["the teacher's cached predictions of stage2"]
    );
    // Text of a stage that has not begun.
    let mut now = then.clone();
    now.texts.insert("stage3".into(), text("data.train", "x"));
    assert!(changes(&now).is_empty());
    // Such a change, like other changes of that stage's settings, affects only the rest of the run.
    now.backend = "ndarray".into();
    now.config = made_from(&["stage3.temperature=2", "stage2.tokens=51_200"]).config;
    let refused = changes(&now);
    assert_eq!(refused, ["stage2.tokens, from 512000 to 51200"]);
    assert_eq!(
        then.plans(&now, &refused),
        [
            "the text of data.train",
            "stage3.temperature, from 1.0 to 2.0",
            "the backend, from flex to ndarray",
        ]
    );

    let free = [
        "name=other",
        "data.cache=/c",
        "data.train=other.txt",
        "checkpoint.every=7",
        "log.every=3",
        "safety.max_skipped=2",
        "evaluation.batch=1",
        "evaluation.every=3",
        "student.from=/students/a",
        "evaluation.tasks=piqa",
        "stage1.micro_batch=1",
        "stage3.recompute=true",
        "stage3.lr=1e-3",
        "stage3.kind=predictions",
    ];
    assert!(changes(&made_from(&free)).is_empty());
    for (set, change) in [
        ("seed=1", "seed, from 42 to 1"),
        ("stage1.lr.mixer=0.5", "stage1.lr.mixer, from 0.003 to 0.5"),
        ("stage1.lr.norm=0.5", "stage1.lr.norm, from none to 0.5"),
        (
            "stage2.target=block",
            "stage2.target, from \"mixer\" to \"block\"",
        ),
        ("student.bias=true", "student.bias, from false to true"),
        (
            "data.packing=documents",
            "data.packing, from \"concatenate\" to \"documents\"",
        ),
        ("evaluation.windows=5", "evaluation.windows, from 0 to 5"),
        ("optimizer.beta1=0.5", "optimizer.beta1, from 0.9 to 0.5"),
    ] {
        assert_eq!(changes(&made_from(&[set])), [change]);
    }
}
/// The inputs as a version with fewer or more settings has written them.
#[test]
fn other_versions_are_read() {
    let now = made_from(&["optimizer.beta1=0.8"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("inputs.toml");
    made_from(&[]).write(&path).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let mut other: Table = text.parse().unwrap();
    other.insert("later".into(), true.into());
    let config = other["config"].as_table_mut().unwrap();
    config.insert("later".into(), Value::Table(Table::new()));
    config.remove("safety").unwrap();
    config.remove("evaluation").unwrap();
    let optimizer = config["optimizer"].as_table_mut().unwrap();
    optimizer.remove("epsilon").unwrap();
    optimizer.insert("later".into(), 3.into());
    let stage = config["stages"][0].as_table_mut().unwrap();
    stage.remove("batch").unwrap();
    stage.remove("final_lr").unwrap();
    fs::write(&path, toml::to_string(&other).unwrap()).unwrap();
    let then = Provenance::read(&path).unwrap();
    let position = Position {
        stage: "stage2".into(),
        step: 3,
    };
    assert_eq!(
        then.changes(&now, &position, ["stage1"].into_iter()),
        [
            "optimizer.beta1, from 0.9 to 0.8",
            "optimizer.later, from 3 to none"
        ]
    );
}
