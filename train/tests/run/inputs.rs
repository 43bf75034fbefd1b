//! The inputs of a run: changes of their content are noticed; changes of their places do not matter.

use safetensors::{Dtype, SafeTensors};

use super::failures::error;
use super::*;

/// Teacher and text of a run, which can be changed.
struct Inputs {
    folder: TempDir,
}

/// The names of the training text and of the held-out one.
const TRAIN: &str = "train.jsonl";
const HELD_OUT: &str = "held-out.jsonl";

impl Inputs {
    fn new() -> Self {
        let folder = folder();
        let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/phi-tiny");
        let teacher = folder.path().join("teacher");
        copy_folder(&assets, &teacher);
        // In f32, which can be changed at will.
        let (config, network) =
            model::load_any::<Inner>(&assets, &Default::default()).expect("the bundled teacher");
        model::save(&config, &network, &teacher).expect("a teacher");
        fs::remove_file(teacher.join("SHA256SUMS")).expect("checksums");
        let inputs = Self { folder };
        inputs.write(
            TRAIN,
            "It was the best of times, it was the worst of times.",
        );
        inputs.write(
            HELD_OUT,
            "Call me Ishmael. Some years ago, never mind how long.",
        );
        inputs
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file of many documents, each of which holds `text`.
    fn write(&self, name: &str, text: &str) {
        let line = |n| format!("{{\"text\": \"{n}: {text}\"}}\n");
        let text: String = (0..60).map(line).collect();
        fs::write(self.path(name), text).unwrap();
    }

    fn config(&self) -> Config {
        let of = |key: &str, name: &str| format!("{key}={}", self.path(name).display());
        let set = [
            of("teacher.model", "teacher"),
            of("data.train", TRAIN),
            of("data.validation", HELD_OUT),
            of("data.cache", "cache"),
        ];
        let set: Vec<_> = set.iter().map(String::as_str).collect();
        config_of_stages(&["stage2", "stage3"], &set)
    }

    /// A run that was stopped in its second stage.
    fn stopped(&self) -> TempDir {
        let run = folder();
        // Past the evaluations of both models and of the first stage, and a step.
        let asked = 2 * 2 + STEPS[1] + 2 + 1;
        let options = stopping(asked, options(self.config(), run.path(), false));
        assert_eq!(execute(options).expect("a stop"), Outcome::Stopped);
        assert_eq!(checkpoints(run.path()).pop().unwrap(), "stage3-step0000001");
        run
    }
}

/// The weights of a folder with those of `name` changed.
fn change_weights(folder: &Path, name: &str, change: impl Fn(f32) -> f32) {
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = vec![];
    for (key, view) in file.tensors() {
        let mut data = view.data().to_vec();
        if key == name {
            assert_eq!(view.dtype(), Dtype::F32);
            for bytes in data.as_chunks_mut().0 {
                *bytes = change(f32::from_le_bytes(*bytes)).to_le_bytes();
            }
        }
        tensors.push((key, view.dtype(), view.shape().to_vec(), data));
    }
    assert!(tensors.iter().any(|(key, ..)| key == name), "{name}");
    let views = tensors.iter().map(|(key, dtype, shape, data)| {
        let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap();
        (key.clone(), view)
    });
    safetensors::serialize_to_file(views, None, &path).unwrap();
}

/// The tensor's name in the teacher's file.
const NORM: &str = "model.final_layernorm.weight";

/// What is changed, how an error names it, and the change.
type Change = (&'static str, &'static str, fn(&Inputs));

#[test]
fn what_has_changed_is_named_and_can_be_accepted() {
    let changes: [Change; 5] = [
        ("weights", "the teacher's model.safetensors", |inputs| {
            change_weights(&inputs.path("teacher"), NORM, |weight| weight * 1.5);
        }),
        ("config", "the teacher's config.json", |inputs| {
            let path = inputs.path("teacher/config.json");
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, text + "\n").unwrap();
        }),
        ("tokenizer", "the tokenizer.json", |inputs| {
            let path = inputs.path("teacher/tokenizer.json");
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, text + "\n").unwrap();
        }),
        ("text", "the text of data.train (", |inputs| {
            inputs.write(TRAIN, "Other text.")
        }),
        ("held out", "the text of data.validation (", |inputs| {
            inputs.write(HELD_OUT, "A whale.");
        }),
    ];
    for (what, phrase, change) in changes {
        let inputs = Inputs::new();
        let stopped = inputs.stopped();
        let run = stopped.path();
        change(&inputs);
        let message = match error(options(config_of(run), run, true)) {
            error @ TrainError::Changed { .. } => error.to_string(),
            other => panic!("{what}: {other}"),
        };
        for words in [phrase, "step 1 of stage stage3", "--accept-changes"] {
            assert!(message.contains(words), "{what}: {message}");
        }

        let before = metrics(run);
        let mut accepting = options(config_of(run), run, true);
        accepting.accept_changes = true;
        // Changes that were accepted once stay accepted, even if nothing else was done then.
        accepting = stopping(100, accepting);
        let summary = finish(accepting);
        let said = notes(&summary);
        assert!(said.contains(phrase), "{what}: {said}");
        let after = metrics(run);
        assert_eq!(after[..before.len()], before, "{what}");
        assert_eq!(after[before.len()]["kind"], "note", "{what}");
        let then = before[0]["teacher_perplexity"].as_f64().unwrap();
        // Weights and held-out text change the perplexity; a blank in a file does not.
        let differs = ["weights", "held out"].contains(&what);
        assert_eq!(summary.teacher_perplexity != then, differs, "{what}");
    }
}

#[test]
fn accepted_changes_are_not_asked_for_again() {
    let inputs = Inputs::new();
    let stopped = inputs.stopped();
    let run = stopped.path();
    inputs.write(TRAIN, "Other text.");
    // Asked before each batch of the teacher's evaluation; then before the next step.
    let mut accepting = stopping(2, options(config_of(run), run, true));
    accepting.accept_changes = true;
    assert_eq!(execute(accepting).expect("a stop"), Outcome::Stopped);
    let summary = resume(run);
    assert_eq!(notes(&summary).matches("the text of data.train").count(), 1);
}

/// Everything that can be refused without the text is refused before hours are spent on it.
#[test]
fn text_is_tokenised_last() {
    let inputs = Inputs::new();
    let stopped = inputs.stopped();
    let run = stopped.path();
    fs::remove_file(inputs.path(TRAIN)).unwrap();
    let refused = |config| match error(options(config, run, true)) {
        TrainError::Changed { changes, .. } => changes.join("; "),
        other => panic!("{other}"),
    };
    let mut config = config_of(run);
    config.seed = 7;
    assert_eq!(refused(config), "seed, from 42 to 7");
    let path = inputs.path("teacher/tokenizer.json");
    let original = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{original}\n")).unwrap();
    assert_eq!(refused(config_of(run)), "the tokenizer.json");
    fs::write(&path, original).unwrap();
    let missing = error(options(config_of(run), run, true)).to_string();
    assert!(missing.contains(TRAIN), "{missing}");
}

#[test]
fn settings_of_what_is_done_are_compared() {
    let inputs = Inputs::new();
    let stopped = inputs.stopped();
    let run = stopped.path();
    let refused = |change: fn(&mut Config)| {
        let mut config = config_of(run);
        change(&mut config);
        match error(options(config, run, true)) {
            TrainError::Changed { changes, .. } => changes.join("; "),
            other => panic!("{other}"),
        }
    };
    assert_eq!(refused(|config| config.seed = 7), "seed, from 42 to 7");
    let lr = refused(|config| {
        config.stages[0].lr = train::stages::Rates::new(&[model::Part::Mixer], 0.5)
    });
    assert_eq!(lr, "stage2.lr.mixer, from 0.005 to 0.5");
    let kind = refused(|config| {
        let kind = train::stages::Kind::named("matrices").unwrap();
        config.stages[0].kind = kind;
    });
    assert!(
        kind.contains("stage2.kind, from \"hidden_states\" to \"matrices\""),
        "{kind}"
    );

    // Settings that do not affect the result may change.
    let mut config = config_of(run);
    config.stages[0].micro_batch = 1;
    config.checkpoint.every = 3;
    let summary = finish(options(config, run, true));
    assert!(summary.notes.is_empty(), "{}", notes(&summary));
}

/// Inputs that were moved, copied, touched or named differently, without their tokens, count as the same if their
/// content is the same.
#[test]
fn other_places_are_no_change() {
    let inputs = Inputs::new();
    let whole = folder();
    super::run(inputs.config(), whole.path());
    let stopped = inputs.stopped();
    let run = stopped.path();
    let elsewhere = folder();
    copy_folder(inputs.folder.path(), elsewhere.path());
    fs::remove_dir_all(elsewhere.path().join("cache")).unwrap();
    let moved = Inputs { folder: elsewhere };
    drop(inputs);
    let mut config = moved.config();
    let path = moved
        .path("./teacher/../train.jsonl")
        .to_str()
        .unwrap()
        .to_owned();
    config.stages[1].data = vec![path.clone().into(), path.into()];
    let summary = finish(options(config, run, true));
    assert!(summary.notes.is_empty(), "{}", notes(&summary));
    // The second stage goes on in the same text where the first has ended.
    assert!(student(run) == student(whole.path()));
}

/// The files that were read at the start are exported at the end.
#[test]
fn files_that_are_replaced_while_a_run_goes_on_do_not_reach_its_student() {
    let inputs = Inputs::new();
    let run = folder();
    let teacher = inputs.path("teacher");
    let names = [
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "config.json",
    ];
    let original = names.map(|name| fs::read(teacher.join(name)).unwrap());
    let whole = folder();
    super::run(inputs.config(), whole.path());
    let replaced = acting(
        7,
        move || {
            names
                .iter()
                .for_each(|name| fs::write(teacher.join(name), "{}").unwrap())
        },
        options(inputs.config(), run.path(), false),
    );
    finish(replaced);
    let exported = |name: &str| fs::read(run.path().join("student").join(name)).unwrap();
    for (name, original) in names.into_iter().zip(original).take(3) {
        assert!(exported(name) == original, "{name}");
    }
    let of_whole = fs::read(whole.path().join("student/config.json")).unwrap();
    assert!(exported("config.json") == of_whole);
    assert!(student(run.path()) == student(whole.path()));
}

/// Weights that are finite, but give logits that are not.
#[test]
fn a_teacher_that_is_not_finite_is_named() {
    let inputs = Inputs::new();
    let teacher = inputs.path("teacher");
    change_weights(&teacher, NORM, |_| 3e38);
    let run = inputs.path("run");
    let refused = error(options(inputs.config(), &run, false));
    assert!(
        matches!(refused, TrainError::TeacherNotFinite { .. }),
        "{refused}"
    );
    assert!(
        refused.to_string().contains(teacher.to_str().unwrap()),
        "{refused}"
    );
    // It can be started anew under the same name.
    assert!(!run.exists());
}

/// The run's own folder and its cache are not read as text, wherever they are.
#[test]
fn a_run_in_its_folder_of_text_is_resumed() {
    let inputs = Inputs::new();
    let whole = folder();
    super::run(inputs.config(), whole.path());
    let texts = inputs.path("texts");
    fs::create_dir(&texts).unwrap();
    fs::rename(inputs.path(TRAIN), texts.join(TRAIN)).unwrap();
    let run = texts.join("run");
    let mut config = inputs.config();
    config.data.train = vec![texts.to_str().unwrap().into()];
    config.data.cache = texts.join("cache").to_str().unwrap().to_owned();
    let stopped = stopping(8, options(config, &run, false));
    assert_eq!(execute(stopped).expect("a stop"), Outcome::Stopped);
    let summary = resume(&run);
    assert!(summary.notes.is_empty(), "{}", notes(&summary));
    assert!(student(&run) == student(whole.path()));
}

/// The lines without a document are counted, and are as if they were not there.
#[test]
fn bad_lines_are_skipped_up_to_a_number() {
    let inputs = Inputs::new();
    let whole = folder();
    super::run(inputs.config(), whole.path());
    let text = fs::read_to_string(inputs.path(TRAIN)).unwrap();
    let bad = "{\"text\": NaN}\n{\"title\": \"none\"}\n";
    fs::write(inputs.path(TRAIN), format!("{text}{bad}")).unwrap();
    let with = |most: u64| {
        let mut config = inputs.config();
        config.data.skip_bad_lines = most;
        config
    };
    let run = folder();
    let refused = error(options(with(1), run.path(), false)).to_string();
    assert!(refused.contains("line 62"), "{refused}");
    let summary = super::run(with(2), run.path());
    assert_eq!(summary.skipped_lines, 2);
    assert!(summary.to_string().contains("lines of text skipped: 2"));
    assert!(student(run.path()) == student(whole.path()));
}
