//! Phi against Hugging Face's implementation with the same weights, and its decoding against itself.

mod support;

use burn::tensor::Tensor;
use kernels::KernelBackend;
use model::{Phi, Taps};
use support::*;
use tests::{Goldens, assert_close, cases, name_of};

fn on_every_teacher<B: KernelBackend>(check: impl Fn(&str, &Phi<B>, &Goldens)) {
    for folder in cases("teacher-") {
        let name = name_of(&folder);
        let (_, model) = model::load_teacher(&folder, &Default::default())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let goldens = Goldens::open_path(&folder.join("expected.safetensors"));
        check(&name, &model, &goldens);
    }
}

fn whole_sequence<B: KernelBackend>(tolerance: f64) {
    on_every_teacher::<B>(|case, model, goldens| {
        let ids = ids::<B>(goldens, "input_ids", &Default::default());
        let outputs = model.forward(ids.clone(), Taps::all());
        let matches = |key: &str, x: Tensor<B, 3>| assert_golden(case, goldens, key, x, tolerance);
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
            assert_golden(case, goldens, &format!("attentions.{i}"), matrix, tolerance);
        }
        matches("logits", model.logits(model.features(ids)));
    });
}

#[test]
fn whole_sequence_exact() {
    whole_sequence::<Exact>(EXACT);
}

#[test]
fn whole_sequence_flex() {
    whole_sequence::<Fast>(FAST);
}

#[cfg(feature = "wgpu")]
#[test]
fn whole_sequence_wgpu() {
    on_wgpu(|| whole_sequence::<Wgpu>(FAST));
}

/// Nothing is computed that was not asked for, and each layer alone gives what the network gives.
#[test]
fn taps_and_layers() {
    on_every_teacher::<Exact>(|case, model, goldens| {
        let ids = ids::<Exact>(goldens, "input_ids", &Default::default());
        let outputs = model.forward(ids.clone(), Taps::default());
        assert!(outputs.logits.is_none());
        assert!(outputs.hidden_states.is_empty());
        assert!(outputs.mixer_outputs.is_empty());
        assert!(outputs.mixing_matrices.is_empty());

        let mut x = model.backbone.embedding.forward(ids);
        for (i, layer) in model.backbone.layers.iter().enumerate() {
            let matrix = layer.mixing_matrix(x.clone());
            assert_golden(case, goldens, &format!("attentions.{i}"), matrix, EXACT);
            let mixed = layer.mixer_output(x.clone());
            assert_golden(case, goldens, &format!("attn_outputs.{i}"), mixed, EXACT);
            x = layer.forward(x);
            let key = format!("hidden_states.{}", i + 1);
            assert_golden(case, goldens, &key, x.clone(), EXACT);
        }
    });
}

/// The key-value cache: any split of a sequence gives the logits of the whole.
fn splits<B: KernelBackend>(tolerance: f64) {
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

#[test]
fn splits_exact() {
    splits::<Exact>(EXACT);
}

#[test]
fn splits_flex() {
    splits::<Fast>(FAST);
}

#[cfg(feature = "wgpu")]
#[test]
fn splits_wgpu() {
    on_wgpu(|| splits::<Wgpu>(FAST));
}
