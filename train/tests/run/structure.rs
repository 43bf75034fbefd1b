//! Structured approximations of given matrices, the study of a teacher's, and that of budgets.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use tests::{Numbers, assert_close};
use train::study::budgets::{BudgetStudy, Split};
use train::study::matrices::classes::{Budget, Class, Fitted};
use train::study::matrices::{MatrixStudy, Settings};

use super::*;

/// The recorded matrices.
const NAMES: [&str; 3] = ["dense", "local", "sharp"];
/// Their tokens.
const L: usize = 32;
/// Steps of the fits here.
const STEPS: usize = 2000;

fn fit(class: Class, targets: &Tensor<Inner, 3>, state: usize, steps: usize) -> Fitted<Inner> {
    let budget = Budget {
        steps,
        lr: 0.01,
        seed: 1,
        stop: &|| false,
    };
    let fitted = class.fit::<Autodiff<Inner>>(targets, &[state], &budget);
    fitted.expect("not asked to stop").remove(0)
}

/// The distances at the end.
fn ends<B: Backend>(fitted: &Fitted<B>) -> &[f64] {
    &fitted.trace.last().expect("a point at the end").distances
}

fn stacked(matrices: impl IntoIterator<Item = Vec<f64>>, l: usize) -> Tensor<Inner, 3> {
    let all: Vec<f64> = matrices.into_iter().flatten().collect();
    let m = all.len() / (l * l);
    Tensor::from_data(TensorData::new(all, [m, l, l]), &Default::default())
}

/// The closed forms give the recorded results; fits by 2,000 steps lie between the lower bound and about twice the
/// median of recorded fits by 10,000.
#[test]
fn recorded_matrices() {
    let goldens = Goldens::open("structured/expected");
    let attention = |name: &&str| goldens.f64(&format!("attention.{name}")).1;
    let targets = stacked(NAMES.iter().map(attention), L);
    let path = tests::goldens_dir().join("structured/table.json");
    let table: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();

    let toeplitz = fit(Class::Toeplitz, &targets, 0, 0);
    let columns = toeplitz.matrices.clone().narrow(2, 0, 1);
    for (i, name) in NAMES.iter().enumerate() {
        let column = columns.clone().narrow(0, i, 1).into_data().convert::<f64>();
        let found = (vec![L], column.to_vec().unwrap());
        assert_close(name, found, goldens.f64(&format!("toeplitz.{name}")), 1e-5);
        let recorded = table[name]["toeplitz"].as_f64().unwrap();
        let distance = ends(&toeplitz)[i];
        assert!(
            (distance / recorded - 1.0).abs() < 1e-5,
            "{name}: {distance}"
        );
    }
    for state in [4, 8] {
        let truncated = fit(Class::Semiseparable, &targets, state, 0);
        let low_rank = fit(Class::LowRank, &targets, state, STEPS);
        let ssd = fit(Class::Ssd, &targets, state, STEPS);
        for (i, name) in NAMES.iter().enumerate() {
            let recorded = |key: &str| table[name][format!("state_{state}")][key].as_f64().unwrap();
            let expected = recorded("ssm_balanced_truncation");
            let distance = ends(&truncated)[i];
            assert!(
                (distance / expected - 1.0).abs() < 1e-4,
                "{name}, {state}: {distance}"
            );
            for (fitted, key) in [
                (&low_rank, "low_rank_10k_adam_median"),
                (&ssd, "ssd_10k_adam_median"),
            ] {
                let (distance, bound) = (ends(fitted)[i], recorded("lower_bound"));
                assert!(distance > bound, "{name}, {state}, {key}: {distance}");
                let most = 2.2 * recorded(key);
                assert!(distance < most, "{name}, {state}, {key}: {distance}");
            }
        }
    }
}

/// If a matrix is in a class, its approximation is exact by a closed form, and nearly exact by 2,000 steps.
#[test]
fn matrices_of_a_class_are_recovered() {
    let l = 24;
    let mut numbers = Numbers::new(5);
    // Uniform, with a variance of 1.
    let mut factor = |n: usize| -> Vec<f64> {
        let each = (0..n * l).map(|_| 3f64.sqrt() * numbers.number());
        each.collect()
    };
    let (b, c, n) = (factor(3), factor(3), 3);
    let taps: Vec<f64> = factor(1);
    let decays: Vec<f64> = factor(1)
        .iter()
        .map(|x| 1.0 / (1.0 + (x - 1.0).exp()))
        .collect();
    let matrix = |entry: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
        let at = |at: usize| (at / l, at % l);
        let each = (0..l * l).map(at);
        each.map(|(i, j)| if j <= i { entry(i, j) } else { 0.0 })
            .collect()
    };
    let dot = |i: usize, j: usize| -> f64 {
        let each = (0..n).map(|k| c[i * n + k] * b[j * n + k]);
        each.sum::<f64>() / n as f64
    };
    let decay = |i: usize, j: usize| decays[j + 1..=i].iter().product::<f64>();
    let toeplitz = stacked([matrix(&|i, j| taps[i - j])], l);
    let low_rank = stacked([matrix(&dot)], l);
    let ssd = stacked([matrix(&|i, j| dot(i, j) * decay(i, j))], l);
    for (class, targets, state, most) in [
        (Class::Toeplitz, &toeplitz, 0, 1e-6),
        (Class::Semiseparable, &low_rank, n, 1e-5),
        (Class::Semiseparable, &ssd, n, 1e-5),
        (Class::LowRank, &low_rank, n, 0.01),
        (Class::Ssd, &ssd, n, 0.12),
    ] {
        let norm: f64 = targets
            .clone()
            .powi_scalar(2)
            .sum()
            .sqrt()
            .into_scalar()
            .into();
        let fitted = fit(class, targets, state, STEPS);
        let relative = ends(&fitted)[0] / norm;
        assert!(relative < most, "{class:?}: {relative}");
        if class.is_by_steps() {
            let first = fitted.trace[0].distances[0] / norm;
            assert!(first > 5.0 * most, "{class:?}: {first} before any step");
        }
    }
}

/// A study writes its table, its numbers and its page. The same study in the same folder uses all fits from there, and
/// another study is refused in this folder.
#[test]
fn a_study_of_the_bundled_teacher() {
    let folder = folder();
    let mut study = MatrixStudy {
        settings: Settings {
            teacher: String::new(),
            text: vec![],
            context: 16,
            sequences: 2,
            heads: 3,
            states: vec![2, 4],
            steps: 25,
            lr: 0.01,
            seeds: vec![1, 2],
        },
        cache: concat!(env!("CARGO_TARGET_TMPDIR"), "/tokens").into(),
        folder: folder.path().to_owned(),
        backend: "flex".into(),
        stop: StopRequest::default(),
    };
    let execute = |study: &MatrixStudy| study.execute::<Autodiff<Inner>>(&Default::default());
    // A study that cannot begin names its text, and leaves the folder to another.
    let short = folder.path().join("short.txt");
    fs::write(&short, "Hello.").unwrap();
    study.settings.text = vec![short.to_str().unwrap().to_owned()];
    let message = execute(&study).unwrap_err().to_string();
    assert!(message.starts_with("the text of the study: "), "{message}");
    study.settings.text = vec![];
    study.stop = StopRequest::when(|| true);
    assert!(execute(&study).expect("no error").is_none());
    study.stop = StopRequest::default();
    let table = execute(&study).expect("no error").expect("a table");
    for words in [
        "6 attention matrices",
        "Equal states: 4",
        "Equal parameters: at most 128",
        "Equal times: state 2",
        "diagonal means (exact)",
        "balanced truncation",
        "Adam, 25 steps",
    ] {
        assert!(table.contains(words), "{words}\n{table}");
    }
    let json = fs::read(folder.path().join("matrices.json")).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["targets"].as_array().unwrap().len(), 6);
    for target in json["targets"].as_array().unwrap() {
        // Rows of a softmax add up to 1, and only the first is one entry alone.
        let norm = target["norm"].as_f64().unwrap();
        assert!((1.0..4.0).contains(&norm), "{norm}");
        let floors = target["floors"].as_array().unwrap();
        assert!(floors[0].as_f64() >= floors[1].as_f64());
    }
    for found in json["approximations"].as_array().unwrap() {
        let trace = found["trace"].as_array().unwrap();
        let end = trace.last().unwrap()["distances"].as_array().unwrap();
        assert_eq!(end.len(), 6, "{}", found["class"]);
        let steps = if found["seed"].is_null() { 0 } else { 25 };
        assert_eq!(trace.last().unwrap()["step"], steps);
    }
    let page = fs::read_to_string(folder.path().join("matrices.html")).unwrap();
    assert_eq!(
        page.matches("data:image/png").count(),
        3 * (1 + Class::ALL.len())
    );

    // Nothing is fitted again: seconds are those of the first time.
    assert_eq!(execute(&study).unwrap().unwrap(), table);
    study.settings.steps = 26;
    let message = execute(&study).unwrap_err().to_string();
    assert!(message.contains("other settings"), "{message}");
}

/// Splits of a budget: a run folder for each, the tokens of each stage, and a recommendation; finished runs are used
/// again.
#[test]
fn splits_of_a_budget() {
    let folder = folder();
    let text = "assets/text/pd-validation.json.gz";
    let mut set = vec![
        format!("data.cache={}/tokens", env!("CARGO_TARGET_TMPDIR")),
        format!("data.train={text}"),
        format!("data.validation={text}"),
    ];
    let fixed = [
        "data.context=32",
        "student.chunk_size=16",
        "evaluation.context=32",
        "evaluation.windows=2",
    ];
    set.extend(fixed.map(str::to_owned));
    for stage in 1..=3 {
        set.push(format!("stage{stage}.batch=2"));
        set.push(format!("stage{stage}.micro_batch=2"));
    }
    let study = BudgetStudy {
        preset: "tiny".into(),
        set,
        tokens: 640,
        splits: vec![Split(vec![0, 0, 100]), Split(vec![20, 30, 50])],
        folder: folder.path().to_owned(),
        backend: "flex".into(),
        stop: StopRequest::default(),
    };
    let execute = || study.execute::<Autodiff<Inner>>(&Default::default());
    let table = execute().expect("no error").expect("a table");
    assert!(table.contains("Advice: "), "{table}");
    let json = fs::read(folder.path().join("budgets.json")).unwrap();
    let rows: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(rows[0]["tokens"], serde_json::json!([0, 0, 640]));
    assert_eq!(rows[1]["tokens"], serde_json::json!([128, 192, 320]));
    for row in rows.as_array().unwrap() {
        assert!(row["ratio"].as_f64().unwrap() > 1.0, "{row}");
    }
    assert!(folder.path().join("split-20-30-50/summary.json").exists());
    assert!(folder.path().join("budgets.html").exists());
    assert_eq!(execute().unwrap().unwrap(), table);
}
