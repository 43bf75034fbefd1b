//! Comparisons of recipes: runs side by side, stopped, resumed and extended.

use train::ablation::{Ablation, Recipe, Variant};

use super::*;

/// A comparison of the last stage alone, of two steps, in `folder`.
fn ablation(folder: &Path, recipes: &[&str], seeds: &[u64], overrides: &[&str]) -> Ablation {
    let recipe = |text: &&str| text.parse::<Recipe>().expect("a recipe");
    let recipes: Vec<_> = recipes.iter().map(recipe).collect();
    let set = small(&[&["stage3.tokens=128"][..], overrides].concat());
    let stages = ["stage3".to_owned()];
    let tiny = Source::Preset("tiny");
    Ablation {
        title: "in little".to_owned(),
        variants: Variant::resolve(tiny, &set, &stages, &recipes, seeds).expect("variants"),
        seeds: seeds.to_vec(),
        folder: folder.to_owned(),
        lockstep: 1,
        backend: "flex".to_owned(),
        stop: StopRequest::default(),
    }
}

fn compare(ablation: &Ablation) -> Result<Option<String>, TrainError> {
    ablation.execute::<Autodiff<Inner>>(&Default::default())
}

/// `table.json`, without times.
fn table(folder: &Path) -> Value {
    let json = fs::read(folder.join("table.json")).expect("a table");
    let mut table: Value = serde_json::from_slice(&json).expect("JSON");
    for row in table["variants"].as_array_mut().expect("rows") {
        row.as_object_mut().expect("a row").remove("seconds");
    }
    table
}

const RECIPES: [&str; 2] = ["name=base", "name=reverse; stage3.loss=reverse_kl"];

#[test]
fn a_comparison_is_stopped_and_continued() {
    let (whole, pieces) = (folder(), folder());
    let markdown = compare(&ablation(whole.path(), &RECIPES, &[1, 2], &[]));
    let markdown = markdown.expect("runs").expect("a table");
    assert!(markdown.contains("minus base"), "{markdown}");
    let expected = table(whole.path());

    // In the first run, and in one after it, when the table has those that have ended.
    for (stops, ended) in [(4, 0), (14, 2)] {
        let mut stopped = ablation(pieces.path(), &RECIPES, &[1, 2], &[]);
        let asked = AtomicUsize::new(0);
        stopped.stop = StopRequest::when(move || asked.fetch_add(1, Ordering::Relaxed) >= stops);
        assert_eq!(compare(&stopped).expect("a stop"), None);
        let table = table(pieces.path());
        let rows = table["variants"].as_array().expect("rows");
        let ratios = rows
            .iter()
            .flat_map(|row| row["ratios"].as_array().expect("a list"));
        assert_eq!(
            ratios.filter(|ratio| ratio.is_number()).count(),
            ended,
            "{table}"
        );
        assert_eq!(rows[1]["left"], serde_json::json!([1, 2]));
        let markdown = fs::read_to_string(pieces.path().join("table.md")).expect("a table");
        assert!(
            markdown.contains("not yet") && !markdown.contains("diverged"),
            "{markdown}"
        );
    }
    let continued = ablation(pieces.path(), &RECIPES, &[1, 2], &[]);
    compare(&continued).expect("runs").expect("a table");
    assert_eq!(table(pieces.path()), expected);

    // The numbers are those of the runs.
    let ratio = |name: &str, seed: u64| {
        let run = whole.path().join(format!("{name}-seed-{seed}"));
        let summary = Summary::read(&run.join("summary.json")).expect("a file");
        summary.expect("a summary").ratio
    };
    let number = |value: &Value| value.as_f64().expect("a number");
    let rows = &expected["variants"];
    let mut differences = vec![];
    for (i, seed) in [1, 2].into_iter().enumerate() {
        let (base, reverse) = (ratio("base", seed), ratio("reverse", seed));
        assert!((number(&rows[0]["ratios"][i]) / base - 1.0).abs() < 1e-12);
        assert!((number(&rows[1]["ratios"][i]) / reverse - 1.0).abs() < 1e-12);
        assert_ne!(base, reverse);
        differences.push(reverse - base);
    }
    let difference = &rows[1]["difference"];
    let mean = 0.5 * (differences[0] + differences[1]);
    let error = 0.5 * (differences[0] - differences[1]).abs();
    assert!((number(&difference["mean"]) - mean).abs() < 1e-9);
    assert!((number(&difference["standard_error"]) - error).abs() < 1e-9);
    assert!(rows[0]["difference"].is_null());
}

/// Finished runs are used and not made again; a folder with other runs is refused and left as it is.
#[test]
fn a_comparison_is_extended() {
    let folder = folder();
    let base = &RECIPES[..1];
    compare(&ablation(folder.path(), base, &[1], &[])).expect("a run");
    let path = folder.path().join("base-seed-1/summary.json");
    let mut summary = Summary::read(&path).unwrap().unwrap();
    summary.ratio = 999.0;
    // As a stage that has collapsed leaves it.
    summary.notes.push(train::metrics::Note {
        stage: "stage3".to_owned(),
        step: 30,
        text: "warning: the student is losing what it had".to_owned(),
    });
    summary.write(&path).unwrap();

    // A run whose loss is no longer a number does not stop the others.
    let recipes = ["name=base", "name=wild; stage3.lr=1e30", RECIPES[1]];
    let more = ablation(folder.path(), &recipes, &[1], &["safety.max_skipped=1"]);
    match compare(&more).expect_err("an error") {
        TrainError::OtherRun {
            folder: run,
            differences,
        } => {
            assert_eq!(run, folder.path().join("base-seed-1"));
            let [only] = &differences[..] else {
                panic!("{differences:?}")
            };
            assert!(only.starts_with("safety.max_skipped, from "), "{only}");
        }
        other => panic!("{other}"),
    }
    assert!(!folder.path().join("wild-seed-1").exists());
    let wild = "name=wild; stage3.lr=1e30; safety.max_skipped=1";
    let recipes = ["name=base", wild, RECIPES[1]];
    let markdown = compare(&ablation(folder.path(), &recipes, &[1], &[]));
    let markdown = markdown.expect("runs").expect("a table");
    assert!(markdown.contains("diverged"), "{markdown}");
    assert!(markdown.contains("999.000, collapsed"), "{markdown}");
    let table = table(folder.path());
    let rows = &table["variants"];
    assert_eq!(rows[0]["ratios"][0], 999.0);
    assert_eq!(rows[0]["collapsed"], serde_json::json!([1]));
    assert_eq!(rows[2]["collapsed"], serde_json::json!([]));
    assert!(rows[1]["ratios"][0].is_null() && rows[1]["difference"].is_null());
    let reason = rows[1]["diverged"][0].as_str().expect("a reason");
    assert!(reason.contains("not finite"), "{reason}");
    let difference = &rows[2]["difference"];
    let mean = difference["mean"].as_f64().expect("a number");
    assert!(mean < 0.0, "{difference}");
    assert!(difference["standard_error"].is_null());
}
