//! Evaluations against lm-evaluation-harness: the same documents, its recorded log-likelihoods.
//! `docs/evaluation.md` says how they were recorded.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use datasets::Tokenizer;
use infer::eval::{
    Document, EvalError, Metric, Prompt, Score, ScoreRequest, Task, Texts, metrics, requests, score,
};
use kernels::runtime::Flex;
use model::{CausalLm, Taps};
use serde_json::Value;

use crate::known_students;
use crate::support::{student, teacher_folder};

/// The largest allowed difference to a recorded log-likelihood.
const TOLERANCE: f64 = 1e-3;
/// The positions of the bundled teacher, and the default length for a Phi-Mamba.
const MAX_LENGTH: usize = 2048;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/eval")
        .join(name)
}

fn recorded(name: &str) -> Value {
    serde_json::from_slice(&fs::read(data(name)).unwrap()).unwrap()
}

fn teacher() -> CausalLm<Flex> {
    let device = Device::<Flex>::default();
    model::load_any(teacher_folder(), &device).unwrap().1
}

/// The student of known weights that has the teacher's attention in `attention_layers`.
fn known_student(attention_layers: &[usize]) -> CausalLm<Flex> {
    let folder = tempfile::tempdir().unwrap();
    known_students::write(folder.path(), attention_layers);
    let device = Device::<Flex>::default();
    model::load_any(folder.path(), &device).unwrap().1
}

fn documents(task: Task) -> Vec<Document> {
    let file = task.file_in(&data("")).unwrap();
    task.read(&[file], None).unwrap()
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_folder(teacher_folder()).unwrap()
}

/// The scores of `requests`, in their order.
fn scores(model: &CausalLm<Flex>, requests: &[ScoreRequest], batch_size: usize) -> Vec<Score> {
    let device = Device::<Flex>::default();
    let asked: Vec<&ScoreRequest> = requests.iter().collect();
    let mut scored = Vec::new();
    score(model, &asked, batch_size, &device, |request, score| {
        scored.push((request.clone(), score));
    })
    .unwrap();
    assert_eq!(scored.len(), requests.len());
    let of = |request: &ScoreRequest| {
        let found = scored.iter().find(|(other, _)| other == request);
        found.unwrap().1
    };
    requests.iter().map(of).collect()
}

fn evaluated(model: &CausalLm<Flex>, documents: &[Document]) -> Vec<Vec<Score>> {
    let prompts = documents.iter().flat_map(|document| &document.prompts);
    let requests = requests(prompts, &tokenizer(), MAX_LENGTH).unwrap();
    let mut scores = scores(model, &requests, 16).into_iter();
    let of_document = |document: &Document| scores.by_ref().take(document.prompts.len()).collect();
    documents.iter().map(of_document).collect()
}

/// Every log-likelihood, every greedy answer and every metric of all six tasks.
fn agrees(model: &CausalLm<Flex>, recorded: &Value) {
    for task in Task::OF_THE_PAPER {
        let documents = documents(task);
        let scores = evaluated(model, &documents);
        let samples = recorded["samples"][task.to_string()].as_array().unwrap();
        assert_eq!(samples.len(), documents.len());
        for (i, (scores, sample)) in scores.iter().zip(samples).enumerate() {
            let expected = sample["log_likelihoods"].as_array().unwrap();
            assert_eq!(scores.len(), expected.len(), "{task} {i}");
            for (j, score) in scores.iter().enumerate() {
                let expected = expected[j].as_f64().unwrap();
                let off = (score.log_likelihood - expected).abs();
                assert!(
                    off < TOLERANCE,
                    "{task} {i} {j}: {score:?} is not {expected}"
                );
                assert_eq!(sample["is_greedy"][j], score.is_greedy(), "{task} {i} {j}");
            }
        }
        let results = recorded["results"][task.to_string()].as_object().unwrap();
        let metrics = metrics(&documents, &scores);
        let compared: Vec<&Metric> = (metrics.iter())
            .filter(|metric| results.contains_key(&metric.name))
            .collect();
        assert_eq!(2 * compared.len(), results.len(), "{task}: {metrics:?}");
        for metric in compared {
            let expected = |name: &str| results[name].as_f64().unwrap();
            // Accuracies are equal, to the digits that were recorded; a perplexity is as far off as
            // the log-likelihoods.
            let tolerance = match &*metric.name {
                "perplexity" => TOLERANCE * expected("perplexity"),
                _ => 1e-6,
            };
            let off = (metric.value - expected(&metric.name)).abs();
            assert!(off < tolerance, "{task}: {metric:?}, {results:?}");
            let stderr = expected(&format!("{}_stderr", metric.name));
            let off = (metric.stderr.unwrap() - stderr).abs();
            assert!(
                off < TOLERANCE * stderr.max(TOLERANCE),
                "{task}: {metric:?}, {results:?}"
            );
        }
    }
}

#[test]
fn the_teacher_scores_as_in_the_harness() {
    agrees(&teacher(), &recorded("teacher.json"));
}

#[test]
fn a_student_scores_as_in_the_harness() {
    agrees(&known_student(&[]), &recorded("student.json"));
}

#[test]
fn a_hybrid_scores_as_in_the_harness() {
    agrees(&known_student(&[1]), &recorded("hybrid.json"));
}

/// One request at a time, through the whole network with all of its logits.
fn directly(model: &CausalLm<Flex>, request: &ScoreRequest) -> Score {
    let all = request.ids();
    let read = &all[..all.len() - 1];
    let ids: Vec<i32> = read.iter().map(|&id| id as i32).collect();
    let ids = TensorData::new(ids, [1, read.len()]);
    let ids = Tensor::<Flex, 2, Int>::from_data(ids, &Device::<Flex>::default());
    let taps = Taps {
        logits: true,
        ..Taps::default()
    };
    let logits = model.forward(ids, taps).logits.unwrap().into_data();
    let logits: Vec<f64> = logits.iter().collect();
    let scored = logits.chunks(model.vocab_size()).zip(&all[1..]);
    let unscored = read.len() - request.scored;
    let mut score = Score {
        log_likelihood: 0.0,
        tokens: request.scored as u32,
        greedy: 0,
    };
    for (logits, &target) in scored.skip(unscored) {
        let target = logits[target as usize];
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|logit| (logit - largest).exp()).sum();
        score.log_likelihood += target - largest - sum.ln();
        score.greedy += u32::from(target == largest);
    }
    score
}

#[test]
fn a_batch_changes_nothing() {
    let prompts: Vec<Prompt> = [Task::Winogrande, Task::LambadaOpenai]
        .into_iter()
        .flat_map(|task| documents(task).into_iter().skip(28).take(12))
        .flat_map(|document| document.prompts)
        .collect();
    let requests = requests(&prompts, &tokenizer(), 200).unwrap();
    for model in [student(&[]).1, student(&[1]).1] {
        let expected: Vec<Score> = requests
            .iter()
            .map(|request| directly(&model, request))
            .collect();
        for batch_size in [1, 3, 64] {
            let scores = scores(&model, &requests, batch_size);
            for (score, expected) in scores.iter().zip(&expected) {
                let off = (score.log_likelihood - expected.log_likelihood).abs();
                assert!(off < 1e-4, "{score:?} is not {expected:?}");
                assert_eq!(score.tokens, expected.tokens);
                assert_eq!(score.greedy, expected.greedy);
            }
        }
    }
}

/// The harness's rolling windows, of 512 tokens.
#[test]
fn texts_score_as_in_the_harness() {
    let (tokenizer, model) = (tokenizer(), teacher());
    let recorded = recorded("rolling.json");
    let lines = fs::read_to_string(data("texts.jsonl")).unwrap();
    let expected = recorded["log_likelihoods"].as_array().unwrap();
    assert_eq!(lines.lines().count(), expected.len());
    for (line, expected) in lines.lines().zip(expected) {
        let text: Value = serde_json::from_str(line).unwrap();
        let text = text["text"].as_str().unwrap();
        let mut texts = Texts::default();
        texts.add(text, &tokenizer, 512, 512).unwrap();
        let scores = scores(&model, &texts.requests, 4);
        let metrics = texts.metrics(&scores).unwrap();
        let expected = expected.as_f64().unwrap();
        let off = (metrics.log_likelihood - expected).abs();
        // As a sum over up to a few thousand tokens.
        assert!(
            off < TOLERANCE * scores.len() as f64,
            "{metrics:?}, {expected}"
        );
        let perplexity = (-metrics.log_likelihood / texts.tokens as f64).exp();
        assert!((metrics.perplexity - perplexity).abs() < 1e-9);
        let bits = -metrics.log_likelihood / text.len() as f64 / 2_f64.ln();
        assert!((metrics.bits_per_byte - bits).abs() < 1e-9);
        assert!((metrics.byte_perplexity - bits.exp2()).abs() < 1e-9);
    }
}

#[test]
fn a_narrower_stride_gives_more_context() {
    let (tokenizer, model) = (tokenizer(), teacher());
    let text = fs::read_to_string(data("texts.jsonl")).unwrap();
    let text: String = text.chars().skip(10).take(1500).collect();
    let mut perplexities = Vec::new();
    for stride in [64, 16, 1] {
        let mut texts = Texts::default();
        texts.add(&text, &tokenizer, 64, stride).unwrap();
        let scores = scores(&model, &texts.requests, 16);
        perplexities.push(texts.metrics(&scores).unwrap().perplexity);
    }
    assert!(perplexities[0] > perplexities[1], "{perplexities:?}");
    assert!(perplexities[1] > perplexities[2], "{perplexities:?}");
}

#[test]
fn a_foreign_token_is_an_error() {
    let request = ScoreRequest::new([1, 4096], 1);
    let device = Device::<Flex>::default();
    let scored = score(&teacher(), &[&request], 1, &device, |_, _| {});
    let Err(EvalError::UnknownToken { token, vocab_size }) = scored else {
        panic!("{scored:?}")
    };
    assert_eq!((token, vocab_size), (4096, 4096));
}

/// Normalisation by letters and by bytes, and the first one of equal choices.
#[test]
fn accuracies_differ_in_what_they_divide_by() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("piqa.jsonl");
    let line = r#"{"goal": "g", "sol1": "éééé", "sol2": "aaaaa", "label": 0}"#;
    fs::write(&file, line).unwrap();
    let documents = Task::Piqa.read(&[file], None).unwrap();
    let metrics_of = |first: f64, second: f64| -> Vec<(String, f64)> {
        let score = |log_likelihood| Score {
            log_likelihood,
            tokens: 1,
            greedy: 0,
        };
        let scores = [vec![score(first), score(second)]];
        let metrics = metrics(&documents, &scores);
        assert!(metrics.iter().all(|metric| metric.stderr.is_none()));
        metrics
            .into_iter()
            .map(|metric| (metric.name, metric.value))
            .collect()
    };
    let named = |acc, bytes, norm| {
        let named = [("acc", acc), ("acc_bytes", bytes), ("acc_norm", norm)];
        named.map(|(name, value)| (name.to_owned(), value)).to_vec()
    };
    // 8 bytes are 4 letters.
    assert_eq!(metrics_of(-6.0, -5.0), named(0.0, 1.0, 0.0));
    assert_eq!(metrics_of(-4.0, -5.0), named(1.0, 1.0, 1.0));
    assert_eq!(metrics_of(-9.0, -5.0), named(0.0, 0.0, 0.0));
}
