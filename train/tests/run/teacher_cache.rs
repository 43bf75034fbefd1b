//! Stage 3 from a cache of the teacher's predictions.

use model::manifest;
use train::run::CacheTeacher;
use train::teacher_cache::{Manifest, StoredDtype};

use super::failures::error;
use super::results::losses;
use super::*;

/// More ids than there are: all of them.
const ALL: usize = usize::MAX;

/// Writes the cache of stage 3 of `config` into `folder`, and returns its manifest.
fn cache(config: Config, folder: &Path, k: usize, dtype: StoredDtype) -> Manifest {
    let work = CacheTeacher {
        config,
        stage: None,
        folder: folder.to_owned(),
        k,
        dtype,
        backend: "flex".to_owned(),
    };
    work.execute::<Inner>(&Default::default()).expect("a cache");
    let text = fs::read(folder.join("manifest.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// The key that names it.
fn key(folder: &Path) -> String {
    format!("stage3.teacher_cache={}", folder.display())
}

/// A run with these overrides, and the losses of its stage 3.
fn losses_of(overrides: &[&str]) -> (TempDir, Vec<f64>) {
    let folder = folder();
    run(config(overrides), folder.path());
    let losses = losses(folder.path(), "stage3");
    (folder, losses)
}

fn assert_near(name: &str, found: f64, expected: f64, tolerance: f64) {
    let error = (found / expected - 1.0).abs();
    assert!(error <= tolerance, "{name}: {found}, not {expected}");
}

/// With all ids, the cache gives the loss of the teacher in memory; rounding of sums in another order accumulates from
/// step to step. With fewer ids, it gives the loss of `top_k` with the teacher in memory.
#[test]
fn a_cache_takes_the_teacher_s_place() {
    let (whole, expected) = losses_of(&[]);
    let top = ["stage3.top_k=8"];
    let (_, expected_of_top) = losses_of(&top);
    let parent = folder();
    for (name, k, dtype, overrides, expected, tolerance) in [
        ("all, f32", ALL, StoredDtype::F32, &[][..], &expected, 1e-5),
        ("all, f16", ALL, StoredDtype::F16, &[][..], &expected, 1e-3),
        (
            "8 of 8",
            8,
            StoredDtype::F32,
            &[][..],
            &expected_of_top,
            1e-5,
        ),
        (
            "8 of 20",
            20,
            StoredDtype::F32,
            &top[..],
            &expected_of_top,
            1e-5,
        ),
    ] {
        let path = parent.path().join(name);
        let manifest = cache(config(&[]), &path, k, dtype);
        // Stages 1 and 2 read 4 + 5 batches of two sequences before.
        assert_eq!((manifest.first_row, manifest.rows), (18, 8), "{name}");
        assert_eq!(manifest.k, k.min(4096));
        let cache = key(&path);
        let overrides: Vec<_> = overrides.iter().copied().chain([cache.as_str()]).collect();
        let (run, found) = losses_of(&overrides);
        assert_near(name, found[0], expected[0], tolerance);
        for (found, expected) in found.iter().zip(expected) {
            assert_near(name, *found, *expected, 100.0 * tolerance);
        }
        let teacher = |run: &Path| {
            let summary = Summary::read(&run.join("summary.json")).unwrap();
            summary.unwrap().teacher_perplexity
        };
        assert_eq!(teacher(run.path()), teacher(whole.path()));
        let stages_before = |run: &Path| {
            let records = metrics(run).into_iter();
            let is_before = |record: &Value| record["stage"] != "stage3";
            records.filter(is_before).collect::<Vec<_>>()
        };
        assert_eq!(stages_before(run.path()), stages_before(whole.path()));
    }
}

/// Stage 3 alone, from the student of an earlier run. The teacher's weights are invalid: they are only read for their
/// checksum. A stopped run is resumed to the same bits.
#[test]
fn a_run_from_a_cache_loads_no_teacher() {
    let parent = folder();
    let earlier = parent.path().join("earlier");
    run(config_of_stages(&["stage2"], &[]), &earlier);
    let teacher = parent.path().join("teacher");
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/phi-tiny");
    copy_folder(&assets, &teacher);
    let weights = teacher.join("model.safetensors");
    let folder = parent.path().join("cache");
    let set = [
        format!("teacher.model={}", teacher.display()),
        format!("student.from={}", earlier.join("student").display()),
        key(&folder),
    ];
    let set: Vec<_> = set.iter().map(String::as_str).collect();
    cache(
        config_of_stages(&["stage3"], &set[..1]),
        &folder,
        64,
        StoredDtype::F16,
    );

    // Another teacher is refused, whatever its folder is called.
    let sound = manifest::hash(&weights).unwrap();
    fs::write(&weights, "no weights").unwrap();
    let path = parent.path().join("run");
    let config = config_of_stages(&["stage3"], &set);
    let refused = error(options(config.clone(), &path, false)).to_string();
    assert!(
        refused.contains("another teacher (model.safetensors differs)"),
        "{refused}"
    );
    let manifest = folder.join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    let unsound = manifest::hash(&weights).unwrap();
    fs::write(&manifest, text.replace(&sound, &unsound)).unwrap();

    let summary = run(config.clone(), &path);
    assert!(summary.student_perplexity.is_finite());
    assert!(summary.teacher_perplexity > 1.0);
    assert!(fs::read_to_string(path.join("report.html")).is_ok());
    // It begins where the earlier run ended.
    let first = &metrics(&path)[0];
    let last = Summary::read(&earlier.join("summary.json"))
        .unwrap()
        .unwrap();
    assert_near(
        "untrained",
        first["student_perplexity"].as_f64().unwrap(),
        last.student_perplexity,
        1e-6,
    );

    let rest = parent.path().join("rest");
    let stopped = stopping(4, options(config, &rest, false));
    assert_eq!(
        execute(stopped).expect("a run that stops"),
        Outcome::Stopped
    );
    resume(&rest);
    assert!(student(&rest) == student(&path), "the student differs");
    assert_eq!(metrics(&rest), metrics(&path));
}

#[test]
fn what_a_cache_is_not_for_is_refused() {
    let parent = folder();
    let folder = parent.path().join("cache");
    cache(config(&[]), &folder, 4, StoredDtype::F16);
    let of_cache = key(&folder);
    let run = parent.path().join("run");
    let refused = |config: Config| error(options(config, &run, false)).to_string();
    for (set, expected) in [
        ("seed=7", "a seed of 42, where it is 7 here"),
        ("stage3.context=64", "a context of 32, where it is 64 here"),
        ("stage3.tokens=640", "has sequences 18 to 26"),
        ("stage3.top_k=5", "top_k asks for 5"),
    ] {
        let message = refused(config(&[set, &of_cache]));
        assert!(message.contains(expected), "{set}: {message}");
        let path = folder.to_str().unwrap();
        assert!(message.contains(path), "{set}: {message}");
    }
    // A cache for stage 3 alone, which reads other sequences; without the teacher, another perplexity cannot be
    // measured.
    let alone = parent.path().join("alone");
    let of_stage = config_of_stages(&["stage3"], &[]);
    cache(of_stage, &alone, 4, StoredDtype::F16);
    let of_alone = key(&alone);
    let message = refused(config(&[&of_alone]));
    assert!(message.contains("has sequences 0 to 8"), "{message}");
    let earlier = parent.path().join("earlier");
    super::run(config_of_stages(&["stage2"], &[]), &earlier);
    let from = format!("student.from={}", earlier.join("student").display());
    let set = ["evaluation.windows=2", &from, &of_alone];
    let message = refused(config_of_stages(&["stage3"], &set));
    assert!(
        message.contains("its perplexity on this held-out text"),
        "{message}"
    );

    let roll_back = small(&[&of_cache, "guard.action=roll_back"]);
    let message = Config::load(Source::Preset("tiny"), &roll_back)
        .unwrap_err()
        .to_string();
    assert!(message.contains("stage3.teacher_cache"), "{message}");

    // A student of other sizes.
    let message = refused(config(&[&from, "student.d_state=32"]));
    assert!(message.contains("which student.from names"), "{message}");
}
