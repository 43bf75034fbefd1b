//! Complete runs of `train` in small: the bundled teacher, and a few steps of 2 x 32 tokens a stage.
#![cfg(feature = "flex")]

mod ablations;
mod comparison;
mod damage;
mod data;
mod disks;
mod failures;
mod guard;
mod inputs;
mod lists;
mod llama;
mod lockstep;
mod presets;
mod ranks;
mod recipes;
mod results;
mod resume;
mod structure;
mod teacher_cache;
mod within;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::backend::Autodiff;
use serde_json::Value;
use tempfile::TempDir;
use tests::{Goldens, Values};
use train::TrainError;
use train::config::{Config, Source};
use train::run::{Outcome, Run, RunOptions, StopRequest};
use train::summary::Summary;

/// The CPU backend of everyday use.
type Inner = kernels::runtime::Flex;

/// Steps of the three stages.
const STEPS: [usize; 3] = [4, 5, 4];

/// The `tiny` preset at its smallest, with `overrides`: text that is tokenised in a moment, and a
/// checkpoint after every second step, all of them kept.
fn config(overrides: &[&str]) -> Config {
    Config::load(Source::Preset("tiny"), &small(overrides)).expect("a configuration")
}

/// The overrides that make it so small, and `overrides`.
fn small(overrides: &[&str]) -> Vec<String> {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tokens");
    let text = "assets/text/pd-validation.json.gz";
    let mut all = vec![
        format!("data.cache={}", cache.display()),
        format!("data.train={text}"),
        format!("data.validation={text}"),
        "data.context=32".to_owned(),
        "student.chunk_size=16".to_owned(),
        "evaluation.context=32".to_owned(),
        "evaluation.windows=3".to_owned(),
        "evaluation.batch=2".to_owned(),
        "checkpoint.every=2".to_owned(),
        "checkpoint.keep=100".to_owned(),
    ];
    for (stage, steps) in (1..).zip(STEPS) {
        all.push(format!("stage{stage}.tokens={}", steps * 2 * 32));
        all.push(format!("stage{stage}.batch=2"));
        all.push(format!("stage{stage}.micro_batch=2"));
    }
    all.extend(overrides.iter().map(|text| text.to_string()));
    all
}

/// The same with these stages alone.
fn config_of_stages(stages: &[&str], overrides: &[&str]) -> Config {
    let mut config = config(overrides);
    let stages: Vec<_> = stages.iter().map(|name| name.to_string()).collect();
    config.choose_stages(&stages).expect("stages of the preset");
    config
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn options(config: Config, folder: &Path, resume: bool) -> RunOptions {
    RunOptions {
        config,
        folder: folder.to_owned(),
        resume,
        accept_changes: false,
        dashboard: false,
        backend: "flex".to_owned(),
        read_every: None,
        stop: StopRequest::default(),
    }
}

/// Reads the measured values of `every` steps together, as on a device with a queue.
fn reading(every: usize, mut options: RunOptions) -> RunOptions {
    options.read_every = Some(every);
    options
}

fn execute(options: RunOptions) -> Result<Outcome, TrainError> {
    Run::<Autodiff<Inner>>::execute(options, &Default::default())
}

/// A run of `config` in `folder` to its end.
fn run(config: Config, folder: &Path) -> Summary {
    finish(options(config, folder, false))
}

/// The run in `folder` from its newest checkpoint to its end.
fn resume(folder: &Path) -> Summary {
    finish(options(config_of(folder), folder, true))
}

/// Requests a stop at the `n`-th call of `stop`, counted from 0, and at all later ones. It is called before each step,
/// before each batch of an evaluation, and before each layer while mixers are fitted.
fn stopping(n: usize, mut options: RunOptions) -> RunOptions {
    let asked = AtomicUsize::new(0);
    options.stop = StopRequest::when(move || asked.fetch_add(1, Ordering::Relaxed) >= n);
    options
}

/// Calls `act` at the `n`-th call of `stop`, counted from 0, without requesting a stop.
fn acting(n: usize, act: impl Fn() + Send + Sync + 'static, mut options: RunOptions) -> RunOptions {
    let asked = AtomicUsize::new(0);
    options.stop = StopRequest::when(move || {
        if asked.fetch_add(1, Ordering::Relaxed) == n {
            act();
        }
        false
    });
    options
}

/// The notes of a summary, in one text.
fn notes(summary: &Summary) -> String {
    let texts: Vec<_> = summary
        .notes
        .iter()
        .map(|note| note.text.as_str())
        .collect();
    texts.join("\n")
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy_folder(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

/// As [`resume`], with the request to stop already made.
fn resume_and_stop(folder: &Path) -> Outcome {
    let options = stopping(0, options(config_of(folder), folder, true));
    execute(options).expect("a run that stops")
}

fn finish(options: RunOptions) -> Summary {
    match execute(options).expect("a run without errors") {
        Outcome::Finished(summary) => summary,
        Outcome::Stopped => panic!("the run was not asked to stop"),
    }
}

/// As the program reads it for `--resume`.
fn config_of(folder: &Path) -> Config {
    Config::load(Source::File(&folder.join("config.toml")), &[]).expect("a configuration")
}

/// The names in the run's folder of checkpoints, oldest first.
fn checkpoints(run: &Path) -> Vec<String> {
    let entries = fs::read_dir(run.join("checkpoints")).expect("a folder of checkpoints");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("an entry").file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn checkpoint(run: &Path, name: &str) -> PathBuf {
    run.join("checkpoints").join(name)
}

/// The fields of a line of `metrics.jsonl` that differ from run to run.
const TIMES: [&str; 6] = [
    "seconds",
    "tokens_per_second",
    "operations_per_second",
    "device_share",
    "data_wait",
    "memory_bytes",
];

/// The lines of `metrics.jsonl`, without times and memory.
fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let line = |line: &str| {
        let mut record: Value = serde_json::from_str(line).expect("a JSON object a line");
        let record_mut = record.as_object_mut().expect("a JSON object a line");
        for key in TIMES {
            record_mut.remove(key);
        }
        record
    };
    text.lines().map(line).collect()
}

/// `summary` without times and memory.
fn timeless(mut summary: Summary) -> Summary {
    summary.seconds = 0.0;
    summary.tokens_per_second = 0.0;
    summary.peak_memory_bytes = None;
    for stage in &mut summary.stages {
        stage.seconds = 0.0;
    }
    summary
}

/// The bytes of the exported student's weights.
fn student(run: &Path) -> Vec<u8> {
    fs::read(run.join("student/model.safetensors")).expect("an exported student")
}

/// Every tensor of a safetensors file, by name.
fn tensors(file: &Path) -> Vec<(String, Values)> {
    let file = Goldens::open_path(file);
    let tensor = |key: String| (key.clone(), file.f64(&key));
    file.keys().into_iter().map(tensor).collect()
}
