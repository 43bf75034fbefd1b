//! What every teacher must do, whatever the backend.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{Int, Tensor};
use datasets::{PrepareOptions, Split, TokenShards, TokenWindows, Tokenizer};
use kernels::KernelBackend;
use model::{Phi, Taps};
use tests::{Goldens, assert_close, cases, name_of};
use train::config::Evaluation;
use train::evaluate;

use super::*;

pub fn on_every_teacher<B: KernelBackend>(check: impl Fn(&str, &Phi<B>, &Goldens)) {
    for folder in cases("teacher-") {
        let name = name_of(&folder);
        let (_, model) = model::load_teacher(&folder, &Default::default())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let goldens = Goldens::open_path(&folder.join("expected.safetensors"));
        check(&name, &model, &goldens);
    }
}

pub fn whole_sequence<B: KernelBackend>(tolerance: f64) {
    on_every_teacher::<B>(|case, model, goldens| {
        let ids = ids::<B>(goldens, "input_ids", &Default::default());
        let fused = (format!("{case}, fused"), model.clone().fuse_projections());
        for (case, model) in [(case.to_string(), model.clone()), fused] {
            let outputs = model.forward(ids.clone(), Taps::all());
            let matches =
                |key: &str, x: Tensor<B, 3>| assert_golden(&case, goldens, key, x, tolerance);
            matches("logits", outputs.logits.expect("asked for"));
            for (i, x) in outputs.hidden_states.into_iter().enumerate() {
                matches(&format!("hidden_states.{i}"), x);
            }
            for (i, x) in outputs.mixer_outputs.into_iter().enumerate() {
                matches(&format!("attn_outputs.{i}"), x);
            }
            let layers = model.backbone.layers.len();
            assert_eq!(outputs.mixing_matrices.len(), layers);
            for (i, matrix) in outputs.mixing_matrices.into_iter().enumerate() {
                let key = format!("attentions.{i}");
                assert_golden(&case, goldens, &key, matrix, tolerance);
            }
            matches("logits", model.logits(model.features(ids.clone())));
        }
    });
}

/// The key-value cache: any split of a sequence gives the logits of the whole.
pub fn splits<B: KernelBackend>(tolerance: f64) {
    on_every_teacher::<B>(|case, model, goldens| {
        let device = Default::default();
        let ids = ids::<B>(goldens, "input_ids", &device);
        let [b, l] = ids.dims();
        let expected = goldens.f64("logits");
        for split in [vec![l], vec![1; l], vec![5, 1, 1, l - 7], vec![l - 1, 1]] {
            let mut state = model.new_state(b, &device);
            let mut start = 0;
            let pieces = split.iter().map(|n| {
                let piece = ids.clone().narrow(1, start, *n);
                start += n;
                model.prefill_all(piece, &mut state)
            });
            let logits: Tensor<B, 3> = Tensor::cat(pieces.collect(), 1);
            let name = format!("{case}: {split:?}");
            assert_close(&name, values(logits), expected.clone(), tolerance);
        }
    });
}

/// Token by token after a prompt: the logits of the whole sequence.
pub fn decoding<B: KernelBackend>(tolerance: f64) {
    on_every_teacher::<B>(|case, model, goldens| {
        let device = Default::default();
        let ids = ids::<B>(goldens, "input_ids", &device);
        let [b, l] = ids.dims();
        let expected = goldens.f64("logits");
        for prompt in [1, 6] {
            let mut state = model.new_state(b, &device);
            let first = ids.clone().narrow(1, 0, prompt);
            let mut logits = vec![model.prefill_all(first, &mut state)];
            for i in prompt..l {
                let next = ids.clone().narrow(1, i, 1).reshape([b]);
                logits.push(model.step(next, &mut state).unsqueeze_dim(1));
            }
            assert_eq!(state.position, l);
            let logits: Tensor<B, 3> = Tensor::cat(logits, 1);
            let name = format!("{case}: after {prompt}");
            assert_close(&name, values(logits), expected.clone(), tolerance);
        }
    });
}

/// The bundled teacher's folder.
fn phi_tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/phi-tiny")
}

/// The bundled held-out text in windows of 512 tokens.
fn held_out() -> TokenWindows {
    let tokenizer = Tokenizer::from_folder(phi_tiny()).expect("a tokenizer");
    let cache = tempfile::tempdir().expect("a folder");
    let shards = TokenShards::prepare(&PrepareOptions {
        name: "validation",
        sources: vec![phi_tiny().join("../text/pd-validation.json.gz")],
        split: Split::All,
        tokenizer: &tokenizer,
        cache: cache.path().into(),
    });
    TokenWindows::new(Arc::new(shards.expect("shards")), 512).expect("windows")
}

/// The teacher's perplexity over all of the held-out text is what Hugging Face's implementation makes
/// of the same weights, 29.7152, to its last digit.
pub fn perplexity_is_the_recorded<B: KernelBackend>() {
    let device = Default::default();
    let (_, model) = model::load_teacher::<B>(phi_tiny(), &device).expect("a teacher");
    let all = Evaluation {
        context: 512,
        windows: 0,
        batch: 2,
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
    let (_, model) = model::load_teacher::<B>(phi_tiny(), &device).expect("a teacher");
    let ids = TensorData::new(batch.ids, [batch.batch, batch.context]);
    let logits = model.logits(model.features(Tensor::from_data(ids, &device)));
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
