//! The perplexity of the bundled teacher, whatever the backend.

use std::path::PathBuf;
use std::sync::Arc;

use burn::tensor::{Int, Tensor, TensorData};
use datasets::{PrepareOptions, TokenShards, TokenWindows, Tokenizer};
use kernels::KernelBackend;
use tests::networks::{Exact, values};
use train::config::Evaluation;
use train::evaluate;

/// The bundled teacher's folder.
fn phi_tiny() -> PathBuf {
    tests::project_dir().join("assets/phi-tiny")
}

/// The bundled held-out text in windows of 512 tokens.
fn held_out() -> TokenWindows {
    let tokenizer = Tokenizer::from_folder(phi_tiny()).expect("a tokenizer");
    let cache = tempfile::tempdir().expect("a folder");
    let text = phi_tiny().join("../text/pd-validation.json.gz");
    let options = PrepareOptions::new("validation", [text], &tokenizer, cache.path());
    let shards = TokenShards::prepare(&options);
    TokenWindows::new(Arc::new(shards.expect("shards")), 512).expect("windows")
}

/// The teacher's perplexity over all of the held-out text is what Hugging Face's implementation makes
/// of the same weights, 29.7152, to its last digit.
pub fn perplexity_is_the_recorded<B: KernelBackend>() {
    let device = Default::default();
    let (_, model) = model::load_any::<B>(phi_tiny(), &device).expect("a teacher");
    let all = Evaluation {
        context: 512,
        windows: 0,
        batch: 2,
        every: 0,
        tasks: String::new(),
        task_data: String::new(),
        task_limit: 0,
        infer: String::new(),
    };
    let found = evaluate::perplexity(&model, &held_out(), &all, &device, || false);
    let found = found.expect("readable text").expect("a perplexity");
    assert!((found - 29.7152).abs() < 1e-4, "{found}");
}

/// The teacher's perplexity on the first 2,048 tokens of the held-out text, in four windows.
fn perplexity<B: KernelBackend>() -> f64 {
    let device = Default::default();
    let windows = held_out();
    let batch = windows.sequential(4).next().expect("a batch");
    let batch = batch.expect("readable shards");
    let tokens = batch.ids.len();
    let (_, model) = model::load_any::<B>(phi_tiny(), &device).expect("a teacher");
    let ids = TensorData::new(batch.ids, [batch.batch, batch.context]);
    let ids = Tensor::<B, 2, Int>::from_data(ids, &device);
    let logits = model.logits(model.features(ids));
    let labels = TensorData::new(batch.labels, [tokens]);
    let labels = Tensor::<B, 1, Int>::from_data(labels, &device);
    let loss = kernels::cross_entropy(logits.flatten::<2>(0, 1), labels);
    values(loss).1.into_iter().sum::<f64>().exp()
}

/// Within 1e-5: roundings of 6e-8 in a few hundred sums, averaged over the tokens.
pub fn perplexity_is_exact<B: KernelBackend>() {
    let (actual, exact) = (perplexity::<B>(), perplexity::<Exact>());
    let error = actual / exact - 1.0;
    assert!(error.abs() < 1e-5, "{actual} instead of {exact}");
}
